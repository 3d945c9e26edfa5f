//! A clean Debian system in a directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::apt::Mirror;
use crate::root::{root, run_in_root};

/// A clean Debian system in a directory; removed at its end.
pub(super) struct System {
    directory: PathBuf,
    /// Code name of its release.
    pub(super) release: String,
}

impl Drop for System {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl System {
    /// Makes a system of that release, with these packages beside the essential ones.
    ///
    /// # Errors
    ///
    /// When mmdebstrap fails: without root, or without the mirror.
    pub(super) fn new(release: &str, packages: &[&str]) -> Result<Self> {
        let mirror = Mirror::of_this_machine()?;
        let system = Self {
            directory: root().join(format!("target/package/{release}")),
            release: release.to_owned(),
        };
        let include = format!("--include={}", packages.join(","));
        let directory = system.directory.display().to_string();
        let arguments = [
            "--quiet",
            "--variant=minbase",
            // Packages are installed later; the lists need not be fetched again.
            "--skip=cleanup/apt/lists",
            &include,
            release,
            &directory,
            mirror.archive(),
        ];
        run_in_root("mmdebstrap", &arguments)?;
        // Whoever runs a command of the documents answers "yes".
        let answers = system.path("etc/apt/apt.conf.d/90-yes");
        fs::write(answers, "APT::Get::Assume-Yes \"true\";\n").context("Configuring apt")?;
        Ok(system)
    }

    /// A file of it, as this machine calls it.
    pub(super) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.directory.join(path)
    }

    /// A shell in it, with commands. Ports link by /proc, which is mounted for the shell alone, so
    /// that nothing is left mounted.
    pub(super) fn shell(&self, commands: &str) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "chroot"])
            .arg(&self.directory)
            .args(["/bin/sh", "-ec"])
            .arg(format!("mount -t proc proc /proc\n{commands}"))
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Runs a command in it, and returns its output.
    ///
    /// # Errors
    ///
    /// When it fails; its output is in the message.
    pub(super) fn run(&self, command: &str) -> Result<String> {
        let output = self.shell(command).output().context("Cannot run unshare")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        let release = &self.release;
        ensure!(
            output.status.success(),
            "{release}: {command}\n{text}{errors}"
        );
        Ok(text)
    }

    /// Whether there is such a file.
    pub(super) fn has(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }
}
