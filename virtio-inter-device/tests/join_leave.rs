//! Peers and ports that come and go leave nothing behind. In a program of its own, as it counts
//! what the whole process has open.

mod driver;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use virtio_inter_link::MAX_CAPACITY;

use driver::{Network, Node, Packet, SetOnDrop, Spec, mac, until};

fn entries(directory: &str) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

fn descriptors() -> usize {
    entries("/proc/self/fd")
}

fn threads() -> usize {
    entries("/proc/self/task")
}

/// Mapped areas.
fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .count()
}

/// One test, for what it counts is the process's.
#[test]
fn joins_and_leaves_leave_nothing_behind() {
    links_of_a_peer_that_leaves_are_dropped_off_the_worker();
    peers_come_and_go_under_traffic();
    ports_come_and_go();
}

/// CPU time of all workers, in ms.
fn workers_cpu_time() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let nanos = tasks.filter_map(|task| {
        let task = task.unwrap().path();
        // One may end meanwhile.
        let name = std::fs::read_to_string(task.join("comm")).ok()?;
        let schedstat = std::fs::read_to_string(task.join("schedstat")).ok()?;
        let used = schedstat.split(' ').next().unwrap().parse::<u64>().unwrap();
        name.starts_with("queue-").then_some(used)
    });
    nanos.sum::<u64>() as f64 / 1e6
}

/// To unmap and free a ring of 64 MiB takes several ms. A worker has other peers to serve.
fn links_of_a_peer_that_leaves_are_dropped_off_the_worker() {
    const ROUNDS: usize = 10;
    let spec = Spec {
        capacity: MAX_CAPACITY,
        ..Spec::default()
    };
    let mut network = Network::new(&[spec; 2]);
    network.part(0, 1);
    let before = workers_cpu_time();
    for _ in 0..ROUNDS {
        network.join(0, 1);
        network.part(0, 1);
    }
    let used = workers_cpu_time() - before;
    assert!(used < 10.0, "the workers used {used} ms of CPU time");
}

fn peers_come_and_go_under_traffic() {
    let mut network = Network::new(&[Spec::default(); 3]);
    let mut guests: Vec<_> = network
        .nodes
        .iter_mut()
        .map(|node| (node.guest.tx.remove(0), node.guest.rx.remove(0)))
        .collect();
    let (end, received) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let guard = SetOnDrop(&end);
        for (number, (tx, rx)) in guests.iter_mut().enumerate() {
            let (end, received) = (&end, &received);
            scope.spawn(move || {
                let mut seed = 0;
                while !end.load(Ordering::Relaxed) {
                    seed += 1;
                    let to = (number + 1 + seed as usize % 2) % 3;
                    let len = 60 + seed as usize % 5000;
                    tx.send(&Packet::new(mac(number), mac(to), len, seed));
                }
                tx.finish();
            });
            scope.spawn(move || {
                let mut last = [0; 3];
                while !end.load(Ordering::Relaxed) {
                    let Some(got) = rx.receive_within(Duration::from_millis(20)) else {
                        continue;
                    };
                    // A link that goes away takes frames along; those that arrive are in order.
                    let from = usize::from(got.packet.source().octets()[5]) - 1;
                    assert!(got.packet.seed() > last[from]);
                    last[from] = got.packet.seed();
                    received.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        until("frames arrive", || received.load(Ordering::Relaxed) > 100);
        let before = (descriptors(), threads(), mappings());
        for round in 0..1000 {
            let (a, b) = [(0, 1), (1, 2), (2, 0)][round % 3];
            network.part(a, b);
            network.join(a, b);
        }
        assert_eq!((descriptors(), threads()), (before.0, before.1));
        // The allocator has some of its own.
        let now = mappings();
        assert!(now < before.2 + 50, "{} mappings became {now}", before.2);
        let so_far = received.load(Ordering::Relaxed);
        until("frames still arrive", || {
            received.load(Ordering::Relaxed) > so_far + 100
        });
        drop(guard);
    });
    for node in &network.nodes {
        assert!(node.count("rx_frames") > 100);
        let refused = |(name, _): &(&str, u64)| name.starts_with("rx_bad");
        assert_eq!(node.drops().into_iter().find(refused), None);
    }
}

fn ports_come_and_go() {
    let spec = Spec {
        queues: 4,
        ..Spec::default()
    };
    drop(Node::new(0, spec));
    let before = (descriptors(), threads());
    for _ in 0..50 {
        let mut network = Network::new(&[spec; 2]);
        let (a, b) = network.pair();
        let packet = a.packet(b.mac(), 500, 1);
        a.guest.tx[3].send(&packet);
        assert_eq!(b.guest.rx[3].receive(), packet.in_buffers(1));
    }
    assert_eq!((descriptors(), threads()), before);
}
