//! The programs that a run starts.

use std::path::PathBuf;

/// The programs that a run starts.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `virtio-inter`; if none, what the environment names.
    pub port: Option<PathBuf>,
    /// `virtio-inter-bench`, which moves bytes between processes of the host.
    pub bench: PathBuf,
    /// The directory with Open vSwitch's unpacked packages, if they could be had.
    pub open_vswitch: Option<PathBuf>,
}
