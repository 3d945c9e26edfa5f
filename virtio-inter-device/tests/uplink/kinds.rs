//! An uplink of another kind than a tap device: all that is not the device's own is the same.

use virtio_inter_common::MacAddr;
use virtio_inter_device::backend::{Network, Paths};
use virtio_inter_device::{Device as _, Offloads, Port, PortEvent};

use crate::driver::link::PUBLISHED;
use crate::driver::{Feature, LEAN, Node, Packet, Peer, Shape, Spec, local, mac, until};
use crate::memory::{Far, MemoryDevice, Mode, memory_device};

/// A port with such an uplink, and what is behind it.
fn uplinked(spec: Spec) -> (Node<Network<MemoryDevice>>, Far) {
    let (device, far) = memory_device(spec.queues, 1000);
    let node = Node::with_uplink(0, spec, device);
    // The guest is here.
    assert_eq!(far.receive().source(), node.mac());
    (node, far)
}

#[test]
fn uplink_of_a_second_kind_carries_frames_of_all_lengths_both_ways() {
    for buffers in [(256, 2048), (256, 600)] {
        let spec = Spec {
            buffers,
            ..Spec::default()
        };
        let (mut node, far) = uplinked(spec);
        assert_eq!(far.offloads(), Some(Offloads::ALL));
        for (seed, len) in (1..).zip([60, 588, 589, 1514, 9014, 65_000]) {
            for cuts in [&[][..], &[5, 20, 100]] {
                let packet = node.packet(mac(7), len.max(200), seed);
                node.guest.tx[0].send_cut(&packet, cuts, Shape::Direct);
                assert_eq!(far.receive(), packet);
            }
            let packet = Packet::new(mac(7), mac(0), len, seed);
            far.send(0, &packet);
            let buffers = packet.len().div_ceil(buffers.1) as u16;
            assert_eq!(node.guest.rx[0].receive(), packet.in_buffers(buffers));
        }
        far.send(0, &Packet::new(mac(7), mac(9), 100, 100));
        far.send(0, &Packet::new(mac(0), MacAddr::BROADCAST, 100, 101));
        far.send(0, &Packet::new(mac(7), MacAddr::BROADCAST, 100, 102));
        assert_eq!(node.guest.rx[0].receive().seed(), 102);
        assert_eq!(node.drops(), []);
        assert_eq!(node.count("uplink_tx_frames"), 1 + 12);
        assert_eq!(node.count("uplink_rx_frames"), 6 + 1);
        let bytes = 60 + 588 + 589 + 1514 + 9014 + 65_000 + 100;
        assert_eq!(node.count("uplink_rx_bytes"), bytes);
        assert_eq!(node.count("uplink_rx_other"), 1);
        assert_eq!(node.count("uplink_rx_own"), 1);
    }
}

/// Who floods a guest whose buffers run out again and again leaves some of them to the others.
#[test]
fn uplink_and_peers_get_the_few_buffers_of_a_guest_in_turn() {
    let spec = Spec {
        buffers: (1, 600),
        ..Spec::default()
    };
    for (flooding, other) in [(7, 1), (1, 7)] {
        let (mut node, far) = uplinked(spec);
        let mut peer = Peer::attach(&mut node, 1, &Spec::default());
        let mut send = |from, seed| {
            let packet = Packet::new(mac(from), mac(0), 300, seed);
            match from {
                1 => peer.send(&packet.bytes()),
                _ => far.send(0, &packet),
            }
        };
        node.guest.rx[0].refill = false;
        for seed in 0..100 {
            send(flooding, seed);
        }
        until("buffers are waited for", || node.count("rx_waits") > 0);
        for seed in 0..5 {
            send(other, seed);
        }
        let (mut before, mut left) = (0, 5);
        while left != 0 {
            node.guest.rx[0].post(3, 600);
            for _ in 0..3 {
                match node.guest.rx[0].receive().source() {
                    source if source == mac(other) => left -= 1,
                    _ => before += 1,
                }
            }
            assert!(before < 50, "{before} of {flooding}, {left} of {other}");
        }
    }
}

/// As if there were a second peer: the frames for the first one are copied aside.
#[test]
fn uplink_gets_frames_that_are_behind_those_for_the_only_peer() {
    let (mut node, far) = uplinked(Spec::default());
    let _full = Peer::attach(&mut node, 1, &Spec::default());
    for seed in 0..130 {
        let packet = node.packet(mac(1), 2036, seed);
        assert!(node.guest.tx[0].try_send(&packet));
    }
    let packet = node.packet(mac(7), 100, 130);
    node.guest.tx[0].send(&packet);
    assert_eq!(far.receive(), packet);
    assert!(node.count("tx_spilled") > 0, "The peer stalled");
    assert_eq!(node.drops(), []);
}

#[test]
fn uplink_counts_among_those_to_whom_the_guest_is_announced() {
    let (mut node, far) = uplinked(Spec::default());
    assert_eq!(node.port.announce().unwrap(), 1);
    assert_eq!(far.receive().source(), node.mac());
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    assert_eq!(node.port.announce().unwrap(), 2);
    assert_eq!(far.receive().source(), node.mac());
    assert_eq!(peer.receive(0).source(), node.mac());
}

/// By the port: this device does nothing for it.
#[test]
fn uplink_of_a_second_kind_segments_for_a_guest_that_does_not() {
    let spec = Spec {
        features: LEAN | Feature::MRG_RXBUF,
        ..Spec::default()
    };
    let (mut node, far) = uplinked(spec);
    assert!(far.offloads().is_some_and(|takes| !takes.checksum));
    far.send(
        0,
        &Packet::new(mac(7), mac(0), 54 + 10 * 1000, 1).segmented(1, 1000),
    );
    for _ in 0..10 {
        assert_eq!(node.guest.rx[0].receive().frame.len(), 54 + 1000);
    }
    assert_eq!(node.count("rx_segmented"), 1);
    assert_eq!(node.drops(), []);
}

#[test]
fn uplink_of_a_second_kind_loses_frames_while_it_takes_none() {
    let (mut node, far) = uplinked(Spec::default());
    let mut seed = 0;
    for (mode, counter) in [
        (Mode::Down, "uplink_tx_down"),
        (Mode::Choosy, "uplink_tx_refused"),
    ] {
        far.set_mode(mode);
        seed += 1;
        let packet = node.packet(mac(7), 100, seed);
        node.guest.tx[0].send(&packet);
        until("it is counted", || node.count(counter) == 1);
        far.set_mode(Mode::Up);
        seed += 1;
        let packet = node.packet(mac(7), 100, seed);
        node.guest.tx[0].send(&packet);
        assert_eq!(far.receive(), packet);
    }
    far.lose_frame(0);
    let packet = Packet::new(mac(7), mac(0), 100, seed);
    far.send(0, &packet);
    assert_eq!(node.guest.rx[0].receive(), packet.in_buffers(1));
    let lost = ["uplink_tx_down", "uplink_tx_refused", "uplink_rx_failed"];
    assert_eq!(node.drops(), lost.map(|name| (name, 1)));
}

#[test]
fn uplink_of_a_second_kind_that_is_gone_is_reported_and_replaced() {
    let (mut node, mut far) = uplinked(Spec::default());
    for (losses, hangs_up) in [(1, true), (2, false)] {
        // Also by a port that sends nothing.
        if hangs_up {
            // Its frames read as if there were none just then.
            far.hang_up();
        } else {
            far.set_mode(Mode::Gone);
        }
        node.wait_for_loss();
        far.set_mode(Mode::Gone);
        let packet = node.packet(mac(7), 100, 1);
        node.guest.tx[0].send(&packet);
        until("it is counted", || node.count("uplink_tx_down") == losses);
        let (device, next) = memory_device(1, 10);
        far = next;
        node.port.set_uplink(device).unwrap();
        node.guest.tx[0].send(&packet);
        assert_eq!(far.receive(), packet);
        far.send(0, &Packet::new(mac(7), mac(0), 100, 2));
        assert_eq!(node.guest.rx[0].receive().seed(), 2);
    }
}

/// The second worker reports the loss when the process knows of it, and before it has replaced the
/// device.
#[test]
fn uplink_loss_that_is_reported_after_the_device_was_replaced_is_ignored() {
    let spec = Spec {
        queues: 2,
        ..Spec::default()
    };
    let (mut node, far) = uplinked(spec);
    far.hang_up_queue(0);
    node.wait_for_loss();
    far.set_mode(Mode::Gone);
    let packet = node.packet(mac(7), 100, 1);
    node.guest.tx[1].send(&packet);
    until("it is counted", || node.count("uplink_tx_down") > 0);
    let (device, far) = memory_device(2, 10);
    // Each worker carries out this command after its report.
    node.port.set_uplink(device).unwrap();
    let events = node.port.events();
    let is_loss = |event: &PortEvent| matches!(event, PortEvent::UplinkLost);
    assert!(!events.iter().any(is_loss), "{events:?}");
    node.guest.tx[1].send(&packet);
    assert_eq!(far.receive(), packet);
    far.hang_up();
    node.wait_for_loss();
}

#[test]
fn uplink_of_a_second_kind_is_read_by_workers_whose_queues_are_used() {
    let spec = Spec {
        queues: 2,
        ..Spec::default()
    };
    let (mut node, far) = uplinked(spec);
    node.port.enable_queue(2, false).unwrap();
    // From now on the first queue is in use: before, frames are for nobody.
    far.send(0, &Packet::new(mac(7), mac(0), 100, 100));
    assert_eq!(node.guest.rx[0].receive().seed(), 100);
    for seed in 0..20 {
        far.send(seed as usize % 2, &Packet::new(mac(7), mac(0), 100, seed));
    }
    let (mut port, mut received) = (node.port, 0);
    until("all have come", || {
        let _ = port.events();
        while node.guest.rx[0].try_receive().is_some() {
            received += 1;
        }
        received == 20
    });
}

/// As `virtio-inter uplink` runs it.
#[test]
fn uplink_of_a_second_kind_can_be_shared() {
    let spec = Spec::default();
    let (device, far) = memory_device(1, 10);
    let mut port = Port::relay(&local(9, &spec), spec.busy_poll, device, true).unwrap();
    let mut peer = Peer::attach_to(&mut port, &spec, 1, &spec);
    port.set_paths(&Paths::default()).unwrap();
    let mut carries = |far: &Far| {
        assert_eq!(far.receive().source(), mac(1));
        let packet = Packet::new(mac(1), mac(7), 100, 1);
        peer.send(&packet.bytes());
        assert_eq!(far.receive(), packet);
        let packet = Packet::new(mac(7), mac(1), 100, 2);
        far.send(0, &packet);
        assert_eq!(peer.receive(0), packet);
    };
    carries(&far);
    far.hang_up();
    until("it is reported", || {
        let events = port.events();
        events
            .iter()
            .any(|event| matches!(event, PortEvent::UplinkLost))
    });
    let (device, far) = memory_device(1, 10);
    port.set_uplink(device).unwrap();
    carries(&far);
}

#[test]
fn violation_of_a_peer_is_told_beside_an_uplink() {
    let (mut node, far) = uplinked(Spec::default());
    let peer = Peer::attach(&mut node, 1, &Spec::default());
    peer.into_port[0].poke(PUBLISHED, !63);
    peer.into_port[0].data_doorbell.ring();
    let PortEvent::LinkViolation { peer: told, .. } = node.wait_event() else {
        panic!("another event");
    };
    assert_eq!(told, peer.key);
    let packet = node.packet(mac(7), 100, 1);
    node.guest.tx[0].send(&packet);
    assert_eq!(far.receive(), packet);
}

#[test]
fn uplink_gets_no_frames_for_the_guest_itself() {
    let (mut node, far) = uplinked(Spec::default());
    let announced = || node.count("uplink_tx_bytes") == 60;
    until("the announcement is counted", announced);
    let own = node.packet(node.mac(), 100, 1);
    let other = node.packet(mac(7), 200, 2);
    node.guest.tx[0].send(&own);
    node.guest.tx[0].send(&other);
    assert_eq!(far.receive(), other);
    // After it was written.
    until("it is counted", || {
        node.count("uplink_tx_bytes") == 60 + 200
    });
}
