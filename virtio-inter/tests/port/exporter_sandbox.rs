//! The sandbox of the exporter, as the program builds it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use rustix::process::geteuid;
use virtio_inter_test_support::skip;

use crate::process::{NOBODY, PROGRAM, Place, recorded, until};

/// An exporter that serves by TCP.
struct Exporter {
    process: Child,
    address: String,
    /// What it logged before.
    log: String,
}

impl Exporter {
    /// `Err` has the status and the log of one that does not start.
    fn start(command: &mut Command) -> Result<Self, (ExitStatus, String)> {
        let command = command.env_remove("RUST_LOG").stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut log = String::new();
        let mut lines = BufReader::new(process.stderr.take().unwrap());
        while lines.read_line(&mut log).unwrap() > 0 {
            if let Some((_, address)) = log.split_once("http://") {
                let address = address.split('/').next().unwrap().to_owned();
                // Its log must not end up in a pipe that nobody reads.
                thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
                return Ok(Self {
                    process,
                    address,
                    log,
                });
            }
        }
        Err((process.wait().unwrap(), log))
    }

    /// The answer to a request, and nothing if it hangs up.
    fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let mut text = String::new();
        let _ = write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let _ = stream.read_to_string(&mut text);
        text
    }

    /// A file of its process in `/proc`.
    fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.process.id()))
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn command(place: &Place, sandbox: &str) -> Command {
    let mut command = recorded(Command::new(PROGRAM), "exporter-");
    command
        .args(["exporter", "--listen", "127.0.0.1:0", "--sandbox", sandbox])
        .arg(place.segment());
    command
}

#[test]
fn exporter_sandbox_is_around_each_thread() {
    let place = Place::new();
    let port = place.start("a");
    let exporter = Exporter::start(&mut command(&place, "on")).unwrap();
    let metrics = exporter.metrics();
    assert!(metrics.contains("port=\"a\"} 1\n"), "{metrics}");
    let mut threads = 0;
    for thread in fs::read_dir(exporter.file("task")).unwrap() {
        let text = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert!(text.contains("NoNewPrivs:\t1\n"), "{text}");
        // DAC_OVERRIDE at most, of root.
        let set = if geteuid().is_root() { 2 } else { 0 };
        assert!(text.contains(&format!("CapEff:\t{set:016x}\n")), "{text}");
        threads += 1;
    }
    // Of requests, those that ask ports, and the log's.
    assert!(threads >= 3, "{threads}");
    drop(exporter);
    port.end();
}

/// The files in `/proc` of a process that is not dumpable belong to root.
#[test]
fn exporter_cannot_be_traced_by_its_user() {
    let place = Place::new();
    let user = if geteuid().is_root() {
        for path in [place.segment(), place.path("")] {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        NOBODY
    } else {
        geteuid().as_raw()
    };
    for (sandbox, dumps, owner) in [("on", "", 0), ("off", "", 0), ("on", "1", user)] {
        let mut command = command(&place, sandbox);
        command.uid(user);
        if !dumps.is_empty() {
            command.env("VIRTIO_INTER_ALLOW_DUMPS", dumps);
        }
        let exporter = Exporter::start(&mut command).unwrap();
        let there = fs::metadata(exporter.file("environ")).unwrap().uid();
        assert_eq!(there, owner, "{sandbox}, {dumps}");
    }
}

#[test]
fn exporter_sandbox_that_is_off_or_incomplete_is_said() {
    let place = Place::new();
    let port = place.start("a");
    let off = Exporter::start(&mut command(&place, "off")).unwrap();
    assert!(
        off.log.contains("No sandbox (--sandbox off)"),
        "{}",
        off.log
    );
    let text = fs::read_to_string(off.file("status")).unwrap();
    assert!(text.contains("NoNewPrivs:\t0\n"), "{text}");

    let on = Exporter::start(&mut command(&place, "on")).unwrap();
    match Exporter::start(&mut command(&place, "strict")) {
        Ok(strict) => {
            assert!(!on.log.contains("are missing"), "{}", on.log);
            assert!(strict.metrics().contains("port=\"a\"} 1\n"));
        }
        Err((status, log)) => {
            assert_eq!(status.code(), Some(1), "{log}");
            assert!(
                log.contains("--sandbox strict, and walls are missing"),
                "{log}"
            );
            assert!(
                on.log.contains("Walls of the sandbox are missing"),
                "{}",
                on.log
            );
            assert!(on.metrics().contains("port=\"a\"} 1\n"));
        }
    }
    drop((on, off));
    port.end();
}

/// Its file is replaced from within.
#[test]
fn exporter_writes_its_file_again_and_again() {
    let place = Place::new();
    let port = place.start("a");
    let text = place.path("text");
    fs::create_dir(&text).unwrap();
    let mut command = recorded(Command::new(PROGRAM), "exporter-");
    command.args(["exporter", "--interval", "1", "--textfile"]);
    let mut process = command
        .arg(&text)
        .arg(place.segment())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let file = text.join("virtio-inter.prom");
    let inode = || fs::metadata(&file).map(|file| file.ino()).ok();
    until("the file", || inode().is_some());
    let first = inode();
    until("the next one", || {
        inode().is_some_and(|inode| Some(inode) != first)
    });
    assert!(
        fs::read_to_string(&file)
            .unwrap()
            .contains("port=\"a\"} 1\n")
    );
    process.kill().unwrap();
    process.wait().unwrap();
    port.end();
}

/// Serves a port's status in `/run/virtio-inter/web` of another process's namespace.
fn serve_status(exporter: &Exporter) {
    let segment = exporter.file("root/run/virtio-inter/web");
    fs::create_dir_all(&segment).unwrap();
    fs::write(segment.join("a.lock"), "").unwrap();
    let listener = UnixListener::bind(segment.join("a.status")).unwrap();
    thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            let _ = client.write_all(b"{\"version\":1}");
        }
    });
}

/// An exporter of all segments, which has a `/run` of its own, with `/run/virtio-inter` or without.
/// `None`: the test was skipped.
fn start_with_run(line: &str) -> Option<Exporter> {
    if !geteuid().is_root() {
        skip("another /run needs root");
        return None;
    }
    let line = format!("set -e; mount -t tmpfs tmpfs /run; {line}; exec \"$0\" \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &line, PROGRAM]);
    command.args(["exporter", "--listen", "127.0.0.1:0"]);
    Some(Exporter::start(&mut command).unwrap())
}

#[test]
fn exporter_sees_segments_that_are_made_later() {
    let Some(exporter) = start_with_run("mkdir /run/virtio-inter") else {
        return;
    };
    let text = exporter.metrics();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(!text.contains("virtio_inter_up{"), "{text}");
    serve_status(&exporter);
    let text = exporter.metrics();
    let up = "virtio_inter_up{segment=\"web\",port=\"a\"} 1\n";
    assert!(text.contains(up), "{text}");
}

/// It would see none of the segments, as the walls let it into the directory that there was.
#[test]
fn exporter_whose_directory_is_made_later_ends_to_be_started_again() {
    let Some(mut exporter) = start_with_run(":") else {
        return;
    };
    let is_confined = !exporter.log.contains("files");
    assert!(exporter.metrics().starts_with("HTTP/1.1 200"));
    serve_status(&exporter);
    let text = exporter.metrics();
    if is_confined {
        assert_eq!(text, "");
        until("it has ended", || {
            exporter.process.try_wait().unwrap().is_some()
        });
        assert_eq!(exporter.process.wait().unwrap().code(), Some(1));
    } else {
        assert!(text.contains("port=\"a\"} 1\n"), "{text}");
    }
}
