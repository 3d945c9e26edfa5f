//! Runs a part of a test in a process of its own, inside the sandbox.

use std::env;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use virtio_inter::sandbox::{self, Access, Mode, Report, Wall};
use virtio_inter_test_support::skip;

/// In the environment of the process inside: the directory that is allowed to it.
const INSIDE: &str = "VIRTIO_INTER_TEST_INSIDE";
/// In its environment: what is to be tried.
const CASE: &str = "VIRTIO_INTER_TEST_CASE";
/// Printed by a process whose wall the kernel lacks, before the reason.
const MISSING: &str = "WALL IS MISSING: ";

/// The directory of this process, if it is the one inside.
pub(crate) fn directory() -> Option<PathBuf> {
    env::var_os(INSIDE).map(PathBuf::from)
}

/// Enters the sandbox with nothing allowed but the given directory. Forbidden system calls are only
/// logged: other walls have to stand behind them.
pub(crate) fn enter(directory: &Path) -> Report {
    enter_mode(Mode::Log, directory)
}

/// The same in another mode.
pub(crate) fn enter_mode(mode: Mode, directory: &Path) -> Report {
    let access = Access {
        directories: vec![directory.to_owned()],
        ..Access::default()
    };
    sandbox::enter(mode, &access).unwrap()
}

/// Runs `attempt` inside the sandbox, behind this wall. Skips the test if the kernel lacks it.
pub(crate) fn behind(wall: Wall, attempt: impl FnOnce(&Path)) {
    if let Some(directory) = directory() {
        let report = enter(&directory);
        let missing = report.missing.iter().find(|missing| missing.wall == wall);
        match missing {
            #[allow(clippy::print_stdout, reason = "the process outside reads it")]
            Some(missing) => println!("{MISSING}{}", missing.reason),
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
pub(crate) fn run_again() -> Output {
    run_case("")
}

/// The case with which this process was started.
pub(crate) fn case() -> String {
    env::var(CASE).unwrap()
}

/// The same with a name for what is to be done there.
pub(crate) fn run_case(case: &str) -> Output {
    let thread = std::thread::current();
    let directory = TempDir::with_prefix("vi").unwrap();
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "--nocapture", thread.name().unwrap()])
        .env(INSIDE, directory.path())
        .env(CASE, case)
        .output()
        .unwrap()
}

#[track_caller]
pub(crate) fn assert_passed(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), None, "{text}{errors}");
    assert!(text.contains("1 passed"), "{text}{errors}");
}
