//! Everything that the device writes into guest memory is in the log, and after the log was
//! replaced nothing is in the former any more: a guest whose pages are copied by it arrives whole.

use std::collections::BTreeSet;
use std::sync::Arc;

use virtio_inter_device::{Device, DirtyLog};
use vm_memory::{GuestAddress, MmapRegion};

use crate::driver::{END, Feature, Network, Node, PATIENCE, Shape, Spec, mac, until};

/// Begins to log a node's writes, or goes on in a new log.
fn replace_log(node: &mut Node) -> Arc<DirtyLog> {
    let bits = MmapRegion::new((END / DirtyLog::PAGE / 8) as usize).unwrap();
    let log = Arc::new(DirtyLog::new(bits));
    let memory = (**node.guest.arena.memory()).clone();
    let memory = memory.logged(Arc::clone(&log));
    node.port.set_memory(Some(Arc::new(memory))).unwrap();
    log
}

/// The memory that the driver has in use.
fn copy(node: &Node) -> Vec<u8> {
    let arena = &node.guest.arena;
    arena.read(0, arena.end() as usize)
}

/// Pages that differ.
fn changed(before: &[u8], after: &[u8]) -> BTreeSet<u64> {
    let page = DirtyLog::PAGE as usize;
    let pairs = before.chunks(page).zip(after.chunks(page));
    (0..)
        .zip(pairs)
        .filter(|(_, (before, after))| before != after)
        .map(|(page, _)| page)
        .collect()
}

/// Pages in the log.
fn dirty(log: &DirtyLog, node: &Node) -> BTreeSet<u64> {
    (0..node.guest.arena.end().div_ceil(DirtyLog::PAGE))
        .filter(|page| log.is_dirty(GuestAddress(page * DirtyLog::PAGE)))
        .collect()
}

/// With and without what changes how rings are written.
const FEATURES: [u64; 3] = [u64::MAX, !Feature::EVENT_IDX, !Feature::MRG_RXBUF];

fn pair(features: u64) -> Network {
    // Buffers that cross pages, and several for a frame where they are mergeable.
    let small = features & Feature::MRG_RXBUF != 0;
    let buffers = (256, if small { 1500 } else { 70_000 });
    let spec = Spec {
        features,
        buffers,
        ..Spec::default()
    };
    Network::new(&[Spec::default(), spec])
}

#[test]
fn received_frames_and_the_used_ring_are_logged_and_nothing_else_is() {
    const LENGTHS: [usize; 6] = [60, 1514, 4000, 9000, 30_000, 65_000];
    for features in FEATURES {
        let mut network = pair(features);
        let (a, b) = network.pair();
        let before = copy(b);
        let log = replace_log(b);
        for (seed, len) in LENGTHS.into_iter().enumerate() {
            let packet = a.packet(b.mac(), len, seed as u64);
            a.guest.tx[0].send(&packet);
        }
        until("all frames are delivered", || {
            b.counters().rx_frames.get() == LENGTHS.len() as u64
        });
        // When it answers it has shown them.
        b.port.set_memory(None).unwrap();
        let (changed, dirty) = (changed(&before, &copy(b)), dirty(&log, b));
        assert!(changed.len() > 25, "{changed:?}");
        assert!(
            changed.is_subset(&dirty),
            "{changed:?} are not in {dirty:?}"
        );
        // A buffer's page may be written with what it held, and the ring's notification fields as
        // well.
        assert!(dirty.len() < changed.len() + 8, "{dirty:?} for {changed:?}");
    }
}

#[test]
fn dirty_log_has_the_used_ring_of_what_is_sent_and_nothing_else() {
    for features in FEATURES {
        let mut network = pair(features);
        let (b, a) = network.pair();
        let packet = a.packet(mac(0), 20_000, 1);
        assert!(a.guest.tx[0].add(&packet, &[100, 5000], Shape::Direct));
        let before = copy(a);
        let log = replace_log(a);
        a.guest.tx[0].queue.publish();
        assert_eq!(
            b.guest.rx[0]
                .receive_within(PATIENCE)
                .unwrap()
                .packet
                .seed(),
            1
        );
        a.port.set_memory(None).unwrap();
        let (changed, dirty) = (changed(&before, &copy(a)), dirty(&log, a));
        // The driver's one write, of the available index, need not be there.
        let missing: Vec<&u64> = changed.difference(&dirty).collect();
        assert!(missing.len() <= 1, "{missing:?}");
        assert!((1..4).contains(&dirty.len()), "{dirty:?}");
    }
}

/// The way of a live migration: all is copied once, then what the logs name, one after the other.
#[test]
fn memory_copied_by_successive_logs_is_the_memory() {
    for features in FEATURES {
        let mut network = pair(features);
        let (a, b) = network.pair();
        let mut log = replace_log(b);
        let mut moved = copy(b);
        let mut former: Vec<(Arc<DirtyLog>, BTreeSet<u64>)> = Vec::new();
        let page = DirtyLog::PAGE as usize;
        let bring = |moved: &mut Vec<u8>, node: &Node, pages: &BTreeSet<u64>| {
            for at in pages.iter().map(|number| *number as usize * page) {
                let len = page.min(moved.len() - at);
                moved[at..at + len].copy_from_slice(&node.guest.arena.read(at as u64, len));
            }
        };
        for round in 0..40 {
            for number in 0..5 {
                let packet = a.packet(b.mac(), 1400, 5 * round + number);
                a.guest.tx[0].send(&packet);
            }
            // With frames on their way.
            let old = std::mem::replace(&mut log, replace_log(b));
            let pages = dirty(&old, b);
            bring(&mut moved, b, &pages);
            former.push((old, pages));
        }
        until("all frames are delivered", || {
            b.counters().rx_frames.get() == 200
        });
        // Both: a worker that is about to sleep asks for kicks in the transmit queue.
        for queue in [0, 1] {
            b.port.stop_queue(queue).unwrap();
        }
        bring(&mut moved, b, &dirty(&log, b));
        assert_eq!(changed(&moved, &copy(b)), BTreeSet::new());
        for (log, pages) in former {
            assert_eq!(dirty(&log, b), pages, "a former log was written");
        }
    }
}

#[test]
fn dirty_log_is_not_needed() {
    let mut network = pair(u64::MAX);
    let (a, b) = network.pair();
    let log = replace_log(b);
    let memory = Arc::clone(b.guest.arena.memory());
    b.port.set_memory(Some(memory)).unwrap();
    let noted = dirty(&log, b);
    let packet = a.packet(b.mac(), 1000, 7);
    a.guest.tx[0].send(&packet);
    assert_eq!(
        b.guest.rx[0]
            .receive_within(PATIENCE)
            .unwrap()
            .packet
            .seed(),
        7
    );
    assert_eq!(dirty(&log, b), noted);
}
