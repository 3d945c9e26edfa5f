//! The configuration of a guest.

use std::path::{Path, PathBuf};

use crate::{Kernel, Nic, Testbed};

/// The program that runs a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Frontend {
    /// QEMU with a kernel of Debian's: under KVM where that runs stock kernels, else under TCG.
    Qemu(Kernel),
    /// User Mode Linux 6.1.
    Uml,
    /// Cloud Hypervisor with a kernel of Debian's, under KVM.
    CloudHypervisor(Kernel),
}

/// A guest to be.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// Its name on the testbed.
    pub name: String,
    /// The program that runs it.
    pub frontend: Frontend,
    /// Its memory in MiB.
    pub memory: u32,
    /// Its processors. User Mode Linux has one whatever this says.
    pub vcpus: u32,
    /// Its network interfaces.
    pub nics: Vec<Nic>,
    /// The host's CPUs to which it is bound; all if empty.
    pub cpus: Vec<usize>,
    /// Whether back-ends can see its memory, as they must. User Mode Linux always shares.
    pub shares_memory: bool,
    /// Memory in MiB that can be plugged in, and how (`acpi`, `virtio-mem`); Cloud Hypervisor only.
    pub hotplug: Option<(u32, String)>,
    /// A directory that stands for a host: a launcher runs in it, and its ports' sockets are
    /// relative to it.
    pub host: Option<PathBuf>,
    /// Words of a command that runs the program; none if empty.
    pub run_by: Vec<String>,
}

impl VmConfig {
    /// A guest with 256 MiB, one processor and no network.
    pub fn new(name: &str, frontend: Frontend) -> Self {
        Self {
            name: name.to_owned(),
            frontend,
            memory: 256,
            vcpus: 1,
            nics: Vec::new(),
            cpus: Vec::new(),
            shares_memory: true,
            hotplug: None,
            host: None,
            run_by: Vec::new(),
        }
    }

    /// The same with one more interface.
    #[must_use]
    pub fn nic(mut self, nic: Nic) -> Self {
        self.nics.push(nic);
        self
    }

    /// The same with more processors.
    #[must_use]
    pub fn vcpus(self, vcpus: u32) -> Self {
        Self { vcpus, ..self }
    }

    /// The same with room for more memory, in MiB, plugged in by `method`: `acpi` or `virtio-mem`.
    #[must_use]
    pub fn hotplug(self, memory: u32, method: &str) -> Self {
        Self {
            hotplug: Some((memory, method.to_owned())),
            ..self
        }
    }

    /// The same with its launcher in the directory `host`.
    #[must_use]
    pub fn on_host(self, host: &Path) -> Self {
        Self {
            host: Some(host.to_path_buf()),
            ..self
        }
    }

    /// The same with its program run by a command, as by `setpriv`.
    #[must_use]
    pub fn run_by(self, words: Vec<String>) -> Self {
        Self {
            run_by: words,
            ..self
        }
    }

    /// The same bound to CPUs of the host.
    #[must_use]
    pub fn cpus(self, cpus: &[usize]) -> Self {
        Self {
            cpus: cpus.to_vec(),
            ..self
        }
    }

    /// The same with memory that no back-end can see: a mistake that users make.
    #[must_use]
    pub fn without_shared_memory(self) -> Self {
        Self {
            shares_memory: false,
            ..self
        }
    }

    /// Socket of QEMU's monitor, or of Cloud Hypervisor's API.
    pub(crate) fn monitor(&self, bed: &Testbed) -> PathBuf {
        let kind = match self.frontend {
            Frontend::CloudHypervisor(_) => "api",
            _ => "qmp",
        };
        bed.path(&format!("vm-{}.{kind}", self.name))
    }

    /// Log of the guest's console.
    pub(crate) fn console(&self, bed: &Testbed) -> PathBuf {
        bed.path(&format!("vm-{}.console", self.name))
    }
}
