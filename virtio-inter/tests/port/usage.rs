//! Bad input: one clear line, the right exit status, nothing left behind.

use std::fs;
use std::os::unix::net::UnixListener;

use crate::process::{Place, PortCommand};

/// What a port that cannot run says, on one line, after its files are gone.
#[track_caller]
fn complaint(place: &Place, command: &PortCommand, expected_status: i32) -> String {
    let before = place.files();
    let (status, text) = command.fail();
    assert_eq!(status, expected_status, "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    assert_eq!(place.files(), before);
    text
}

#[test]
fn wrong_values_are_usage_errors() {
    for (option, value, reason) in [
        ("--mac", "01:00:5e:00:00:01", "multicast"),
        ("--mac", "ff:ff:ff:ff:ff:ff", "multicast"),
        ("--mac", "00:00:00:00:00:00", "zero"),
        ("--mac", "52:54:00:00:00", "six pairs"),
        ("--mtu", "67", "67 is not in 68..=65535"),
        ("--mtu", "65536", "65536 is not in 68..=65535"),
        ("--id", "a/b", "'/'"),
        ("--id", "", "empty"),
        ("--queues", "0", "0 is not in 1..="),
        ("--queues", "1000", "1000 is not in 1..="),
        ("--queue-size", "1000", "power of two"),
        ("--socket", &"s".repeat(108), "108 bytes"),
    ] {
        let place = Place::new();
        let text = complaint(&place, &place.command("a").with(option, value), 2);
        assert!(text.contains(reason) && text.contains(option), "{text}");
    }
}

#[test]
fn missing_options_are_usage_errors() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_virtio-inter"))
        .args(["port", "--id", "a"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    for option in ["--socket", "--segment", "--mac"] {
        assert!(text.contains(option), "{text}");
    }
}

#[test]
fn help_is_no_error() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_virtio-inter"))
        .args(["port", "--help"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    for option in [
        "--socket",
        "--segment",
        "--id",
        "--mac",
        "--mtu",
        "--queues",
        "--queue-size",
    ] {
        assert!(text.contains(option), "{text}");
    }
    assert!(
        text.contains("68 to 65535 bytes") && text.contains("Exit status"),
        "{text}"
    );
}

#[test]
fn a_segment_that_is_not_there() {
    let place = Place::new();
    let command = place.command("a").with("--segment", place.path("nowhere"));
    let text = complaint(&place, &command, 1);
    assert!(text.contains("nowhere does not exist"), "{text}");
}

#[test]
fn a_segment_that_is_no_directory() {
    let place = Place::new();
    fs::write(place.path("file"), "").unwrap();
    let command = place.command("a").with("--segment", place.path("file"));
    let text = complaint(&place, &command, 1);
    assert!(text.contains("is not a directory"), "{text}");
}

#[test]
fn a_segment_that_is_not_ours_to_write() {
    // Not even root makes files there.
    let place = Place::new();
    let text = complaint(
        &place,
        &place.command("a").with("--segment", "/proc/self/task"),
        1,
    );
    assert!(text.contains("/proc/self/task"), "{text}");
}

#[test]
fn an_id_that_is_taken() {
    let place = Place::new();
    let port = place.start("a");
    let command = place.command("b").with("--id", "a");
    let text = complaint(&place, &command, 1);
    assert!(text.contains("Port id a is taken"), "{text}");
    assert!(text.contains(&port.pid().to_string()), "{text}");
    port.end();
}

#[test]
fn a_socket_that_is_in_use() {
    let place = Place::new();
    let port = place.start("a");
    let command = place.command("b").with("--socket", &port.socket);
    let text = complaint(&place, &command, 1);
    assert!(
        text.contains(&format!("is in use by process {}", port.pid())),
        "{text}"
    );
    // And it still works.
    drop(std::os::unix::net::UnixStream::connect(&port.socket).unwrap());
    port.wait_for("Frontend disconnected");
    port.end();
}

#[test]
fn a_socket_of_another_program() {
    let place = Place::new();
    let _listener = UnixListener::bind(place.path("a.vhost")).unwrap();
    let text = complaint(&place, &place.command("a"), 1);
    assert!(text.contains("in use by another program"), "{text}");
}

#[test]
fn a_file_where_the_socket_should_be() {
    let place = Place::new();
    fs::write(place.path("a.vhost"), "precious").unwrap();
    let text = complaint(&place, &place.command("a"), 1);
    assert!(text.contains("exists and is not a socket"), "{text}");
    assert_eq!(
        fs::read_to_string(place.path("a.vhost")).unwrap(),
        "precious"
    );
}

#[test]
fn a_directory_for_the_socket_that_is_not_there() {
    let place = Place::new();
    let command = place
        .command("a")
        .with("--socket", place.path("nowhere/a.vhost"));
    let text = complaint(&place, &command, 1);
    assert!(
        text.contains("nowhere/a.vhost.lock: No such file"),
        "{text}"
    );
}
