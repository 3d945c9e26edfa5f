//! What it costs to do in software what a guest did not negotiate, beside what it costs the kernel
//! of the same machine for a tap.
//!
//! `cargo bench -p virtio-inter-device --bench offload`, as root for the kernel's figures. Each
//! figure is the median of [`ROUNDS`] rounds, ports and kernel taking turns. Time is processor
//! time: of the port's worker, from the ring of a link to the guest's buffers; of the thread that
//! sends out of a tap and reads from it, system calls and their copies included. What the same
//! frames cost when they pass whole is shown as well: the difference is the software path.
#![allow(clippy::print_stdout, reason = "the figures are what it is for")]

#[path = "../src/offload/checksum.rs"]
#[allow(dead_code, unused_imports, reason = "only the sum is measured")]
mod checksum;
#[path = "../tests/driver/mod.rs"]
mod driver;
#[path = "../tests/kernel/tap.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod tap;

use std::hint::black_box;
use std::time::{Duration, Instant};

use driver::{Feature, LEAN, Node, Packet, Peer, Spec, mac, until};
use rustix::time::{ClockId, clock_gettime};
use tap::Tap;
use virtio_inter_device::BusyPollConfig;

const ROUNDS: usize = 9;
/// Bytes of a large frame, and of a segment's payload.
const FRAME: usize = 54 + 44 * SEGMENT;
const SEGMENT: usize = 1448;
/// Bytes of frames, and buffers for them, that are in flight at a time: much more than is lost by
/// waking the worker.
const FLIGHT: (usize, usize) = (1_300_000, 900);
/// Flights in a round.
const FLIGHTS: usize = 50;

/// Who takes what: a name, a guest's features, a tap's offloads.
const RECEIVERS: [(&str, u64, u32); 3] = [
    ("segmented, checksums completed", LEAN, 0),
    (
        "segmented, checksums left partial",
        LEAN | Feature::GUEST_CSUM,
        libc::TUN_F_CSUM,
    ),
    (
        "whole",
        LEAN | Feature::GUEST_CSUM | Feature::GUEST_TSO4,
        libc::TUN_F_CSUM | libc::TUN_F_TSO4,
    ),
];

fn main() {
    sums();
    let tap = Tap::new();
    if let Err(e) = &tap {
        println!("\nNo figures of the kernel's: no tap device in a network namespace: {e}");
    }
    let mut tap = tap.ok();
    let large = Packet::new(mac(1), mac(0), FRAME, 1).segmented(1, SEGMENT as u16);
    println!("\nTCP, {FRAME} bytes, 44 segments              port ns/segment  kernel ns/segment");
    for (name, features, offloads) in RECEIVERS {
        row(name, &large, features, offloads, tap.as_mut(), 44);
    }
    let plain = Packet::new(mac(1), mac(0), FRAME, 1).with_checksum(34, 16);
    println!("\nOne frame of {FRAME} bytes                      port ns/frame    kernel ns/frame");
    for (name, features, offloads) in [
        ("checksum completed", LEAN, 0),
        (
            "checksum left partial",
            LEAN | Feature::GUEST_CSUM,
            libc::TUN_F_CSUM,
        ),
    ] {
        row(name, &plain, features, offloads, tap.as_mut(), 1);
    }
    let small = Packet::new(mac(1), mac(0), 60, 1).with_checksum(34, 16);
    println!("\nOne frame of 60 bytes                         port ns/frame    kernel ns/frame");
    for (name, features, offloads) in [
        ("checksum completed", LEAN, 0),
        (
            "checksum left partial",
            LEAN | Feature::GUEST_CSUM,
            libc::TUN_F_CSUM,
        ),
    ] {
        row(name, &small, features, offloads, tap.as_mut(), 1);
    }
}

/// Speed of the sum alone.
fn sums() {
    println!("Checksum of            GB/s");
    for len in [20usize, 64, 256, 1448, 9000, 65_535] {
        let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let times = (200 << 20) / (len + 100);
        let rate = median(|| {
            let start = Instant::now();
            for _ in 0..times {
                black_box(checksum::sum(black_box(&bytes)));
            }
            (len * times) as f64 / start.elapsed().as_nanos() as f64
        });
        println!("{len:>6} bytes in cache {rate:6.1}");
    }
}

fn row(
    name: &str,
    packet: &Packet,
    features: u64,
    offloads: u32,
    tap: Option<&mut Tap>,
    per_frame: usize,
) {
    let spec = Spec {
        features: features | Feature::EVENT_IDX | Feature::MRG_RXBUF,
        capacity: 8 << 20,
        // The worker's time is to be work.
        busy_poll: BusyPollConfig {
            limit: Duration::ZERO,
            ..BusyPollConfig::default()
        },
        rx_size: 1024,
        buffers: (1024, 2048),
        ..Spec::default()
    };
    let mut node = Node::new(0, spec);
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    let flight = (FLIGHT.0 / packet.len()).min(FLIGHT.1);
    let frames = flight * FLIGHTS * per_frame;
    let delivered = if features & Feature::GUEST_TSO4 == 0 {
        per_frame
    } else {
        1
    };
    let per_frame_ns = |time: Duration| time.as_nanos() as f64 / frames as f64;
    let mut port = || {
        per_frame_ns(through_port(
            &mut node, &mut peer, packet, flight, delivered,
        ))
    };
    port(); // Touches all buffers.
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut tap = tap.filter(|tap| tap.take(offloads).is_ok());
    for _ in 0..ROUNDS {
        ours.push(port());
        if let Some(tap) = &mut tap {
            theirs.push(per_frame_ns(through_tap(tap, packet, flight)));
        }
    }
    let kernel = if theirs.is_empty() {
        "-".to_owned()
    } else {
        format!("{:.0}", middle(theirs))
    };
    println!("{name:<40} {:>16.0} {kernel:>18}", middle(ours));
}

/// Processor time of a port's worker.
fn through_port(
    node: &mut Node,
    peer: &mut Peer,
    packet: &Packet,
    flight: usize,
    per_frame: usize,
) -> Duration {
    let bytes = packet.bytes();
    let mut spent = Duration::ZERO;
    for _ in 0..FLIGHTS {
        let (before, frames) = (worker_time(), node.counters().rx_frames.get());
        for _ in 0..flight {
            let slot = peer.senders[0].reserve(bytes.len()).unwrap();
            let slot = slot.expect("The ring is full");
            slot.slice().copy_from(&bytes);
            slot.commit();
        }
        peer.senders[0].publish().unwrap();
        until("all frames are delivered", || {
            node.counters().rx_frames.get() == frames + (flight * per_frame) as u64
        });
        until("the worker sleeps", || !worker_runs());
        spent += worker_time() - before;
        while node.guest.rx[0].try_receive().is_some() {}
    }
    spent
}

/// Processor time of this thread.
fn through_tap(tap: &mut Tap, packet: &Packet, flight: usize) -> Duration {
    let start = thread_time();
    for _ in 0..flight * FLIGHTS {
        tap.send(packet).unwrap();
        while tap.read().is_some() {}
    }
    thread_time() - start
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
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
    middle((0..ROUNDS).map(|_| round()).collect())
}

fn middle(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
