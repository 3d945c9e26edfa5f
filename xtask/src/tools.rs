//! Programs of crates.io that commands of the project run, such as `cargo-deb` and `mdbook`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::root::root;

/// A program of crates.io.
pub(crate) struct Tool {
    /// Its crate, and its program.
    pub(crate) name: &'static str,
    /// Arguments with which it prints its version and nothing else.
    pub(crate) version: &'static [&'static str],
    /// Arguments of `cargo install` beside its name.
    pub(crate) install: &'static [&'static str],
}

impl Tool {
    /// The program: that of this user, else one below `target/`, installed if need be.
    ///
    /// # Errors
    ///
    /// When it cannot be installed.
    pub(crate) fn program(&self) -> Result<PathBuf> {
        let tools = root().join("target").join("tools");
        let own = tools.join("bin").join(self.name);
        for program in [Path::new(self.name), &own] {
            if self.runs(program) {
                return Ok(program.to_owned());
            }
        }
        eprintln!("Installing {} below {}", self.name, tools.display());
        let status = Command::new("cargo")
            .args(["install", "--locked", self.name, "--root"])
            .arg(&tools)
            .args(self.install)
            .env_remove("CARGO_TARGET_DIR")
            .status()
            .context("Cannot run cargo")?;
        ensure!(
            status.success() && self.runs(&own),
            "Cannot install {}: cargo install ended with {status}",
            self.name
        );
        Ok(own)
    }

    fn runs(&self, program: &Path) -> bool {
        let mut command = Command::new(program);
        command.args(self.version);
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }
}
