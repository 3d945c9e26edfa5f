//! Operations of Cloud Hypervisor's guests, through `ch-remote`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Vm;
use crate::cloud_hypervisor::{Console, net, start};
use crate::{Nic, Result, Testbed, launcher, vmm, wait};

/// Operations of Cloud Hypervisor's guests only.
impl Vm {
    /// Sends a request to the VMM by `ch-remote` and returns the answer.
    ///
    /// # Errors
    ///
    /// A refusal of the VMM, or no answer within 120 s.
    pub fn request(&self, arguments: &[&str]) -> Result<String> {
        vmm::request(&self.monitor, arguments)
    }

    /// Plugs an interface into the running guest, waits for it there and gives it its addresses.
    ///
    /// # Errors
    ///
    /// A refusal of the VMM, or an interface that does not appear in the guest.
    pub fn plug(&mut self, nic: Nic) -> Result<()> {
        let index = self.config.nics.len();
        match launcher::inter_vm(&self.config, index, &nic) {
            Some(value) => self.request_ext(&["add-device", &format!("inter-vm,{value}")])?,
            None => self.request(&["add-net", &net(index, &nic)?])?,
        };
        self.config.nics.push(nic);
        self.configure_network()
    }

    /// Unplugs the last interface and waits until the guest and the VMM have released it.
    ///
    /// # Errors
    ///
    /// A refusal of the VMM, or an interface that stays.
    pub fn unplug(&mut self) -> Result<()> {
        let index = self.config.nics.len() - 1;
        let mac = self.nic(index).mac.to_string();
        let id = format!("net{index}");
        if launcher::is_for(self.nic(index)) {
            self.request_ext(&["remove-device", &id])?;
        } else {
            self.request(&["remove-device", &id])?;
        }
        wait::until("end of an unplugged interface", vmm::ANSWER_LIMIT, || {
            let there = self.run(&["ip", "-brief", "link"])?.contains(&mac)
                || self.request(&["info"])?.contains(&format!("\"{id}\""));
            Ok((!there).then_some(()))
        })?;
        self.config.nics.pop();
        Ok(())
    }

    /// Pauses the guest and writes all its state into a new directory, whose path is returned.
    ///
    /// # Errors
    ///
    /// A refusal of the VMM.
    pub fn snapshot(&self, bed: &Testbed, name: &str) -> Result<PathBuf> {
        let directory = bed.path(name);
        fs::create_dir(&directory).context("Making a snapshot's directory")?;
        self.pause()?;
        self.request(&["snapshot", &format!("file://{}", directory.display())])?;
        Ok(directory)
    }

    /// Ends the VMM and continues from a snapshot in a new one. Running commands in the guest
    /// continue as well. A stock VMM is killed; a launcher's is asked to end, as its next one has
    /// the same sockets.
    ///
    /// # Errors
    ///
    /// A VMM that does not restore it.
    pub fn restore(&mut self, bed: &Testbed, snapshot: &Path) -> Result<()> {
        let source = format!("source_url=file://{},resume=true", snapshot.display());
        let log = bed.path(&format!("vm-{}.log", self.config.name));
        let name = format!("restored guest {}", self.config.name);
        if self.config.nics.iter().any(launcher::is_for) {
            let (console, channel) = Console::new()?;
            self.agent.expect(Some(channel.from_guest));
            self.request_ext(&["shutdown-vmm"])?;
            self.process.wait(vmm::ANSWER_LIMIT)?;
            self.agent.switch(channel.to_guest);
            let command = launcher::restore(&self.config, &self.monitor, &source)?;
            self.process = console.start(&name, command, &log, &self.config.cpus)?;
            return vmm::wait_until_answers(&self.monitor).with_context(|| self.story());
        }
        self.generation += 1;
        let api = bed.path(&format!("vm-{}-{}.api", self.config.name, self.generation));
        let (process, channel) = start(&name, vmm::command(&api)?, &log, &self.config.cpus)?;
        vmm::wait_until_answers(&api).with_context(|| self.story())?;
        self.agent.expect(Some(channel.from_guest));
        self.process.kill()?;
        self.agent.switch(channel.to_guest);
        (self.process, self.monitor) = (process, api);
        self.request(&["restore", &source])
            .with_context(|| self.story())
            .map(drop)
    }
}
