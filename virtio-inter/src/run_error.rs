//! Why a port or uplink ends without a shutdown signal.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a port or uplink ends without a shutdown signal.
#[derive(Debug, Error)]
pub enum RunError {
    /// The kernel cannot watch descriptors any more.
    #[error("Cannot wait for events")]
    Wait(#[from] io::Error),
    /// A signal came that should not be sent to a port.
    #[error("{0}")]
    Signal(String),
    /// The sandbox keeps the port from its files, and its supervisor can start it again.
    #[error(
        "Directory {} was replaced, and the sandbox confines this port to the former one: it ends \
         to be started again",
        .0.display()
    )]
    Directory(PathBuf),
}
