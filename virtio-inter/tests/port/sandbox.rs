//! The sandbox of the real program.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;

use serde_json::Value;

use crate::frontends::{assert_served, connect, memory, share};
use crate::process::{Place, Port};
use crate::status::status;

/// A field of the status of each thread (proc_pid_status(5)), by the thread's name.
pub(crate) fn of_threads(port: &Port, field: &str) -> BTreeMap<String, String> {
    let threads = fs::read_dir(format!("/proc/{}/task", port.pid())).unwrap();
    let value = |text: &str, field: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    };
    threads
        .map(|thread| fs::read_to_string(thread.unwrap().path().join("status")).unwrap())
        .map(|text| (value(&text, "Name"), value(&text, field)))
        .collect()
}

pub(crate) fn walls(document: &Value) -> Vec<&str> {
    let walls = document["sandbox"]["walls"].as_array().unwrap();
    walls.iter().filter_map(Value::as_str).collect()
}

#[test]
fn sandbox_is_on_by_default_around_each_thread() {
    let place = Place::new();
    let path = place.path("a.status");
    let port = place.command("a").with("--status-socket", &path).start();
    let document = status(&path);
    assert_eq!(document["sandbox"]["mode"], "on");
    let walls = walls(&document);
    for wall in ["no_new_privileges", "capabilities"] {
        assert!(walls.contains(&wall), "{document}");
    }
    let threads = of_threads(&port, "NoNewPrivs");
    for thread in ["log", "signals", "queue-0"] {
        assert!(threads.contains_key(thread), "{threads:?}");
    }
    assert!(threads.values().all(|value| value == "1"), "{threads:?}");
    for set in ["CapEff", "CapPrm", "CapInh"] {
        let sets = of_threads(&port, set);
        let none = |set: &String| set == "0000000000000000";
        assert!(sets.values().all(none), "{sets:?}");
    }
    port.end();
}

#[test]
fn sandbox_that_is_off_is_said() {
    let place = Place::new();
    let path = place.path("a.status");
    let command = place.command("a").with("--status-socket", &path);
    let port = command.with("--sandbox", "off").start();
    assert!(port.log().contains("No sandbox (--sandbox off)"));
    let document = status(&path);
    assert_eq!(document["sandbox"]["mode"], "off");
    assert_eq!(walls(&document), [""; 0]);
    let threads = of_threads(&port, "NoNewPrivs");
    assert!(threads.values().all(|value| value == "0"), "{threads:?}");
    port.end();
}

/// A kernel takes one of the two branches; `cargo xtask test` has one with all walls.
#[test]
fn sandbox_that_is_strict_serves_where_no_wall_is_missing_and_refuses_elsewhere() {
    let place = Place::new();
    let path = place.path("a.status");
    let on = place.command("a").with("--status-socket", &path);
    let port = on.start();
    let missing = status(&path)["sandbox"]["missing"].clone();
    port.end();
    let strict = on.with("--sandbox", "strict");
    let missing = missing.as_array().unwrap();
    let Some(wall) = missing.first() else {
        let port = strict.start();
        let document = status(&path);
        assert_eq!(document["sandbox"]["mode"], "strict");
        assert!(walls(&document).contains(&"sockets"), "{document}");
        let frontend = connect(&port);
        share(&frontend, std::os::fd::AsFd::as_fd(&memory()));
        assert_served(&frontend);
        port.end();
        return;
    };
    let (code, log) = strict.fail();
    assert_eq!(code, 1, "{log}");
    let said = "--sandbox strict, and walls are missing";
    let reason = wall["reason"].as_str().unwrap();
    assert!(log.contains(said) && log.contains(reason), "{log}");
    assert_eq!(place.files(), [""; 0]);
    virtio_inter_test_support::skip(&format!("not all walls can be built: {reason}"));
}

/// Root serves a segment of others, whose files it makes, gives away and removes.
#[test]
fn sandbox_of_root_leaves_it_directories_of_others() {
    if !rustix::process::geteuid().is_root() {
        virtio_inter_test_support::skip("this is for root");
        return;
    }
    let place = Place::new();
    for path in [place.segment(), place.path("")] {
        chown(&path, Some(65534), Some(65534)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o3770)).unwrap();
    }
    let mut port = place.start("a");
    let sets = of_threads(&port, "CapEff");
    // CHOWN, DAC_OVERRIDE and FOWNER.
    let file_sets = sets.values().all(|set| set == "000000000000000b");
    assert!(file_sets, "{sets:?}");
    for name in ["segment/a.sock", "a.vhost.lock"] {
        fs::remove_file(place.path(name)).unwrap();
    }
    for name in ["segment/a.sock", "a.vhost.lock"] {
        port.until("the file is there again", || place.path(name).exists());
    }
    let frontend = connect(&port);
    share(&frontend, std::os::fd::AsFd::as_fd(&memory()));
    assert_served(&frontend);
    port.end();
}

/// The next process of a supervised port is confined to the new directory, and has the connection.
#[test]
fn sandbox_of_a_directory_that_was_replaced_ends_a_supervised_port() {
    for supervised in [true, false] {
        let place = Place::new();
        let directory = place.path("sockets");
        fs::create_dir(&directory).unwrap();
        let manager = UnixDatagram::bind(place.path("notify")).unwrap();
        let command = place
            .command("a")
            .with("--socket", directory.join("a.vhost"));
        let command = if supervised {
            let command = command.notifying(&place.path("notify"));
            command.env("FDSTORE", "8")
        } else {
            command
        };
        let mut port = command.start();
        // The inode must not be used again.
        fs::rename(&directory, place.path("aside")).unwrap();
        fs::create_dir(&directory).unwrap();
        if supervised {
            assert_eq!(port.wait().code(), Some(1));
            let log = port.log();
            assert!(log.contains("sockets was replaced"), "{log}");
        } else {
            port.wait_for("It cannot be made again now");
            port.end();
        }
        drop(manager);
        // Either can be started again.
        command.start().end();
    }
}
