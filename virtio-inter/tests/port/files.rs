//! Files of a live port that something else removes, and those of a port that is about to be gone.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use serde_json::{Value, json};
use virtio_inter_test_support::skip;

use crate::process::{Place, Port, until};
use crate::status::status;

const FILES: [&str; 8] = [
    "a.status",
    "a.status.lock",
    "a.vhost",
    "a.vhost.lock",
    "segment/a.capture",
    "segment/a.lock",
    "segment/a.sock",
    "segment/a.status",
];

fn start(place: &Place) -> Port {
    let status = place.path("a.status");
    place.command("a").with("--status-socket", status).start()
}

fn warnings(place: &Place) -> Value {
    let status = status(&place.path("a.status"));
    let warnings = status["warnings"].as_array().unwrap();
    warnings.iter().map(|one| one["code"].clone()).collect()
}

#[test]
fn files_that_were_removed_are_made_again() {
    let place = Place::new();
    let port = start(&place);
    for file in FILES {
        fs::remove_file(place.path(file)).unwrap();
        until(file, || place.files() == FILES);
    }
    // Removed by `rm`, and by renaming a whole directory's content.
    for file in FILES {
        fs::remove_file(place.path(file)).unwrap();
    }
    until("all files", || place.files() == FILES);
    for file in ["a.vhost.lock", "a.status.lock", "segment/a.lock"] {
        until("the lock's content", || {
            fs::read_to_string(place.path(file)).unwrap().trim() == port.pid().to_string()
        });
    }
    // All of it is there to be found, and as it was before.
    drop(UnixStream::connect(&port.socket).unwrap());
    port.wait_for("Frontend connected");
    let mode = |name| {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(place.path(name)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode("a.status"), 0o600);
    assert_eq!(warnings(&place), json!([]));
    let peer = place.start("b");
    port.wait_for("is up");
    peer.end();
    port.end();
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn files_of_a_live_port_that_were_removed_are_not_free() {
    let place = Place::new();
    let port = start(&place);
    // So that it does not make them again itself.
    port.signal(Signal::STOP);
    for file in ["a.vhost.lock", "a.status.lock", "segment/a.lock"] {
        fs::remove_file(place.path(file)).unwrap();
    }
    let process = format!("(process {})", port.pid());
    for (command, expected) in [
        (
            place.command("b").with("--socket", &port.socket),
            "is in use by another program",
        ),
        (
            place
                .command("b")
                .with("--status-socket", place.path("a.status")),
            "is in use by another program",
        ),
        (
            place.command("b").with("--id", "a"),
            "Port id a is taken by a live port",
        ),
    ] {
        let (status, log) = command.fail();
        assert_eq!(status, 1, "{log}");
        assert_eq!(log.trim_end().lines().count(), 1, "{log}");
        assert!(log.contains(expected) && log.contains(&process), "{log}");
    }
    port.signal(Signal::CONT);
    until("all files", || place.files() == FILES);
    port.end();
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn file_that_cannot_be_made_again_is_told() {
    let place = Place::new();
    let port = start(&place);
    fs::write(place.path("precious"), "").unwrap();
    fs::rename(place.path("precious"), &port.socket).unwrap();
    until("the warning", || warnings(&place) == json!(["file-lost"]));
    let text = &status(&place.path("a.status"))["warnings"][0]["text"];
    assert!(
        text.as_str()
            .unwrap()
            .contains("exists and is not a socket")
    );
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(port.log().matches("exists and is not a socket").count(), 1);
    fs::remove_file(&port.socket).unwrap();
    until("its end", || warnings(&place) == json!([]));
    assert_eq!(place.files(), FILES);

    // The segment's directory, and others' sockets in it.
    fs::rename(place.segment(), place.path("aside")).unwrap();
    until("the warning", || warnings(&place) == json!(["file-lost"]));
    fs::rename(place.path("aside"), place.segment()).unwrap();
    until("its end", || warnings(&place) == json!([]));
    port.end();
    assert_eq!(place.files(), [""; 0]);
}

/// Like a supervisor with RestartSec=0, on a busy machine.
#[test]
fn start_right_after_a_kill_takes_over() {
    static OVER: AtomicBool = AtomicBool::new(false);
    let place = Place::new();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !OVER.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        // Also if an assertion fails: the loops would not end otherwise.
        struct End;
        impl Drop for End {
            fn drop(&mut self) {
                OVER.store(true, Ordering::Relaxed);
            }
        }
        let _end = End;
        let peer = place.start("b");
        let mut port = start(&place);
        for _ in 0..50 {
            port.signal(Signal::KILL);
            // Without waiting for its end.
            let next = start(&place);
            drop(std::mem::replace(&mut port, next));
        }
        port.end();
        peer.end();
    });
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn start_after_a_port_that_leaves_takes_over() {
    let place = Place::new();
    let mut port = start(&place);
    for _ in 0..20 {
        port.signal(Signal::TERM);
        until("it leaves", || {
            !place.files().contains(&"a.vhost".to_owned())
        });
        let next = start(&place);
        assert_eq!(port.wait().code(), Some(0));
        port = next;
    }
    port.end();
    assert_eq!(place.files(), [""; 0]);
}

/// A process that holds a lock and does not listen, for ever.
#[test]
fn start_beside_a_process_that_does_not_end_gives_up() {
    let place = Place::new();
    let _lock = place.hold_lock("a.vhost.lock");
    let (status, log) = place.command("a").fail();
    assert_eq!(status, 1, "{log}");
    let expected = format!(
        "Waited 5 s for a process to end: Socket {} is in use by process {}, which ends or begins",
        place.path("a.vhost").display(),
        std::process::id()
    );
    assert!(log.contains(&expected), "{log}");

    // A signal is heard meanwhile.
    let mut port = place.command("a").spawn();
    port.wait_for("waiting for its end");
    port.signal(Signal::TERM);
    assert_eq!(port.wait().code(), Some(0));
    assert_eq!(place.files(), ["a.vhost.lock"]);
}

#[test]
fn tmpfiles_rule_exempts_files_from_cleaning() {
    let root = tempfile::tempdir().unwrap();
    let rule = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist/tmpfiles.d/virtio-inter.conf");
    let exempt = [
        "run/a.sock.lock",
        "run/virtio-inter/web/a.lock",
        "run/vm1.sock.inter-vm/inter-vm0.sock.lock",
        "run/vm1/net.sock.lock",
        "tmp/a.sock.lock",
        "tmp/inter-vm.XXXX/inter-vm0.sock.lock",
        "tmp/vm1/api.inter-vm/inter-vm0.status.lock",
    ];
    for file in exempt.iter().chain(&["tmp/other", "run/other"]) {
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "1").unwrap();
    }
    // Everything there is old.
    let ages = root.path().join("ages.conf");
    fs::write(&ages, "d /tmp - - - 0\nd /run - - - 0\n").unwrap();
    let cleaned = Command::new("systemd-tmpfiles")
        .arg("--clean")
        .arg(format!("--root={}", root.path().display()))
        .args([&rule, &ages])
        .output();
    let Ok(cleaned) = cleaned else {
        skip("systemd-tmpfiles is not installed");
        return;
    };
    assert!(cleaned.status.success(), "{cleaned:?}");
    for file in exempt {
        assert!(root.path().join(file).exists(), "{file}");
    }
    for file in ["tmp/other", "run/other"] {
        assert!(!root.path().join(file).exists(), "{file}");
    }
}
