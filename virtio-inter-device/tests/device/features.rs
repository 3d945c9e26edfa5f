//! What a port offers, what a driver may accept of it, and what its configuration space says.

use virtio_inter_device::{CONFIG_SIZE, Device, DeviceError};

use crate::driver::arena::END;
use crate::driver::{Feature, LEAN, Network, Node, Spec, mac};

const OFFERED: u64 = Feature::CSUM
    | Feature::GUEST_CSUM
    | Feature::MTU
    | Feature::MAC
    | Feature::GUEST_TSO4
    | Feature::GUEST_TSO6
    | Feature::GUEST_ECN
    | Feature::HOST_TSO4
    | Feature::HOST_TSO6
    | Feature::HOST_ECN
    | Feature::GUEST_USO4
    | Feature::GUEST_USO6
    | Feature::HOST_USO
    | Feature::MRG_RXBUF
    | Feature::STATUS
    | Feature::INDIRECT
    | Feature::EVENT_IDX
    | Feature::VERSION_1
    | Feature::IN_ORDER;

#[test]
fn features_offered_are_exactly_these() {
    let one = Node::new(0, Spec::default());
    assert_eq!(one.port.features(), OFFERED);
    assert_eq!(one.port.queue_count(), 2);
    let three = Node::new(
        0,
        Spec {
            queues: 3,
            ..Spec::default()
        },
    );
    assert_eq!(
        three.port.features(),
        OFFERED | Feature::MQ | Feature::CTRL_VQ
    );
    assert_eq!(three.port.queue_count(), 6);
}

#[test]
fn configuration_space_says_who_the_port_is() {
    let node = Node::new(
        4,
        Spec {
            queues: 3,
            mtu: 9000,
            ..Spec::default()
        },
    );
    let mut expected = [0; CONFIG_SIZE];
    expected[..6].copy_from_slice(&mac(4).octets());
    expected[6] = 1; // VIRTIO_NET_S_LINK_UP
    expected[8] = 3;
    expected[10..12].copy_from_slice(&9000u16.to_le_bytes());
    expected[12..17].fill(0xff); // Speed and duplex unknown.
    assert_eq!(node.port.config(), expected);
}

#[test]
fn driver_with_the_least_features_is_served() {
    let lean = Spec {
        features: LEAN,
        ..Spec::default()
    };
    let mut network = Network::new(&[lean, lean]);
    let (a, b) = network.pair();
    for seed in 0..1000 {
        let packet = a.packet(b.mac(), 1500, seed);
        a.guest.tx[0].send(&packet);
        assert_eq!(b.guest.rx[0].receive(), packet.in_buffers(1));
    }
    assert_eq!(b.drops(), []);
}

#[test]
fn driver_that_comes_back_may_choose_otherwise() {
    let mut network = Network::new(&[Spec::default(), Spec::default()]);
    let (a, b) = network.pair();
    let packet = a.packet(b.mac(), 3000, 1);
    a.guest.tx[0].send(&packet);
    assert_eq!(b.guest.rx[0].receive(), packet.clone().in_buffers(2));

    // The guest of b reboots into something simpler, then again into what it was.
    b.reboot(LEAN, (256, 4096));
    let packet = a.packet(b.mac(), 3000, 2);
    a.guest.tx[0].send(&packet);
    assert_eq!(b.guest.rx[0].receive(), packet.in_buffers(1));
    let packet = b.packet(a.mac(), 3000, 3).with_checksum(34, 16);
    b.guest.tx[0].send(&packet);
    b.guest.tx[0].finish();
    assert_eq!(b.drops(), [("tx_bad_csum", 1)]);

    b.reboot(u64::MAX, (256, 1024));
    b.guest.tx[0].send(&packet);
    assert_eq!(a.guest.rx[0].receive(), packet.in_buffers(2));
    let packet = a.packet(b.mac(), 3000, 4);
    a.guest.tx[0].send(&packet);
    assert_eq!(b.guest.rx[0].receive(), packet.in_buffers(3));
}

#[test]
fn contradictory_choices_are_refused_and_change_nothing() {
    let mut network = Network::new(&[Spec::default(), Spec::default()]);
    let (a, b) = network.pair();
    let bad = [
        0,
        OFFERED & !Feature::VERSION_1,
        OFFERED | Feature::MQ | Feature::CTRL_VQ,
        OFFERED | 1 << 63,
        LEAN | Feature::GUEST_TSO4,
        LEAN | Feature::HOST_TSO6,
        LEAN | Feature::CSUM | Feature::HOST_ECN,
        LEAN | Feature::HOST_USO,
        LEAN | Feature::CSUM | Feature::GUEST_USO4,
    ];
    for acked in bad {
        let error = b.port.set_features(acked).unwrap_err();
        assert!(
            matches!(error, DeviceError::Features { acked: a, .. } if a == acked),
            "{error}"
        );
    }
    let packet = a.packet(b.mac(), 60_000, 1).segmented(1, 1448);
    a.guest.tx[0].send(&packet);
    let whole = packet.with(2, &[54, 0]).in_buffers(30);
    assert_eq!(b.guest.rx[0].receive(), whole);
}

#[test]
fn queues_that_cannot_be_are_refused() {
    let mut node = Node::new(0, Spec::default());
    for index in [2, 3, 0xffff] {
        let setup = node.guest.rx[0].queue.setup();
        let error = node.port.start_queue(index, setup).unwrap_err();
        assert!(matches!(error, DeviceError::NoSuchQueue { .. }), "{error}");
        assert!(node.port.stop_queue(index).is_err());
        assert!(node.port.enable_queue(index, true).is_err());
    }
    let end = END;
    type Change = fn(&mut virtio_inter_device::QueueSetup, u64);
    let changes: [Change; 10] = [
        |s, _| s.size = 0,
        |s, _| s.size = 3,
        |s, _| s.size = 32769,
        |s, _| s.descriptors.0 += 8,
        |s, _| s.available.0 += 1,
        |s, _| s.used.0 += 2,
        |s, end| s.descriptors.0 = end - 16,
        |s, end| s.available.0 = end,
        |s, _| s.used.0 = u64::MAX - 3,
        // A kick that nothing can be waited for.
        |s, _| s.kick = std::fs::File::open("/proc/self/exe").unwrap().into(),
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let mut setup = node.guest.rx[0].queue.setup();
        change(&mut setup, end);
        let error = node.port.start_queue(0, setup).unwrap_err();
        assert!(
            matches!(error, DeviceError::BadQueue { index: 0, .. }),
            "{i}: {error}"
        );
    }
    node.port.stop_queue(0).unwrap();
    node.port.set_memory(None).unwrap();
    let setup = node.guest.rx[0].queue.setup();
    let error = node.port.start_queue(0, setup).unwrap_err();
    assert!(matches!(error, DeviceError::NoMemory(0)), "{error}");
}
