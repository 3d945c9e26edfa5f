//! The option `--sandbox`: what is done about walls, and about those that the system lacks.

use clap::ValueEnum;
use serde::Serialize;

/// How much of the sandbox is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// No wall
    Off,
    /// As on, but a forbidden system call is logged by the kernel instead of ending the process
    Log,
    /// All walls that the system has; the log and the status name those that are missing
    #[default]
    On,
    /// As on, but a missing wall is an error
    Strict,
}
