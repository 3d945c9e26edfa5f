//! How a soak runs.

use std::path::PathBuf;
use std::time::Duration;

/// What a soak does, and when it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Length {
    /// All faults, for this time.
    Time(Duration),
    /// So many kills of ports, with nothing else done: no stream may begin again.
    Kills(u32),
    /// Each port is ended once, and this program started in its place: no stream may begin again.
    Upgrade(PathBuf),
}

/// How a soak runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Decides the schedule.
    pub seed: u64,
    /// When it is over.
    pub length: Length,
    /// The program `virtio-inter-mock-vm`.
    pub vm_program: PathBuf,
    /// The program of the ports, as in [`crate::PortConfig`].
    pub port_program: Option<PathBuf>,
    /// The testbed is on a small file system, which can be filled.
    pub small_disk: bool,
    /// Where the logs are kept of a run that failed.
    pub logs: PathBuf,
    /// Print each step.
    pub verbose: bool,
}
