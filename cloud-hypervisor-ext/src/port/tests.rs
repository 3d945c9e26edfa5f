//! A port in name only: what it would say is said by the test.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
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
        std::fs::write(&path, "#!/bin/sh\nexec sleep 600\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        let program = PortProgram { path, log: "warn" };
        let notify = temp.path().join("notify");
        let device = Device {
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
        // Where tests share a process, another one's child may hold the script open for writing.
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

    /// Has its end of a connection kept, and returns the other.
    fn keep(&mut self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fds = [theirs.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let text = [IoSlice::new(b"FDSTORE=1\nFDNAME=frontend-0")];
        let address = SocketAddrUnix::new(&self.notify).unwrap();
        let flags = SendFlags::empty();
        sendmsg_addr(&self.says, &address, &text, &mut control, flags).unwrap();
        assert_eq!(self.port.process(), Change::None);
        assert_eq!(self.port.kept.names(), "frontend-0");
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
fn one_that_hangs_when_it_is_started_again_is_started_once_more() {
    let mut stage = Stage::new();
    stage.kill(1);
    let hanging = stage.pid();
    let deadline = stage.port.deadline().unwrap();
    assert_eq!(stage.port.process_at(deadline), Change::None);
    let mut now = deadline;
    until(|| {
        // Its clock goes on, or the pause before the next start would have no end.
        now += FIRST_PAUSE;
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
fn kept_connection_is_passed_on_and_given_up_after_a_minute() {
    let mut stage = Stage::new();
    let connection = stage.keep();
    stage.kill(1);
    assert!(is_open(&connection));
    // By the kernel's word: it is the first after standard error, and nothing else is passed.
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
    assert!(away > AWAY_FOR - READY_WITHIN && away < AWAY_FOR + READY_WITHIN);
    stage.end();
}

#[test]
fn kept_connection_is_given_up_when_ports_die_of_it() {
    let mut stage = Stage::new();
    let connection = stage.keep();
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
fn kept_connection_is_given_up_with_the_port() {
    let mut stage = Stage::new();
    let connection = stage.keep();
    stage.port.end();
    until(|| !is_open(&connection));
    stage.end();
}
