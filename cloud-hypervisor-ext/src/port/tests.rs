//! Tests with a program that is no port: the test sends the port's notifications.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr,
};
use tempfile::TempDir;

use super::*;

#[track_caller]
fn until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < end, "It does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn write_program(path: &Path, line: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, format!("#!/bin/sh\n{line}\n")).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o700)).unwrap();
    // What runs goes on with the former.
    std::fs::rename(new, path).unwrap();
}

struct Stage {
    port: Port,
    says: UnixDatagram,
    notify: PathBuf,
    _directory: TempDir,
}

impl Stage {
    /// A port that serves.
    fn new() -> Self {
        let temp = TempDir::new().unwrap();
        let path = temp.path().join("port");
        write_program(&path, "exec sleep 600");
        let program = PortProgram { path, log: "warn" };
        let notify = temp.path().join("notify");
        let device = Device {
            tap: None,
            uplink_offload: None,
            allow_mac: Default::default(),
            guard: Default::default(),
            trunk: false,
            limits: Default::default(),
            rate_limits: Default::default(),
            sandbox: None,
            tap_fds: None,
            id: "net0".parse().unwrap(),
            port_id: "vm.net0".parse().unwrap(),
            segment: temp.path().into(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            mtu: None,
            num_queues: 2,
            queue_size: None,
            socket: temp.path().join("socket"),
            status_socket: temp.path().join("status"),
            pci_segment: None,
            pci_device_id: None,
        };
        let mut port = None;
        // If tests share a process, a child of another test may hold the script open for writing.
        until(|| {
            port = Port::start(device.clone(), program.clone(), notify.clone()).ok();
            port.is_some()
        });
        let mut stage = Self {
            port: port.unwrap(),
            says: UnixDatagram::unbound().unwrap(),
            notify,
            _directory: temp,
        };
        stage.ready();
        assert_eq!(stage.port.process(), Change::Ready);
        stage
    }

    fn ready(&mut self) {
        self.says.send_to(b"READY=1", &self.notify).unwrap();
    }

    /// Asks for descriptors to be kept.
    fn send(&self, fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        let text = [IoSlice::new(b"FDSTORE=1\nFDNAME=frontend-0")];
        let address = SocketAddrUnix::new(&self.notify).unwrap();
        let flags = SendFlags::empty();
        sendmsg_addr(&self.says, &address, &text, &mut control, flags).unwrap();
    }

    /// Stores one end of a connection, and returns the other.
    fn store(&mut self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.send(&[theirs.as_fd()]);
        assert_eq!(self.port.process(), Change::None);
        assert_eq!(self.port.fd_store.names(), "frontend-0");
        ours
    }

    fn pid(&self) -> Option<u32> {
        self.port.child().map(Child::pid)
    }

    /// Kills it and waits until it was started so many times again.
    fn kill(&mut self, restarts: u32) {
        self.port.child().unwrap().signal(Signal::KILL);
        until(|| {
            assert_eq!(self.port.process(), Change::None);
            self.port.restarts == restarts
        });
    }

    fn end(mut self) {
        // There may be no process just now.
        if self.port.end() {
            until(|| self.port.process() == Change::Ended);
        }
    }
}

fn is_open(mut connection: &UnixStream) -> bool {
    connection.set_nonblocking(true).unwrap();
    !matches!(connection.read(&mut [0]), Ok(0))
}

#[test]
fn port_that_hangs_after_a_restart_is_restarted_again() {
    let mut stage = Stage::new();
    stage.kill(1);
    let hanging = stage.pid();
    let deadline = stage.port.deadline().unwrap();
    assert_eq!(stage.port.process_at(deadline), Change::None);
    let mut now = deadline;
    until(|| {
        // Its clock goes on, or the pause before the next start would have no end.
        now += MIN_RESTART_DELAY;
        assert_eq!(stage.port.process_at(now), Change::None);
        stage.port.restarts == 2
    });
    assert_ne!(stage.pid(), hanging);
    stage.ready();
    assert_eq!(stage.port.process(), Change::None);
    assert!(matches!(stage.port.state, State::Serving { .. }));
    stage.end();
}

#[test]
fn stored_connection_is_passed_on_and_ends_after_a_minute() {
    let mut stage = Stage::new();
    let connection = stage.store();
    stage.kill(1);
    assert!(is_open(&connection));
    // The kernel lists it: the first descriptor after standard error, and no other is passed.
    let open = || {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", stage.pid().unwrap())).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    until(|| open() == ["0", "1", "2", "3"]);
    let died = Instant::now();
    let mut now = died;
    // It does not serve again, however often it is started.
    until(|| {
        now += Duration::from_secs(1);
        assert_eq!(stage.port.process_at(now), Change::None);
        !is_open(&connection)
    });
    let away = now.duration_since(died);
    assert!(away > DISCONNECT_TIMEOUT - READY_TIMEOUT && away < DISCONNECT_TIMEOUT + READY_TIMEOUT);
    stage.end();
}

#[test]
fn stored_connection_ends_when_ports_die_of_it() {
    let mut stage = Stage::new();
    let connection = stage.store();
    let mut deaths = 0;
    while is_open(&connection) {
        deaths += 1;
        assert!(deaths < 10);
        stage.kill(deaths);
        stage.ready();
        assert_eq!(stage.port.process(), Change::None);
    }
    assert!(deaths > 3);
    stage.end();
}

#[test]
fn stored_connection_ends_with_the_port() {
    let mut stage = Stage::new();
    let connection = stage.store();
    stage.port.end();
    until(|| !is_open(&connection));
    stage.end();
}

#[test]
fn stored_connection_ends_when_the_port_cannot_be_started() {
    for is_there in [true, false] {
        let mut stage = Stage::new();
        let connection = stage.store();
        if is_there {
            write_program(&stage.port.program.path, "exit 1");
        } else {
            std::fs::remove_file(&stage.port.program.path).unwrap();
        }
        stage.port.child().unwrap().signal(Signal::KILL);
        let died = Instant::now();
        let mut now = died;
        until(|| {
            assert_eq!(stage.port.process_at(now), Change::None);
            if matches!(stage.port.state, State::Down { .. }) && stage.port.restarts > 0 {
                now += MAX_RESTART_DELAY;
            }
            !is_open(&connection)
        });
        let away = now.duration_since(died);
        assert!(
            away >= START_FAILURE_TIME && away < DISCONNECT_TIMEOUT / 2,
            "{is_there} {away:?}"
        );
        stage.end();
    }
}

#[test]
fn stored_connection_of_a_port_that_is_not_ready_ends_with_the_vm() {
    let mut stage = Stage::new();
    let connection = stage.store();
    stage.kill(1);
    assert!(is_open(&connection));
    stage.port.vm_ends();
    assert!(!is_open(&connection));
    stage.end();
    // The VM may take its time, and ask for much meanwhile.
    let mut stage = Stage::new();
    let connection = stage.store();
    stage.port.vm_ends();
    assert!(is_open(&connection));
    stage.kill(1);
    assert!(!is_open(&connection));
    stage.end();
}

#[test]
fn stored_connection_of_a_port_that_is_not_ready_ends_before_its_device_is_removed() {
    let mut stage = Stage::new();
    let connection = stage.store();
    stage.port.release();
    assert!(is_open(&connection));
    // Its guest has not let go of it: all is as before.
    stage.kill(1);
    assert!(is_open(&connection));
    stage.port.release();
    assert!(!is_open(&connection));
    stage.end();
}

/// Others wait meanwhile.
#[test]
fn port_notifications_are_read_some_at_a_time() {
    let mut stage = Stage::new();
    for number in 1..=MAX_NOTIFICATIONS + 1 {
        let text = format!("STATUS={number}");
        stage.says.send_to(text.as_bytes(), &stage.notify).unwrap();
    }
    for number in [MAX_NOTIFICATIONS, MAX_NOTIFICATIONS + 1] {
        assert_eq!(stage.port.process(), Change::None);
        assert_eq!(stage.port.reason, Some(number.to_string()));
    }
    stage.end();
}

/// A socket that waits on close for data that nobody takes, until the taker is gone.
fn lingering(limit: Duration) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (taker, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    while stream.write(&[0; 65_536]).is_ok() {}
    rustix::net::sockopt::set_socket_linger(&stream, Some(limit)).unwrap();
    stream.set_nonblocking(false).unwrap();
    (stream, taker)
}

#[test]
fn port_descriptors_that_do_not_close_hold_up_only_that_port() {
    let limit = Duration::from_secs(60);
    let mut stage = Stage::new();
    let (stuck, taker) = lingering(limit);
    let start = Instant::now();
    stage.send(&[stuck.as_fd()]);
    drop(stuck);
    assert_eq!(stage.port.process(), Change::None);
    assert!(stage.port.fd_store.is_empty());
    // And in the queue of a connection that is kept.
    let (stuck, second_taker) = lingering(limit);
    let connection = stage.store();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [stuck.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let flags = SendFlags::empty();
    rustix::net::sendmsg(&connection, &[IoSlice::new(b"x")], &mut control, flags).unwrap();
    drop(stuck);
    stage.port.fd_store.shut_down();
    // Nor do they become ever more.
    let null = File::open("/dev/null").unwrap();
    stage.send(&[null.as_fd(); 100]);
    stage.says.send_to(b"STATUS=x", &stage.notify).unwrap();
    assert_eq!(stage.port.process(), Change::None);
    assert!(stage.port.notify_fd().is_none());
    assert_eq!(stage.port.reason, None);
    assert!(start.elapsed() < limit / 2);
    // It is read again when there is room.
    drop((taker, second_taker));
    until(|| !stage.port.closer.is_full());
    let again = stage.port.deadline().unwrap();
    assert_eq!(stage.port.process_at(again), Change::None);
    assert!(stage.port.notify_fd().is_some());
    assert_eq!(stage.port.reason, Some("x".to_owned()));
    stage.end();
}
