//! The log when nobody reads it: nothing waits for its reader, and the reader learns what was lost.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::frontends::{assert_served, connect, memory, share, start_queue, stop_queue};
use crate::process::{Place, Port, PortCommand, TIMEOUT, until};
use crate::service_manager::ServiceManager;
use crate::status::status;

/// Ctrl-S and Ctrl-Q.
const STOP: &[u8] = b"\x13";
const GO_ON: &[u8] = b"\x11";

/// A pipe that the port has as standard error, and nobody reads but where a test says so.
struct UnreadPipe {
    reader: PipeReader,
    /// Another opening of the pipe, so that only this one is non-blocking.
    filler: OwnedFd,
    unread: Vec<u8>,
}

impl UnreadPipe {
    fn new() -> (Self, PipeWriter) {
        let (reader, writer) = std::io::pipe().unwrap();
        let filler = rustix::fs::open(
            format!("/proc/self/fd/{}", writer.as_raw_fd()),
            OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap();
        let pipe = Self {
            reader,
            filler,
            unread: Vec::new(),
        };
        (pipe, writer)
    }

    fn fill(&self) {
        for piece in [[b'.'; 4096].as_slice(), b"."] {
            while rustix::io::write(&self.filler, piece).is_ok() {}
        }
    }

    /// Reads until `text` has come: all up to its end that was not returned before.
    fn read_until(&mut self, text: &str) -> String {
        read_until(&mut self.reader, &mut self.unread, text)
    }
}

/// Reads until `text` has come: all up to its end. What was read beyond stays in `unread`.
#[track_caller]
fn read_until(reader: &mut (impl Read + AsFd), unread: &mut Vec<u8>, text: &str) -> String {
    loop {
        let found = unread
            .windows(text.len())
            .position(|window| window == text.as_bytes());
        if let Some(at) = found {
            let read = unread.drain(..at + text.len()).collect();
            return String::from_utf8(read).unwrap();
        }
        let said = || String::from_utf8_lossy(unread);
        let limit = Timespec::try_from(TIMEOUT).unwrap();
        let ready = poll(&mut [PollFd::new(reader, PollFlags::IN)], Some(&limit));
        assert_eq!(ready, Ok(1), "waited in vain for {text} after {}", said());
        let mut bytes = [0; 65536];
        let count = reader.read(&mut bytes).unwrap();
        assert_ne!(count, 0, "no {text} in {}", said());
        unread.extend(&bytes[..count]);
    }
}

/// A port that serves, with its standard error full.
fn start_with_full_stderr(command: &PortCommand) -> (Port, UnreadPipe) {
    let (mut pipe, writer) = UnreadPipe::new();
    let port = command.spawn_onto(Stdio::null(), writer);
    pipe.read_until("Serving");
    pipe.fill();
    (port, pipe)
}

/// Makes the port log more than a pipe of the smallest size holds.
fn misbehave(port: &Port) {
    for _ in 0..40 {
        let mut socket = connect(port);
        // It may be closed already.
        let _ = socket.write_all(&[0xff; 64]);
        let end = socket.read(&mut [0]).map_err(|error| error.kind());
        assert!(
            matches!(end, Ok(0) | Err(ErrorKind::ConnectionReset)),
            "{end:?}"
        );
    }
}

/// The control thread does all that it is there for.
fn assert_works(place: &Place, port: &Port) {
    misbehave(port);
    let frontend = connect(port);
    share(&frontend, memory().as_fd());
    start_queue(&frontend);
    assert_served(&frontend);
    stop_queue(&frontend);
    let peer = place.start("b");
    peer.wait_for("is up");
    let socket = place.path("a.status");
    until("the peer is known", || {
        status(&socket)["peers"].as_array().unwrap().len() == 1
    });
    assert_served(&connect(port));
    peer.end();
    until("the peer is gone", || {
        status(&socket)["peers"].as_array().unwrap().is_empty()
    });
}

#[test]
fn log_nobody_reads_holds_nobody_up() {
    let place = Place::new();
    let command = place
        .command("a")
        .with("--status-socket", place.path("a.status"));
    let (port, mut pipe) = start_with_full_stderr(&command);
    assert_works(&place, &port);
    // All of it comes when somebody reads, in order.
    let said = pipe.read_until("is down: ");
    let up = said.find(", is up").unwrap();
    assert!(said[..up].contains("Frontend connected"), "{said}");
    assert!(!said.contains("lost"), "{said}");
    pipe.fill();
    port.end();
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn log_on_a_stopped_terminal_holds_nobody_up() {
    let place = Place::new();
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name: CString = ptsname(&terminal, Vec::new()).unwrap();
    let stderr = rustix::fs::open(
        OsStr::from_bytes(name.as_bytes()),
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .unwrap();
    let mut terminal = File::from(terminal);
    let mut unread = Vec::new();
    let command = place
        .command("a")
        .with("--status-socket", place.path("a.status"));
    let port = command.spawn_onto(Stdio::null(), stderr.try_clone().unwrap());
    read_until(&mut terminal, &mut unread, "Serving");
    terminal.write_all(STOP).unwrap();
    assert_works(&place, &port);
    terminal.write_all(GO_ON).unwrap();
    read_until(&mut terminal, &mut unread, ", is up");
    terminal.write_all(STOP).unwrap();
    misbehave(&port);
    port.end();
    drop(stderr);
}

#[test]
fn log_lines_for_which_there_was_no_room_are_counted() {
    let place = Place::new();
    let command = place.command("a").env("RUST_LOG", "debug");
    let (port, mut pipe) = start_with_full_stderr(&command);
    let frontend = connect(&port);
    share(&frontend, memory().as_fd());
    // Two lines each time, of some 100 bytes.
    for _ in 0..3000 {
        start_queue(&frontend);
        stop_queue(&frontend);
    }
    let said = pipe.read_until("log line(s) lost here");
    let said = said + &pipe.read_until("\n");
    let line = said
        .lines()
        .find(|line| line.contains("lost here"))
        .unwrap();
    let count: usize = line
        .split_whitespace()
        .find_map(|word| word.parse().ok())
        .unwrap();
    let came = said.matches(" queue 0 ").count();
    assert!(count > 1000 && came + count >= 6000, "{came} came: {line}");
    // Later lines are not lost.
    stop_queue(&frontend);
    drop(frontend);
    pipe.read_until("Frontend disconnected");
    port.end();
}

#[test]
fn log_nobody_reads_does_not_keep_a_port_that_cannot_run() {
    let place = Place::new();
    for (command, status) in [
        (place.command("a").with("--mtu", "1"), 2),
        (place.command("a").with("--segment", place.path("none")), 1),
    ] {
        let (pipe, writer) = UnreadPipe::new();
        pipe.fill();
        let mut port = command.spawn_onto(Stdio::null(), writer);
        assert_eq!(port.wait().code(), Some(status));
    }
}

#[test]
fn log_in_the_journal_has_priorities_and_no_time() {
    let place = Place::new();
    let (pipe, writer) = UnreadPipe::new();
    let stat = rustix::fs::fstat(&writer).unwrap();
    let (device, inode) = (stat.st_dev, stat.st_ino);
    let mut pipe = pipe;
    let command = |stream: String| place.command("a").env("JOURNAL_STREAM", stream);
    let mut port =
        command(format!("{device}:{inode}")).spawn_onto(Stdio::null(), writer.try_clone().unwrap());
    let said = pipe.read_until("Serving");
    assert!(said.ends_with("\n<6>Serving"), "{said}");
    assert!(said.lines().all(|line| line.starts_with("<6>")), "{said}");
    let mut socket = connect(&port);
    socket.write_all(&[0xff; 64]).unwrap();
    pipe.read_until("\n<4>Frontend sent an invalid message");
    port.signal(Signal::TERM);
    port.wait();
    pipe.read_until("\n<6>Leaving ");
    let mut port = command(format!("{device}:{inode}"))
        .with("--mtu", "1")
        .spawn_onto(Stdio::null(), writer.try_clone().unwrap());
    port.wait();
    let said = pipe.read_until("68..=65535");
    assert!(said.contains("\n<3>error: invalid value"), "{said}");
    // Inherited, but of another stream.
    let port = command(format!("{device}:{}", inode + 1)).spawn_onto(Stdio::null(), writer);
    let said = pipe.read_until("Serving");
    assert!(said.contains(" INFO "), "{said}");
    port.end();
}

#[test]
fn log_texts_are_for_people() {
    let place = Place::new();
    let mut port = place.command("a").env("RUST_LOG", "debug").start();
    let frontend = connect(&port);
    share(&frontend, memory().as_fd());
    start_queue(&frontend);
    port.wait_for("Driver uses features VERSION_1\n");
    stop_queue(&frontend);
    drop(frontend);
    port.signal(Signal::TERM);
    port.wait();
    let log = port.log();
    for text in [" at used index 0, base 0\n", " file descriptors\n"] {
        assert!(log.contains(text), "{text}: {log}");
    }
    for code in ["Some(", "None", "Ok(", "0x1"] {
        assert!(!log.contains(code), "{code}: {log}");
    }
}

#[test]
fn notify_socket_that_nobody_reads_holds_nobody_up() {
    let place = Place::new();
    let path = place.path("notify");
    let manager = ServiceManager::new(&place);
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    let error = std::iter::repeat_with(|| filler.send_to(b"full", &path))
        .find_map(Result::err)
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    let port = place.command("a").notifying(&path).start();
    assert_served(&connect(&port));
    // Nor one that cannot run.
    let (code, log) = place.command("b").with("--id", "a").notifying(&path).fail();
    assert_eq!(code, 1, "{log}");
    // It hears when it is back.
    until("the log has it", || manager.hear() == "READY=1\n");
    port.end();
}
