//! `--user`: root starts a port, which becomes another user.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;

use rustix::process::{Signal, geteuid};
use virtio_inter_test_support::skip;

use crate::frontends::{assert_served, connect};
use crate::process::{NOBODY, Place, Port, PortCommand, until};
use crate::sandbox::of_threads;
use crate::status::status;
use crate::uplink::{assert_carries, enter, ip, make_tap};

const GROUP: u32 = 12345;

/// False: the running test is skipped.
fn is_root() -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        skip("only root becomes another user");
    }
    is_root
}

/// A place whose segment is the user's. The sockets' directory is, too, or root's alone.
fn place(sockets: Option<u32>) -> Place {
    let place = Place::new();
    fs::set_permissions(place.path(""), Permissions::from_mode(0o755)).unwrap();
    chown(place.path(""), sockets, None).unwrap();
    chown(place.segment(), Some(NOBODY), None).unwrap();
    place
}

fn command(place: &Place, id: &str) -> PortCommand {
    let status = place.path(&format!("{id}.status"));
    let command = place.command(id).with("--status-socket", status);
    command.with("--user", format!("nobody:{GROUP}"))
}

fn assert_is_nobody(port: &Port) {
    for (field, value) in [("Uid", NOBODY), ("Gid", GROUP)] {
        let ids = of_threads(port, field);
        let expected = format!("{value}\t{value}\t{value}\t{value}");
        assert!(ids.values().all(|ids| *ids == expected), "{ids:?}");
        assert!(ids.contains_key("log") && ids.contains_key("signals"));
    }
    let groups = of_threads(port, "Groups");
    let has = |groups: &str, group: u32| groups.split(' ').any(|it| it == group.to_string());
    let right = |groups: &String| has(groups, GROUP) && !has(groups, 0);
    assert!(groups.values().all(right), "{groups:?}");
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        let sets = of_threads(port, set);
        let none = |set: &String| set == "0000000000000000";
        assert!(sets.values().all(none), "{set}: {sets:?}");
    }
}

#[test]
fn user_that_does_not_exist_or_cannot_be_taken_on_is_a_usage_error() {
    let place = Place::new();
    for (user, reason) in [
        ("no-such-user", "there is no such user"),
        ("nobody:no-such-group", "there is no such group"),
        ("root", "keeps all rights"),
    ] {
        for command in [place.command("a"), place.uplink("a", "up0")] {
            let (status, log) = command.with("--user", user).fail();
            assert_eq!(status, 2, "{log}");
            assert!(log.contains("--user") && log.contains(reason), "{log}");
        }
    }
    let command = place.command("a").with("--user", "daemon");
    let Some(command) = command.by_ordinary_user() else {
        return skip("an ordinary user cannot run the program");
    };
    let (status, log) = command.fail();
    assert_eq!(status, 2, "{log}");
    assert!(log.contains("only root can become another user"), "{log}");
    assert_eq!(place.files(), [""; 0]);
}

/// All that a port does as long as it runs works without root's rights.
#[test]
fn user_runs_a_port_that_root_started() {
    if !is_root() {
        return;
    }
    let place = place(Some(NOBODY));
    let mut a = command(&place, "a").start();
    assert_is_nobody(&a);
    // A frontend comes, goes, and comes again.
    assert_served(&connect(&a));
    assert_served(&connect(&a));
    for file in ["a.vhost", "a.vhost.lock", "a.status", "a.status.lock"] {
        let file = fs::metadata(place.path(file)).unwrap();
        assert_eq!((file.uid(), file.gid()), (NOBODY, GROUP));
    }
    let mode = fs::metadata(place.path("a.status")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);

    // What something else removes is made again.
    let files = ["a.vhost", "a.status", "segment/a.sock", "segment/a.status"];
    for file in files {
        fs::remove_file(place.path(file)).unwrap();
    }
    for file in files {
        a.until("the file is there again", || place.path(file).exists());
        let file = fs::metadata(place.path(file)).unwrap();
        assert_eq!(file.uid(), NOBODY);
    }
    until("it listens again", || {
        UnixStream::connect(&a.socket).is_ok()
    });
    assert_served(&connect(&a));
    assert!(!a.log().contains("cannot write"), "{}", a.log());
    a.end();
    assert_eq!(place.files(), [""; 0]);
}

/// While root opens things, no thread catches signals yet.
#[test]
fn signal_while_root_waits_for_a_process_leaves_nothing() {
    if !is_root() {
        return;
    }
    // The user could not remove files there.
    let place = place(None);
    let _lock = place.hold_lock("a.status.lock");
    let mut port = command(&place, "a").spawn();
    port.until("the VMM's socket is there", || {
        place.path("a.vhost").exists()
    });
    port.signal(Signal::TERM);
    assert_eq!(port.wait().code(), Some(0), "{}", port.log());
    assert_eq!(place.files(), ["a.status.lock"]);
}

/// To peers the port is that user: the owner of the segment says so here.
#[test]
fn user_is_who_joins_the_segment() {
    if !is_root() {
        return;
    }
    let place = place(Some(NOBODY));
    let pins = place.segment().join("pins");
    let (a, b) = ("52:54:00:00:00:61", "52:54:00:00:00:62");
    fs::write(&pins, format!("a {a} {NOBODY}\nb {b} 0\n")).unwrap();
    fs::set_permissions(&pins, Permissions::from_mode(0o644)).unwrap();
    let b = place.start("b");
    // Root is refused, by itself already.
    let (code, log) = place.command("a").fail();
    assert_eq!(code, 1, "{log}");
    // The user is not, whoever connects to whom.
    for _ in 0..2 {
        let a = command(&place, "a").start();
        let linked = || {
            let peers = &status(&place.path("a.status"))["peers"];
            peers.as_array().is_some_and(|peers| peers.len() == 1)
        };
        until("a link", linked);
        a.end();
    }
    b.end();
}

#[test]
fn user_that_may_not_join_the_segment_is_named() {
    if !is_root() {
        return;
    }
    let place = place(Some(NOBODY));
    chown(place.segment(), Some(0), None).unwrap();
    fs::set_permissions(place.segment(), Permissions::from_mode(0o755)).unwrap();
    let (code, log) = command(&place, "a").fail();
    assert_eq!(code, 1, "{log}");
    let said = "As user nobody (--user): Segment directory";
    assert!(log.contains(said) && log.contains("not writable"), "{log}");
    assert_eq!(place.files(), [""; 0]);
    // Its owner alone may run these, and root does not any more.
    let (code, log) = command(&place, "a").flag("--trunk").fail();
    assert_eq!(code, 2, "{log}");
    assert!(log.contains("User 65534 may not run a trunk"), "{log}");
}

/// Only what root made stays, and is in nobody's way.
#[test]
fn user_without_the_directory_of_the_sockets_leaves_them_there() {
    if !is_root() {
        return;
    }
    let place = place(None);
    let left = ["a.status", "a.status.lock", "a.vhost", "a.vhost.lock"];
    for _ in 0..2 {
        let port = command(&place, "a").start();
        assert_is_nobody(&port);
        port.wait_for("User nobody (--user) cannot write to");
        assert_served(&connect(&port));
        assert_eq!(status(&place.path("a.status"))["id"], "a");
        port.end();
        assert_eq!(place.files(), left);
        // Nobody listens.
        UnixStream::connect(place.path("a.vhost")).unwrap_err();
    }
}

/// Its queues stay open. The device can be opened again unless it is another user's.
#[test]
fn user_keeps_the_tap_device_that_root_opened() {
    if !enter() || !is_root() {
        return;
    }
    make_tap("up0", "");
    let place = place(Some(NOBODY));
    let port = command(&place, "a").with("--uplink", "tap=up0").start();
    assert_is_nobody(&port);
    assert_carries(&place, &port);

    ip("link delete up0");
    make_tap("up0", "user daemon");
    port.wait_for("Tap device up0 may not be opened by this user");
    ip("link delete up0");
    make_tap("up0", "user nobody");
    port.wait_for("Tap device up0 is there again");
    assert_eq!(status(&place.path("a.status"))["uplink"]["state"], "up");
    port.end();
    assert_eq!(place.files(), [""; 0]);
}

/// The segment's owner may run an uplink, and this user is no longer root.
#[test]
fn user_of_a_shared_uplink_owns_the_segment() {
    if !enter() || !is_root() {
        return;
    }
    make_tap("up0", "");
    let place = place(Some(NOBODY));
    let uplink = || {
        place
            .uplink("u", "up0")
            .with("--user", format!("nobody:{GROUP}"))
    };
    let port = uplink().start();
    assert_is_nobody(&port);
    port.end();
    assert_eq!(place.files(), [""; 0]);
    chown(place.segment(), Some(0), None).unwrap();
    let (code, log) = uplink().fail();
    assert_eq!(code, 2, "{log}");
    assert!(log.contains("User 65534 may not run an uplink"), "{log}");
}
