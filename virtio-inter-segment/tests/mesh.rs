//! Many ports of one user that join at the same time. Alone in its process, since it raises limits.

mod common;

use common::{Net, Port, capture_log, local, logged};
use virtio_inter_segment::{Limits, Segment};

/// Each makes rings with each other, which takes most of the time.
const PORTS: usize = 32;

/// Each makes one connection to each other: the sooner handshakes are over, the fewer wait for each
/// other, and none has to be made twice.
#[test]
fn mesh_of_many_ports_comes_about_at_once_and_without_a_warning() {
    capture_log();
    let mut net = Net::new();
    let ids: Vec<String> = (0..PORTS).map(|i| format!("p{i:03}")).collect();
    for id in &ids {
        let segment = Segment::join_with(net.path(), local(id), Limits::default()).unwrap();
        net.ports.insert(id.clone(), Port::new(segment));
    }
    net.until_meshed();
    for port in net.ports.values() {
        let stats = port.segment.stats();
        assert_eq!(stats.up, PORTS as u64 - 1, "{stats:?}");
        let troubles = stats.refused + stats.refused_by_peer + stats.timeouts + stats.crowded_out;
        assert_eq!((troubles, port.downs.len()), (0, 0), "{stats:?}");
    }
    assert_eq!(logged(&["WARN"]), [""; 0]);
    assert_eq!(logged(&["ERROR"]), [""; 0]);
    // A third of them leaves, and comes back: each finds the others, and they find it.
    for id in ids.iter().step_by(3) {
        net.leave(id);
    }
    for id in ids.iter().step_by(3) {
        net.join(id);
    }
    net.until_meshed();
    assert_eq!(logged(&["WARN"]), [""; 0]);
}
