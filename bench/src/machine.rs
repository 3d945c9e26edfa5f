//! The machine that measured, in words that let others judge its figures.

use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// Facts about the machine when a run began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processors' model.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The host's kernel.
    pub kernel: String,
    /// The governor that sets the clock rate; none where the machine does not report it, as most
    /// virtual ones.
    pub governor: Option<String>,
    /// Whether it is a virtual machine itself.
    pub is_virtual: bool,
    /// Whether its `/dev/kvm` runs stock kernels.
    pub has_kvm: bool,
    /// Version of its control groups, if some could be made.
    #[serde(default)]
    pub control_groups: Option<u8>,
}

impl Machine {
    /// Looks at this machine.
    pub fn of_this_host(cpus: usize, has_kvm: bool, control_groups: Option<u8>) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let field = |name: &str| {
            info.lines()
                .find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))
                .map(|value| value.trim().to_owned())
                .unwrap_or_default()
        };
        let memory = read("/proc/meminfo");
        let kib = memory
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"))
            .and_then(|kib| kib.parse::<u64>().ok())
            .unwrap_or_default();
        let governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        Self {
            cpu: field("model name"),
            cpus,
            memory_mib: kib / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            governor: Some(governor.trim().to_owned()).filter(|name| !name.is_empty()),
            is_virtual: field("flags").split(' ').any(|flag| flag == "hypervisor"),
            has_kvm,
            control_groups,
        }
    }

    /// In one sentence.
    pub fn describe(&self) -> String {
        format!(
            "{}, {} CPUs, {} GiB, Linux {}{}; governor: {}; KVM: {}; control groups: {}",
            self.cpu,
            self.cpus,
            (self.memory_mib + 512) / 1024,
            self.kernel,
            if self.is_virtual {
                ", itself a virtual machine"
            } else {
                ""
            },
            self.governor.as_deref().unwrap_or("not told"),
            if self.has_kvm { "yes" } else { "no" },
            self.control_groups
                .map_or("none".to_owned(), |version| format!("cgroup v{version}")),
        )
    }
}

/// Processes that ran or wanted to, averaged over the last minute (proc(5), loadavg).
pub fn load_average() -> f64 {
    fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}

/// A command's output, trimmed; empty if it fails.
pub fn told(program: &str, arguments: &[&str]) -> String {
    Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}
