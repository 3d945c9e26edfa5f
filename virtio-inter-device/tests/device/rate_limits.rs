//! Rate limits: what a guest sends and gets, at the rate given and without busy-waiting.

use std::time::{Duration, Instant};

use virtio_inter_device::{RateLimit, RateLimits, TokenBucketConfig};

use crate::driver::{Network, Node, Packet, Peer, Spec, mac};

const MS: Duration = Duration::from_millis(1);
/// Bytes of each frame.
const FRAME: usize = 1514;
/// How long a rate is measured.
const MEASURED: Duration = Duration::from_millis(500);

/// So many tokens in 100 ms.
fn bucket(size: u64) -> TokenBucketConfig {
    TokenBucketConfig {
        size,
        refill_time: MS * 100,
        one_time_burst: 0,
    }
}

/// 10 Mbit/s.
const TEN_MBIT: u64 = 125_000;

fn bandwidth(size: u64) -> RateLimit {
    RateLimit {
        bandwidth: Some(bucket(size)),
        packets: None,
    }
}

fn sender(transmit: RateLimit) -> Spec {
    Spec {
        rate_limits: RateLimits {
            transmit,
            receive: RateLimit::default(),
        },
        ..Spec::default()
    }
}

fn receiver(receive: RateLimit) -> Spec {
    Spec {
        rate_limits: RateLimits {
            transmit: RateLimit::default(),
            receive,
        },
        ..Spec::default()
    }
}

/// Asserts that `used` tokens are what a bucket of `size` tokens gives in this time, or not much
/// less. Each of `workers` may go into debt by `last` tokens.
#[track_caller]
fn assert_rate(used: u64, size: u64, time: Duration, workers: u64, last: u64) {
    let earned = size * time.as_millis() as u64 / 100;
    // Time is rounded down.
    let most = size + earned + size / 100 + workers * last;
    assert!(used <= most, "{used} tokens in {time:?}, {most} at most");
    assert!(used > earned / 2, "{used} tokens in {time:?} of {earned}");
}

/// Asserts that a worker does not wake all the time.
#[track_caller]
fn assert_wakeups(node: &Node, time: Duration) {
    let wakeups = node.count("wakeups");
    let most = 50 + time.as_millis() as u64 * 3;
    assert!(wakeups < most, "{wakeups} wake-ups in {time:?}");
}

#[test]
fn rate_limit_of_what_a_guest_sends_is_kept() {
    let mut node = Node::new(0, sender(bandwidth(TEN_MBIT)));
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    let (mut sent, mut received) = (0, 0);
    let start = Instant::now();
    while start.elapsed() < MEASURED {
        while node.guest.tx[0].try_send(&Packet::new(mac(0), mac(1), FRAME, sent)) {
            sent += 1;
        }
        while !peer.is_empty(0) {
            assert_eq!(peer.receive(0).seed(), received);
            received += 1;
        }
        std::thread::sleep(MS);
    }
    let (bytes, time) = (node.count("tx_bytes"), start.elapsed());
    assert_rate(bytes, TEN_MBIT, time, 1, FRAME as u64);
    assert_wakeups(&node, time);
    assert!(node.count("tx_limited") > 0);
    assert_eq!(node.drops(), []);
}

#[test]
fn rate_limit_of_packets_counts_frames() {
    let limit = RateLimit {
        bandwidth: Some(bucket(TEN_MBIT * 100)),
        packets: Some(bucket(100)),
    };
    let mut node = Node::new(0, sender(limit));
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    let start = Instant::now();
    while start.elapsed() < MEASURED {
        while node.guest.tx[0].try_send(&Packet::new(mac(0), mac(1), 60, 0)) {}
        while !peer.is_empty(0) {
            peer.receive(0);
        }
        std::thread::sleep(MS);
    }
    assert_rate(node.count("tx_frames"), 100, start.elapsed(), 1, 1);
}

/// What waits is in the sender's ring and in its guest's queue, and nothing is lost.
#[test]
fn rate_limit_of_what_a_guest_gets_holds_its_sender_back() {
    let mut network = Network::new(&[Spec::default(), receiver(bandwidth(TEN_MBIT))]);
    let (a, b) = network.pair();
    let (mut sent, mut received) = (0, 0);
    let start = Instant::now();
    while start.elapsed() < MEASURED {
        while a.guest.tx[0].try_send(&Packet::new(mac(0), mac(1), FRAME, sent)) {
            sent += 1;
        }
        while let Some(frame) = b.guest.rx[0].try_receive() {
            assert_eq!(frame.packet.seed(), received);
            received += 1;
        }
        std::thread::sleep(MS);
    }
    let (bytes, time) = (b.count("rx_bytes"), start.elapsed());
    assert_rate(bytes, TEN_MBIT, time, 1, FRAME as u64);
    assert_wakeups(b, time);
    assert!(b.count("rx_limited") > 0 && a.count("tx_waits") > 0);
    assert_eq!((a.drops(), b.drops()), (vec![], vec![]));
}

#[test]
fn rate_limit_is_for_all_queue_pairs_together() {
    let spec = Spec {
        queues: 2,
        ..sender(bandwidth(TEN_MBIT))
    };
    let mut node = Node::new(0, spec);
    let mut peer = Peer::attach(&mut node, 1, &spec);
    let start = Instant::now();
    while start.elapsed() < MEASURED {
        for pair in 0..2 {
            while node.guest.tx[pair].try_send(&Packet::new(mac(0), mac(1), FRAME, 0)) {}
            while !peer.is_empty(pair) {
                peer.receive(pair);
            }
        }
        std::thread::sleep(MS);
    }
    let bytes = node.count("tx_bytes");
    assert_rate(bytes, TEN_MBIT, start.elapsed(), 2, FRAME as u64);
}

/// A port with a limit is a slow receiver like any other: it costs a third port a tenth of the time
/// at most (decision 0084).
#[test]
fn rate_limit_of_a_receiver_holds_no_third_port_up() {
    const FRAMES: u64 = 5_000;
    // 1 Mbit/s.
    let slow = receiver(bandwidth(TEN_MBIT / 10));
    let mut network = Network::new(&[Spec::default(), slow, Spec::default()]);
    let mut received = 0;
    let mut seed = 0;
    while received < FRAMES {
        for to in [1, 2] {
            let packet = Packet::new(mac(0), mac(to), FRAME, seed);
            seed += u64::from(network.nodes[0].guest.tx[0].try_send(&packet));
        }
        while network.nodes[1].guest.rx[0].try_receive().is_some() {}
        while network.nodes[2].guest.rx[0].try_receive().is_some() {
            received += 1;
        }
    }
    let slow = network.nodes[1].count("rx_frames");
    assert!(slow * 5 < FRAMES, "{slow} frames to the one with a limit");
    assert_eq!(network.nodes[2].drops(), []);
}
