//! Who maps a guest's memory, and who suffers when it goes away.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;

use crate::guest::{Guest, octets};
use crate::process::{Place, Port, until};

const ROOM: u64 = 2048;

fn address(id: &str) -> String {
    format!("52:54:00:00:00:{:02x}", id.as_bytes()[0])
}

/// Sends a frame from one guest to another, and waits for it.
fn exchange((from, sender): (&str, &mut Guest), (to, receiver): (&str, &mut Guest)) {
    sender.send(&address(from), &address(to), 100);
    let mut frame = Vec::new();
    until("the frame", || {
        frame = receiver.receive().unwrap_or_default();
        !frame.is_empty()
    });
    assert_eq!(frame[..6], octets(&address(to)));
}

/// Inodes of the memory files that a port maps.
fn mapped(port: &Port) -> BTreeSet<u64> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", port.pid())).unwrap();
    let files = maps.lines().filter(|line| line.contains(" /memfd:"));
    let inode = |line: &str| line.split_whitespace().nth(4).unwrap().parse().unwrap();
    files.map(inode).collect()
}

/// The threat model's "No process maps the memory of two VMs".
#[test]
fn memory_of_a_guest_is_mapped_by_its_own_port_alone() {
    let place = Place::new();
    let ids = ["a", "b", "c"];
    let start = |id: &&str| {
        // So that an ordinary user can read what it maps.
        let command = place.command(id).env("VIRTIO_INTER_ALLOW_DUMPS", "1");
        command.start()
    };
    let ports: Vec<Port> = ids.iter().map(start).collect();
    for port in &ports {
        until("links", || port.log().matches(" is up").count() == 2);
    }
    let mut guests: Vec<Guest> = ports.iter().map(|port| Guest::new(port, ROOM)).collect();
    // Each has had frames of each other one.
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
        let [sender, receiver] = guests.get_disjoint_mut([from, to]).unwrap();
        exchange((ids[from], sender), (ids[to], receiver));
    }
    let all: BTreeSet<u64> = guests.iter().map(Guest::memory_inode).collect();
    assert_eq!(all.len(), 3);
    for (port, guest) in ports.iter().zip(&guests) {
        let mapped = mapped(port);
        let of_guests: Vec<_> = mapped.intersection(&all).copied().collect();
        assert_eq!(of_guests, [guest.memory_inode()]);
        // Rings and words of its links: others map these.
        assert!(mapped.len() > 1, "{mapped:?}");
    }
    ports.into_iter().for_each(Port::end);
}

/// A VMM that takes its guest's memory away ends its own port, and nobody else notices more than
/// that.
#[test]
fn memory_of_a_guest_that_is_truncated_ends_its_own_port_alone() {
    let place = Place::new();
    let [mut a, b, c] = ["a", "b", "c"].map(|id| place.start(id));
    for port in [&a, &b, &c] {
        until("links", || port.log().matches(" is up").count() == 2);
    }
    let [mut of_a, mut of_b, mut of_c] = [&a, &b, &c].map(|port| Guest::new(port, ROOM));
    exchange(("a", &mut of_a), ("b", &mut of_b));
    exchange(("b", &mut of_b), ("a", &mut of_a));
    of_a.truncate_memory();
    let status = a.wait();
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
    for port in [&b, &c] {
        until("a is gone", || port.log().contains(" is down"));
    }
    exchange(("b", &mut of_b), ("c", &mut of_c));
    exchange(("c", &mut of_c), ("b", &mut of_b));
    b.end();
    c.end();
}
