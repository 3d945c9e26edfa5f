//! A thousand joins and leaves, good and bad, leave nothing behind. Alone in its process, since it
//! counts what the whole process has open.

mod common;

use std::os::fd::AsFd;
use std::time::Duration;

use common::raw;
use common::{Net, open_fds, readable};
use virtio_inter_link::{Doorbell, Region};

/// Open files, mappings, and resident memory in KiB.
fn usage() -> (usize, usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .count();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let resident = resident.trim().trim_end_matches(" kB").parse().unwrap();
    (open_fds(), maps, resident)
}

#[test]
fn segment_leaves_nothing_behind() {
    let mut net = Net::new();
    net.join("m");
    let bad_doorbell = std::fs::File::open("/dev/null").unwrap();
    let round = |net: &mut Net, i: usize| {
        // The acceptor of the one that stays, or its connector.
        let id = if i.is_multiple_of(2) { "a" } else { "z" };
        net.join(id);
        if i.is_multiple_of(3) {
            // Gone in the middle of the handshake.
            net.run_once(Duration::ZERO);
        } else {
            net.until_meshed();
        }
        net.leave(id);
        net.until_meshed();
        if i.is_multiple_of(5) {
            // A handshake that goes wrong at the very end.
            let socket = raw::connect(net, "m");
            raw::send(&socket, &raw::hello("b", 1));
            let (region, doorbell) = (Region::create(1 << 18).unwrap(), Doorbell::new().unwrap());
            let fds = [region.fd(), doorbell.as_fd(), bad_doorbell.as_fd()];
            raw::try_send(&socket, &raw::link(0, 1 << 18, 1), &fds).unwrap();
            raw::until_closed(net, &socket);
        }
        net.until("quiet", |net| {
            !readable(net.ports["m"].segment.fd(), Duration::ZERO)
        });
        net.ports.get_mut("m").unwrap().downs.clear();
    };
    for i in 0..50 {
        round(&mut net, i);
    }
    let before = usage();
    for i in 0..1000 {
        round(&mut net, i);
    }
    // Connections are closed on a thread of their own, soon.
    net.until("as many open files as before", |_| open_fds() <= before.0);
    let after = usage();
    // What a thousand links would leave are thousands; threads and the allocator keep a few.
    assert!(after.1 <= before.1 + 100, "mappings: {before:?} {after:?}");
    assert!(
        after.2 <= before.2 + 2048,
        "KiB resident: {before:?} {after:?}"
    );
    assert_eq!(net.files(), ["m.lock", "m.sock"]);
}
