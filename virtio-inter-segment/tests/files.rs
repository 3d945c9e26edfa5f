//! Files of a live port that something else removes or replaces.

mod common;

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use common::{Net, PATIENCE, limits, local, raw, readable};
use virtio_inter_segment::{JoinError, Limits, Segment};

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

/// Without notifications, files are checked now and then.
#[test]
fn files_of_a_port_that_is_not_notified_are_made_again() {
    let net = Net::new();
    let often = Limits {
        file_check: Duration::from_millis(50),
        ..limits()
    };
    let mut segment = Segment::join_with(net.path(), local("m"), often).unwrap();
    remove(&net, "m.sock");
    assert!(readable(segment.fd(), PATIENCE), "no check");
    assert!(segment.process().is_empty());
    assert_eq!(net.files(), ["m.lock", "m.sock"]);
}

/// The directory of the files is watched, and the one in which it could be renamed; again after
/// another has taken its place. Where that cannot be, files are checked now and then.
#[test]
fn files_are_watched_where_they_can_be() {
    static WATCHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    let mut net = Net::new();
    let often = || Limits {
        file_check: Duration::from_millis(50),
        ..limits()
    };
    net.join_with(local("m"), often()).unwrap();
    let segment = &mut net.ports.get_mut("m").unwrap().segment;
    segment.watch_with(|directory| {
        let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
        WATCHED.lock().unwrap().push(fs::read_link(link).unwrap());
        directory.try_clone_to_owned()
    });
    let directories = [net.path(), net.path().parent().unwrap()].map(Path::to_owned);
    assert_eq!(*WATCHED.lock().unwrap(), directories);
    let segment = &net.ports["m"].segment;
    assert!(
        !readable(segment.fd(), Duration::from_millis(300)),
        "checks"
    );
    fs::remove_dir_all(net.path()).unwrap();
    fs::create_dir(net.path()).unwrap();
    net.until("the files", |net| net.files() == ["m.lock", "m.sock"]);
    let twice = [directories.clone(), directories].concat();
    assert_eq!(*WATCHED.lock().unwrap(), twice);

    net.join_with(local("n"), often()).unwrap();
    net.until_meshed();
    let segment = &mut net.ports.get_mut("n").unwrap().segment;
    segment.watch_with(|_| Err(io::ErrorKind::Unsupported.into()));
    assert!(readable(segment.fd(), PATIENCE), "no check");
}
