//! What a peer can have charged to a port's memory: in a memory control group of its own, where the
//! test may make one.

use std::fs;
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_inter_link::Sender;
use virtio_inter_segment::{LocalPort, Segment, SegmentEvent};
use virtio_inter_test_support::skip;

use crate::process::{Place, until};
use crate::status::status;

/// The largest ring that a port can be made to take.
const RING: u32 = 64 << 20;
const PEERS: u8 = 4;
/// What the port may grow by: its mappings' page tables (128 KiB for each mapping of a ring, of
/// which there are two) and a page and books for each.
const BOUND: u64 = 4 << 20;

/// A control group of the memory controller (version 1), removed when it is dropped.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Option<Group> {
        let root = PathBuf::from("/sys/fs/cgroup/memory");
        fs::metadata(root.join("memory.usage_in_bytes")).ok()?;
        let path = root.join(format!("virtio-inter-test-{name}-{}", std::process::id()));
        fs::create_dir(&path).ok()?;
        Some(Group(path))
    }

    /// Bytes of pages that were charged, swap excluded.
    fn usage(&self) -> u64 {
        let text = fs::read_to_string(self.0.join("memory.usage_in_bytes")).unwrap();
        text.trim().parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Empty by now; if not, the next run has another name.
        let _ = fs::remove_dir(&self.0);
    }
}

fn hostile_peer(place: &Place, i: u8) -> Segment {
    let id = format!("x{i}").parse().unwrap();
    let mac = format!("52:54:00:00:ff:{i:02x}").parse().unwrap();
    let port = LocalPort {
        ring_capacity: RING,
        ..LocalPort::new(id, mac)
    };
    Segment::join(&place.segment(), port).unwrap()
}

/// Four peers give a port rings of 64 MiB, and write to all of them. Their memory is theirs.
#[test]
fn memory_of_a_peers_rings_is_not_charged_to_a_port() {
    let Some(group) = Group::new("rings") else {
        skip("there is no memory controller (version 1) in which a group can be made");
        return;
    };
    let place = Place::new();
    let socket = place.path("a.status");
    let port = place
        .command("a")
        .with("--ring-size", "64M")
        .with("--status-socket", &socket)
        .limited(&format!("echo $$ > {}/cgroup.procs", group.0.display()))
        .start();
    let alone = group.usage();
    assert_ne!(alone, 0);
    let mut peers: Vec<Segment> = (0..PEERS).map(|i| hostile_peer(&place, i)).collect();
    // Their regions, allocated, and written to all over: the port maps and reads them.
    let mut senders: Vec<Vec<Sender>> = peers.iter().map(|_| Vec::new()).collect();
    let mut accepted = 0;
    until("the rings to be accepted", || {
        for (peer, senders) in peers.iter_mut().zip(&mut senders) {
            let fd = peer.fd().try_clone_to_owned().unwrap();
            let wait = Timespec {
                tv_sec: 0,
                tv_nsec: 1_000_000,
            };
            poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait)).unwrap();
            for event in peer.process() {
                match event {
                    SegmentEvent::Up(of) if of.id.as_str() == "a" => {
                        senders.push(peer.open_link(of.key, 0, RING).unwrap().sender);
                    }
                    SegmentEvent::Accepted { page, .. } => {
                        senders[0].attach(page).unwrap();
                        accepted += 1;
                    }
                    _ => {}
                }
            }
        }
        accepted == usize::from(PEERS)
    });
    let mut senders: Vec<Sender> = senders.into_iter().flatten().collect();
    for sender in &mut senders {
        assert_eq!(sender.capacity(), u64::from(RING));
        // Nearly all of it. The port, which has no guest, reads and drops the records.
        for _ in 0..RING / (64 << 10) - 1 {
            let slot = sender.reserve(60_000).unwrap().unwrap();
            slot.slice().copy_from(&[0xff; 60_000]);
            slot.commit();
        }
        sender.publish().unwrap();
    }
    until("the port to have read them", || {
        let mut senders = senders.iter_mut();
        senders.all(|sender| sender.is_drained().unwrap())
    });
    assert_eq!(status(&socket)["peers"].as_array().unwrap().len(), 4);
    let (with, bound) = (group.usage(), alone + BOUND);
    assert!(with <= bound, "{alone} bytes grew to {with}");
    drop((senders, peers));
    until("the peers to be gone", || {
        status(&socket)["peers"].as_array().unwrap().is_empty()
    });
    port.end();
}
