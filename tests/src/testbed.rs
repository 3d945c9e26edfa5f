//! The ground of one test: a directory for sockets, segments and logs, kept only if the test fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use virtio_inter_test_support::{note, tell};

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

/// QEMU's own words when threads of its emulated processors look up memory while the map of it
/// changes, as at a boot: an assertion of QEMU 10 fails, in one of some hundreds of boots. No
/// device has a part in that. The guest is gone then, and the test fails by whatever it wanted of
/// it next; what QEMU wrote is in its log. (A test that panics does not run again.)
const EMULATOR_FAULT: &str = "iotlb_to_section: Assertion `section_index < d->map.sections_nb'";

/// A test that took longer until then does not run again: its time would not be enough. The longest
/// takes two minutes in all.
const TIME_TO_RUN_AGAIN: Duration = Duration::from_secs(120);

/// Runs `test` on a testbed of its own and panics with the whole story if it fails. It may take
/// 270 s: waits that ask for more than is left of that get less. If QEMU itself failed, the test
/// runs once more within that time, which is reported.
///
/// # Panics
///
/// When `test` returns an error, or no testbed can be made.
#[allow(clippy::panic, reason = "this is how a test fails")]
pub fn guest_test(test: impl Fn(&Testbed) -> Result<()>) {
    let name = thread::current().name().unwrap_or("test").to_owned();
    let run_again = |error: &anyhow::Error| {
        note(&format!(
            "An assertion of QEMU failed, and the test ran again; the first time: {error:#}"
        ));
    };
    if let Err(error) = run(&name, &test, &run_again) {
        panic!("{error:#}");
    }
}

/// Runs a test. If QEMU itself failed, calls `run_again`, and runs the test once more.
fn run(
    name: &str,
    test: &impl Fn(&Testbed) -> Result<()>,
    run_again: &dyn Fn(&anyhow::Error),
) -> Result<()> {
    let start = Instant::now();
    deadline::begin(deadline::TEST_LIMIT);
    let (outcome, emulator_failed) = run_on_testbed(name, test);
    match outcome {
        Err(error) if emulator_failed && start.elapsed() < TIME_TO_RUN_AGAIN => {
            run_again(&error);
            run_on_testbed(name, test).0
        }
        outcome => outcome,
    }
}

/// The outcome, and whether a QEMU failed by itself.
fn run_on_testbed(name: &str, test: &impl Fn(&Testbed) -> Result<()>) -> (Result<()>, bool) {
    let bed = match Testbed::new(name) {
        Ok(bed) => bed,
        Err(error) => return (Err(error), false),
    };
    dump::add(&bed.directory);
    let outcome = test(&bed);
    dump::remove(&bed.directory);
    if outcome.is_ok() {
        return (outcome, false);
    }
    bed.keep();
    let logs = bed.logs();
    let emulator_failed = logs.iter().any(|(_, text)| text.contains(EMULATOR_FAULT));
    (outcome, emulator_failed)
}

/// Whether this process may make network namespaces and devices.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use anyhow::bail;

    use super::*;

    #[test]
    fn test_runs_again_once_if_qemu_itself_failed() {
        let fail = |times: u32, why: &str| {
            let (runs, again) = (Cell::new(0), Cell::new(0));
            let test = |bed: &Testbed| {
                runs.set(runs.get() + 1);
                if runs.get() <= times {
                    fs::write(bed.path("vm-vm2.log"), format!("qemu: {why} failed."))?;
                    bail!("No answer from vm2");
                }
                Ok(())
            };
            let outcome = run("test", &test, &|_| again.set(again.get() + 1));
            (outcome.is_ok(), runs.get(), again.get())
        };
        assert_eq!(fail(0, EMULATOR_FAULT), (true, 1, 0));
        assert_eq!(fail(1, EMULATOR_FAULT), (true, 2, 1));
        assert_eq!(fail(2, EMULATOR_FAULT), (false, 2, 1));
        assert_eq!(fail(1, "Assertion `frames == 5'"), (false, 1, 0));
    }
}
