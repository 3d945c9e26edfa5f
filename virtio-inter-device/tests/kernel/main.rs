//! What a guest gets of a frame that it cannot take as it is, against what the Linux kernel makes
//! of the same frame for a tap whose reader cannot either: no byte of difference.

#[path = "../driver/mod.rs"]
mod driver;
mod frames;
mod tap;

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use virtio_inter_test_support::skip;

use driver::{Feature, LEAN, Node, PATIENCE, Packet, Peer, Spec, mac};
use frames::{Frame, Transport, Wish, frame};
use tap::Tap;

const CSUM: u64 = Feature::GUEST_CSUM;
const TSO: u64 = Feature::GUEST_TSO4 | Feature::GUEST_TSO6;
const USO: u64 = Feature::GUEST_USO4 | Feature::GUEST_USO6;

/// A guest, and what a tap's reader says that takes the same.
struct Receiver {
    features: u64,
    mtu: u16,
    node: Node,
    peer: Peer,
}

impl Receiver {
    fn new(features: u64, mtu: u16) -> Self {
        let mergeable = features & Feature::MRG_RXBUF != 0;
        let spec = Spec {
            features: LEAN | Feature::EVENT_IDX | features,
            mtu,
            buffers: (256, if mergeable { 1024 } else { 66_000 }),
            ..Spec::default()
        };
        let mut node = Node::new(0, spec);
        let peer = Peer::attach(&mut node, 1, &Spec::default());
        Receiver {
            features,
            mtu,
            node,
            peer,
        }
    }

    fn has(&self, features: u64) -> bool {
        self.features & features == features
    }

    /// `TUN_F_…` in the kernel's terms.
    fn offloads(&self) -> u32 {
        [
            (CSUM, libc::TUN_F_CSUM),
            (Feature::GUEST_TSO4, libc::TUN_F_TSO4),
            (Feature::GUEST_TSO6, libc::TUN_F_TSO6),
            (Feature::GUEST_ECN, libc::TUN_F_TSO_ECN),
            (USO, libc::TUN_F_USO4 | libc::TUN_F_USO6),
        ]
        .into_iter()
        .filter(|&(feature, _)| self.has(feature))
        .fold(0, |all, (_, offload)| all | offload)
    }

    /// What the kernel is to be sent for this frame. None: here the kernel does otherwise, and
    /// decision 0030 says why we do not.
    fn as_sent_to_kernel(&self, frame: &Frame, packet: &Packet) -> Option<Packet> {
        let Wish::Segments { size, .. } = frame.wish else {
            // The tap's MTU is larger.
            return (frame.packet_len(frame.payload) <= usize::from(self.mtu))
                .then(|| packet.clone());
        };
        let whole = packet.clone().with(1, &[0; 5]);
        let size = usize::from(size);
        if frame.payload <= size {
            if frame.packet_len(frame.payload) > usize::from(self.mtu) {
                return None;
            }
            // Linux counts 20 bytes of TCP header, so options make it drop some of what is one
            // segment.
            let counted = frame.payload + frame.transport_len().saturating_sub(20);
            return Some(if counted <= size {
                packet.clone()
            } else {
                whole
            });
        }
        // Linux segments at the GSO size, never smaller; the tests' guests with a small MTU take
        // no unsegmented frame.
        let room = usize::from(self.mtu) - frame.packet_len(0);
        if size <= room {
            Some(packet.clone())
        } else if frame.transport == Transport::Udp {
            None
        } else {
            Some(packet.clone().with(4, &(room as u16).to_le_bytes()))
        }
    }

    /// Asserts that this guest gets what the kernel's tap does. Says how many frames that were.
    fn compare(&mut self, tap: &mut Tap, frame: &Frame) -> Result<u64, TestCaseError> {
        let packet = frame.packet();
        let Some(to_kernel) = self.as_sent_to_kernel(frame, &packet) else {
            return Err(TestCaseError::reject("not as Linux"));
        };
        tap.take(self.offloads()).unwrap();
        tap.send(&to_kernel).unwrap();
        self.peer.send(&packet.bytes());
        let from_peer = |packet: &Packet| packet.source() == mac(1);
        let (mut frames, mut bytes) = (0, 0);
        // Whatever is wrong, all of it is taken, or it would be the next frame's.
        let mut difference = None;
        let headers = packet.frame.len() - frame.payload;
        while bytes < frame.payload || frames == 0 {
            let ours = self.node.guest.rx[0].receive_within(PATIENCE);
            let Some(ours) = ours.map(|received| received.packet) else {
                return Err(TestCaseError::fail(format!("No frame {frames} came")));
            };
            let theirs = tap.receive(from_peer);
            bytes += ours.frame.len().saturating_sub(headers);
            frames += 1;
            if theirs.as_ref().map(told) != Some(told(&ours)) {
                difference.get_or_insert_with(|| {
                    let at = theirs.as_ref().and_then(|theirs| {
                        let pairs = theirs.frame.iter().zip(&ours.frame);
                        pairs.enumerate().find(|(_, (a, b))| a != b)
                    });
                    format!("Frame {frames}: kernel {theirs:?}, port {ours:?}, at {at:?}")
                });
            }
        }
        if let Some(more) = tap.try_receive(from_peer) {
            difference.get_or_insert(format!("One more from the kernel: {more:?}"));
        }
        if let Some(more) = self.node.guest.rx[0].try_receive() {
            difference.get_or_insert(format!("One more from the port: {more:?}"));
        }
        difference.map_or(Ok(frames), |difference| {
            Err(TestCaseError::fail(difference))
        })
    }
}

/// What is compared. Of the header all but `hdr_len`, in which Linux says how its buffers lie, and
/// `num_buffers`.
fn told(packet: &Packet) -> ([u8; 8], &[u8]) {
    let h = &packet.header;
    (
        [h[0], h[1], h[4], h[5], h[6], h[7], h[8], h[9]],
        &packet.frame,
    )
}

/// Compares `cases` frames, each for one of the guests.
fn compare(receivers: &[(u64, u16)], transport: impl Strategy<Value = Transport>, cases: u32) {
    let tap = match Tap::new() {
        Ok(tap) => tap,
        Err(e) => return skip(&format!("no tap device in a network namespace: {e}")),
    };
    let all: Vec<_> = receivers
        .iter()
        .map(|&(features, mtu)| Receiver::new(features, mtu))
        .collect();
    if let Some((receiver, e)) = all
        .iter()
        .find_map(|receiver| Some(receiver).zip(tap.take(receiver.offloads()).err()))
    {
        return skip(&format!(
            "this kernel's tap does not know offloads {:#x}: {e}",
            receiver.offloads()
        ));
    }
    let frames = (frame(transport), 0..all.len());
    let state = RefCell::new((tap, all, 0));
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        max_global_rejects: cases,
        max_shrink_time: 20_000, // Milliseconds.
        ..Config::default()
    });
    let result = runner.run(&frames, |(frame, receiver)| {
        let (tap, receivers, count) = &mut *state.borrow_mut();
        *count += receivers[receiver].compare(tap, &frame)?;
        Ok(())
    });
    if let Err(e) = result {
        panic!("{e}");
    }
    let (.., count) = state.into_inner();
    assert!(
        count > 2 * u64::from(cases),
        "Hardly anything was segmented: {count} frames"
    );
}

#[test]
fn tcp_is_what_the_kernel_makes_of_it() {
    let mergeable = Feature::MRG_RXBUF;
    let receivers = [
        (0, 65_535),
        (mergeable, 65_535),
        (CSUM, 65_535),
        (CSUM | mergeable, 65_535),
        (CSUM | Feature::GUEST_TSO4, 65_535),
        (CSUM | Feature::GUEST_TSO6 | mergeable, 65_535),
        (CSUM | TSO | Feature::GUEST_ECN | mergeable, 65_535),
        (0, 1500),
        (CSUM | mergeable, 1280),
    ];
    let options = prop_oneof![Just(0usize), Just(3), 0usize..=10];
    let tcp = options.prop_map(|options| Transport::Tcp { options });
    compare(&receivers, tcp, 75_000);
}

#[test]
fn udp_is_what_the_kernel_makes_of_it() {
    let receivers = [
        (0, 65_535),
        (Feature::MRG_RXBUF, 65_535),
        (CSUM, 65_535),
        (CSUM | USO, 65_535),
        (0, 1500),
    ];
    compare(&receivers, Just(Transport::Udp), 25_000);
}
