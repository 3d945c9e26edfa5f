//! A running guest goes to another process of this host, under QEMU and Cloud Hypervisor. Commands under way in it go on.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::json;

use crate::monitor::Monitor;
use crate::{Frontend, Kernel, Process, Result, Testbed, Vm, VmConfig, process, wait};
use crate::{cloud_hypervisor, qemu, vm};

/// How long a migration may take: it may have to copy pages again and again.
const LIMIT: Duration = Duration::from_secs(120);
/// How long the new process may take until it can be talked to, and the old one until it has ended.
const START_LIMIT: Duration = Duration::from_secs(30);
/// QEMU's bytes a second: as many as there can be, so that a busy guest's pages are copied faster than it writes them.
const BANDWIDTH: u64 = 1 << 40;
/// How long QEMU may let the guest stand still, in milliseconds.
const DOWNTIME: u32 = 1000;

impl Vm {
    /// Moves the running guest to a new process of its frontend, its memory copied while it runs. Its ports serve both
    /// meanwhile. Not for User Mode Linux.
    ///
    /// # Errors
    ///
    /// A migration that fails. A guest of Cloud Hypervisor's is then where it was, and goes on.
    pub fn migrate(&mut self, bed: &Testbed) -> Result<()> {
        match self.config.frontend {
            Frontend::Qemu(kernel) => self.migrate_qemu(bed, kernel),
            Frontend::CloudHypervisor(_) => self.migrate_vmm(bed, false),
            Frontend::Uml => bail!("User Mode Linux does not migrate"),
        }
        .with_context(|| self.story())
    }

    /// The same with the memory handed over, not copied: Cloud Hypervisor only.
    ///
    /// # Errors
    ///
    /// As for [`Vm::migrate`].
    pub fn migrate_locally(&mut self, bed: &Testbed) -> Result<()> {
        self.migrate_vmm(bed, true).with_context(|| self.story())
    }

    /// The name of its next process, by which sockets and logs are called.
    fn next_name(&mut self) -> String {
        self.generation += 1;
        format!("{}-{}", self.config.name, self.generation)
    }

    fn migrate_qemu(&mut self, bed: &Testbed, kernel: Kernel) -> Result<()> {
        let config = VmConfig {
            name: self.next_name(),
            ..self.config.clone()
        };
        let socket = bed.path(&format!("vm-{}.migration", config.name));
        let uri = format!("unix:{}", socket.display());
        let mut command = qemu::command(bed, &config, kernel, None)?;
        command.args(["-incoming", &uri]);
        let log = bed.path(&format!("vm-{}.log", config.name));
        let name = format!("guest {}", config.name);
        let (mut process, channel) = vm::on_socket(&name, command, &log, &config.cpus)?;
        wait::until("socket for a migration", START_LIMIT, || {
            ensure!(
                process.is_running(),
                "The new QEMU ended: {}",
                process.log()
            );
            Ok(socket.exists().then_some(()))
        })?;
        self.agent.expect(Some(channel.from_guest));
        let mut monitor = Monitor::connect(&self.monitor)?;
        monitor.execute_with(
            "migrate-set-parameters",
            &json!({"max-bandwidth": BANDWIDTH, "downtime-limit": DOWNTIME}),
        )?;
        monitor.execute_with("migrate", &json!({"uri": uri}))?;
        wait::until("end of a migration", LIMIT, || {
            let state = monitor.execute_with("query-migrate", &json!({}))?;
            match state["status"].as_str() {
                Some("completed") => Ok(Some(())),
                Some("failed" | "cancelled") => bail!("The migration failed: {state}"),
                _ => Ok(None),
            }
        })
        .with_context(|| format!("The new QEMU wrote: {}", process.log()))?;
        self.agent.switch(channel.to_guest);
        self.process.kill()?;
        (self.console, self.monitor) = (config.console(bed), config.monitor(bed));
        self.process = process;
        Ok(())
    }

    fn migrate_vmm(&mut self, bed: &Testbed, local: bool) -> Result<()> {
        let name = self.next_name();
        let api = bed.path(&format!("vm-{name}.api"));
        let socket = bed.path(&format!("vm-{name}.migration"));
        let (mut process, channel) = cloud_hypervisor::start(
            &format!("VMM {name}"),
            cloud_hypervisor::vmm(&api)?,
            &bed.path(&format!("vm-{name}.log")),
            &self.config.cpus,
        )?;
        cloud_hypervisor::wait_for_vmm(&api)?;
        let url = format!("unix:{}", socket.display());
        let mut receive = Command::new(cloud_hypervisor::remote_program()?);
        receive
            .arg("--api-socket")
            .arg(&api)
            .args(["receive-migration", &format!("receiver_url={url}")])
            .stdin(process::no_input().context("Opening an empty input")?);
        let log = bed.path(&format!("vm-{name}.receive.log"));
        let mut receive = Process::start(&format!("ch-remote {name}"), receive, &log, &[])?;
        wait::until("socket for a migration", START_LIMIT, || {
            ensure!(process.is_running(), "The new VMM ended: {}", process.log());
            ensure!(receive.is_running(), "ch-remote ended: {}", receive.log());
            Ok(socket.exists().then_some(()))
        })?;
        self.agent.expect(Some(channel.from_guest));
        let option = if local { ",local=on" } else { "" };
        // The answer comes before the migration is over; what became of it, the receiver tells.
        let moved = self
            .request(&["send-migration", &format!("destination_url={url}{option}")])
            .and_then(|_| receive.wait(LIMIT))
            .and_then(|status| {
                ensure!(
                    status.success(),
                    "The new VMM failed: {}{}",
                    receive.log(),
                    process.log()
                );
                Ok(())
            });
        if let Err(error) = moved {
            // It stays where it was.
            self.agent.expect(None);
            return Err(error);
        }
        self.agent.switch(channel.to_guest);
        // The former has no guest any more, and ends by itself.
        self.process.wait(START_LIMIT)?;
        (self.process, self.monitor) = (process, api);
        fs::remove_file(&socket).ok();
        Ok(())
    }
}
