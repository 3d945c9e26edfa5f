//! Programs that tests start: killed when they go out of scope, with their log in a failing test's
//! report.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Maximum wait, longer than any step of a test takes on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Waits until `is_so` returns true.
///
/// # Panics
///
/// After [`TIMEOUT`], with `what` in the message.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < TIMEOUT, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A running program.
#[derive(Debug)]
pub struct Spawned {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Spawned {
    /// Starts a program, which `name` stands for in reports. `log` is the file to which the caller
    /// has directed its standard error.
    ///
    /// # Panics
    ///
    /// When it cannot be run.
    #[track_caller]
    pub fn new(command: &mut Command, name: &str, log: &Path) -> Self {
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("Running {name}: {error}"));
        Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        }
    }

    /// The content of its log; empty if its standard error is something else than the log file.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    ///
    /// When it has ended.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(pid(self.pid()), signal).expect("the program runs");
    }

    /// Waits until its log contains a text.
    ///
    /// # Panics
    ///
    /// After [`TIMEOUT`].
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        until(text, || self.log().contains(text));
    }

    /// Waits until `is_so` returns true, while the program runs.
    ///
    /// # Panics
    ///
    /// When it ends before, or after [`TIMEOUT`].
    #[track_caller]
    pub fn until(&mut self, what: &str, mut is_so: impl FnMut() -> bool) {
        until(what, || {
            assert_eq!(self.try_end(), None, "{}", self.log());
            is_so()
        });
    }

    /// Its exit status; `None` while it runs.
    pub fn try_end(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the status of a child")
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// After [`TIMEOUT`].
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("the program ends", || {
            status = self.try_end();
            status.is_some()
        });
        status.expect("a program that has ended")
    }

    /// Closes its standard input, if that is a pipe.
    pub fn close_input(&mut self) {
        drop(self.child.stdin.take());
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        // Fails if it has ended, as most programs have.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            // Through the test harness's capture, unlike a write to standard error.
            #[allow(clippy::print_stderr, reason = "a failing test's report")]
            {
                eprintln!("--- {}:\n{}", self.name, self.log());
            }
        }
    }
}

/// Builds programs of other packages, if they are missing beside the program `beside`: cargo does
/// not build them where only one package is tested.
///
/// # Panics
///
/// When they cannot be built.
pub fn build_beside(beside: &Path, names: &[&str]) {
    for name in names {
        if beside.with_file_name(name).exists() {
            continue;
        }
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(["build", "--package", name, "--bin", name]);
        if !cfg!(debug_assertions) {
            command.arg("--release");
        }
        assert!(command.status().is_ok_and(|status| status.success()));
    }
}

/// A process id in rustix's type.
///
/// # Panics
///
/// For 0, which is no process.
pub fn pid(number: u32) -> Pid {
    Pid::from_raw(number.cast_signed()).expect("a process id")
}

/// Kills a process that this one did not start.
///
/// # Panics
///
/// When there is none.
#[track_caller]
pub fn kill(number: u32) {
    kill_process(pid(number), Signal::KILL).expect("the process runs");
}

/// Whether a process runs. A zombie does not.
pub fn is_alive(number: u32) -> bool {
    let is_zombie = |stat: String| {
        let state = stat.rsplit(')').next().unwrap_or("").trim_start();
        state.starts_with('Z')
    };
    test_kill_process(pid(number)).is_ok()
        && fs::read_to_string(format!("/proc/{number}/stat")).is_ok_and(|stat| !is_zombie(stat))
}
