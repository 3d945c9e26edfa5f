//! A `virtio-inter port` of a test.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use tempfile::TempDir;
use virtio_inter_test_support::process::Spawned;
pub(crate) use virtio_inter_test_support::process::{TIMEOUT, until};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_virtio-inter");

/// Names a directory for records of the system calls that ports make: see tests/sandbox/record.sh.
const CALLS: &str = "VIRTIO_INTER_CALLS";

/// A user that has nothing, by convention.
pub(crate) const NOBODY: u32 = 65534;

/// The address of a port with this name, if a test gives it no other one.
pub(crate) fn address(id: &str) -> String {
    format!("52:54:00:00:00:{:02x}", id.as_bytes()[0])
}

/// A directory with a segment in it, and room for sockets beside it.
pub(crate) struct Place {
    directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = TempDir::with_prefix("vi").unwrap();
        // Whatever the umask.
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        builder.create(directory.path().join("segment")).unwrap();
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn segment(&self) -> PathBuf {
        self.path("segment")
    }

    /// All files except logs, the segment's as "segment/x".
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

    /// Holds the lock of a socket until the file is dropped, as a process that never ends.
    pub(crate) fn hold_lock(&self, name: &str) -> File {
        let mut lock = File::create(self.path(name)).unwrap();
        writeln!(lock, "{}", std::process::id()).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        lock
    }

    /// A port named `id` with the socket `id.vhost`, not started yet.
    pub(crate) fn command(&self, id: &str) -> PortCommand {
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
                ("--mac", address(id).into()),
            ],
            flags: Vec::new(),
            subcommand: "port",
        }
    }

    /// An uplink of the segment's ports, by a tap device, not started yet.
    pub(crate) fn uplink(&self, id: &str, tap: &str) -> PortCommand {
        let mut command = self.command(id);
        command
            .options
            .retain(|(name, _)| ["--segment", "--id"].contains(name));
        command.subcommand = "uplink";
        command.with("--tap", tap)
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
    /// Its working directory; `None`: the test's.
    directory: Option<PathBuf>,
    variables: Vec<(&'static str, OsString)>,
    /// Its user; `None`: the test's.
    user: Option<u32>,
    /// A line of shell to run first.
    limit: Option<String>,
    options: Vec<(&'static str, OsString)>,
    flags: Vec<&'static str>,
    /// "port" or "uplink".
    subcommand: &'static str,
}

impl PortCommand {
    /// Sets an option, or changes it.
    pub(crate) fn with(mut self, option: &'static str, value: impl AsRef<OsStr>) -> Self {
        self.options.retain(|(name, _)| *name != option);
        self.options.push((option, value.as_ref().to_owned()));
        self
    }

    /// Leaves an option out.
    pub(crate) fn without(mut self, option: &str) -> Self {
        self.options.retain(|(name, _)| *name != option);
        self
    }

    /// Adds a flag, which has no value.
    pub(crate) fn flag(mut self, flag: &'static str) -> Self {
        self.flags.push(flag);
        self
    }

    /// Sets the socket of its service manager.
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

    /// Runs a line of shell, such as `ulimit -n 10`, before the port.
    pub(crate) fn limited(mut self, line: &str) -> Self {
        self.limit = Some(line.to_owned());
        self
    }

    /// Runs it as an ordinary user, if the test runs as root; `None` if that user cannot run it.
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

    /// Starts it without waiting.
    pub(crate) fn spawn(&self) -> Port {
        let log = File::create(&self.log).unwrap();
        self.spawn_onto(log.try_clone().unwrap(), log)
    }

    /// Starts it with its output to something else than its log file.
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
        command = recorded(command, "");
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
        command
            .arg(self.subcommand)
            .args(
                self.options
                    .iter()
                    .flat_map(|(name, value)| [OsStr::new(*name), value]),
            )
            .args(&self.flags)
            .env_remove("RUST_LOG")
            .envs(self.variables.iter().cloned())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(log);
        let name = self.socket.display().to_string();
        Port {
            process: Spawned::new(&mut command, &name, &self.log),
            socket: self.socket.clone(),
        }
    }

    pub(crate) fn start(&self) -> Port {
        let mut port = self.spawn();
        let log = self.log.clone();
        port.until("the port serves", || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains("Serving"))
        });
        port
    }

    /// Runs a port that fails. Returns its exit status and its log.
    pub(crate) fn fail(&self) -> (i32, String) {
        let mut port = self.spawn();
        let status = port.wait();
        (status.code().expect("an exit status"), port.log())
    }
}

/// The same command, if a record is to be made of its system calls: by strace, a grandchild, which
/// so changes no process id. The record's name begins with `kind`.
pub(crate) fn recorded(command: Command, kind: &str) -> Command {
    let Some(directory) = env::var_os(CALLS).map(PathBuf::from) else {
        return command;
    };
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut strace = Command::new("strace");
    strace
        .args(["-D", "-f", "-qq", "--decode-pids=comm", "-s0", "-o"])
        .arg(directory.join(format!("{kind}{}-{number}", std::process::id())))
        .arg(command.get_program())
        .args(command.get_args());
    strace
}

pub(crate) struct Port {
    process: Spawned,
    pub(crate) socket: PathBuf,
}

impl Port {
    /// Sends SIGTERM. The port must exit with status 0.
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
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Deref for Port {
    type Target = Spawned;

    fn deref(&self) -> &Spawned {
        &self.process
    }
}

impl DerefMut for Port {
    fn deref_mut(&mut self) -> &mut Spawned {
        &mut self.process
    }
}
