//! Workers that look on before they sleep need not be woken; that they do not do so for ever is for `idle.rs`.

use std::time::Duration;

use rustix::process::getpriority_process;
use virtio_inter_device::Scheduling;
use virtio_inter_link::let_others_go_first;
use virtio_inter_test_support::skip;

use crate::driver::{Network, Spec, until};

/// Frames there and back.
const ROUNDS: u64 = 500;

fn network(busy_poll: u64) -> Network {
    let scheduling = Scheduling {
        busy_poll: Duration::from_micros(busy_poll),
        ..Scheduling::default()
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

/// Whether this kernel gives a thread the time slice that it asks for: without, no worker looks on.
fn kernel_knows_slices() -> bool {
    let ask = || {
        let nice = getpriority_process(None).unwrap();
        let_others_go_first(nice, Duration::from_millis(1)).unwrap()
    };
    std::thread::spawn(ask).join().unwrap()
}

#[test]
fn who_looks_on_is_seldom_woken() {
    if !kernel_knows_slices() {
        return skip("This kernel knows no slices of threads (Linux does from 6.12 on)");
    }
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
