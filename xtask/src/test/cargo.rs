//! How the steps of `cargo xtask test` run cargo.

use std::ffi::OsStr;
use std::process::Command;

use crate::root::root;

/// Cargo in the workspace's root, with these variables beside its own.
pub(super) fn cargo(arguments: &[impl AsRef<OsStr>], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new("cargo");
    command
        .current_dir(root())
        .args(arguments)
        .envs(environment.iter().copied());
    // Set by the cargo that runs this program, and wrong for another toolchain.
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
    command
}
