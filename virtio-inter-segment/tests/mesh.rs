//! Many ports of one user that join at the same time. Alone in its process, since it raises limits.

mod common;

use std::time::{Duration, Instant};

use common::{Net, Port, capture_log, local, logged};
use virtio_inter_segment::{Limits, Segment};

/// As many as a host of many small VMs has.
const PORTS: usize = 64;

/// A second or two on an idle machine, in a debug build.
const LIMIT: Duration = Duration::from_secs(100);

fn join(net: &mut Net, id: &str) {
    let segment = Segment::join_with(net.path(), local(id), Limits::default()).unwrap();
    let mut port = Port::new(segment);
    // No frames, no rings.
    port.queues = 0;
    net.ports.insert(id.to_owned(), port);
}

fn until_connected(net: &mut Net) {
    let started = Instant::now();
    let connected = |net: &Net| net.ports.values().all(|port| port.links.len() == PORTS - 1);
    while !connected(net) {
        assert!(started.elapsed() < LIMIT, "not connected within {LIMIT:?}");
        net.run_once(Duration::from_millis(50));
    }
}

/// Each makes one connection to each other. None has to be made twice; a third of the ports comes
/// back and finds the others, and is found by them.
#[test]
fn mesh_of_many_ports_comes_about_at_once_and_without_a_warning() {
    capture_log();
    let mut net = Net::new();
    let ids: Vec<String> = (0..PORTS).map(|i| format!("p{i:03}")).collect();
    ids.iter().for_each(|id| join(&mut net, id));
    until_connected(&mut net);
    for port in net.ports.values() {
        let stats = port.segment.stats();
        assert_eq!(stats.up, PORTS as u64 - 1, "{stats:?}");
        let troubles = stats.refused + stats.refused_by_peer + stats.timeouts + stats.crowded_out;
        assert_eq!((troubles, port.downs.len()), (0, 0), "{stats:?}");
    }
    for id in ids.iter().step_by(3) {
        net.leave(id);
    }
    for id in ids.iter().step_by(3) {
        join(&mut net, id);
    }
    until_connected(&mut net);
    for severity in ["WARN", "ERROR"] {
        assert_eq!(logged(&[severity]), [""; 0]);
    }
}
