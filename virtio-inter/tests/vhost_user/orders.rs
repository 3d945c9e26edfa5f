//! Complete sessions, with the requests in the order of each frontend.

use std::os::fd::AsFd;

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::pipe::{PipeFlags, pipe_with};
use vm_memory::GuestAddress;

use crate::mock::FEATURES;
use crate::rig::*;

/// QEMU 10, net/vhost-user.c: queues are enabled before any features are set, memory comes region
/// by region, acknowledged.
#[test]
fn order_of_qemu_is_served() {
    let mut rig = Rig::new(2);
    let features = number_of(&rig.ask(GET_FEATURES, &[]));
    assert_eq!(features, FEATURES | F_PROTOCOL | F_LOG_ALL);
    let protocol = number_of(&rig.ask(GET_PROTOCOL_FEATURES, &[]));
    rig.tell(SET_PROTOCOL_FEATURES, &number(protocol), &[]);
    assert_eq!(number_of(&rig.ask(GET_QUEUE_NUM, &[])), 2);
    assert!(number_of(&rig.ask(GET_MAX_MEM_SLOTS, &[])) >= 32);
    let (requests, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(rig.ack(SET_BACKEND_REQ_FD, &[], &[requests.as_fd()]));
    rig.tell(SET_OWNER, &[], &[]);
    rig.ask(GET_FEATURES, &[]);
    for index in 0..2 {
        rig.tell(SET_VRING_CALL, &number(index), &[event().as_fd()]);
    }
    for index in 0..2 {
        assert!(rig.ack(SET_VRING_ENABLE, &state(index, 1), &[]));
    }
    rig.tell(SET_FEATURES, &number(features), &[]);
    assert!(rig.ack(
        ADD_MEM_REG,
        &single((0, SIZE, USER, 0)),
        &[memfd(SIZE).as_fd()]
    ));
    let high = (1 << 32, SIZE, USER + SIZE, SIZE);
    assert!(rig.ack(ADD_MEM_REG, &single(high), &[memfd(2 * SIZE).as_fd()]));
    for index in 0..2 {
        rig.tell(SET_VRING_NUM, &state(index, 256), &[]);
        rig.tell(SET_VRING_BASE, &state(index, 0), &[]);
        rig.tell(
            SET_VRING_ADDR,
            &addresses(index, USER + SIZE + 0x8000 * u64::from(index)),
            &[],
        );
        rig.tell(SET_VRING_KICK, &number(index.into()), &[event().as_fd()]);
        rig.tell(SET_VRING_CALL, &number(index.into()), &[event().as_fd()]);
    }
    assert_eq!(rig.device.running(), [true, true]);
    assert_eq!(rig.device.features, Some(FEATURES));
    let setup = rig.device.queues[1].setup.as_ref().unwrap();
    assert_eq!(setup.descriptors, GuestAddress((1 << 32) + 0x8000));
    assert!(setup.call.is_some() && rig.device.queues[1].enabled);

    // The guest reboots: stopped, and started again at once.
    for index in 0..2 {
        assert!(rig.ack(SET_VRING_ENABLE, &state(index, 0), &[]));
    }
    for index in 0..2 {
        assert_eq!(
            rig.ask(GET_VRING_BASE, &state(index, 0)),
            state(index, 100 + index)
        );
    }
    assert_eq!(rig.device.running(), [false, false]);
    rig.tell(SET_FEATURES, &number(features & !1), &[]);
    for index in 0..2 {
        rig.set_up_queue(index);
        assert!(rig.ack(SET_VRING_ENABLE, &state(index, 1), &[]));
    }
    assert_eq!(rig.device.running(), [true, true]);
    assert_eq!(rig.device.features, Some(FEATURES & !1));
}

/// User Mode Linux, arch/um/drivers/virtio_uml.c: everything acknowledged, even the request that
/// negotiates it; pipes for interrupts; two memory slots of which one is used; on unbind queues are
/// disabled, never stopped.
#[test]
fn order_of_user_mode_linux_is_served() {
    let mut rig = Rig::new(2);
    rig.tell(SET_OWNER, &[], &[]);
    let features = number_of(&rig.ask(GET_FEATURES, &[]));
    rig.ask(GET_PROTOCOL_FEATURES, &[]);
    assert!(rig.ack(
        SET_PROTOCOL_FEATURES,
        &number(F_REPLY_ACK | 1 << 5 | 1 << 9),
        &[]
    ));
    let (_reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    assert!(rig.ack(SET_BACKEND_REQ_FD, &[], &[writer.as_fd()]));
    // It reads a field by asking for everything up to its end.
    let mut config = words(&[0, 8, 0]);
    config.extend([0; 8]);
    let mut answer = words(&[0, 8, 0]);
    answer.extend(1..=8);
    assert_eq!(rig.ask(GET_CONFIG, &config), answer);
    assert!(rig.ack(SET_FEATURES, &number(features), &[]));

    let mut slots = table(&[(GUEST, SIZE, GUEST, 0)]);
    slots.extend([0; 32]);
    for round in 0..2u32 {
        assert!(rig.ack(SET_MEM_TABLE, &slots, &[memfd(SIZE).as_fd()]));
        let mut kept = Vec::new();
        for index in 0..2 {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            assert!(rig.ack(SET_VRING_CALL, &number(index.into()), &[writer.as_fd()]));
            assert!(fcntl_getfl(&writer).unwrap().contains(OFlags::NONBLOCK));
            kept.push(reader);
            assert!(rig.ack(SET_VRING_NUM, &state(index, 256), &[]));
            assert!(rig.ack(SET_VRING_BASE, &state(index, 0), &[]));
            let place = GUEST + 0x8000 * u64::from(2 * round + index);
            assert!(rig.ack(SET_VRING_ADDR, &addresses(index, place), &[]));
        }
        for index in 0..2 {
            assert!(rig.ack(SET_VRING_KICK, &number(index.into()), &[event().as_fd()]));
            assert!(rig.ack(SET_VRING_ENABLE, &state(index, 1), &[]));
        }
        assert_eq!(rig.device.running(), [true, true]);
        let place = rig.device.queues[0].setup.as_ref().unwrap().descriptors;
        assert_eq!(place, GuestAddress(GUEST + 0x8000 * u64::from(2 * round)));
        // Unbound: the memory of the rings is free from here on.
        for index in [1, 0] {
            assert!(rig.ack(SET_VRING_ENABLE, &state(index, 0), &[]));
        }
        assert_eq!(rig.device.running(), [false, false]);
        rig.ask(GET_FEATURES, &[]);
    }
}

/// Cloud Hypervisor (and every user of the `vhost` crate's frontend): all acknowledged once
/// negotiated, memory in one table, RESET_OWNER when the guest resets the device.
#[test]
fn order_of_cloud_hypervisor_is_served() {
    let mut rig = Rig::new(2);
    let features = number_of(&rig.ask(GET_FEATURES, &[]));
    rig.tell(SET_OWNER, &[], &[]);
    let protocol = number_of(&rig.ask(GET_PROTOCOL_FEATURES, &[]));
    rig.tell(SET_PROTOCOL_FEATURES, &number(protocol & !(1 << 5)), &[]);
    assert_eq!(number_of(&rig.ask(GET_QUEUE_NUM, &[])), 2);
    for _ in 0..3 {
        assert!(rig.ack(SET_FEATURES, &number(features), &[]));
        let memory = memfd(SIZE);
        let other = memfd(SIZE);
        let regions = [(0, SIZE, USER, 0), (1 << 32, SIZE, USER + SIZE, 0)];
        assert!(rig.ack(
            SET_MEM_TABLE,
            &table(&regions),
            &[memory.as_fd(), other.as_fd()]
        ));
        for index in 0..2 {
            assert!(rig.ack(SET_VRING_NUM, &state(index, 256), &[]));
            let place = USER + 0x8000 * u64::from(index);
            assert!(rig.ack(SET_VRING_ADDR, &addresses(index, place), &[]));
            assert!(rig.ack(SET_VRING_BASE, &state(index, 7), &[]));
            assert!(rig.ack(SET_VRING_CALL, &number(index.into()), &[event().as_fd()]));
            assert!(rig.ack(SET_VRING_KICK, &number(index.into()), &[event().as_fd()]));
            assert!(rig.ack(SET_VRING_ENABLE, &state(index, 1), &[]));
        }
        assert_eq!(rig.device.running(), [true, true]);
        let third = (1 << 33, SIZE, USER + 2 * SIZE, 0);
        assert!(rig.ack(ADD_MEM_REG, &single(third), &[memfd(SIZE).as_fd()]));
        assert!(rig.ack(REM_MEM_REG, &single(third), &[]));
        assert_eq!(rig.device.queues[0].starts, rig.device.queues[1].starts);
        for index in 0..2 {
            assert!(rig.ack(SET_VRING_ENABLE, &state(index, 0), &[]));
        }
        assert!(rig.ack(RESET_OWNER, &[], &[]));
        assert_eq!(rig.device.running(), [false, false]);
    }
    assert_eq!(rig.device.queues[0].starts, 3);
}

/// Dragonball of Kata, crates/dbs_virtio_devices/src/vhost/vhost_user/connection.rs: features are
/// set before protocol features, of which it takes MQ alone, so nothing is acknowledged; it
/// compares the number of queues with its own, twice its pairs; calls come before memory. It sets
/// no base if the port was restarted.
#[test]
fn order_of_dragonball_is_served() {
    for is_restart in [false, true] {
        let mut rig = Rig::new(4);
        let features = number_of(&rig.ask(GET_FEATURES, &[])) & !F_LOG_ALL;
        rig.tell(SET_OWNER, &[], &[]);
        rig.ask(GET_FEATURES, &[]);
        rig.tell(SET_FEATURES, &number(features), &[]);
        let protocol = number_of(&rig.ask(GET_PROTOCOL_FEATURES, &[]));
        rig.tell(SET_PROTOCOL_FEATURES, &number(protocol & 1), &[]);
        assert_eq!(number_of(&rig.ask(GET_QUEUE_NUM, &[])), 4);
        for index in 0..4 {
            rig.tell(SET_VRING_CALL, &number(index), &[event().as_fd()]);
        }
        let memory = [(0, SIZE, USER, 0)];
        rig.tell(SET_MEM_TABLE, &table(&memory), &[memfd(SIZE).as_fd()]);
        for index in 0..4 {
            rig.tell(SET_VRING_NUM, &state(index, 256), &[]);
        }
        for index in (0..4).filter(|_| !is_restart) {
            rig.tell(SET_VRING_BASE, &state(index, 0), &[]);
        }
        for index in 0..4 {
            let place = USER + 0x2000 * u64::from(index);
            rig.tell(SET_VRING_ADDR, &addresses(index, place), &[]);
        }
        for index in 0..4 {
            rig.tell(SET_VRING_KICK, &number(index), &[event().as_fd()]);
        }
        for index in 0..4 {
            rig.tell(SET_VRING_CALL, &number(index), &[event().as_fd()]);
        }
        // The driver's pairs: one at first, all of them once it has asked for that.
        for index in 0..2 {
            rig.tell(SET_VRING_ENABLE, &state(index, 1), &[]);
        }
        assert_eq!(rig.device.running(), [true, true, false, false]);
        for index in 0..4 {
            rig.tell(SET_VRING_ENABLE, &state(index, 1), &[]);
        }
        assert_eq!(rig.device.running(), [true; 4]);
    }
}

/// crosvm, devices/src/virtio/vhost_user_frontend: bit 30 alone is set before protocol features are
/// asked for, the driver's features much later.
#[test]
fn order_of_crosvm_is_served() {
    let mut rig = Rig::with_device(port("crosvm"));
    rig.tell(SET_OWNER, &[], &[]);
    let features = number_of(&rig.ask(GET_FEATURES, &[]));
    rig.tell(SET_FEATURES, &number(F_PROTOCOL), &[]);
    let protocol = number_of(&rig.ask(GET_PROTOCOL_FEATURES, &[]));
    rig.tell(
        SET_PROTOCOL_FEATURES,
        &number(protocol & (1 << 9 | 1 << 15 | F_REPLY_ACK)),
        &[],
    );
    assert!(rig.ack(SET_FEATURES, &number(features), &[]));
    assert!(rig.ack(
        SET_MEM_TABLE,
        &table(&[(GUEST, SIZE, USER, 0)]),
        &[memfd(SIZE).as_fd()]
    ));
    for index in 0..2 {
        rig.set_up_queue(index);
        assert!(rig.ack(SET_VRING_ENABLE, &state(index, 1), &[]));
    }
}

/// The queues of a driver that does not know VERSION_1 do not run. The connection stays, as the
/// guest may reboot into another driver.
#[test]
fn legacy_driver_is_not_served_until_another_comes() {
    let mut rig = Rig::with_device(port("legacy"));
    let features = number_of(&rig.ask(GET_FEATURES, &[])) & !(1 << 32);
    rig.tell(SET_FEATURES, &number(features), &[]);
    rig.tell(
        SET_MEM_TABLE,
        &table(&[(GUEST, SIZE, USER, 0)]),
        &[memfd(SIZE).as_fd()],
    );
    let running = |rig: &Rig<_>| rig.frontend.as_ref().unwrap().session().queues_running();
    for index in 0..2 {
        rig.set_up_queue(index);
        rig.tell(SET_VRING_ENABLE, &state(index, 1), &[]);
    }
    assert_eq!(running(&rig), 0);
    // Nor are those of one that chose what cannot go together: GUEST_TSO4 without GUEST_CSUM.
    rig.tell(SET_FEATURES, &number(1 << 32 | 1 << 7), &[]);
    assert_eq!(running(&rig), 0);
    rig.tell(SET_FEATURES, &number(1 << 32), &[]);
    assert_eq!(running(&rig), 2);
}

/// DPDK's virtio_user without protocol features: calls first, memory after the features, queues
/// enabled by default and all the same enabled by hand, never acknowledged.
#[test]
fn order_of_dpdk_virtio_user_is_served() {
    let mut rig = Rig::new(2);
    rig.tell(SET_OWNER, &[], &[]);
    rig.ask(GET_FEATURES, &[]);
    rig.tell(SET_OWNER, &[], &[]);
    for index in 0..2 {
        rig.tell(SET_VRING_CALL, &number(index), &[event().as_fd()]);
    }
    rig.tell(SET_FEATURES, &number(FEATURES & !(1 << 5)), &[]);
    rig.tell(
        SET_MEM_TABLE,
        &table(&[(USER, SIZE, USER, 0)]),
        &[memfd(SIZE).as_fd()],
    );
    for index in 0..2 {
        rig.tell(SET_VRING_NUM, &state(index, 256), &[]);
        rig.tell(SET_VRING_BASE, &state(index, 0), &[]);
        rig.tell(
            SET_VRING_ADDR,
            &addresses(index, USER + 0x8000 * u64::from(index)),
            &[],
        );
        assert!(!rig.device.running()[index as usize]);
        rig.tell(SET_VRING_KICK, &number(index.into()), &[event().as_fd()]);
        assert!(
            rig.device.running()[index as usize],
            "enabled without being told"
        );
    }
    for index in 0..2 {
        rig.tell(SET_VRING_ENABLE, &state(index, 1), &[]);
    }
    assert_eq!(rig.device.queues[0].starts, 1);
    // Its memory grows: queues are paused meanwhile.
    for enabled in [0, 1] {
        for index in 0..2 {
            rig.tell(SET_VRING_ENABLE, &state(index, enabled), &[]);
        }
        assert_eq!(rig.device.running(), [enabled == 1; 2]);
        if enabled == 0 {
            let fds = [memfd(SIZE), memfd(SIZE)];
            let regions = [(USER, SIZE, USER, 0), (USER + SIZE, SIZE, USER + SIZE, 0)];
            rig.tell(
                SET_MEM_TABLE,
                &table(&regions),
                &[fds[0].as_fd(), fds[1].as_fd()],
            );
        }
    }
    rig.tell(RESET_OWNER, &[], &[]);
    assert_eq!(rig.device.running(), [false, false]);
}
