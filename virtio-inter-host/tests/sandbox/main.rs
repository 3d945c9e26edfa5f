//! Tries from inside the exporter's sandbox what an attacker from the network would.

use std::ffi::c_int;
use std::fs::{self, File};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use virtio_inter_host::exporter::sandbox::{CALLS, EXPORTER};
use virtio_inter_sandbox::{Access, Mode, Report, Wall, enter};
use virtio_inter_test_support::attacks::{ATTACKS, attempt};
use virtio_inter_test_support::inside::{
    assert_dies, behind as run_behind, case, directory, has_filters,
};

/// An error of the kernel, by its number.
#[track_caller]
fn assert_errno<T: std::fmt::Debug>(result: io::Result<T>, errno: c_int) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(errno));
}

/// Enters the sandbox of an exporter whose segments, socket and file are in directories of the
/// given one.
fn enter_exporter(mode: Mode, place: &Path) -> Report {
    for name in ["segments", "text", "socket", "aside"] {
        fs::create_dir_all(place.join(name)).unwrap();
    }
    let access = Access {
        lists: vec![place.join("segments")],
        writes: vec![place.join("text")],
        removes: vec![place.join("socket")],
        ..Access::default()
    };
    enter(mode, &access, &CALLS).unwrap()
}

/// Runs `attempt` behind a wall. Forbidden system calls are only logged: the wall has to stand by
/// itself.
fn behind(wall: Wall, attempt: impl FnOnce(&Path)) {
    let enter = |place: &Path| enter_exporter(Mode::Log, place).why_missing(wall);
    run_behind(enter, attempt);
}

#[test]
fn exporter_opens_no_file_of_the_host() {
    behind(Wall::Files, |place| {
        for path in [
            "/etc/passwd",
            "/etc",
            "/dev/null",
            "/proc/self/status",
            "/proc/self/mem",
        ] {
            assert_errno(File::open(path), libc::EACCES);
        }
        // Whatever is beside sockets, and what it has written itself.
        for name in ["segments", "text", "socket", "aside"] {
            let file = place.join(name).join("file");
            let made = fs::write(&file, "1");
            if name == "text" {
                made.unwrap();
                assert_errno(File::open(&file), libc::EACCES);
            } else {
                assert_errno(made, libc::EACCES);
            }
            assert_errno(symlink("/", place.join(name).join("link")), libc::EACCES);
            assert_errno(fs::create_dir(place.join(name).join("new")), libc::EACCES);
        }
        assert_errno(UnixListener::bind(place.join("text/socket")), libc::EACCES);
        assert_errno(fs::read_dir(place.join("aside")), libc::EACCES);
    });
}

/// Its segments may be made, and its socket removed, after it has started.
#[test]
fn exporter_lists_segments_and_replaces_its_file() {
    behind(Wall::Files, |place| {
        let (text, hidden) = (place.join("text/prom"), place.join("text/.prom"));
        for version in ["1", "2"] {
            fs::write(&hidden, version).unwrap();
            fs::rename(&hidden, &text).unwrap();
        }
        fs::remove_file(&text).unwrap();
        assert_eq!(fs::read_dir(place.join("segments")).unwrap().count(), 0);
        assert_errno(fs::remove_file(place.join("socket/none")), libc::ENOENT);
    });
}

#[test]
fn exporter_connects_by_no_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    behind(Wall::Tcp, move |_| {
        assert_errno(TcpStream::connect(address), libc::EACCES);
        assert_errno(TcpListener::bind("127.0.0.1:1"), libc::EACCES);
    });
}

/// As that of a VMM, or of the system's bus.
#[test]
fn exporter_connects_to_no_socket_outside_segments() {
    let socket = |place: &Path, directory: &str| place.join(directory).join("socket");
    let mut listeners = Vec::new();
    let enter = |place: &Path| {
        for directory in ["segments", "aside"] {
            fs::create_dir(place.join(directory)).unwrap();
            listeners.push(UnixListener::bind(socket(place, directory)).unwrap());
        }
        enter_exporter(Mode::Log, place).why_missing(Wall::Sockets)
    };
    run_behind(enter, |place| {
        assert_errno(UnixStream::connect(socket(place, "aside")), libc::EACCES);
        UnixStream::connect(socket(place, "segments")).unwrap();
    });
}

#[test]
fn exporter_keeps_only_what_root_needs_to_connect() {
    const NONE: &str = "0000000000000000";
    let status = |text: &str, field: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    };
    // Opened before: it may not read it inside.
    let file = File::open("/proc/thread-self/status").unwrap();
    behind(Wall::Capabilities, |_| {
        let text = io::read_to_string(file).unwrap();
        assert_eq!(status(&text, "NoNewPrivs"), "1");
        // DAC_OVERRIDE: root connects to sockets of others.
        let is_root = rustix::process::geteuid().is_root();
        let kept = format!("{:016x}", u8::from(is_root) << 1);
        for (set, value) in [
            ("CapPrm", &*kept),
            ("CapEff", &*kept),
            ("CapInh", NONE),
            ("CapAmb", NONE),
        ] {
            assert_eq!(status(&text, set), value, "{text}");
        }
    });
}

#[test]
fn exporter_that_attacks_ends() {
    if let Some(place) = directory() {
        let report = enter_exporter(Mode::On, &place);
        assert!(report.walls.contains(&Wall::SystemCalls));
        let result = attempt(&case());
        panic!("{} is not forbidden: {result:?}", case());
    }
    if has_filters() {
        for case in ATTACKS {
            assert_dies(case);
        }
    }
}

/// `record.sh` of `virtio-inter/tests/sandbox/` makes the record, on x86_64 with glibc.
#[test]
fn calls_that_are_allowed_to_an_exporter_are_made() {
    let made: Vec<&str> = include_str!("calls.txt").lines().collect();
    for call in EXPORTER {
        assert!(made.contains(&call.name), "no exporter makes {}", call.name);
    }
}
