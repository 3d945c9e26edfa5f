//! Files of a live port that something else removes or replaces.

mod common;

use std::fs;
use std::time::Duration;

use common::{Net, local, raw, readable};
use virtio_inter_segment::JoinError;

const FILES: [&str; 4] = ["b.lock", "b.sock", "m.lock", "m.sock"];

/// Two ports with a link.
fn net() -> Net {
    let mut net = Net::new();
    net.join("b");
    net.join("m");
    net.until_meshed();
    net
}

fn remove(net: &Net, name: &str) {
    fs::remove_file(net.path().join(name)).unwrap();
}

/// Both kinds of newcomers find m, and the link that was there is the same one.
fn check_found(net: &mut Net) {
    for newcomer in ["a", "z"] {
        net.join(newcomer);
        net.until_meshed();
        net.check_flow();
        net.leave(newcomer);
        net.until_meshed();
    }
    for port in ["b", "m"] {
        assert_eq!(net.ports[port].downs.len(), 2, "{port}");
    }
}

#[test]
fn lock_that_was_removed_is_made_again_and_the_id_stays_taken() {
    let mut net = net();
    remove(&net, "m.lock");
    // Before m has got around to it.
    let error = net.join_as(local("m")).unwrap_err();
    let JoinError::IdTaken { pid, stays, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!((pid, stays), (Some(std::process::id()), true));
    net.until("the lock", |net| net.files() == FILES);
    let error = net.join_as(local("m")).unwrap_err();
    assert!(
        matches!(error, JoinError::IdTaken { stays: true, .. }),
        "{error:?}"
    );
    check_found(&mut net);
    assert_eq!(net.ports["m"].segment.lost(), None);
}

#[test]
fn socket_that_was_removed_is_made_again() {
    let mut net = net();
    for names in [
        vec!["m.sock"],
        vec!["m.lock", "m.sock"],
        vec!["m.sock", "m.lock"],
    ] {
        for name in names {
            remove(&net, name);
        }
        net.until("the files", |net| net.files() == FILES);
    }
    check_found(&mut net);
    // And goes with the port.
    net.leave("m");
    net.leave("b");
    assert_eq!(net.files(), [""; 0]);
}

#[test]
fn socket_that_another_has_replaced_is_left_to_it() {
    let mut net = net();
    let other = raw::listen(net.path(), "m");
    net.until("m to know", |net| net.ports["m"].segment.lost().is_some());
    let why = net.ports["m"].segment.lost().unwrap();
    assert!(why.starts_with("Port id m is taken by a live"), "{why}");
    assert_eq!(net.ports["m"].files_changed, 1);
    assert!(readable(&other, Duration::ZERO), "m did not look");
    // What is dead is nobody's.
    drop(other);
    net.until("m's own", |net| net.ports["m"].segment.lost().is_none());
    assert_eq!(net.ports["m"].files_changed, 2);
    check_found(&mut net);
}

#[test]
fn directory_that_is_made_again_is_joined_again() {
    for moved in [false, true] {
        let mut net = net();
        let aside = net.path().with_extension("aside");
        if moved {
            fs::rename(net.path(), &aside).unwrap();
        } else {
            fs::remove_dir_all(net.path()).unwrap();
        }
        let lost = |net: &Net| net.ports.values().all(|port| port.segment.lost().is_some());
        net.until("both to know", |net| lost(net));
        let why = net.ports["m"].segment.lost().unwrap();
        assert!(why.ends_with("does not exist"), "{why}");
        fs::create_dir(net.path()).unwrap();
        net.until("both to be back", |net| {
            net.ports.values().all(|port| port.segment.lost().is_none())
        });
        assert_eq!(net.files(), FILES);
        check_found(&mut net);
        if moved {
            assert_eq!(fs::read_dir(&aside).unwrap().count(), 0);
            fs::remove_dir(&aside).unwrap();
        }
    }
}

#[test]
fn files_that_are_removed_again_and_again_keep_nobody_busy() {
    let mut net = net();
    let mut removed = 0;
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_secs(1) {
        removed += usize::from(fs::remove_file(net.path().join("m.sock")).is_ok());
        net.run_once(Duration::from_millis(1));
    }
    // Each was made after a pause, but for the first.
    assert!((2..=12).contains(&removed), "{removed}");
    net.until("the files", |net| net.files() == FILES);
    net.until("quiet", |net| {
        net.ports
            .values()
            .all(|port| !readable(port.segment.fd(), Duration::ZERO))
    });
    for port in net.ports.values() {
        assert!(!readable(port.segment.fd(), Duration::from_millis(500)));
    }
    check_found(&mut net);
}

#[test]
fn watched_files_tell_of_their_end_only() {
    let mut net = net();
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("file");
    let changes = |net: &mut Net| {
        net.run_once(Duration::from_millis(50));
        std::mem::take(&mut net.ports.get_mut("m").unwrap().files_changed)
    };
    net.ports["m"].segment.watch_file(&path).unwrap_err();
    for round in 0..3 {
        fs::write(&path, "1").unwrap();
        net.ports["m"].segment.watch_file(&path).unwrap();
        fs::write(&path, "2").unwrap();
        fs::write(elsewhere.path().join("beside"), "").unwrap();
        fs::remove_file(elsewhere.path().join("beside")).unwrap();
        assert_eq!(changes(&mut net), 0);
        match round {
            0 => fs::remove_file(&path).unwrap(),
            1 => fs::rename(&path, elsewhere.path().join("other")).unwrap(),
            _ => fs::rename(elsewhere.path().join("other"), &path).unwrap(),
        }
        assert!(changes(&mut net) >= 1, "round {round}");
    }
}
