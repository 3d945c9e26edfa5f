//! Workers that look on before they sleep need not be woken; that they do not do so for ever is for `idle.rs`.

use std::time::Duration;

use virtio_inter_device::Scheduling;

use crate::driver::{Network, Spec, until};

/// Frames there and back.
const ROUNDS: u64 = 500;

fn network(busy_poll: u64) -> Network {
    let scheduling = Scheduling {
        busy_poll: Duration::from_micros(busy_poll),
    };
    let spec = Spec {
        scheduling,
        ..Spec::default()
    };
    Network::new(&[spec; 2])
}

/// Two guests of which each answers the other at once: how often their workers are woken.
fn wakeups_of_a_conversation(network: &mut Network, seed: u64) -> u64 {
    let woken = |network: &Network| -> u64 {
        let nodes = network.nodes.iter();
        nodes.map(|node| node.count("wakeups")).sum()
    };
    let before = woken(network);
    let (a, b) = network.pair();
    for round in 0..ROUNDS {
        for there in [true, false] {
            let (from, to) = if there {
                (&mut *a, &mut *b)
            } else {
                (&mut *b, &mut *a)
            };
            let packet = from.packet(to.mac(), 100, seed + round);
            from.guest.tx[0].send(&packet);
            // Without sleeping: a machine that has to wake this thread would make each gap a long one.
            until("the frame is there", || {
                to.guest.rx[0].try_receive().is_some()
            });
        }
    }
    woken(network) - before
}

#[test]
fn who_looks_on_is_seldom_woken() {
    let (mut with, mut without) = (network(200), network(0));
    let mut seed = 0;
    // Not the first time where the machine is busy, and gaps are long.
    until(
        "workers that look on are woken less than half as often",
        || {
            seed += ROUNDS;
            let without = wakeups_of_a_conversation(&mut without, seed);
            wakeups_of_a_conversation(&mut with, seed) * 2 < without
        },
    );
}
