//! Operations of a launcher's guests, through `ch-remote-ext`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::Vm;
use crate::{Result, launcher, vmm};

/// How long a guest may take to reboot.
const REBOOT_LIMIT: Duration = Duration::from_secs(120);

/// Operations of a launcher's guests only.
impl Vm {
    /// Sends a request to the VMM and its supervisor by `ch-remote-ext` and returns the answer.
    ///
    /// # Errors
    ///
    /// A refusal, or no answer within 120 s.
    pub fn request_ext(&self, arguments: &[&str]) -> Result<String> {
        let program = launcher::program("ch-remote-ext")?;
        vmm::request_by(&program, &self.monitor, arguments)
    }

    /// The status of the guest's ports: `inter-vm list --json`.
    ///
    /// # Errors
    ///
    /// A supervisor that is not there.
    pub fn inter_vm_ports(&self) -> Result<serde_json::Value> {
        let text = self.request_ext(&["inter-vm", "list", "--json"])?;
        serde_json::from_str(&text).context("Reading the list of ports")
    }

    /// Has the VMM reboot the guest, and waits until it is as ready as after [`Vm::boot`].
    ///
    /// # Errors
    ///
    /// A guest that does not come back in time.
    pub fn reboot_by_vmm(&self) -> Result<()> {
        let boots = self.agent.boots();
        self.request_ext(&["reboot"])?;
        self.agent
            .wait_for_boot(boots + 1, REBOOT_LIMIT)
            .with_context(|| self.story())?;
        self.configure_network()
    }

    /// The directory of the supervisor's sockets.
    pub fn supervisor_directory(&self) -> PathBuf {
        let mut path = self.monitor.clone().into_os_string();
        path.push(".inter-vm");
        Path::new(&path).to_path_buf()
    }
}
