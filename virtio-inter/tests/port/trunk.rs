//! `--trunk`: a port whose guest may use addresses that nobody has listed before.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::{PermissionsExt, chown};

use serde_json::{Value, json};
use virtio_inter_test_support::skip;

use crate::guest::Guest;
use crate::process::{Place, Port, PortCommand, until};
use crate::status::status;
use crate::usage::complaint;

/// The addresses of ports `b` and `c`, and one that `c` lists.
const B: &str = "52:54:00:00:00:62";
const C: &str = "52:54:00:00:00:63";
const LISTED: &str = "02:00:00:00:02:02";
/// Two that nobody has.
const CONTAINER: &str = "02:00:00:00:01:01";
const NOBODY: &str = "02:00:00:00:09:09";

fn now(place: &Place, id: &str) -> Value {
    status(&place.path(&format!("{id}.status")))
}

fn counter(place: &Place, id: &str, name: &str) -> u64 {
    now(place, id)["counters"][0][name].as_u64().unwrap()
}

fn with_status(place: &Place, id: &str, command: PortCommand) -> Port {
    let socket = place.path(&format!("{id}.status"));
    command.with("--status-socket", socket).start()
}

#[test]
fn trunk_learns_what_its_guest_uses_and_peers_know() {
    let place = Place::new();
    let a = with_status(&place, "a", place.command("a").flag("--trunk"));
    let b = with_status(&place, "b", place.command("b"));
    let c = with_status(&place, "c", place.command("c").with("--allow-mac", LISTED));
    for id in ["a", "b", "c"] {
        until("all know each other", || {
            now(&place, id)["peers"].as_array().unwrap().len() == 2
        });
    }
    let mut guests = [&a, &b, &c].map(|port| Guest::new(port, 1514));
    assert_eq!(now(&place, "a")["trunk"], json!([]));
    assert_eq!(now(&place, "b")["trunk"], Value::Null);
    assert_eq!(now(&place, "b")["peers"][0]["trunk"], true);
    let received = |id: &str| counter(&place, id, "rx_frames");

    // The first frame arrives, and only its recipient hears it.
    guests[0].send(CONTAINER, C, 100);
    until("it arrives", || received("c") == 1);
    until("the address is learned", || {
        now(&place, "a")["trunk"] == json!([CONTAINER])
    });
    // The other one knows it all the same.
    until("an answer arrives", || {
        guests[1].send(B, CONTAINER, 100);
        received("a") > 0
    });
    assert_eq!(received("b"), 0);

    // What others have or list stays theirs.
    for taken in [C, LISTED] {
        let before = counter(&place, "a", "tx_spoofed");
        guests[0].send(taken, B, 100);
        until("it is refused", || {
            counter(&place, "a", "tx_spoofed") == before + 1
        });
        let before = (received("a"), received("c"));
        guests[1].send(B, taken, 100);
        until("its owner gets it", || received("c") == before.1 + 1);
        assert_eq!(received("a"), before.0);
        while guests[2].receive().is_some() {}
    }
    assert_eq!(received("b"), 0);
    assert_eq!(now(&place, "a")["trunk"], json!([CONTAINER]));
    for port in [a, b, c] {
        port.end();
    }
}

/// A port that is not there keeps its address if the segment's owner has pinned it.
#[test]
fn trunk_does_not_use_what_is_pinned_to_another_port() {
    let place = Place::new();
    let pins = place.segment().join("pins");
    std::fs::write(&pins, format!("b {B} *\n* * *\n")).unwrap();
    set_permissions(&pins, Permissions::from_mode(0o644)).unwrap();
    let port = with_status(&place, "a", place.command("a").flag("--trunk"));
    let mut guest = Guest::new(&port, 1514);
    guest.send(B, NOBODY, 60);
    guest.send(CONTAINER, NOBODY, 60);
    until("one is learned", || {
        now(&place, "a")["trunk"] == json!([CONTAINER])
    });
    assert_eq!(counter(&place, "a", "tx_spoofed"), 1);
    port.end();
}

#[test]
fn trunk_uses_64_addresses_at_a_time() {
    let place = Place::new();
    let port = with_status(&place, "a", place.command("a").flag("--trunk"));
    let mut guest = Guest::new(&port, 1514);
    let known = || now(&place, "a")["trunk"].as_array().unwrap().len();
    for number in 0..64 {
        guest.send(&format!("02:00:00:00:03:{number:02x}"), NOBODY, 60);
    }
    until("all are learned", || known() == 64);
    assert_eq!(counter(&place, "a", "tx_spoofed"), 0);
    for number in 64..80 {
        guest.send(&format!("02:00:00:00:03:{number:02x}"), NOBODY, 60);
    }
    guest.send("02:00:00:00:03:00", NOBODY, 60);
    until("further ones are refused", || {
        counter(&place, "a", "tx_spoofed") == 16
    });
    assert_eq!(known(), 64);
    until("the warning says so", || {
        let warnings = now(&place, "a")["warnings"].to_string();
        warnings.contains("one more than the 64 addresses")
    });
    port.end();
}

#[test]
fn trunk_is_for_root_and_the_owner_of_the_segment() {
    let place = Place::new();
    let command = place.command("a").flag("--trunk");
    let Some(command) = command.by_ordinary_user() else {
        return skip("no ordinary user can run the program");
    };
    if !rustix::process::geteuid().is_root() {
        return skip("another user's directory needs root");
    }
    let command = command.with("--status-socket", place.path("a.status"));
    let port = command.start();
    // The directory becomes another user's: a port refuses what it finds there.
    chown(place.segment(), Some(0), Some(0)).unwrap();
    set_permissions(place.segment(), Permissions::from_mode(0o777)).unwrap();
    let other = with_status(&place, "b", place.command("b"));
    until("the port refuses the trunk", || {
        let now = now(&place, "b");
        let refused = now["refused"].to_string();
        refused.contains("User 65534 may not run a trunk") && now["peers"] == json!([])
    });
    until("the trunk knows", || {
        let refused = now(&place, "a")["refused"].to_string();
        refused.contains("may not run a trunk of this segment")
    });
    port.end();
    other.end();
    let text = complaint(&place, &command, 2);
    assert!(text.contains("User 65534 may not run a trunk"), "{text}");
}
