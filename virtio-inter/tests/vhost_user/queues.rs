//! Requests about queues, features and the configuration space.

use std::os::fd::AsFd;

use crate::mock::FEATURES;
use crate::rig::*;

#[test]
fn queue_beyond_the_offer_is_named() {
    for (code, body) in [
        (SET_VRING_NUM, state(2, 256)),
        (SET_VRING_ADDR, addresses(2, USER)),
        (SET_VRING_BASE, state(2, 0)),
        (GET_VRING_BASE, state(2, 0)),
        (SET_VRING_ENABLE, state(u32::MAX, 1)),
    ] {
        let mut rig = Rig::new(2);
        rig.negotiate();
        let text = rig.offend(code, &body, &[]);
        assert!(
            text.contains("was not offered: this port has 2 (--queues 1)"),
            "{text}"
        );
    }
    for code in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
        let text = Rig::new(2).offend(code, &number(2), &[event().as_fd()]);
        assert!(text.contains("Queue 2 was not offered"), "{text}");
    }
}

#[test]
fn refusal_is_acknowledged_and_the_session_goes_on() {
    let mut rig = Rig::new(2);
    rig.negotiate();
    assert!(!rig.ack(SET_VRING_NUM, &state(2, 256), &[]));
    assert!(!rig.ack(SET_FEATURES, &number(1 << 63), &[]));
    assert!(!rig.ack(NET_SET_MTU, &number(1501), &[]));
    assert!(!rig.ack(77, &[1, 2, 3], &[event().as_fd()]));
    assert!(rig.ack(NET_SET_MTU, &number(1500), &[]));
    rig.ask(GET_FEATURES, &[]);
}

/// A frontend that waits for a number or a queue's base would take "refused" for it.
#[test]
fn acknowledgement_is_no_answer_to_a_question() {
    const GET_INFLIGHT_FD: u32 = 31;
    const GET_STATUS: u32 = 40;
    for (code, body) in [
        (GET_VRING_BASE, state(2, 0)),
        (GET_INFLIGHT_FD, vec![0; 24]),
        (GET_STATUS, vec![]),
    ] {
        for flags in [VERSION, VERSION | NEED_REPLY] {
            let mut rig = Rig::new(2);
            rig.negotiate();
            rig.send(code, flags, &body, &[]);
            let ended = rig.process().expect_err("the session goes on");
            assert_eq!(ended.to_string(), "Frontend cannot be served");
            assert_eq!(rig.reply(), None);
        }
    }
}

#[test]
fn requests_without_reply_ack_are_not_acknowledged() {
    let mut rig = Rig::new(2);
    rig.send(SET_OWNER, VERSION | NEED_REPLY, &[], &[]);
    rig.process().unwrap();
    assert_eq!(rig.reply(), None);
    // Nor is a request acknowledged that has a reply.
    rig.send(GET_FEATURES, VERSION | NEED_REPLY, &[], &[]);
    rig.process().unwrap();
    assert_eq!(
        number_of(&rig.reply().unwrap().2),
        FEATURES | F_PROTOCOL | F_LOG_ALL
    );
    assert_eq!(rig.reply(), None);
}

#[test]
fn unknown_requests_are_passed_over() {
    let mut rig = Rig::new(2);
    // IOTLB_MSG is known and not offered, 1000 is neither.
    for code in [22, 1000] {
        rig.tell(code, &[0; 8], &[event().as_fd()]);
    }
    rig.ask(GET_FEATURES, &[]);
}

#[test]
fn sizes_are_powers_of_two_within_the_limit() {
    for size in [0, 3, 255, 512, 65536, u32::MAX] {
        let text = Rig::new(2).offend(SET_VRING_NUM, &state(1, size), &[]);
        assert!(
            text.contains(&format!("Queue 1 cannot have {size} entries")),
            "{text}"
        );
    }
    let mut rig = Rig::new(2);
    for size in [1, 2, 256] {
        rig.tell(SET_VRING_NUM, &state(1, size), &[]);
    }
}

/// Each of README's limits of the transport: not offered, and refused with its reason if it is
/// asked for all the same.
#[test]
fn limits_of_the_readme_are_refused_with_a_reason() {
    // VIRTIO_F_RING_RESET, and what a vIOMMU and packed rings need: VIRTIO_F_ACCESS_PLATFORM and
    // VIRTIO_F_RING_PACKED.
    let offered = virtio_inter_device::Device::features(&port("limits"));
    for bit in [40, 33, 34] {
        let mut rig = Rig::new(2);
        assert_eq!(offered & 1 << bit, 0);
        let text = rig.offend(SET_FEATURES, &number(FEATURES | 1 << bit), &[]);
        assert!(text.contains("were not offered"), "{text}");
    }
    // A vIOMMU's translations. Its frontend waits for the answer.
    let mut rig = Rig::running();
    assert!(!rig.ack(IOTLB_MSG, &[0; 32], &[]));
    assert_eq!(rig.device.running(), [true, true]);
    // A queue without a kick, to be polled, and kicks as messages (INBAND_NOTIFICATIONS).
    let text = Rig::new(2).offend(SET_VRING_KICK, &number(0x101), &[]);
    assert!(
        text.contains("Queue 1 cannot start: the frontend has no kick"),
        "{text}"
    );
    let mut rig = Rig::running();
    assert!(!rig.ack(SET_VRING_KICK, &number(0x100), &[]));
    assert_eq!(rig.device.running(), [true, true]);
    let mut rig = Rig::new(2);
    let protocol = number_of(&rig.ask(GET_PROTOCOL_FEATURES, &[]));
    assert_eq!(protocol & F_INBAND_NOTIFICATIONS, 0);
}

#[test]
fn interrupts_can_be_given_up_and_replaced() {
    let mut rig = Rig::running();
    rig.tell(SET_VRING_CALL, &number(0x100), &[]);
    assert!(rig.device.queues[0].setup.as_ref().unwrap().call.is_none());
    rig.tell(SET_VRING_CALL, &number(0), &[event().as_fd()]);
    assert!(rig.device.queues[0].setup.as_ref().unwrap().call.is_some());
    rig.tell(SET_VRING_ERR, &number(0), &[event().as_fd()]);
    rig.tell(SET_VRING_ERR, &number(0x100), &[]);
    rig.tell(SET_VRING_KICK, &number(0), &[event().as_fd()]);
    assert_eq!(rig.device.queues[0].starts, 1);
}

#[test]
fn running_queue_does_not_change() {
    for (code, body) in [
        (SET_VRING_NUM, state(0, 128)),
        (SET_VRING_ADDR, addresses(0, USER + 0x10000)),
        (SET_VRING_BASE, state(0, 3)),
    ] {
        let mut rig = Rig::running();
        let text = rig.offend(code, &body, &[]);
        assert!(text.contains("Queue 0 runs"), "{text}");
        assert_eq!(rig.device.running(), [false, false]);
    }
    let mut rig = Rig::running();
    let text = rig.offend(SET_FEATURES, &number(F_PROTOCOL), &[]);
    assert!(text.contains("cannot change while queues run"), "{text}");
    // The same again is no change.
    let mut rig = Rig::running();
    rig.tell(SET_VRING_NUM, &state(0, 256), &[]);
    rig.tell(SET_VRING_ADDR, &addresses(0, USER), &[]);
    rig.tell(SET_FEATURES, &number(FEATURES | F_PROTOCOL), &[]);
    assert_eq!(rig.device.queues[0].starts, 1);
}

#[test]
fn stopped_queue_needs_a_new_kick() {
    let mut rig = Rig::running();
    assert_eq!(rig.ask(GET_VRING_BASE, &state(1, 0)), state(1, 101));
    rig.tell(SET_VRING_ENABLE, &state(1, 0), &[]);
    rig.tell(SET_VRING_ENABLE, &state(1, 1), &[]);
    assert_eq!(rig.device.running(), [true, false]);
    rig.tell(SET_VRING_KICK, &number(1), &[event().as_fd()]);
    assert_eq!(rig.device.running(), [true, true]);
    // A queue that never ran has the base that the frontend set.
    let mut rig = Rig::new(2);
    rig.tell(SET_VRING_BASE, &state(0, 9), &[]);
    assert_eq!(rig.ask(GET_VRING_BASE, &state(0, 0)), state(0, 9));
}

#[test]
fn reset_stops_everything_and_keeps_the_memory() {
    let mut rig = Rig::running();
    rig.tell(RESET_DEVICE, &[], &[]);
    assert_eq!(rig.device.running(), [false, false]);
    assert!(rig.device.memory.is_some());
    rig.tell(SET_FEATURES, &number(F_PROTOCOL), &[]);
    rig.set_up_queue(0);
    assert!(!rig.device.running()[0], "disabled by the reset");
    rig.tell(SET_VRING_ENABLE, &state(0, 1), &[]);
    assert!(rig.device.running()[0]);
}

#[test]
fn end_of_the_connection_stops_everything() {
    let mut rig = Rig::running();
    rig.socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(
        rig.process().unwrap_err().to_string(),
        "Frontend disconnected"
    );
    assert_eq!(rig.device.running(), [false, false]);
    assert!(rig.device.memory.is_none());
}

#[test]
fn features_that_were_not_offered_are_named() {
    let text = Rig::new(2).offend(SET_FEATURES, &number(FEATURES | 1 << 27), &[]);
    assert!(
        text.contains("Features ANY_LAYOUT were not offered"),
        "{text}"
    );
    let text = Rig::new(2).offend(SET_PROTOCOL_FEATURES, &number(1 << 12 | 1), &[]);
    assert!(
        text.contains("Protocol features INFLIGHT_SHMFD were not offered"),
        "{text}"
    );
    let text = Rig::new(2).offend(SET_PROTOCOL_FEATURES, &number(1 << 60), &[]);
    assert!(
        text.contains("Protocol features bit 60 were not offered"),
        "{text}"
    );
}

#[test]
fn configuration_is_as_long_as_asked_and_read_only() {
    let mut rig = Rig::new(2);
    // Twelve bytes, 1 to 12; zeros after them.
    let mut expected = words(&[10, 4, 0]);
    expected.extend([11, 12, 0, 0]);
    assert_eq!(rig.ask(GET_CONFIG, &words(&[10, 4, 0])), expected);
    let mut expected = words(&[100, 1, 1]);
    expected.push(0);
    assert_eq!(rig.ask(GET_CONFIG, &words(&[100, 1, 1])), expected);
    let mut write = words(&[0, 6, 0]);
    write.extend([0; 6]);
    rig.tell(SET_CONFIG, &write, &[]);
    rig.negotiate();
    assert!(!rig.ack(SET_CONFIG, &write, &[]));
}

/// QEMU announces a guest that has moved and does not announce itself; without this it prints an
/// error.
#[test]
fn rarp_is_offered_and_announces_the_ports_own_address() {
    let mut rig = Rig::running();
    let protocol = number_of(&rig.ask(GET_PROTOCOL_FEATURES, &[]));
    assert_ne!(protocol & F_RARP, 0);
    // The address, as the first bytes of the mock's configuration are, and two bytes that mean
    // nothing.
    let own = [1, 2, 3, 4, 5, 6, 0xaa, 0xbb];
    rig.tell(SEND_RARP, &own, &[]);
    assert_eq!(rig.device.announced, 1);
    assert!(rig.ack(SEND_RARP, &own, &[]));
    assert_eq!(rig.device.announced, 2);
    // Another's is ignored, which is no reason to end the session.
    let other = [1, 2, 3, 4, 5, 7, 0, 0];
    rig.tell(SEND_RARP, &other, &[]);
    assert!(!rig.ack(SEND_RARP, &other, &[]));
    assert_eq!(rig.device.announced, 2);
    assert_eq!(rig.device.running(), [true, true]);
    let text = rig.offend(SEND_RARP, &own[..6], &[]);
    assert!(text.contains("SEND_RARP cannot be 6 bytes long"), "{text}");
}

#[test]
fn mtu_out_of_bounds_is_refused() {
    for mtu in [0, 67, 1501, u64::MAX] {
        let text = Rig::new(2).offend(NET_SET_MTU, &number(mtu), &[]);
        assert!(
            text.contains(&format!("MTU {mtu} is outside 68..=1500")),
            "{text}"
        );
    }
}
