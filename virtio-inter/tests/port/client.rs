//! Ports that connect to a VMM, which listens (`--client`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::frontends::assert_served;
use crate::process::{Place, PortCommand, TIMEOUT, until};
use crate::status::{assert_documented, status};

/// A port that is to connect to `a.vhost`.
fn client(place: &Place) -> PortCommand {
    let command = place.command("a").flag("--client");
    command.with("--status-socket", place.path("a.status"))
}

fn path(place: &Place) -> PathBuf {
    place.path("a.vhost")
}

/// What the port says of the VMM to which it connects.
fn state(place: &Place) -> Value {
    let mut document = status(&place.path("a.status"));
    assert_documented(&document);
    document["client"].take()
}

/// The next connection, which has to come in time.
fn accept(listener: &UnixListener) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    until("the port connects", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (stream, _) = accepted.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

#[test]
fn client_connects_when_the_vmm_listens_and_again_when_it_is_back() {
    let place = Place::new();
    let port = client(&place).start();
    until("the port has tried", || {
        state(&place)["error"] == "No such file or directory (os error 2)"
    });
    assert_eq!(state(&place)["state"], "waiting");
    for _ in 0..3 {
        let listener = UnixListener::bind(path(&place)).unwrap();
        let vmm = accept(&listener);
        assert_served(&vmm);
        let state = state(&place);
        assert_eq!(state["state"], "connected", "{state}");
        assert_eq!(state["error"], Value::Null, "{state}");
        // A VMM that was killed leaves its socket, and the next one removes it.
        drop((vmm, listener));
        until("the port waits", || {
            self::state(&place)["state"] == "waiting"
        });
        fs::remove_file(path(&place)).unwrap();
    }
    port.end();
    assert_eq!(place.files(), [""; 0]);
}

/// QEMU goes on to listen when its back-end has ended.
#[test]
fn client_leaves_the_vmms_socket_alone_and_the_next_port_uses_it() {
    let place = Place::new();
    let listener = UnixListener::bind(path(&place)).unwrap();
    for _ in 0..2 {
        let mut port = client(&place).start();
        assert_served(&accept(&listener));
        // No lock file: the VMM has the directory.
        assert!(!place.path("a.vhost.lock").exists());
        port.signal(Signal::KILL);
        port.wait();
        let port = client(&place).start();
        assert_served(&accept(&listener));
        port.end();
        assert!(path(&place).exists());
    }
}

/// A VMM that refuses the port must not keep it busy, nor fill its log.
#[test]
fn client_of_a_vmm_that_hangs_up_at_once_waits_longer_and_longer() {
    const WHILE: Duration = Duration::from_secs(3);
    let place = Place::new();
    let listener = UnixListener::bind(path(&place)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = client(&place).start();
    let (start, mut connections) = (Instant::now(), 0);
    while start.elapsed() < WHILE {
        connections += u32::from(listener.accept().is_ok());
        sleep(Duration::from_millis(5));
    }
    assert!((2..15).contains(&connections), "{connections} connections");
    port.end();
}

#[test]
fn client_log_has_one_line_for_each_cause_of_waiting() {
    let place = Place::new();
    let port = client(&place).start();
    let lines = |text: &str| {
        port.log()
            .lines()
            .filter(|line| line.contains(text))
            .count()
    };
    until("the port has tried", || lines("No such file") == 1);
    // A socket on which nobody listens any more.
    drop(UnixListener::bind(path(&place)).unwrap());
    until("the port has tried again", || {
        lines("Connection refused") == 1
    });
    sleep(Duration::from_secs(2));
    assert_eq!(lines("No VMM listens on"), 2, "{}", port.log());
    port.end();
}

/// A VMM that was stopped accepts nothing.
#[test]
fn client_whose_queue_at_the_vmm_is_full_does_not_block() {
    let place = Place::new();
    let listener = UnixListener::bind(path(&place)).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    // One waits to be accepted; there is no room for a second one.
    let _first = UnixStream::connect(path(&place)).unwrap();
    let port = client(&place).start();
    until("the port has tried", || {
        state(&place)["error"]
            .as_str()
            .is_some_and(|error| error.contains("temporarily unavailable"))
    });
    drop(accept(&listener));
    assert_served(&accept(&listener));
    port.end();
}

#[test]
fn client_warns_of_a_directory_in_which_everybody_can_take_the_vms_place() {
    let place = Place::new();
    fs::set_permissions(place.path(""), fs::Permissions::from_mode(0o777)).unwrap();
    let (status, log) = client(&place).fail();
    assert_eq!(status, 1);
    assert!(log.contains("takes the VM's place on the segment"), "{log}");
    let port = client(&place).flag("--allow-public-directory").start();
    port.end();
}
