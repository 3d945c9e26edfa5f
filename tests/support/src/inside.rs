//! Runs a part of a test in a process of its own, which is to enter a sandbox.

use std::env;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::skip;

/// In the environment of the process inside: the directory that is allowed to it.
const INSIDE: &str = "VIRTIO_INTER_TEST_INSIDE";
/// In its environment: what is to be tried.
const CASE: &str = "VIRTIO_INTER_TEST_CASE";
/// Printed by a process whose wall the kernel lacks, before the reason.
const MISSING: &str = "WALL IS MISSING: ";

/// The directory of this process, if it is the one inside.
pub fn directory() -> Option<PathBuf> {
    env::var_os(INSIDE).map(PathBuf::from)
}

/// Runs `attempt` in a process that has called `enter`. Skips the test if that returns why a wall
/// is missing.
///
/// # Panics
///
/// As the process inside.
#[track_caller]
pub fn behind(enter: impl FnOnce(&Path) -> Option<String>, attempt: impl FnOnce(&Path)) {
    if let Some(directory) = directory() {
        match enter(&directory) {
            #[allow(clippy::print_stdout, reason = "the process outside reads it")]
            Some(reason) => println!("{MISSING}{reason}"),
            None => attempt(&directory),
        }
        return;
    }
    let output = run_again();
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some((_, reason)) = text.split_once(MISSING) {
        skip(reason.lines().next().unwrap_or_default());
        return;
    }
    assert_passed(&output);
}

/// Runs this test again in another process, where [`directory`] is some directory.
///
/// # Panics
///
/// It cannot be started.
pub fn run_again() -> Output {
    run_case("")
}

/// The case with which this process was started.
///
/// # Panics
///
/// This is the process outside.
pub fn case() -> String {
    env::var(CASE).unwrap()
}

/// As [`run_again`], with a name for what is to be done there.
///
/// # Panics
///
/// As [`run_again`].
pub fn run_case(case: &str) -> Output {
    let thread = std::thread::current();
    let directory = TempDir::with_prefix("vi").unwrap();
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "--nocapture", thread.name().unwrap()])
        .env(INSIDE, directory.path())
        .env(CASE, case)
        .output()
        .unwrap()
}

/// The test passed inside.
///
/// # Panics
///
/// It did not.
#[track_caller]
pub fn assert_passed(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), None, "{text}{errors}");
    assert!(text.contains("1 passed"), "{text}{errors}");
}

/// A filter of system calls ends the process inside.
///
/// # Panics
///
/// None does.
#[track_caller]
pub fn assert_dies(case: &str) {
    let output = run_case(case);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{case}: {text}");
}

/// Whether filters can be tested; if not, the test was skipped.
///
/// # Panics
///
/// `/proc` cannot be read.
pub fn has_filters() -> bool {
    let has = std::fs::exists("/proc/sys/kernel/seccomp/actions_avail").unwrap();
    if !has {
        skip("this kernel has no filters of system calls");
    }
    has
}
