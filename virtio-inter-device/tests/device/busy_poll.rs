//! Workers that busy-poll before they sleep need not be woken; that they do not do so for ever is
//! for `idle.rs`.

use std::time::Duration;

use crate::driver::{Network, Spec, busy_poll, until};

/// Frames there and back.
const ROUNDS: u64 = 20;

/// Two guests of which each answers the other at once: how often their workers are woken, but for
/// the first frames.
fn wakeups_of_a_conversation(limit: Duration) -> u64 {
    let spec = Spec {
        busy_poll: busy_poll(limit),
        ..Spec::default()
    };
    let mut network = Network::new(&[spec; 2]);
    let woken = |network: &Network| -> u64 {
        let nodes = network.nodes.iter();
        nodes.map(|node| node.count("wakeups")).sum()
    };
    let mut before = 0;
    for round in 0..ROUNDS {
        let (a, b) = network.pair();
        for _ in 0..2 {
            let packet = a.packet(b.mac(), 100, round);
            a.guest.tx[0].send(&packet);
            assert_eq!(b.guest.rx[0].receive(), packet.in_buffers(1));
            std::mem::swap(a, b);
        }
        if round == 1 {
            before = woken(&network);
        }
    }
    woken(&network) - before
}

#[test]
fn busy_polling_worker_is_not_woken() {
    assert_ne!(wakeups_of_a_conversation(Duration::ZERO), 0);
    // Longer than any gap, and than a worker may be told. Not the first time where the machine
    // moves a worker to another CPU, upon which that one sleeps.
    until("workers that busy-poll are not woken", || {
        wakeups_of_a_conversation(Duration::from_millis(500)) == 0
    });
}
