//! How well a port keeps its rate limits, and how often its worker wakes for it.
//!
//! `cargo bench -p virtio-inter-device --bench rate_limits`. The guest always has frames to send,
//! or its peer has some for it. The first half second is not measured: the bucket is full at first.
#![allow(clippy::print_stdout, reason = "the figures are what it is for")]

#[path = "../tests/driver/mod.rs"]
mod driver;

use std::time::{Duration, Instant};

use driver::{Node, Packet, Peer, Spec, mac};
use virtio_inter_device::{BusyPollConfig, RateLimit, RateLimits, TokenBucketConfig};

const WARM_UP: Duration = Duration::from_millis(500);
const MEASURED: Duration = Duration::from_secs(4);

fn main() {
    println!("direction  Mbit/s  refill ms  frame  rate ÷ limit  wake-ups/s");
    for megabits in [10, 1000, 5000] {
        for refill_ms in [10, 100] {
            for len in [1514, 60_000] {
                for is_transmit in [true, false] {
                    let bucket = TokenBucketConfig {
                        size: megabits * 125 * refill_ms,
                        refill_time: Duration::from_millis(refill_ms),
                        one_time_burst: 0,
                    };
                    let (ratio, wakeups) = measure(is_transmit, bucket, len);
                    let direction = if is_transmit { "transmit" } else { "receive" };
                    println!(
                        "{direction:<9} {megabits:>7} {refill_ms:>10} {len:>6} {ratio:>13.4} \
                         {wakeups:>11.0}"
                    );
                }
            }
        }
    }
}

/// The rate as a part of the limit, and wake-ups of the worker in a second.
fn measure(is_transmit: bool, bucket: TokenBucketConfig, len: usize) -> (f64, f64) {
    let limit = RateLimit {
        bandwidth: Some(bucket),
        packets: None,
    };
    let rate_limits = if is_transmit {
        RateLimits {
            transmit: limit,
            ..RateLimits::default()
        }
    } else {
        RateLimits {
            receive: limit,
            ..RateLimits::default()
        }
    };
    let spec = Spec {
        rate_limits,
        capacity: 512 << 10,
        busy_poll: BusyPollConfig {
            limit: Duration::ZERO,
            ..BusyPollConfig::default()
        },
        buffers: (256, 4096),
        ..Spec::default()
    };
    let mut node = Node::new(0, spec);
    let mut peer = Peer::attach(&mut node, 1, &spec);
    let sent = Packet::new(mac(0), mac(1), len, 0);
    let got = Packet::new(mac(1), mac(0), len, 0).bytes();
    let mut work = |node: &mut Node| {
        if is_transmit {
            while node.guest.tx[0].try_send(&sent) {}
            take(&mut peer);
        } else {
            give(&mut peer, &got);
            while node.guest.rx[0].try_receive().is_some() {}
        }
        std::thread::yield_now();
    };
    let mut run = |node: &mut Node, time: Duration| {
        let start = Instant::now();
        while start.elapsed() < time {
            work(node);
        }
    };
    run(&mut node, WARM_UP);
    let now = |node: &Node| {
        let bytes = node.count("tx_bytes") + node.count("rx_bytes");
        (bytes, node.count("wakeups"), Instant::now())
    };
    let before = now(&node);
    run(&mut node, MEASURED);
    let after = now(&node);
    let seconds = (after.2 - before.2).as_secs_f64();
    let limit = bucket.size as f64 / bucket.refill_time.as_secs_f64();
    (
        (after.0 - before.0) as f64 / seconds / limit,
        (after.1 - before.1) as f64 / seconds,
    )
}

/// Reads all records from the port.
fn take(peer: &mut Peer) {
    let receiver = &mut peer.receivers[0];
    while let Some(record) = receiver.peek().unwrap() {
        record.consume();
    }
    receiver.release().unwrap();
}

/// Sends records to the port until there is no room.
fn give(peer: &mut Peer, bytes: &[u8]) {
    let sender = &mut peer.senders[0];
    while let Some(slot) = sender.reserve(bytes.len()).unwrap() {
        slot.slice().copy_from(bytes);
        slot.commit();
    }
    sender.publish().unwrap();
}
