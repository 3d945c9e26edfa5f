//! Who maps a guest's memory, and who suffers when it goes away.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;

use crate::members::{Member, exchange, start};
use crate::process::{Place, Port, until};

/// Each of three members to each other one.
const PAIRS: [(usize, usize); 6] = [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)];

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
    let mut members = start(&place, 3, |command| command);
    exchange(&mut members, &PAIRS, 1);
    let inode = |member: &Member| member.guest.memory_inode();
    let all: BTreeSet<u64> = members.iter().map(inode).collect();
    assert_eq!(all.len(), 3);
    for member in &members {
        let mapped = mapped(&member.port);
        let of_guests: Vec<_> = mapped.intersection(&all).copied().collect();
        assert_eq!(of_guests, [inode(member)]);
        // Rings and words of its links: others map these.
        assert!(mapped.len() > 1, "{mapped:?}");
    }
    members.into_iter().for_each(|member| member.port.end());
}

/// A VMM that takes its guest's memory away ends its own port, and nobody else notices more than
/// that.
#[test]
fn memory_of_a_guest_that_is_truncated_ends_its_own_port_alone() {
    let place = Place::new();
    let mut members = start(&place, 3, |command| command);
    exchange(&mut members, &PAIRS, 1);
    let mut hit = members.pop().unwrap();
    hit.guest.truncate_memory();
    let status = hit.port.wait();
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
    for member in &members {
        until("it is gone", || member.port.log().contains(" is down"));
    }
    exchange(&mut members, &PAIRS[..2], 1);
    members.into_iter().for_each(|member| member.port.end());
}
