//! Bad input: one clear line, the right exit status, nothing left behind.

use std::fs;
use std::os::unix::net::UnixListener;

use crate::process::{Place, PortCommand};

/// The one-line error of a port that fails; its files are gone then.
#[track_caller]
pub(crate) fn complaint(place: &Place, command: &PortCommand, expected_status: i32) -> String {
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
        ("--allow-mac", "", "neither a MAC address nor"),
        ("--allow-mac", "*", "neither a MAC address nor"),
        ("--allow-mac", "52:54:*", "neither a MAC address nor"),
        ("--allow-mac", "01:00:5e:00:00:01", "multicast"),
        ("--allow-mac", "33:33:00:*", "multicast"),
        ("--allow-mac", "00:00:00:00:00:00", "zero"),
        (
            "--allow-mac",
            "02:00:00:00:00:01,02:00:00:00:00:01",
            "02:00:00:00:00:01 is listed twice",
        ),
        (
            "--allow-mac",
            &many_addresses(65),
            "65 addresses and prefixes",
        ),
        (
            "--allow-mac",
            "00:00:5e:00:01:*,52:54:00:00:00:61",
            "52:54:00:00:00:61 is the port's own address",
        ),
        ("--mtu", "67", "67 is not in 68..=65535"),
        ("--mtu", "65536", "65536 is not in 68..=65535"),
        ("--id", "a/b", "'/'"),
        ("--id", "", "empty"),
        ("--queues", "0", "0 is not in 1..="),
        ("--queues", "1000", "1000 is not in 1..="),
        ("--queue-size", "1000", "power of two"),
        ("--socket", &"s".repeat(108), "108 bytes"),
        ("--socket-mode", "0666", "not for every user"),
        ("--socket-group", "no-such-group", "no such group"),
        ("--network", "lan", "the port has no uplink (--uplink)"),
    ] {
        let place = Place::new();
        let text = complaint(&place, &place.command("a").with(option, value), 2);
        assert!(text.contains(reason) && text.contains(option), "{text}");
    }
}

fn many_addresses(count: u8) -> String {
    let addresses = (0..count).map(|number| format!("02:00:00:00:00:{number:02x}"));
    addresses.collect::<Vec<_>>().join(",")
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
fn uplink_needs_one_of_tap_and_descriptors() {
    let place = Place::new();
    let segment = place.segment();
    let uplink = |device: &[&str]| {
        let segment = segment.to_str().unwrap();
        run(&[&["uplink", "--segment", segment, "--id", "up"], device].concat())
    };
    let (status, _, text) = uplink(&[]);
    assert_eq!(status, Some(2), "{text}");
    assert!(
        text.contains("required") && text.contains("--tap"),
        "{text}"
    );
    let (status, _, text) = uplink(&["--tap", "nowhere0", "--tap-fd", "9"]);
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("cannot be used with"), "{text}");
    let (status, _, text) = uplink(&["--tap", "nowhere0"]);
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("No tap device nowhere0"), "{text}");
    assert_eq!(place.files(), [""; 0]);
}

/// Runs the program: exit status, standard output, standard error.
fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_virtio-inter"))
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn help_in_each_form_is_no_error() {
    for arguments in [&["port", "--help"][..], &["port", "-h"], &["help", "port"]] {
        let (status, text, errors) = run(arguments);
        assert_eq!((status, errors.as_str()), (Some(0), ""), "{arguments:?}");
        for option in [
            "--socket",
            "--segment",
            "--id",
            "--mac",
            "--mtu",
            "--queues",
            "--queue-size",
            "--ring-size",
            "--busy-poll",
            "--max-peers",
            "--max-link-memory",
            "--max-user-share",
            "--bandwidth",
            "--packets",
            "--status-socket",
            "68 to 65535",
            "Exit status",
        ] {
            assert!(text.contains(option), "{option} in {text}");
        }
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    }
    for arguments in [&["help"][..], &["--help"], &["-h"], &["help", "help"]] {
        let (status, text, errors) = run(arguments);
        assert_eq!((status, errors.as_str()), (Some(0), ""), "{arguments:?}");
        assert!(text.contains("Usage: virtio-inter"), "{text}");
    }
}

#[test]
fn version_in_each_form_is_no_error() {
    for arguments in [
        &["--version"][..],
        &["-V"],
        &["port", "--version"],
        &["port", "-V"],
    ] {
        let (status, text, errors) = run(arguments);
        assert_eq!((status, errors.as_str()), (Some(0), ""), "{arguments:?}");
        assert!(text.trim().ends_with(env!("CARGO_PKG_VERSION")), "{text}");
    }
}

#[test]
fn usage_errors_suggest_what_was_perhaps_meant() {
    for (arguments, suggestion) in [
        (&["prot"][..], "'port'"),
        (&["port", "--sokcet", "x"], "'--socket'"),
        (&["port", "--ringsize", "1M"], "'--ring-size'"),
    ] {
        let (status, out, text) = run(arguments);
        assert_eq!((status, out.as_str()), (Some(2), ""), "{text}");
        assert!(text.contains(suggestion), "{text}");
    }
    let (status, _, text) = run(&[]);
    assert_eq!(status, Some(2));
    assert!(text.contains("Usage: virtio-inter"), "{text}");
}

#[test]
fn socket_that_looks_abstract_is_a_usage_error() {
    for option in ["--socket", "--status-socket"] {
        let place = Place::new();
        let command = place.command("a").with(option, "@vm1");
        let text = complaint(&place, &command, 2);
        assert!(text.contains(option), "{text}");
        assert!(
            text.contains("@vm1 looks like an abstract socket"),
            "{text}"
        );
    }
    // A file of that name is no abstract socket.
    let place = Place::new();
    let command = place.command("a").with("--socket", place.path("@vm1"));
    command.start().end();
}

#[test]
fn empty_values_are_usage_errors() {
    for option in [
        "--socket",
        "--status-socket",
        "--segment",
        "--id",
        "--mac",
        "--mtu",
    ] {
        let place = Place::new();
        let text = complaint(&place, &place.command("a").with(option, ""), 2);
        assert!(text.contains(option), "{text}");
    }
}

#[test]
fn sizes_with_a_suffix_are_taken() {
    let place = Place::new();
    let command = place
        .command("a")
        .with("--ring-size", "1M")
        .with("--queue-size", "1K");
    command.start().end();
}

/// The launcher's rule, too: `segment=web` of `--inter-vm`.
#[test]
fn segment_by_name_is_a_directory_of_run() {
    let place = Place::new();
    fs::create_dir(place.path("no-such-segment")).unwrap();
    let command = place
        .command("a")
        .with("--segment", "no-such-segment")
        .in_directory(&place.path(""));
    let text = complaint(&place, &command, 1);
    assert!(
        text.contains("Segment directory /run/virtio-inter/no-such-segment does not exist"),
        "{text}"
    );
    assert!(text.contains("write ./no-such-segment"), "{text}");
    let command = command.with("--segment", "./no-such-segment");
    command.start().end();
}

#[test]
fn segment_that_is_not_there() {
    let place = Place::new();
    let command = place.command("a").with("--segment", place.path("nowhere"));
    let text = complaint(&place, &command, 1);
    assert!(text.contains("nowhere does not exist"), "{text}");
}

#[test]
fn segment_that_is_no_directory() {
    let place = Place::new();
    fs::write(place.path("file"), "").unwrap();
    let command = place.command("a").with("--segment", place.path("file"));
    let text = complaint(&place, &command, 1);
    assert!(text.contains("is not a directory"), "{text}");
}

#[test]
fn segment_that_is_not_ours_to_write() {
    // Even root cannot make files there.
    let place = Place::new();
    let text = complaint(
        &place,
        &place.command("a").with("--segment", "/proc/self/task"),
        1,
    );
    assert!(text.contains("/proc/self/task"), "{text}");
}

#[test]
fn id_that_is_taken() {
    let place = Place::new();
    let port = place.start("a");
    let command = place.command("b").with("--id", "a");
    let text = complaint(&place, &command, 1);
    assert!(text.contains("Port id a is taken"), "{text}");
    assert!(text.contains(&port.pid().to_string()), "{text}");
    port.end();
}

#[test]
fn socket_that_is_in_use() {
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
fn socket_of_another_program() {
    let place = Place::new();
    let _listener = UnixListener::bind(place.path("a.vhost")).unwrap();
    let text = complaint(&place, &place.command("a"), 1);
    assert!(text.contains("in use by another program"), "{text}");
}

#[test]
fn file_where_the_socket_should_be() {
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
fn directory_for_the_socket_that_is_not_there() {
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
