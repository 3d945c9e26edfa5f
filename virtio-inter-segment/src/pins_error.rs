//! Why the pins of a segment keep ports out.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why there are no pins that hold.
#[derive(Debug, Error)]
pub enum PinsError {
    /// It cannot be opened or read.
    #[error("Failed to read {}", path.display())]
    Read {
        /// Of the file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It is no file, too long, or others may write to it.
    #[error("{} {problem}", path.display())]
    Unusable {
        /// Of the file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A line is wrong.
    #[error("Line {number} of {}: {reason}", path.display())]
    Line {
        /// Of the file.
        path: PathBuf,
        /// From 1 on.
        number: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// They do not let this port in.
    #[error("{} does not let this port in: {reason}", path.display())]
    Refused {
        /// Of the file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
}
