//! The option `--sandbox`: what is done about walls, and about those that the system lacks.

use clap::{Args, ValueEnum};
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

/// The option `--sandbox` of every command that reads what others write, for as long as it runs.
#[derive(Debug, Clone, Copy, Args)]
pub struct SandboxArgs {
    /// Restrict the process to the files and system calls that it needs (Landlock, seccomp, no
    /// capabilities). on: as far as the kernel can, and log what it cannot; strict: do not start if
    /// anything is missing; log: the kernel logs a forbidden system call instead of killing the
    /// process; off: no restriction
    #[arg(
        long = "sandbox",
        value_name = "MODE",
        default_value = "on",
        hide_possible_values = true
    )]
    pub mode: Mode,
}
