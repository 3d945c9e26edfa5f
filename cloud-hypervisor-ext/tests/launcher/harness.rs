//! A directory for a test, the stand-in for Cloud Hypervisor, and launchers.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cloud_hypervisor_ext::control_protocol::{PortInfo, Reply, Request};
use cloud_hypervisor_ext::vm_directory::control_socket;
use tempfile::TempDir;
use virtio_inter_test_support::process::{Spawned, build_beside};
pub(crate) use virtio_inter_test_support::process::{TIMEOUT, is_alive, kill, pid, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cloud-hypervisor-ext");

/// Writes its arguments to a file and does what `STAND_IN_DOES` says. `cat` waits for the end of
/// its standard input, or a signal.
const STAND_IN: &str = r#"#!/bin/sh
case " $* " in
*" --help "*)
    printf 'Usage: cloud-hypervisor [OPTIONS]\n\nOptions:\n'
    printf '      --initramfs <initramfs>\n          Path\n'
    printf '      --net <net>...\n          Network parameters "%s"\n' "$STAND_IN_NET"
    exit 0 ;;
*" --version "*) echo 'cloud-hypervisor v0-stand-in'; exit 0 ;;
esac
[ "$STAND_IN_DOES" != ignore ] || trap '' TERM
[ $# -eq 0 ] || printf '%s\n' "$@" > "$STAND_IN_ARGUMENTS.new"
mv "$STAND_IN_ARGUMENTS.new" "$STAND_IN_ARGUMENTS"
case "$STAND_IN_DOES" in
exit) exit "$STAND_IN_STATUS" ;;
*) exec cat > /dev/null ;;
esac
"#;

/// A directory with a segment in it.
pub(crate) struct Place {
    directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        build_beside(Path::new(PROGRAM), &["virtio-inter"]);
        let directory = TempDir::with_prefix("vi").unwrap();
        fs::create_dir(directory.path().join("segment")).unwrap();
        let stand_in = directory.path().join("stand-in");
        fs::write(&stand_in, STAND_IN).unwrap();
        fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).into_os_string().into_string().unwrap()
    }

    /// `segment=` for `--inter-vm`, and more.
    pub(crate) fn device(&self, more: &str) -> String {
        format!("segment={}{more}", self.text("segment"))
    }

    /// All files that the launcher and its children have made.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        for directory in ["", "segment"] {
            for entry in fs::read_dir(self.path(directory)).unwrap() {
                files.push(entry.unwrap().file_name().into_string().unwrap());
            }
        }
        files.retain(|name| !["segment", "stand-in", "log", "arguments"].contains(&name.as_str()));
        files.sort();
        files
    }

    pub(crate) fn launcher(&self, arguments: &[&str]) -> Launcher {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .env("CLOUD_HYPERVISOR", self.path("stand-in"))
            .env("STAND_IN_ARGUMENTS", self.path("arguments"))
            .env("STAND_IN_NET", "tap=<if>,vhost_user=<on>")
            .env("STAND_IN_DOES", "wait")
            .env("XDG_RUNTIME_DIR", self.directory.path())
            .env_remove("RUST_LOG")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::piped());
        Launcher {
            command,
            log: self.path("log"),
            arguments: self.path("arguments"),
            api_socket: self.path("api"),
        }
    }

    /// A launcher with an API socket and a running VM.
    pub(crate) fn run(&self, arguments: &[&str]) -> Running {
        let api = self.text("api");
        let mut all = vec!["--api-socket", &api];
        all.extend(arguments);
        self.launcher(&all).start()
    }
}

pub(crate) struct Launcher {
    command: Command,
    log: PathBuf,
    arguments: PathBuf,
    api_socket: PathBuf,
}

impl Launcher {
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn argument(mut self, argument: OsString) -> Self {
        self.command.arg(argument);
        self
    }

    /// Uses another log file than another launcher.
    pub(crate) fn logging_to(mut self, name: &str) -> Self {
        self.log = self.log.with_file_name(name);
        self
    }

    pub(crate) fn directory(mut self, path: &Path) -> Self {
        self.command.current_dir(path);
        self
    }

    /// Starts it as another user; `None` if that one cannot run it.
    pub(crate) fn by_user(mut self, user: u32) -> Option<Self> {
        let mut probe = Command::new(PROGRAM);
        probe.arg("--version").uid(user).gid(user);
        probe.stdout(Stdio::null()).status().ok()?;
        self.command.uid(user).gid(user);
        Some(self)
    }

    /// Starts it with signals ignored.
    pub(crate) fn ignoring(self, signals: &str) -> Self {
        self.after(&format!("trap '' {signals}"))
    }

    /// Runs a line of shell before the launcher.
    pub(crate) fn after(mut self, line: &str) -> Self {
        let mut shell = Command::new("sh");
        shell
            .arg("-c")
            .arg(format!("{line}; exec \"$0\" \"$@\""))
            .arg(self.command.get_program())
            .args(self.command.get_args())
            .stdin(Stdio::piped());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        self.command = shell;
        self
    }

    /// Starts it without waiting.
    pub(crate) fn spawn(self) -> Running {
        let log = File::create(&self.log).unwrap();
        self.spawn_onto(log)
    }

    /// Starts it with its standard error, which its children get too, on something else than its
    /// log file.
    pub(crate) fn spawn_onto(mut self, stderr: impl Into<Stdio>) -> Running {
        let stdout = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.log)
            .unwrap();
        self.command.stdout(stdout).stderr(stderr);
        Running {
            process: Spawned::new(&mut self.command, "launcher", &self.log),
            arguments: self.arguments,
            api_socket: self.api_socket,
        }
    }

    /// Starts it and waits until the VMM runs.
    pub(crate) fn start(self) -> Running {
        let mut running = self.spawn();
        running.wait_for_vmm();
        running
    }

    /// Runs it to its end. Returns its exit status and its log.
    pub(crate) fn end(self) -> (i32, String) {
        let mut running = self.spawn();
        let status = running.wait();
        (status.code().expect("an exit status"), running.log())
    }
}

pub(crate) struct Running {
    process: Spawned,
    arguments: PathBuf,
    api_socket: PathBuf,
}

impl Running {
    /// Waits until the VMM runs.
    #[track_caller]
    pub(crate) fn wait_for_vmm(&mut self) {
        let arguments = &self.arguments;
        self.process.until("the VMM starts", || arguments.exists());
    }

    /// The arguments of the VMM.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.arguments).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Has the stand-in exit in good order.
    #[track_caller]
    pub(crate) fn end(mut self) {
        self.close_input();
        let status = self.wait();
        assert_eq!(
            (status.code(), status.signal()),
            (Some(0), None),
            "{}",
            self.log()
        );
    }

    pub(crate) fn connect(&self) -> Client {
        let stream = UnixStream::connect(control_socket(&self.api_socket)).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Client(BufReader::new(stream))
    }

    #[track_caller]
    pub(crate) fn ports(&self) -> Vec<PortInfo> {
        match self.connect().ask(&Request::List) {
            Reply::List { version: 1, ports } => ports,
            other => panic!("{other:?}"),
        }
    }

    /// Its running child processes.
    pub(crate) fn children(&self) -> Vec<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        let text = fs::read_to_string(path).unwrap();
        text.split_whitespace()
            .map(|pid| pid.parse().unwrap())
            .collect()
    }
}

impl Deref for Running {
    type Target = Spawned;

    fn deref(&self) -> &Spawned {
        &self.process
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Spawned {
        &mut self.process
    }
}

/// A connection to the control socket.
pub(crate) struct Client(BufReader<UnixStream>);

impl Client {
    pub(crate) fn send(&mut self, line: &str) {
        let mut stream = self.0.get_ref();
        stream.write_all(line.as_bytes()).unwrap();
        stream.write_all(b"\n").unwrap();
    }

    pub(crate) fn receive(&mut self) -> Reply {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Reply {
        self.send(&serde_json::to_string(request).unwrap());
        self.receive()
    }

    /// Sends a request that fails. Returns the error on one line.
    #[track_caller]
    pub(crate) fn refused(&mut self, request: &Request) -> String {
        match self.ask(request) {
            Reply::Error(why) => why.join(": "),
            other => panic!("{other:?}"),
        }
    }
}
