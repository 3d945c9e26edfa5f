//! Ports that are started with their socket (`--fd`), and the other conventions of QEMU for
//! vhost-user back-ends.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketType, socket};
use serde_json::Value;

use crate::frontends::{assert_served, connect};
use crate::process::{PROGRAM, Place, PortCommand, TIMEOUT};
use crate::status::{assert_documented, status};
use crate::usage::complaint;

/// A port that gets a descriptor of this process.
fn with_fd(place: &Place, fd: &(impl AsRawFd + AsFd)) -> PortCommand {
    fcntl_setfd(fd, FdFlags::empty()).unwrap();
    let command = place.command("a").with("--fd", fd.as_raw_fd().to_string());
    let command = command.without("--socket");
    command.with("--status-socket", place.path("a.status"))
}

#[test]
fn fd_that_listens_is_served_from_and_outlives_the_port() {
    let place = Place::new();
    let path = place.path("a.vhost");
    let listener = UnixListener::bind(&path).unwrap();
    for _ in 0..2 {
        let port = with_fd(&place, &listener).start();
        let number = listener.as_raw_fd();
        let serving = format!("Serving descriptor {number} ({}) on", path.display());
        assert!(port.log().contains(&serving), "{}", port.log());
        for _ in 0..3 {
            assert_served(&connect(&port));
        }
        let document = status(&place.path("a.status"));
        assert_eq!(document["socket"], path.to_str().unwrap());
        assert_eq!(document["client"], Value::Null);
        port.end();
        // No lock either: the socket is that of whoever started the port.
        assert_eq!(place.files(), ["a.vhost"]);
    }
}

#[test]
fn fd_that_is_the_connection_ends_the_port_with_it() {
    let place = Place::new();
    let (vmm, other) = UnixStream::pair().unwrap();
    vmm.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut port = with_fd(&place, &other).start();
    drop(other);
    assert_served(&vmm);
    let document = status(&place.path("a.status"));
    assert_documented(&document);
    assert_eq!(document["socket"], Value::Null);
    assert_eq!(document["frontend"]["queues_running"], 0);
    drop(vmm);
    assert_eq!(port.wait().code(), Some(0), "{}", port.log());
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn fd_that_is_no_such_socket_is_a_usage_error() {
    let place = Place::new();
    let kind = |fd: &dyn Fn() -> PortCommand, reason: &str| {
        let text = complaint(&place, &fd(), 2);
        assert!(text.contains(reason), "{text}");
    };
    let null = File::open("/dev/null").unwrap();
    kind(&|| with_fd(&place, &null), "is no Unix stream socket");
    let (datagrams, _other) = UnixDatagram::pair().unwrap();
    kind(&|| with_fd(&place, &datagrams), "is no Unix stream socket");
    let idle = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    kind(
        &|| with_fd(&place, &idle),
        "neither listens nor is connected",
    );
    kind(
        &|| with_fd(&place, &idle).with("--fd", "999"),
        "Descriptor 999 of --fd is not open",
    );
}

/// systemd passes the socket of a socket unit first, then stored connections, by one interface.
#[test]
fn fd_of_a_socket_unit_is_no_stored_connection() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path("a.vhost")).unwrap();
    for name in ["virtio-inter-port@a.socket", "frontend-0"] {
        let number = listener.as_raw_fd();
        let port = with_fd(&place, &listener)
            .with("--fd", "3")
            .limited(&format!("exec 3<&{number}"))
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", name)
            .start();
        assert_served(&connect(&port));
        port.end();
    }
}

#[test]
fn capabilities_are_printed_and_all_else_is_ignored() {
    for arguments in [
        &["port", "--print-capabilities"][..],
        &["--print-capabilities"],
        &[
            "port",
            "--fd",
            "1000",
            "--print-capabilities",
            "--no-such-option",
        ],
    ] {
        let output = Command::new(PROGRAM).args(arguments).output().unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
        let text = String::from_utf8(output.stdout).unwrap();
        let printed: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(printed["type"], "net");
        let file = include_str!("../../../dist/qemu/50-virtio-inter-net.json");
        let file: Value = serde_json::from_str(file).unwrap();
        assert_eq!(file["type"], printed["type"]);
    }
}
