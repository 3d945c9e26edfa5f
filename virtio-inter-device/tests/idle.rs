//! Ports that have nothing to do, or have to wait, use no processor. In a program of its own, as it
//! measures the whole process.

mod driver;

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use virtio_inter_device::Device;

use driver::{Network, Node, Packet, Peer, Spec, busy_poll, mac, until};

/// How long each state is watched.
const WATCHED: Duration = Duration::from_millis(300);
/// Processor time of all threads that says that one of them is not idle; one that spins uses as
/// much as is watched.
const BUSY: Duration = Duration::from_millis(60);
/// Wake-ups of a worker that say the same.
const WAKEUPS: u64 = 8;

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Asserts that nothing happens in this process for a while.
#[track_caller]
fn expect_idle(what: &str, nodes: &[Node]) {
    let wakeups = || nodes.iter().map(|n| n.count("wakeups")).collect::<Vec<_>>();
    let (before, woken) = (processor_time(), wakeups());
    // Nothing is waited for but time itself.
    std::thread::sleep(WATCHED);
    let used = processor_time() - before;
    assert!(used < BUSY, "{what}: {used:?} of processor time");
    for (before, after) in woken.iter().zip(wakeups()) {
        assert!(
            after - before < WAKEUPS,
            "{what}: {} wake-ups",
            after - before
        );
    }
}

/// Nodes, of which those with false have no receive buffers.
fn network(ears: &[bool]) -> Network {
    let spec = |&hears: &bool| Spec {
        buffers: (if hears { 256 } else { 0 }, 2048),
        busy_poll: busy_poll(Duration::from_micros(200)),
        ..Spec::default()
    };
    Network::new(&ears.iter().map(spec).collect::<Vec<_>>())
}

/// Sends frames until some wait for room.
fn fill(node: &mut Node, to: usize) {
    for seed in 0..190 {
        assert!(node.guest.tx[0].try_send(&Packet::new(mac(node.number), mac(to), 2036, seed)));
    }
}

/// One test, for what it measures is the process.
#[test]
fn idle_port_polls_nothing() {
    let mut idle = network(&[true, true]);
    expect_idle("nothing was ever sent", &idle.nodes);
    let packet = Packet::new(mac(0), mac(1), 100, 1);
    idle.nodes[0].guest.tx[0].send(&packet);
    assert_eq!(idle.nodes[1].guest.rx[0].receive(), packet.in_buffers(1));
    expect_idle("all was delivered", &idle.nodes);

    // Bells of peers that are gone ring for nobody, whoever still holds them.
    let mut node = Node::new(0, Spec::default());
    let peer = Peer::attach(&mut node, 1, &Spec::default());
    node.port.remove_peer(peer.key).unwrap();
    let woken = node.count("wakeups");
    for _ in 0..100 {
        for link in peer.into_port.iter().chain(&peer.from_port) {
            link.data_doorbell.ring();
            link.space_doorbell.ring();
        }
    }
    expect_idle("the doorbells ring", std::slice::from_ref(&node));
    let wakeups = node.count("wakeups") - woken;
    assert!(
        wakeups < WAKEUPS,
        "{wakeups} wake-ups for a peer that is gone"
    );

    for features in [u64::MAX, !driver::Feature::EVENT_IDX] {
        let spec = Spec {
            buffers: (3, 256),
            features,
            ..Spec::default()
        };
        let mut starved = Network::new(&[Spec::default(), spec]);
        let packet = Packet::new(mac(0), mac(1), 1000, 1);
        starved.nodes[0].guest.tx[0].send(&packet);
        until("it is starved", || starved.nodes[1].count("rx_waits") > 0);
        if features != u64::MAX {
            // Without mergeable buffers too small is too small, so there would be nothing to wait
            // for.
            assert_ne!(features & driver::Feature::MRG_RXBUF, 0);
        }
        expect_idle("a frame waits for buffers", &starved.nodes);
    }

    // Dropped for, as the only peer stands still; put aside, as there is another.
    for ears in [&[true, false][..], &[true, false, true]] {
        let mut stalled = network(ears);
        fill(&mut stalled.nodes[0], 1);
        stalled.nodes[0].guest.tx[0].finish();
        expect_idle("a peer stands still", &stalled.nodes);
    }

    // The queue is stopped, or disabled, or broken, while its frame waits for room.
    let ways: [fn(&mut Node); 3] = [
        |node| assert!(node.port.stop_queue(1).is_ok()),
        |node| node.port.enable_queue(1, false).unwrap(),
        |node| {
            let ring = &node.guest.tx[0].queue.ring;
            ring.set_available_index(ring.available_index().wrapping_add(0x8000));
            node.guest.tx[0].queue.kick();
        },
    ];
    for (i, way) in ways.into_iter().enumerate() {
        let mut held = Node::new(0, Spec::default());
        let _peer = Peer::attach(&mut held, 1, &Spec::default());
        fill(&mut held, 1);
        until("a frame waits for room", || held.count("tx_waits") > 0);
        way(&mut held);
        expect_idle(&format!("its queue went away ({i})"), &[held]);
    }
}
