//! A `virtio-inter port` of a test: started, watched, and ended whatever happens.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_virtio-inter");

/// A user that has nothing, by convention.
const NOBODY: u32 = 65534;

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something is so, looking often.
#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A directory with a segment in it, and room for sockets beside it.
pub(crate) struct Place {
    directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = TempDir::with_prefix("vi").unwrap();
        fs::create_dir(directory.path().join("segment")).unwrap();
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn segment(&self) -> PathBuf {
        self.path("segment")
    }

    /// Everything that there is in it, the segment's files as "segment/x". Logs aside.
    pub(crate) fn files(&self) -> Vec<String> {
        let list = |directory: PathBuf, prefix: &str| -> Vec<String> {
            fs::read_dir(directory)
                .unwrap()
                .map(|entry| format!("{prefix}{}", entry.unwrap().file_name().to_string_lossy()))
                .collect()
        };
        let mut files = list(self.directory.path().to_owned(), "");
        files.extend(list(self.segment(), "segment/"));
        files.retain(|name| name != "segment" && !name.ends_with(".log"));
        files.sort();
        files
    }

    /// A port named `id` with the socket `id.vhost`, not started yet.
    pub(crate) fn command(&self, id: &str) -> PortCommand {
        let mac = format!("52:54:00:00:00:{:02x}", id.as_bytes()[0]);
        PortCommand {
            socket: self.path(&format!("{id}.vhost")),
            log: self.path(&format!("{id}.log")),
            notify: None,
            directory: None,
            variables: Vec::new(),
            user: None,
            limit: None,
            options: vec![
                (
                    "--socket",
                    self.path(&format!("{id}.vhost")).into_os_string(),
                ),
                ("--segment", self.segment().into_os_string()),
                ("--id", id.into()),
                ("--mac", mac.into()),
            ],
        }
    }

    /// A port that serves.
    pub(crate) fn start(&self, id: &str) -> Port {
        self.command(id).start()
    }
}

pub(crate) struct PortCommand {
    socket: PathBuf,
    log: PathBuf,
    /// NOTIFY_SOCKET.
    notify: Option<PathBuf>,
    /// Its working directory; None: this test's.
    directory: Option<PathBuf>,
    variables: Vec<(&'static str, OsString)>,
    /// None: this test's.
    user: Option<u32>,
    /// A line of shell that comes first.
    limit: Option<String>,
    options: Vec<(&'static str, OsString)>,
}

impl PortCommand {
    /// Sets an option, or changes it.
    pub(crate) fn with(mut self, option: &'static str, value: impl AsRef<OsStr>) -> Self {
        self.options.retain(|(name, _)| *name != option);
        self.options.push((option, value.as_ref().to_owned()));
        self
    }

    /// Gives it a service manager.
    pub(crate) fn notifying(mut self, socket: &Path) -> Self {
        self.notify = Some(socket.to_owned());
        self
    }

    /// Gives it another working directory.
    pub(crate) fn in_directory(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// Sets a variable of its environment.
    pub(crate) fn env(mut self, name: &'static str, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name, value.as_ref().to_owned()));
        self
    }

    /// Has a shell run a line, such as `ulimit -n 10`, and then the port in its place.
    pub(crate) fn limited(mut self, line: &str) -> Self {
        self.limit = Some(line.to_owned());
        self
    }

    /// Has it run by another user than root, if this is root; None: that user cannot run it.
    pub(crate) fn by_ordinary_user(mut self) -> Option<Self> {
        if rustix::process::geteuid().is_root() {
            let segment = self.option("--segment");
            // The sockets are beside the segment.
            for path in [segment.as_path(), segment.parent()?] {
                chown(path, Some(NOBODY), Some(NOBODY)).ok()?;
            }
            self.user = Some(NOBODY);
            let mut probe = Command::new(PROGRAM);
            let probe = probe.arg("--version").uid(NOBODY).gid(NOBODY);
            probe.stdout(Stdio::null()).status().ok()?;
        }
        Some(self)
    }

    fn option(&self, name: &str) -> PathBuf {
        let option = self.options.iter().find(|(option, _)| *option == name);
        PathBuf::from(&option.expect("an option").1)
    }

    /// Starts it and sees.
    pub(crate) fn spawn(&self) -> Port {
        let log = File::create(&self.log).unwrap();
        self.spawn_onto(log.try_clone().unwrap(), log)
    }

    /// Starts it with its output on something else than its log file.
    pub(crate) fn spawn_onto(&self, output: impl Into<Stdio>, log: impl Into<Stdio>) -> Port {
        let mut command = match &self.limit {
            Some(limit) => {
                let mut shell = Command::new("bash");
                // With -e, so that a limit that cannot be set is an error.
                let line = format!("set -e; {limit}; exec \"$0\" \"$@\"");
                shell.args(["-c", &line, PROGRAM]);
                shell
            }
            None => Command::new(PROGRAM),
        };
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        match &self.notify {
            Some(socket) => command.env("NOTIFY_SOCKET", socket),
            None => command.env_remove("NOTIFY_SOCKET"),
        };
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        let child = command
            .arg("port")
            .args(
                self.options
                    .iter()
                    .flat_map(|(name, value)| [OsStr::new(*name), value]),
            )
            .env_remove("RUST_LOG")
            .envs(self.variables.iter().cloned())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(log)
            .spawn()
            .unwrap();
        Port {
            child,
            socket: self.socket.clone(),
            log: self.log.clone(),
        }
    }

    pub(crate) fn start(&self) -> Port {
        let mut port = self.spawn();
        until("the port serves", || {
            assert_eq!(port.child.try_wait().unwrap(), None, "{}", port.log());
            port.log().contains("Serving")
        });
        port
    }

    /// Runs a port that cannot run: its exit status and all that it said.
    pub(crate) fn fail(&self) -> (i32, String) {
        let mut port = self.spawn();
        let status = port.wait();
        (status.code().expect("an exit status"), port.log())
    }
}

pub(crate) struct Port {
    child: Child,
    pub(crate) socket: PathBuf,
    log: PathBuf,
}

impl Port {
    /// What it said; nothing if its standard error is something else than the log file.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str) {
        until(text, || self.log().contains(text));
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// The exit status, None while it runs.
    pub(crate) fn try_end(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("the process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Asks it to end, which it does with status 0.
    pub(crate) fn end(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.wait().code(), Some(0), "{}", self.log());
    }

    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }

    /// Resident memory in KiB.
    pub(crate) fn resident(&self) -> usize {
        let status = fs::read_to_string(
            Path::new("/proc")
                .join(self.pid().to_string())
                .join("status"),
        );
        let status = status.unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // Ended already, as a rule.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            // Through the test harness's capture, unlike a write to standard error.
            #[allow(clippy::print_stderr, reason = "a failing test's report")]
            {
                eprintln!("--- {}:\n{log}", self.socket.display());
            }
        }
    }
}
