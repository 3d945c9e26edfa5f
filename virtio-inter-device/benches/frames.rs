//! Processor time of a port's worker for each frame, from a transmit queue into a link and from a
//! link into a receive queue; each without and with a capture of the first 256 bytes.
//!
//! `cargo bench -p virtio-inter-device --bench frames [BYTES…]`. Each figure is the median of
//! [`ROUNDS`] rounds. Time is that of the worker's thread, so that a busy machine changes it
//! little; the driver and the peer that it works for run on other threads.
#![allow(clippy::print_stdout, reason = "the figures are what it is for")]

#[path = "../tests/driver/mod.rs"]
mod driver;

use std::time::Duration;

use driver::{Node, Packet, Peer, Shape, Spec, link, mac, until};
use virtio_inter_device::{BusyPollConfig, CaptureOptions, CaptureRing, Direction};
use virtio_inter_link::{MIN_CAPACITY, Receiver};

const ROUNDS: usize = 15;
/// Number of bursts in a round.
const BURSTS: usize = 40;
/// Bytes, and frames, of a burst at most: they fit the rings.
const BURST: (usize, usize) = (1_300_000, 900);
/// Bytes of each receive buffer.
const BUFFER: usize = 2048;

fn main() {
    println!("frame            transmit ns     captured   receive ns     captured");
    let wanted: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    for len in [60, 1514, 9014, 65_000] {
        if !wanted.is_empty() && !wanted.contains(&len) {
            continue;
        }
        println!(
            "{len:>6} bytes {:>13.0} {:>12.0} {:>12.0} {:>12.0}",
            transmit(len, false),
            transmit(len, true),
            receive(len, false),
            receive(len, true)
        );
    }
}

fn spec() -> Spec {
    Spec {
        capacity: 8 << 20,
        // The worker's time is to be work.
        busy_poll: BusyPollConfig {
            limit: Duration::ZERO,
            ..BusyPollConfig::default()
        },
        rx_size: 1024,
        tx_size: 1024,
        buffers: (1024, BUFFER),
        ..Spec::default()
    }
}

fn burst(len: usize) -> usize {
    (BURST.0 / len).min(BURST.1)
}

/// The reading end of a capture of these frames.
fn capture(node: &mut Node, direction: Direction) -> Receiver {
    let (sender, receiver, _) = link(8 * MIN_CAPACITY);
    let options = CaptureOptions {
        snaplen: 256,
        losses_only: false,
    };
    let ring = CaptureRing::new(sender, options);
    let started = node.port.start_capture(vec![(0, direction, ring)]);
    started.unwrap();
    receiver
}

/// Reads what was captured of a burst: all of it.
fn read(captured: &mut Receiver, frames: usize) {
    for _ in 0..frames {
        let record = captured.peek().unwrap();
        record.expect("A frame was not captured").consume();
    }
    captured.release().unwrap();
}

fn transmit(len: usize, captured: bool) -> f64 {
    let mut node = Node::new(0, spec());
    let mut captured = captured.then(|| capture(&mut node, Direction::Transmit));
    let mut peer = Peer::attach(&mut node, 1, &spec());
    let packet = Packet::new(mac(0), mac(1), len, 1);
    let frames = burst(len);
    median(|| {
        let mut spent = Duration::ZERO;
        for _ in 0..BURSTS {
            let before = worker_time();
            let sent = node.counters().tx_frames.get();
            for _ in 0..frames {
                assert!(node.guest.tx[0].add(&packet, &[], Shape::Direct));
            }
            node.guest.tx[0].queue.publish();
            until("all frames are sent", || {
                node.counters().tx_frames.get() == sent + frames as u64
            });
            until("the worker sleeps", || !worker_runs());
            spent += worker_time() - before;
            if let Some(captured) = &mut captured {
                read(captured, frames);
            }
            for _ in 0..frames {
                peer.receive(0);
            }
            node.guest.tx[0].finish();
        }
        spent.as_nanos() as f64 / (frames * BURSTS) as f64
    })
}

fn receive(len: usize, captured: bool) -> f64 {
    let mut node = Node::new(0, spec());
    let mut captured = captured.then(|| capture(&mut node, Direction::Receive));
    let mut peer = Peer::attach(&mut node, 1, &spec());
    let bytes = Packet::new(mac(1), mac(0), len, 1).bytes();
    let frames = burst(len).min(1024 / (len / BUFFER + 1));
    median(|| {
        let mut spent = Duration::ZERO;
        for _ in 0..BURSTS {
            let before = worker_time();
            let received = node.counters().rx_frames.get();
            for _ in 0..frames {
                let slot = peer.senders[0].reserve(bytes.len()).unwrap();
                let slot = slot.expect("The ring is full");
                slot.slice().copy_from(&bytes);
                slot.commit();
            }
            peer.senders[0].publish().unwrap();
            until("all frames are delivered", || {
                node.counters().rx_frames.get() == received + frames as u64
            });
            until("the worker sleeps", || !worker_runs());
            spent += worker_time() - before;
            if let Some(captured) = &mut captured {
                read(captured, frames);
            }
            while node.guest.rx[0].try_receive().is_some() {}
        }
        spent.as_nanos() as f64 / (frames * BURSTS) as f64
    })
}

/// A file of the worker thread's in `/proc`.
fn worker_file(name: &str) -> String {
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let comm = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        if comm.trim() == "queue-0" {
            return std::fs::read_to_string(path.join(name)).unwrap();
        }
    }
    panic!("There is no worker");
}

fn worker_time() -> Duration {
    let text = worker_file("schedstat");
    let spent = text.split_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(spent.expect("schedstat begins with the time on a processor"))
}

fn worker_runs() -> bool {
    worker_file("stat")
        .rsplit(')')
        .next()
        .is_some_and(|rest| rest.trim().starts_with('R'))
}

fn median(mut round: impl FnMut() -> f64) -> f64 {
    round(); // Touches all memory.
    let mut figures: Vec<f64> = (0..ROUNDS).map(|_| round()).collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
