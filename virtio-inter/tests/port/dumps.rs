//! A core dump of a port has nothing of its guest's or its peers' memory, and there is none.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use virtio_inter_test_support::skip;

use crate::frontends::{assert_served, connect, memory, share, start_queue, tell};
use crate::process::{Place, Port, until};
use crate::status::status;

const SET_LOG_BASE: u32 = 6;
const SET_PROTOCOL_FEATURES: u32 = 16;
const ADD_MEM_REG: u32 = 37;

/// LOG_SHMFD and CONFIGURE_MEM_SLOTS.
const PROTOCOL: u64 = 1 << 1 | 1 << 15;

const SIZE: u64 = 0x10_0000;

fn memfd(name: &str) -> OwnedFd {
    let memory = memfd_create(name, MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, SIZE).unwrap();
    memory
}

/// The port's mappings of shared memory: the memfd's name of each, and whether the kernel leaves
/// the mapping out of core dumps.
fn mappings(port: &Port) -> Vec<(String, bool)> {
    let text = fs::read_to_string(format!("/proc/{}/smaps", port.pid())).unwrap();
    let mut mappings = Vec::new();
    let mut name = None;
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let excluded = flags.split_whitespace().any(|flag| flag == "dd");
            mappings.extend(name.take().map(|name| (name, excluded)));
        } else if let Some((_, rest)) = line.split_once(" /memfd:") {
            name = rest.split_whitespace().next().map(str::to_owned);
        }
    }
    mappings
}

#[track_caller]
fn assert_excluded(port: &Port, names: &[&str]) {
    let mappings = mappings(port);
    for name in names {
        assert!(
            mappings.iter().any(|(mapped, _)| mapped == name),
            "no {name}: {mappings:?}"
        );
    }
    assert!(
        mappings.iter().all(|(_, excluded)| *excluded),
        "{mappings:?}"
    );
}

#[test]
fn dump_of_a_port_leaves_out_guest_links_and_log() {
    let place = Place::new();
    let port = place
        .command("a")
        .env("VIRTIO_INTER_ALLOW_DUMPS", "1")
        .start();
    let peer = place.start("b");
    port.wait_for(", is up");
    assert_excluded(&port, &["virtio-inter-region"]);
    let frontend = connect(&port);
    tell(&frontend, SET_PROTOCOL_FEATURES, &[PROTOCOL], &[]);
    share(&frontend, memory().as_fd());
    assert_served(&frontend);
    assert_excluded(&port, &["virtio-inter-region", "guest"]);
    let more = memfd("more");
    let region = [0, SIZE, SIZE, 2 * SIZE, 0];
    tell(&frontend, ADD_MEM_REG, &region, &[more.as_fd()]);
    assert_served(&frontend);
    assert_excluded(&port, &["virtio-inter-region", "guest", "more"]);
    let log = memfd("log");
    tell(&frontend, SET_LOG_BASE, &[SIZE, 0], &[log.as_fd()]);
    // Its answer.
    (&frontend).read_exact(&mut [0; 28]).unwrap();
    assert_excluded(&port, &["virtio-inter-region", "guest", "more", "log"]);
    // Another table in the place of the first.
    share(&frontend, memfd("other").as_fd());
    assert_served(&frontend);
    assert_excluded(&port, &["virtio-inter-region", "other", "log"]);
    assert!(mappings(&port).iter().all(|(name, _)| name != "guest"));
    peer.end();
    port.end();
}

/// Kills a port by a signal that dumps core: whether the kernel did, and the dump if it is to be
/// had, a file of the working directory.
fn crash(place: &Place, mut port: Port) -> (bool, Option<Vec<u8>>) {
    let pid = Pid::from_raw(port.pid().try_into().unwrap());
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    // Where that is not allowed, what there is will do or not.
    let _ = prlimit(pid, Resource::Core, unlimited);
    port.signal(Signal::ABORT);
    let status = port.wait();
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()));
    let dump = fs::read_dir(place.path("cores"))
        .unwrap()
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .next();
    (status.core_dumped(), dump)
}

#[test]
fn dump_of_a_port_is_not_written_and_would_have_no_guest_memory() {
    let place = Place::new();
    fs::create_dir(place.path("cores")).unwrap();
    let mark = b"what only the guest knows".repeat(4);
    let guest = memory();
    rustix::io::pwrite(&guest, &mark, 0xf000).unwrap();
    let start = |allowed: bool| -> (Port, UnixStream) {
        let mut command = place.command("a").in_directory(&place.path("cores"));
        if allowed {
            command = command.env("VIRTIO_INTER_ALLOW_DUMPS", "1");
        }
        let port = command.start();
        let frontend = connect(&port);
        share(&frontend, guest.as_fd());
        start_queue(&frontend);
        assert_served(&frontend);
        (port, frontend)
    };
    let (port, _frontend) = start(false);
    let (dumped, dump) = crash(&place, port);
    assert!(!dumped && dump.is_none());
    let (port, _frontend) = start(true);
    let (dumped, dump) = crash(&place, port);
    match (dumped, dump) {
        (false, _) => skip("nothing dumps core here"),
        (true, None) => skip("core dumps do not go to the working directory here"),
        (true, Some(dump)) => {
            assert!(dump.len() > 0x1000);
            let found = dump.windows(mark.len()).any(|bytes| bytes == mark);
            assert!(!found, "the guest's memory is in the dump");
        }
    }
}

/// The port's files in /proc are root's then, but for itself.
#[test]
fn dump_forbidden_to_a_port_of_an_ordinary_user_forbids_it_nothing_else() {
    let place = Place::new();
    let command = |id: &str| place.command(id).by_ordinary_user();
    let (Some(a), Some(b)) = (command("a"), command("b")) else {
        skip("no other user can run the program");
        return;
    };
    let socket = place.path("a.status");
    let port = a.with("--status-socket", &socket).start();
    let peer = b.start();
    port.wait_for(", is up");
    let file = format!("/proc/{}/stat", port.pid());
    until("it is not to be traced", || {
        // Its owner is the port's user as long as that may trace it.
        fs::metadata(&file).is_ok_and(|stat| stat.uid() == 0)
    });
    let frontend = connect(&port);
    share(&frontend, memory().as_fd());
    start_queue(&frontend);
    assert_served(&frontend);
    assert_eq!(status(&socket)["peers"].as_array().unwrap().len(), 1);
    for port in [port, peer] {
        assert!(!port.log().contains("WARN"), "{}", port.log());
        port.end();
    }
}
