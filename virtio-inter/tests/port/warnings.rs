//! Warnings in the log and in the status: they name both values and the solution.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use serde_json::Value;

use crate::frontends::{USER, assert_served, connect, memory, share, tell};
use crate::guest::{Guest, octets};
use crate::process::{Place, Port, until};
use crate::service_manager::ServiceManager;
use crate::status::status;

/// The addresses of ports `a` and `b`, and one that nobody has.
const A: &str = "52:54:00:00:00:61";
const B: &str = "52:54:00:00:00:62";
const NOBODY: &str = "52:54:00:00:00:99";
const BROADCAST: &str = "ff:ff:ff:ff:ff:ff";

fn start(place: &Place, id: &str, options: &[(&'static str, &str)]) -> Port {
    let socket = place.path(&format!("{id}.status"));
    let mut command = place.command(id).with("--status-socket", socket);
    for (option, value) in options {
        command = command.with(option, value);
    }
    command.start()
}

/// The warnings of a port with this code.
fn warnings(place: &Place, id: &str, code: &str) -> Vec<Value> {
    let mut all = status(&place.path(&format!("{id}.status")))["warnings"]
        .as_array()
        .unwrap()
        .clone();
    all.retain(|warning| warning["code"] == code);
    all
}

/// Waits for the one warning with this code, of which there is one line in the log: its text and
/// count.
#[track_caller]
fn wait_for_warning(place: &Place, port: &Port, id: &str, code: &str) -> (String, u64) {
    until(code, || !warnings(place, id, code).is_empty());
    let [warning] = &warnings(place, id, code)[..] else {
        panic!("more than one {code}");
    };
    let time = |key: &str| warning[key].as_u64().unwrap();
    assert!(time("last") >= time("since") && time("since") > 1_700_000_000);
    let text = warning["text"].as_str().unwrap().to_owned();
    port.wait_for(&text);
    assert_eq!(port.log().matches(&text).count(), 1, "{}", port.log());
    (text, warning["count"].as_u64().unwrap())
}

fn linked() -> (Place, Port, Port) {
    let place = Place::new();
    let [a, b] = ["a", "b"].map(|id| start(&place, id, &[]));
    for port in [&a, &b] {
        port.wait_for("is up");
    }
    (place, a, b)
}

#[track_caller]
fn assert_names(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
}

#[test]
fn warning_of_a_foreign_source_address_names_both_and_ways_out() {
    let (place, a, b) = linked();
    let mut guest = Guest::new(&a, 1514);
    assert_eq!(
        status(&place.path("a.status"))["last_refused_source"],
        Value::Null
    );
    guest.send(NOBODY, BROADCAST, 60);
    // The warning does not depend on a request for the status.
    a.wait_for("fail_over_mac=active");
    let (text, count) = wait_for_warning(&place, &a, "a", "foreign-source");
    assert_eq!(count, 1);
    let ways = [
        "mac=",
        "--mac",
        "--allow-mac",
        "fail_over_mac=active",
        "VRRP",
    ];
    assert_names(&text, &[NOBODY, A]);
    assert_names(&text, &ways);
    // However many there are and from wherever: one line.
    for number in 0..200 {
        let source = format!("52:54:00:00:01:{number:02x}");
        guest.send(&source, BROADCAST, 60);
    }
    let [warning] = &warnings(&place, "a", "foreign-source")[..] else {
        panic!("more than one warning");
    };
    assert_eq!(warning["count"], 201);
    let last = "52:54:00:00:01:c7";
    assert_names(warning["text"].as_str().unwrap(), &[last, A]);
    let now = status(&place.path("a.status"));
    assert_eq!(now["last_refused_source"], last);
    assert_eq!(a.log().matches("fail_over_mac").count(), 1, "{}", a.log());
    assert!(warnings(&place, "b", "foreign-source").is_empty());
    a.end();
    b.end();
}

#[test]
fn warning_of_an_allowed_address_that_another_port_has_is_given_by_both() {
    let place = Place::new();
    let list = format!("00:00:5e:00:01:*,{B}");
    let a = start(&place, "a", &[("--allow-mac", &list)]);
    let b = start(&place, "b", &[]);
    let (text, count) = wait_for_warning(&place, &a, "a", "allowed-mac-taken");
    assert_names(&text, &["address of b", "--allow-mac", "--mac"]);
    assert_eq!(count, 1);
    let (text, _) = wait_for_warning(&place, &b, "b", "allowed-mac-taken");
    assert_names(&text, &["--allow-mac of a", B]);
    let listed = ["00:00:5e:00:01:*", B];
    let now = status(&place.path("a.status"));
    assert_eq!(now["allow_mac"], serde_json::json!(listed));
    assert_eq!(now["peers"][0]["allow_mac"], Value::Null);
    let now = status(&place.path("b.status"));
    assert_eq!(now["allow_mac"], serde_json::json!([]));
    assert_eq!(now["peers"][0]["allow_mac"], serde_json::json!(listed));
    // What it says.
    let mut guest = Guest::new(&a, 1514);
    guest.send(B, BROADCAST, 60);
    let (text, _) = wait_for_warning(&place, &a, "a", "foreign-source");
    assert_names(&text, &[B, "address of port b", "--allow-mac"]);
    b.end();
    until("the warning is gone", || {
        warnings(&place, "a", "allowed-mac-taken").is_empty()
    });
    a.end();
}

#[test]
fn warning_of_a_destination_that_nobody_has_goes_when_it_is_there() {
    let (place, a, b) = linked();
    let mut guest = Guest::new(&a, 1514);
    guest.send(A, B, 60);
    guest.send(A, NOBODY, 60);
    let (text, _) = wait_for_warning(&place, &a, "a", "no-destination");
    assert_names(&text, &[NOBODY]);
    let late = start(&place, "c", &[("--mac", NOBODY)]);
    until("the warning is gone", || {
        warnings(&place, "a", "no-destination").is_empty()
    });
    // That one has left is in the log; what its peers go on to send to it for a while is no
    // mistake.
    late.end();
    a.wait_for("is down");
    guest.send(A, NOBODY, 60);
    sleep(Duration::from_millis(1500));
    assert!(warnings(&place, "a", "no-destination").is_empty());
    a.end();
    b.end();
}

#[test]
fn warning_of_another_mtu_is_given_by_both_until_one_leaves() {
    let place = Place::new();
    let a = start(&place, "a", &[("--mtu", "9000")]);
    let b = start(&place, "b", &[]);
    let c = start(&place, "c", &[]);
    until("a has both in one warning", || {
        let now = warnings(&place, "a", "mtu-mismatch");
        now.len() == 1 && now[0]["text"].as_str().unwrap().contains("1500 at b, c.")
    });
    a.wait_for("MTU mismatch: 9000 at this port, 1500 at ");
    for (port, id) in [(&b, "b"), (&c, "c")] {
        let (text, count) = wait_for_warning(&place, port, id, "mtu-mismatch");
        assert_names(&text, &["1500 at this port", "9000 at a.", "one MTU"]);
        assert_eq!(count, 1);
    }
    a.end();
    for id in ["b", "c"] {
        until("the warning is gone", || {
            warnings(&place, id, "mtu-mismatch").is_empty()
        });
    }
    b.end();
    c.end();
}

#[test]
fn warning_of_frames_that_do_not_fit_names_their_sizes() {
    let place = Place::new();
    let a = start(&place, "a", &[("--mtu", "9000")]);
    let b = start(&place, "b", &[]);
    for port in [&a, &b] {
        port.wait_for("is up");
    }
    let mut sender = Guest::new(&a, 1514);
    let _receiver = Guest::new(&b, 1000);
    sender.send(A, B, 9014);
    let (text, _) = wait_for_warning(&place, &b, "b", "packet-too-long");
    assert_names(&text, &["9000 bytes", "peer a", A, "MTU 1500"]);
    sender.send(A, B, 1200);
    let (text, _) = wait_for_warning(&place, &b, "b", "buffer-too-small");
    assert_names(&text, &["1200 bytes", "of 1000", "MRG_RXBUF"]);
    a.end();
    b.end();
}

#[test]
fn warning_of_what_a_guard_drops_names_the_options() {
    let place = Place::new();
    let command = place.command("a").flag("--no-dhcp-server");
    let command = command.with("--ip", "10.0.0.7");
    let a = command
        .with("--status-socket", place.path("a.status"))
        .start();
    let mut guest = Guest::new(&a, 1514);
    guest.send(A, BROADCAST, 60);
    let (text, _) = wait_for_warning(&place, &a, "a", "not-examined");
    assert_names(&text, &["IPv4, IPv6 and ARP", "--ip"]);
    // IPv4 from the listed address, UDP from port 67: a reply of a DHCP server.
    let ip = [0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 7];
    let mut frame = [octets(BROADCAST), octets(A), vec![8, 0], ip.to_vec()].concat();
    frame.extend([255, 255, 255, 255, 0, 67, 0, 68, 0, 26, 0, 0]);
    frame.resize(60, 0);
    guest.send_frame(&frame);
    let (text, _) = wait_for_warning(&place, &a, "a", "dhcp-server");
    assert_names(&text, &["DHCP server", "--no-dhcp-server"]);
    a.end();
}

/// Both ports go on serving, so both must say why no frames flow.
#[test]
fn warning_of_a_second_port_with_the_same_address_is_given_by_both() {
    let place = Place::new();
    let a = start(&place, "a", &[]);
    let b = start(&place, "b", &[("--mac", A)]);
    for (port, id, other) in [(&a, "a", "b"), (&b, "b", "a")] {
        let (text, count) = wait_for_warning(&place, port, id, "conflict");
        let other_port = format!("ort {other} ");
        assert_names(&text, &[&other_port, "own MAC address", A, "--mac"]);
        let refused = &status(&place.path(&format!("{id}.status")))["refused"][0];
        assert_eq!(refused["peer"], other);
        assert_names(refused["reason"].as_str().unwrap(), &[A]);
        assert!(refused["when"].as_u64().unwrap() > 1_700_000_000);
        assert!(count >= 1 && refused["count"].as_u64().unwrap() >= 1);
    }
    // A third one has a link with one of them only, and names both.
    let c = start(&place, "c", &[]);
    let (text, _) = wait_for_warning(&place, &c, "c", "conflict");
    assert_names(&text, &["a", "b", A, "belongs to"]);
    c.end();
    b.end();
    // Its successor has an address of its own.
    let b = start(&place, "b", &[]);
    for (id, other) in [("a", "b"), ("b", "a")] {
        until("the link, and no warning of it", || {
            let now = status(&place.path(&format!("{id}.status")));
            let has = |key: &str| {
                let all = now[key].as_array().unwrap();
                all.iter().any(|entry| entry["peer"] == other)
            };
            now["peers"][0]["id"] == other && !has("refused")
        });
        let text = warnings(&place, id, "conflict");
        assert!(!format!("{text:?}").contains("own MAC address"), "{text:?}");
    }
    a.end();
    b.end();
}

/// A service manager takes a port that serves for a healthy one.
#[test]
fn warning_of_the_same_address_is_in_the_state_for_the_service_manager() {
    let place = Place::new();
    let manager = ServiceManager::new(&place);
    let says = || manager.hear();
    let a = place.command("a").notifying(&place.path("notify")).start();
    assert_eq!(says(), "READY=1\n");
    let b = start(&place, "b", &[("--mac", A)]);
    assert_names(&says(), &["STATUS=", "own MAC address", A, "--mac"]);
    b.end();
    let b = start(&place, "b", &[]);
    assert_eq!(says(), "STATUS=\n");
    a.end();
    b.end();
}

/// The port that wanted the id ends; the one that has it says who it was.
#[test]
fn warning_of_a_second_port_with_the_same_name_is_given_by_the_first() {
    let place = Place::new();
    let a = start(&place, "a", &[]);
    let b = place.command("b").with("--id", "a");
    let (_, log) = b.fail();
    assert!(log.contains("is taken by a live port"), "{log}");
    let (text, count) = wait_for_warning(&place, &a, "a", "conflict");
    assert_names(&text, &["own id a", "(process ", "--id"]);
    let refused = &status(&place.path("a.status"))["refused"][0];
    assert_ne!(refused["pid"], a.pid());
    b.fail();
    until("the second attempt", || {
        warnings(&place, "a", "conflict")[0]["count"]
            .as_u64()
            .unwrap()
            > count
    });
    a.end();
}

/// Wake-ups of the control thread.
fn wake_ups(port: &Port) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{0}/task/{0}/status", port.pid()));
    let status = status.unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// Warnings are looked for after frames were dropped, and then no more.
#[test]
fn warning_of_drops_leaves_an_idle_port_asleep() {
    let (place, a, b) = linked();
    let mut guest = Guest::new(&a, 1514);
    guest.send(NOBODY, B, 60);
    a.wait_for("fail_over_mac");
    // The second look, which finds nothing new.
    sleep(Duration::from_secs(12));
    let before = wake_ups(&a);
    sleep(Duration::from_secs(12));
    assert_eq!(wake_ups(&a), before);
    // The next one is seen again.
    let count = || warnings(&place, "a", "foreign-source")[0]["count"].clone();
    assert_eq!(count(), 1);
    guest.send(NOBODY, B, 60);
    until("the next is counted", || count() == 2);
    a.end();
    b.end();
}

/// The warning comes and goes with the reason, whatever the frontend does then.
#[test]
fn warning_of_a_queue_that_cannot_start_says_why() {
    let place = Place::new();
    let port = start(&place, "a", &[]);
    let start_queue = |socket: &UnixStream, descriptors: u64, features: u64| {
        tell(socket, 2, &[features], &[]);
        tell(socket, 8, &[256 << 32], &[]);
        tell(
            socket,
            9,
            &[
                0,
                descriptors,
                descriptors + 0x2000,
                descriptors + 0x3000,
                u64::MAX,
            ],
            &[],
        );
        let kick = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        tell(socket, 12, &[0], &[kick.as_fd()]);
    };
    let gone = |code: &str| {
        until("the warning ends", || {
            warnings(&place, "a", code).is_empty()
        });
    };
    // VERSION_1 alone, which enables the queues.
    let socket = connect(&port);
    start_queue(&socket, 0x1000, 1 << 32);
    let (text, _) = wait_for_warning(&place, &port, "a", "memory-not-shared");
    assert_names(&text, &["Queue 0 cannot start", "share=on"]);
    assert_served(&socket);
    // The frontend stops the queue.
    tell(&socket, 11, &[0], &[]);
    gone("memory-not-shared");
    drop(socket);
    // A driver from before VIRTIO 1.0, then one that is not.
    let socket = connect(&port);
    share(&socket, memory().as_fd());
    start_queue(&socket, USER, 0);
    let (text, _) = wait_for_warning(&place, &port, "a", "queue-waits");
    assert_names(&text, &["VERSION_1", "force-legacy=false"]);
    assert!(warnings(&place, "a", "memory-not-shared").is_empty());
    tell(&socket, 2, &[1 << 32], &[]);
    gone("queue-waits");
    drop(socket);
    port.end();
}
