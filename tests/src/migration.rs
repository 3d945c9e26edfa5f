//! A running guest moves to another process of this host, under QEMU and Cloud Hypervisor. Running
//! commands in it continue.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::json;

use crate::monitor::Monitor;
use crate::{
    Backend, Frontend, Kernel, Port, Process, Result, Segment, Tap, Testbed, Vm, VmConfig, process,
    wait,
};
use crate::{cloud_hypervisor, launcher, qemu, vm, vmm};

/// How long a migration may take: it may have to copy pages again and again.
const LIMIT: Duration = Duration::from_secs(120);
/// How long the new process may take until it can be talked to, and the old one until it has ended.
const START_LIMIT: Duration = Duration::from_secs(30);
/// QEMU's limits of bytes a second, and of the guest's downtime in milliseconds. First so low that
/// it copies pages again while the guest writes them, and cannot end; then so high that it ends.
const SLOWLY: (u64, u32) = (300 << 20, 1);
const TO_ITS_END: (u64, u32) = (1 << 40, 10_000);
/// Number of times that QEMU fetches the dirty pages before it may end. The first is the beginning.
const PASSES: u64 = 4;

/// Limits of a migration whose memory Cloud Hypervisor copies: it stops the guest for the rest once
/// that would take less than so many milliseconds, or after so many seconds in any case. By default
/// it tries for an hour to stay below 300 ms, which an emulated processor may never reach.
const BOUNDS: &str = ",downtime_ms=2000,timeout_s=30,timeout_strategy=ignore";

impl Vm {
    /// Moves the running guest to a new process of its frontend, its memory copied while it runs.
    /// Its ports serve both meanwhile. Not for User Mode Linux.
    ///
    /// # Errors
    ///
    /// A migration that fails. A guest of Cloud Hypervisor then stays where it was, and continues.
    pub fn migrate(&mut self, bed: &Testbed) -> Result<()> {
        match self.config.frontend {
            Frontend::Qemu(kernel) => self.migrate_qemu(bed, kernel, &[]),
            Frontend::CloudHypervisor(_) => self.migrate_vmm(bed, false),
            Frontend::Uml => bail!("User Mode Linux does not migrate"),
        }
        .with_context(|| self.story())
    }

    /// The same to these ports, one for each interface: those of another host. QEMU only.
    ///
    /// # Errors
    ///
    /// As for [`Vm::migrate`].
    pub fn migrate_to_ports(&mut self, bed: &Testbed, ports: &[&Port]) -> Result<()> {
        match self.config.frontend {
            Frontend::Qemu(kernel) => self.migrate_qemu(bed, kernel, ports),
            _ => bail!("Only QEMU's guests move to other ports"),
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

    /// Its interfaces stay on their ports where there are no others.
    fn migrate_qemu(&mut self, bed: &Testbed, kernel: Kernel, ports: &[&Port]) -> Result<()> {
        let mut config = VmConfig {
            name: self.next_name(),
            ..self.config.clone()
        };
        for (nic, port) in config.nics.iter_mut().zip(ports) {
            nic.backend = Backend::VhostUser(port.socket().to_path_buf());
        }
        let socket = bed.path(&format!("vm-{}.migration", config.name));
        let uri = format!("unix:{}", socket.display());
        let mut command = qemu::command(bed, &config, kernel, vm::fastest_accelerator())?;
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
        let limit = |monitor: &mut Monitor, (bandwidth, downtime): (u64, u32)| {
            let limits = json!({"max-bandwidth": bandwidth, "downtime-limit": downtime});
            monitor.execute_with("migrate-set-parameters", &limits)
        };
        limit(&mut monitor, SLOWLY)?;
        monitor.execute_with("migrate", &json!({"uri": uri}))?;
        let mut is_limited = true;
        wait::until("end of a migration", LIMIT, || {
            let state = monitor.execute_with("query-migrate", &json!({}))?;
            let passes = state["ram"]["dirty-sync-count"].as_u64();
            if is_limited && passes >= Some(PASSES) {
                limit(&mut monitor, TO_ITS_END)?;
                is_limited = false;
            }
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
        self.config.nics = config.nics;
        self.process = process;
        Ok(())
    }

    fn migrate_vmm(&mut self, bed: &Testbed, local: bool) -> Result<()> {
        let config = self.config.clone();
        self.move_to(bed, config, if local { ",local=on" } else { BOUNDS })
    }

    /// Moves the running guest, its memory copied while it runs, to a launcher in the directory
    /// `host`, on whose segments, and with whose uplinks, its interfaces then are.
    ///
    /// # Errors
    ///
    /// As for [`Vm::migrate`].
    pub fn migrate_to(
        &mut self,
        bed: &Testbed,
        host: &Path,
        networks: &[(&Segment, Option<&Tap>)],
    ) -> Result<()> {
        let mut config = self.config.clone().on_host(host);
        for (nic, (segment, uplink)) in config.nics.iter_mut().zip(networks) {
            nic.backend = Backend::InterVm(segment.path().to_path_buf());
            nic.uplink = uplink.cloned();
        }
        self.move_to(bed, config, BOUNDS)
            .with_context(|| self.story())
    }

    /// Moves the guest to a new VMM. If it has interfaces of a launcher, a launcher starts that VMM
    /// too, with the same devices.
    fn move_to(&mut self, bed: &Testbed, config: VmConfig, options: &str) -> Result<()> {
        let name = self.next_name();
        let api = bed.path(&format!("vm-{name}.api"));
        let socket = bed.path(&format!("vm-{name}.migration"));
        let is_launched = config.nics.iter().any(launcher::is_for);
        let (command, remote) = if is_launched {
            let remote = launcher::program("ch-remote-ext")?;
            (launcher::receiver(&config, &api)?, remote)
        } else {
            (vmm::command(&api)?, vmm::remote_program()?)
        };
        let (mut process, channel) = cloud_hypervisor::start(
            &format!("VMM {name}"),
            command,
            &bed.path(&format!("vm-{name}.log")),
            &config.cpus,
        )?;
        vmm::wait_until_answers(&api).with_context(|| process.log())?;
        let url = format!("unix:{}", socket.display());
        let mut receive = Command::new(&remote);
        receive
            .env("CH_REMOTE", vmm::remote_program()?)
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
        let send = ["send-migration", &format!("destination_url={url}{options}")];
        // The answer comes before the migration is over; the receiver reports its result.
        let moved = vmm::request_by(&remote, &self.monitor, &send)
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
        (self.process, self.monitor, self.config) = (process, api, config);
        fs::remove_file(&socket).ok();
        Ok(())
    }
}
