//! The ground of one test: a directory for sockets, segments and logs, kept only if the test fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, ensure};
use virtio_inter_test_support::tell;

use crate::cleanup::{Action, Registration};
use crate::{Result, deadline, dump, inside};

/// The longest socket path that fits an address (`sun_path` less its end), minus room for a name in
/// the directory.
const DIRECTORY_LIMIT: usize = 107 - 40;

/// The directory of one test or demo. All that is made on it must be dropped first.
pub struct Testbed {
    name: String,
    directory: PathBuf,
    registration: Registration,
    keep: AtomicBool,
}

impl Testbed {
    /// Makes a testbed in the directory for temporary files.
    ///
    /// # Errors
    ///
    /// No room, or a path too long for the sockets in it.
    pub fn new(name: &str) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("virtio-inter-")
            .tempdir()
            .context("Making a directory for the test")?
            .keep();
        let registration = Registration::new(Action::Remove(directory.clone()));
        ensure!(
            directory.as_os_str().len() <= DIRECTORY_LIMIT,
            "{} is too long for sockets: set TMPDIR",
            directory.display()
        );
        Ok(Self {
            name: name.to_owned(),
            directory,
            registration,
            keep: AtomicBool::new(false),
        })
    }

    /// The path of a file or directory on the testbed.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Directory of the logs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Tells the ends of the logs: nobody comes to look at them later.
    fn tell_logs(&self) {
        const LINES: usize = 25;
        let logs = self.logs();
        inside::tell_triple_faults(&logs);
        for (name, text) in &logs {
            let lines: Vec<&str> = text.lines().collect();
            tell(&format!("--- {name}"));
            for line in &lines[lines.len().saturating_sub(LINES)..] {
                tell(line);
            }
        }
    }

    /// The logs and what is in them.
    pub(crate) fn logs(&self) -> Vec<(String, String)> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten();
        let mut logs = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".log") || name.ends_with(".console") {
                let text = fs::read(entry.path()).unwrap_or_default();
                logs.push((name, String::from_utf8_lossy(&text).into_owned()));
            }
        }
        logs
    }

    /// Keeps the directory, and prints its path when the testbed is dropped.
    pub fn keep(&self) {
        self.keep.store(true, Ordering::Relaxed);
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        if self.keep.load(Ordering::Relaxed) || thread::panicking() {
            self.registration.cancel();
            if inside::is_inside() {
                self.tell_logs();
                return;
            }
            tell(&format!(
                "Logs of {}: {}",
                self.name,
                self.directory.display()
            ));
        }
    }
}

/// Runs `test` on a testbed of its own and panics with the whole story if it fails. It may take 270
/// s: waits that ask for more than is left of that get less.
///
/// # Panics
///
/// When `test` returns an error, or no testbed can be made.
#[allow(clippy::panic, reason = "this is how a test fails")]
pub fn guest_test(test: impl FnOnce(&Testbed) -> Result<()>) {
    let name = thread::current().name().unwrap_or("test").to_owned();
    let outcome = Testbed::new(&name).and_then(|bed| {
        deadline::begin(deadline::TEST_LIMIT);
        dump::add(&bed.directory);
        let outcome = test(&bed);
        dump::remove(&bed.directory);
        if outcome.is_err() {
            bed.keep();
        }
        outcome
    });
    if let Err(error) = outcome {
        panic!("{error:#}");
    }
}

/// Whether this process may make network namespaces and devices.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
