//! A place for a test, launchers, and runs of the program.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cloud_hypervisor_ext::control_protocol::{PortState, Reply};
use cloud_hypervisor_ext::vm_directory::control_socket;
use tempfile::TempDir;
use virtio_inter_test_support::process::{Spawned, build_beside};
pub(crate) use virtio_inter_test_support::process::{TIMEOUT, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ch-remote-ext");

/// A stand-in for the VMM: waits for the end of its standard input, or a signal.
const VMM: &str = r#"#!/bin/sh
case " $* " in
*" --help "*) echo 'vhost_user=<on>' ;;
*) exec cat > /dev/null ;;
esac
"#;

/// A stand-in for ch-remote.
const REMOTE: &str = r#"#!/bin/sh
case "$1" in
--version) echo 'ch-remote v0-stand-in' ;;
help | --help)
    printf 'Usage: x\n\nCommands:\n  add-device  Add\n  info        Info\n  help        Help\n' ;;
*) printf '[%s]' "$@"; exit 9 ;;
esac
"#;

/// A directory with a segment in it.
pub(crate) struct Place {
    directory: TempDir,
}

/// The result of a run of the program: exit status, standard output, standard error.
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        build_beside(
            Path::new(PROGRAM),
            &["cloud-hypervisor-ext", "virtio-inter"],
        );
        let directory = TempDir::with_prefix("vi").unwrap();
        fs::create_dir(directory.path().join("segment")).unwrap();
        for (name, text) in [("vmm", VMM), ("remote", REMOTE)] {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).into_os_string().into_string().unwrap()
    }

    /// A device on the segment.
    pub(crate) fn device(&self, more: &str) -> String {
        format!("segment={}{more}", self.text("segment"))
    }

    /// The ports on the segment, by their sockets.
    pub(crate) fn ports(&self) -> usize {
        let entries = fs::read_dir(self.path("segment")).unwrap();
        entries
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                Path::new(&name).extension().is_some_and(|e| e == "sock")
            })
            .count()
    }

    /// The number of ready ports by their supervisor; `None` if there is no supervisor yet.
    fn serving(&self) -> Option<usize> {
        let mut stream = UnixStream::connect(control_socket(&self.path("api"))).ok()?;
        stream.write_all(b"\"list\"\n").ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        match serde_json::from_str(&line).ok()? {
            Reply::List { ports, .. } => {
                let serving = ports.iter().filter(|port| port.state == PortState::Serving);
                Some(serving.count())
            }
            _ => None,
        }
    }

    /// A supervisor, whose VMM is `program`.
    pub(crate) fn launch(&self, program: &Path, arguments: &[&str]) -> Launcher {
        let log = File::create(self.path("log")).unwrap();
        let mut command = Command::new(sibling("cloud-hypervisor-ext"));
        command
            .args(["--api-socket", &self.text("api")])
            .args(arguments)
            .env("CLOUD_HYPERVISOR", program)
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let mut launcher = Spawned::new(&mut command, "launcher", &self.path("log"));
        let wanted = arguments.iter().filter(|text| text.starts_with("segment="));
        let wanted = wanted.count();
        launcher.until("the supervisor's ports serve", || {
            self.serving() == Some(wanted)
        });
        Launcher(launcher)
    }

    /// A supervisor of an idle VM.
    pub(crate) fn idle_vm(&self, arguments: &[&str]) -> Launcher {
        self.launch(&self.path("vmm"), arguments)
    }

    /// Runs the program.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, "")
    }

    /// Runs the program for this VM.
    pub(crate) fn remote(&self, arguments: &[&str]) -> Ran {
        let api = self.text("api");
        self.run(&[&["--api-socket", &api], arguments].concat())
    }

    /// Runs the program with something to read.
    pub(crate) fn run_with(&self, arguments: &[&str], input: &str) -> Ran {
        let remote = std::env::var_os("CH_REMOTE").unwrap_or_else(|| self.path("remote").into());
        self.run_program(arguments, input, &remote)
    }

    /// Runs the program with another ch-remote behind it.
    pub(crate) fn run_program(
        &self,
        arguments: &[&str],
        input: &str,
        remote: &std::ffi::OsStr,
    ) -> Ran {
        let mut child = Command::new(PROGRAM)
            .args(arguments)
            .env("CH_REMOTE", remote)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Fails if the program does not read.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        Ran {
            status: output.status.code().expect("an exit status"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    #[track_caller]
    pub(crate) fn succeeded(self) -> String {
        assert_eq!((self.status, self.err.as_str()), (0, ""), "{}", self.out);
        self.out
    }

    #[track_caller]
    pub(crate) fn failed(self, status: i32) -> String {
        assert_eq!(
            (self.status, self.out.as_str()),
            (status, ""),
            "{}",
            self.err
        );
        assert!(
            self.err
                .starts_with("Error: ch-remote-ext exited with the following "),
            "{}",
            self.err
        );
        self.err
    }
}

fn sibling(name: &str) -> PathBuf {
    Path::new(PROGRAM).with_file_name(name)
}

/// A supervisor. Its children end with it.
pub(crate) struct Launcher(Spawned);

impl Launcher {
    pub(crate) fn pid(&self) -> u32 {
        self.0.pid()
    }
}
