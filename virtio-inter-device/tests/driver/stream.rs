//! Streams of numbered frames from every port to every other one at once, each guest driven by two
//! threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::guest::{RxQueue, TxQueue};
use super::network::{Network, mac};
use super::packet::Packet;
use super::wait::{PATIENCE, SetOnDrop};
use virtio_inter_test_support::Rng;

/// How long a receiver waits before it asks whether anything more can come.
const TICK: Duration = Duration::from_millis(20);

/// The result of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct StreamResult {
    /// Frames that senders' ports say to have dropped for a peer without progress. All others
    /// arrived.
    pub(crate) stalled: u64,
}

/// Says how long the frame with this number is, in bytes.
pub(crate) type Lengths = fn(&mut Rng) -> usize;

/// Lengths as on a busy network: acknowledgements, full frames, anything, now and then all that
/// fits.
pub(crate) fn mixed(rng: &mut Rng) -> usize {
    match rng.range(0, 99) {
        0..=39 => rng.range(60, 80),
        40..=69 => 1514,
        70..=98 => rng.range(22, 3000),
        _ => rng.range(20_000, 65_549),
    }
}

/// From every node to every other one `frames` frames, which must arrive as they were sent, in
/// order, none twice. `slow` makes the receivers dawdle.
#[track_caller]
pub(crate) fn all_to_all(
    network: &mut Network,
    frames: u64,
    seed: u64,
    lengths: Lengths,
    slow: bool,
) -> StreamResult {
    let count = network.nodes.len();
    let sent = frames * (count * (count - 1)) as u64;
    let (received, senders) = (AtomicU64::new(0), AtomicU64::new(count as u64));
    let failed = AtomicBool::new(false);
    let (guests, ports): (Vec<_>, Vec<_>) = network
        .nodes
        .iter_mut()
        .map(|node| {
            let guest = &mut node.guest;
            ((&mut guest.tx[0], &mut guest.rx[0]), &node.port)
        })
        .unzip();
    // A port's counters are not its threads' business, so they can be read meanwhile.
    let stalled = || -> u64 {
        ports
            .iter()
            .flat_map(|port| port.counters())
            .map(|counters| counters.tx_peer_stalled.get())
            .sum()
    };
    let before = stalled();
    std::thread::scope(|scope| {
        for (number, (tx, rx)) in guests.into_iter().enumerate() {
            let (received, senders, failed) = (&received, &senders, &failed);
            scope.spawn(move || {
                let guard = SetOnDrop(failed);
                send(tx, number, count, frames, seed, lengths);
                senders.fetch_sub(1, Ordering::SeqCst);
                std::mem::forget(guard);
            });
            scope.spawn(move || {
                let guard = SetOnDrop(failed);
                receive(
                    rx, number, count, frames, seed, lengths, slow, received, failed,
                );
                std::mem::forget(guard);
            });
        }
        let deadline = Instant::now() + 4 * PATIENCE;
        loop {
            let all = received.load(Ordering::SeqCst) + stalled() - before == sent;
            if senders.load(Ordering::SeqCst) == 0 && all {
                break;
            }
            let late = Instant::now() >= deadline;
            if late || failed.load(Ordering::SeqCst) {
                failed.store(true, Ordering::SeqCst);
                assert!(!late, "Frames are missing: {received:?} of {sent} came");
                break;
            }
            std::thread::sleep(TICK / 4);
        }
        // Receivers go home.
        failed.store(true, Ordering::SeqCst);
    });
    StreamResult {
        stalled: stalled() - before,
    }
}

/// The frames from one node to another: numbers, lengths, contents.
struct Script {
    from: usize,
    to: usize,
    next: u64,
    rng: Rng,
    lengths: Lengths,
}

impl Script {
    fn new(from: usize, to: usize, seed: u64, lengths: Lengths) -> Self {
        Script {
            from,
            to,
            next: 0,
            rng: Rng::new(seed ^ (from as u64) << 32 ^ (to as u64) << 40),
            lengths,
        }
    }

    fn packet(&mut self) -> Packet {
        let len = (self.lengths)(&mut self.rng);
        let packet = Packet::new(mac(self.from), mac(self.to), len, self.next);
        self.next += 1;
        packet
    }
}

fn send(tx: &mut TxQueue, from: usize, count: usize, frames: u64, seed: u64, lengths: Lengths) {
    let mut scripts: Vec<_> = (0..count)
        .filter(|&to| to != from)
        .map(|to| Script::new(from, to, seed, lengths))
        .collect();
    for _ in 0..frames {
        for script in &mut scripts {
            tx.send(&script.packet());
        }
    }
    tx.finish();
}

#[allow(clippy::too_many_arguments, reason = "the body of one thread")]
fn receive(
    rx: &mut RxQueue,
    to: usize,
    count: usize,
    frames: u64,
    seed: u64,
    lengths: Lengths,
    slow: bool,
    received: &AtomicU64,
    end: &AtomicBool,
) {
    let mut scripts: Vec<_> = (0..count)
        .map(|from| Script::new(from, to, seed, lengths))
        .collect();
    let mut pause = Rng::new(seed);
    while !end.load(Ordering::SeqCst) {
        let Some(got) = rx.receive_within(TICK) else {
            continue;
        };
        let script = scripts
            .iter_mut()
            .find(|s| mac(s.from) == got.packet.source())
            .expect("A frame from nobody");
        // Frames that were dropped are skipped; one that comes late or again is beyond the script's
        // end.
        let expected = loop {
            assert!(
                script.next < frames,
                "Frame {} of {} is out of order",
                got.packet.seed(),
                script.from
            );
            let packet = script.packet();
            if script.next - 1 == got.packet.seed() {
                break packet;
            }
        };
        let buffers = got.buffers.len() as u16;
        assert_eq!(got.packet, expected.in_buffers(buffers));
        received.fetch_add(1, Ordering::SeqCst);
        if slow && pause.one_in(64) {
            std::thread::yield_now();
        }
    }
}
