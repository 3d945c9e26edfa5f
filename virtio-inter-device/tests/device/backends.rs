//! Devices whose network side is not a segment: the smallest backends, and one of this test's own,
//! which shows that a backend is one file.

use std::convert::Infallible;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use virtio_inter_device::backend::{
    Backend, Loopback, Null, RxBackend, RxSink, RxStatus, TxBackend, TxFrame, TxStatus,
};
use virtio_inter_device::{DeviceError, NET_HEADER, Poller, Sleep};

use crate::driver::{Feature, LEAN, Node, Packet, Spec, mac, until};

#[test]
fn null_backend_takes_every_frame_and_has_none() {
    let mut node = Node::with_backend(0, Spec::default(), |_| Null);
    for seed in 0..1000 {
        let packet = node.packet(mac(1), 1514, seed);
        node.guest.tx[0].send(&packet);
    }
    node.guest.tx[0].finish();
    assert_eq!(node.count("tx_frames"), 1000);
    assert_eq!(node.count("tx_bytes"), 1000 * 1514);
    assert_eq!(node.drops(), []);
    node.guest.rx[0].expect_nothing();
}

/// The frame as a loopback returns it.
fn returned(packet: &Packet) -> Packet {
    let mut packet = packet.clone();
    let (destination, rest) = packet.frame.split_at_mut(6);
    destination.swap_with_slice(&mut rest[..6]);
    packet
}

#[test]
fn loopback_returns_each_frame_to_its_sender() {
    let mut node = Node::with_backend(0, Spec::default(), |_| Loopback::default());
    for (seed, len) in [(1, 60), (2, 1514), (3, 9014), (4, 60_000)] {
        let packet = node.packet(mac(1), len, seed);
        node.guest.tx[0].send(&packet);
        let buffers = packet.len().div_ceil(2048) as u16;
        let received = node.guest.rx[0].receive();
        assert_eq!(received, returned(&packet).in_buffers(buffers));
    }
    let broadcast = node.packet([0xff; 6].into(), 60, 5);
    node.guest.tx[0].send(&broadcast);
    assert_eq!(node.guest.rx[0].receive(), broadcast.in_buffers(1));
    assert_eq!(node.drops(), []);
}

#[test]
fn loopback_holds_the_transmit_queue_while_the_guest_has_no_buffers() {
    let spec = Spec {
        buffers: (0, 0),
        tx_size: 1024,
        ..Spec::default()
    };
    let mut node = Node::with_backend(0, spec, |_| Loopback::default());
    for seed in 0..500 {
        let packet = node.packet(mac(1), 100, seed);
        assert!(node.guest.tx[0].try_send(&packet));
    }
    until("a frame is held", || node.count("tx_waits") > 0);
    assert_eq!(node.count("tx_frames"), 256);
    node.guest.rx[0].post(256, 2048);
    for seed in 0..500 {
        assert_eq!(node.guest.rx[0].receive().seed(), seed);
    }
    assert_eq!(node.drops(), []);
}

#[test]
fn loopback_segments_for_a_guest_without_that_offload() {
    let spec = Spec {
        features: LEAN | Feature::CSUM | Feature::GUEST_CSUM | Feature::HOST_TSO4,
        ..Spec::default()
    };
    let mut node = Node::with_backend(0, spec, |_| Loopback::default());
    let packet = node.packet(mac(1), 54 + 10 * 1000, 1).segmented(1, 1000);
    node.guest.tx[0].send(&packet);
    for _ in 0..10 {
        assert_eq!(node.guest.rx[0].receive().frame.len(), 54 + 1000);
    }
    assert_eq!(node.count("rx_segmented"), 1);
}

/// Length of the longest record that a [`Wire`] reads.
const LONGEST: usize = NET_HEADER + 1514;

/// A socket that keeps the boundaries of records, in place of a tap device: frames are written from
/// the guest's memory and read into it.
struct Wire(
    OwnedFd,
    /// What is there waits for the guest's buffers.
    bool,
);

impl Wire {
    /// Two ends.
    fn pair() -> (Wire, Wire) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (Wire(one, false), Wire(other, false))
    }

    fn is_ready(&self, flags: PollFlags) -> bool {
        let mut fds = [PollFd::new(&self.0, flags)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() != 0
    }

    fn receive(&self) -> Option<Packet> {
        let mut bytes = [0; 70_000];
        let (_, len) = recv(&self.0, &mut bytes[..], RecvFlags::empty()).ok()?;
        Some(Packet::from_bytes(&bytes[..len]))
    }

    fn send(&self, packet: &Packet) {
        send(&self.0, &packet.bytes(), SendFlags::empty()).unwrap();
    }
}

impl TxBackend for Wire {
    fn offer<F: TxFrame>(&mut self, frame: &F) -> Result<TxStatus, F::Error> {
        let sent = frame.with_slices(|slices| {
            let mut bytes = Vec::new();
            for slice in slices {
                let start = bytes.len();
                bytes.resize(start + slice.len(), 0);
                slice.copy_to(&mut bytes[start..]);
            }
            send(&self.0, &bytes, SendFlags::empty()).is_ok()
        })?;
        Ok(if sent { TxStatus::Sent } else { TxStatus::Held })
    }

    fn flush(&mut self) {}

    fn enable_tx_notification(&mut self, held: bool) -> Sleep {
        Sleep {
            allowed: !held || !self.is_ready(PollFlags::OUT),
            until: None,
        }
    }
}

impl RxBackend for Wire {
    fn receive<S: RxSink>(&mut self, sink: &mut S) {
        self.1 = false;
        let mut is_empty = false;
        while !is_empty {
            let status = sink.fill(LONGEST, |slices| {
                let mut bytes = [0; LONGEST];
                let Ok((_, len)) = recv(&self.0, &mut bytes[..], RecvFlags::TRUNC) else {
                    is_empty = true;
                    return None;
                };
                let mut rest = &bytes[..len.min(LONGEST)];
                for slice in slices {
                    let count = slice.len().min(rest.len());
                    slice.copy_from(&rest[..count]);
                    rest = &rest[count..];
                }
                Some(len)
            });
            self.1 = status == RxStatus::TooFewBuffers;
            if status != RxStatus::Taken {
                return;
            }
        }
    }

    fn release(&mut self) {}

    fn enable_rx_notification(&mut self) -> bool {
        self.1 || !self.is_ready(PollFlags::IN)
    }
}

impl Backend for Wire {
    type Command = Infallible;
    type Answer = Infallible;

    fn attach(&mut self, poller: &Poller) -> Result<(), DeviceError> {
        poller
            .add_duplex(&self.0)
            .map_err(|source| DeviceError::Io {
                action: "watch a socket",
                source,
            })
    }

    fn handle_command(
        &mut self,
        command: Infallible,
        _poller: &Poller,
    ) -> Result<Infallible, DeviceError> {
        match command {}
    }
}

fn wired(spec: Spec) -> (Node<Wire>, Wire) {
    let (mut near, far) = (Vec::new(), Wire::pair());
    near.push(far.0);
    (Node::with_backend(0, spec, |_| near.pop().unwrap()), far.1)
}

#[test]
fn backend_of_another_crate_gets_and_fills_the_guests_buffers() {
    let (mut node, wire) = wired(Spec {
        buffers: (256, 600),
        ..Spec::default()
    });
    for (seed, len) in [(1, 60), (2, 588), (3, 589), (4, 1514)] {
        let packet = node.packet(mac(1), len, seed);
        node.guest.tx[0].send_cut(&packet, &[5, 20, 100], crate::driver::Shape::Direct);
        let mut received = None;
        until("the frame is on the wire", || {
            received = wire.receive();
            received.is_some()
        });
        assert_eq!(received, Some(packet));
        let packet = Packet::new(mac(1), mac(0), len, seed);
        wire.send(&packet);
        let buffers = packet.len().div_ceil(600) as u16;
        assert_eq!(node.guest.rx[0].receive(), packet.in_buffers(buffers));
    }
    assert_eq!(node.drops(), []);
}

#[test]
fn backend_waits_for_the_guests_buffers() {
    let (mut node, wire) = wired(Spec {
        buffers: (1, 600),
        ..Spec::default()
    });
    node.guest.rx[0].refill = false;
    for seed in 0..5 {
        wire.send(&Packet::new(mac(1), mac(0), 1514, seed));
    }
    until("buffers are waited for", || node.count("rx_waits") > 0);
    node.guest.rx[0].post(20, 600);
    for seed in 0..5 {
        assert_eq!(node.guest.rx[0].receive().seed(), seed);
    }
    assert_eq!(node.drops(), []);
}

#[test]
fn backend_drops_a_record_that_is_longer_than_the_guests_buffer() {
    let (mut node, wire) = wired(Spec {
        features: LEAN,
        buffers: (256, 500),
        ..Spec::default()
    });
    wire.send(&Packet::new(mac(1), mac(0), 1000, 1));
    wire.send(&Packet::new(mac(1), mac(0), 400, 2));
    assert_eq!(node.guest.rx[0].receive().seed(), 2);
    assert_eq!(node.drops(), [("rx_small_buffer", 1)]);
}

#[test]
fn backend_without_a_guest_drops_what_comes() {
    let (mut node, wire) = wired(Spec::default());
    use virtio_inter_device::Device as _;
    node.port.enable_queue(0, false).unwrap();
    for seed in 0..5 {
        wire.send(&Packet::new(mac(1), mac(0), 1000, seed));
    }
    until("all are dropped", || node.count("rx_no_guest") == 5);
    node.port.enable_queue(0, true).unwrap();
    wire.send(&Packet::new(mac(1), mac(0), 1000, 7));
    assert_eq!(node.guest.rx[0].receive().seed(), 7);
}

#[test]
fn backend_holds_frames_until_there_is_room() {
    let (mut node, wire) = wired(Spec {
        tx_size: 1024,
        ..Spec::default()
    });
    for seed in 0..1000 {
        let packet = node.packet(mac(1), 1514, seed);
        assert!(node.guest.tx[0].try_send(&packet));
    }
    until("a frame is held", || node.count("tx_waits") > 0);
    for seed in 0..1000 {
        until("the frame is on the wire", || {
            wire.receive().is_some_and(|packet| {
                assert_eq!(packet.seed(), seed);
                true
            })
        });
    }
    node.guest.tx[0].finish();
    assert_eq!(node.drops(), []);
}
