//! The log of what the device writes, as frontends ask for it when they move a guest: in their
//! orders, and wrongly.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::mock::FEATURES;
use crate::rig::*;

const PAGE: u64 = 4096;
/// One bit for each page up to the end of the tests' memory.
const LOG: u64 = (GUEST + SIZE) / PAGE / 8;

fn area(size: u64, offset: u64) -> Vec<u8> {
    [number(size), number(offset)].concat()
}

/// Hands a log over and expects the answer that Rust's `vhost` and QEMU take.
#[track_caller]
fn set_log<D: virtio_inter_device::Device>(rig: &mut Rig<D>, log: &OwnedFd, size: u64) {
    // Also where an acknowledgement is asked for: the reply is the only one.
    for flags in [VERSION, VERSION | NEED_REPLY] {
        rig.send(SET_LOG_BASE, flags, &area(size, 0), &[log.as_fd()]);
        rig.process().unwrap();
        let (code, flags, payload) = rig.reply().expect("a reply");
        assert_eq!((code, flags), (SET_LOG_BASE, VERSION | REPLY));
        assert_eq!(payload, area(size, 0));
        assert_eq!(rig.reply(), None, "one reply only");
    }
}

fn is_logged(rig: &Rig) -> bool {
    rig.device.memory.as_ref().expect("memory").is_logged()
}

#[test]
fn dirty_log_is_offered() {
    let mut rig = Rig::new(2);
    let features = number_of(&rig.ask(GET_FEATURES, &[]));
    assert_eq!(features & F_LOG_ALL, F_LOG_ALL);
    let protocol = number_of(&rig.ask(GET_PROTOCOL_FEATURES, &[]));
    assert_eq!(protocol & F_LOG_SHMFD, F_LOG_SHMFD);
}

/// Cloud Hypervisor hands over the log first, QEMU the features at times.
#[test]
fn log_is_written_once_it_is_there_and_wanted() {
    for features_first in [false, true] {
        let mut rig = Rig::running();
        let log = memfd(LOG);
        assert!(!is_logged(&rig));
        let on = number(FEATURES | F_PROTOCOL | F_LOG_ALL);
        if features_first {
            rig.tell(SET_FEATURES, &on, &[]);
            assert!(!is_logged(&rig));
            set_log(&mut rig, &log, LOG);
        } else {
            set_log(&mut rig, &log, LOG);
            assert!(!is_logged(&rig));
            rig.tell(SET_FEATURES, &on, &[]);
        }
        assert!(is_logged(&rig));
        // With the rings' logging, which comes with it.
        let mut addresses = addresses(0, USER);
        addresses[4] = 1;
        rig.tell(SET_VRING_ADDR, &addresses, &[]);
        // Another in its place.
        set_log(&mut rig, &memfd(LOG), LOG);
        assert!(is_logged(&rig));
        rig.tell(SET_FEATURES, &number(FEATURES | F_PROTOCOL), &[]);
        assert!(!is_logged(&rig));
        // A new migration brings a new log.
        rig.tell(SET_FEATURES, &on, &[]);
        assert!(!is_logged(&rig));
        assert_eq!(rig.device.running(), [true, true]);
        let starts: Vec<usize> = rig.device.queues.iter().map(|queue| queue.starts).collect();
        assert_eq!(starts, [1, 1], "nothing of it stops a queue");
    }
}

#[test]
fn features_other_than_the_log_do_not_change_while_queues_run() {
    let mut rig = Rig::running();
    let fewer = FEATURES & !1 | F_PROTOCOL | F_LOG_ALL;
    let text = rig.offend(SET_FEATURES, &number(fewer), &[]);
    assert!(text.contains("cannot change while queues run"), "{text}");
}

#[test]
fn log_outlasts_a_change_of_memory() {
    let mut rig = Rig::running();
    set_log(&mut rig, &memfd(LOG), LOG);
    rig.tell(
        SET_FEATURES,
        &number(FEATURES | F_PROTOCOL | F_LOG_ALL),
        &[],
    );
    let more = (GUEST + SIZE, SIZE, USER + SIZE, 0);
    rig.tell(ADD_MEM_REG, &single(more), &[memfd(SIZE).as_fd()]);
    assert!(is_logged(&rig));
    rig.tell(REM_MEM_REG, &single(more), &[]);
    assert!(is_logged(&rig));
}

#[test]
fn log_that_cannot_be_written_ends_the_session() {
    for (size, offset, file, reason) in [
        (LOG, 0, LOG - 1, "beyond the end of its file"),
        (u64::MAX, 1, LOG, "beyond the end of an address space"),
        (PAGE, 8, 2 * PAGE, "does not start on a page"),
        (0, 0, LOG, "empty"),
    ] {
        let mut rig = Rig::running();
        let text = rig.offend(SET_LOG_BASE, &area(size, offset), &[memfd(file).as_fd()]);
        assert!(text.contains(reason), "{text}");
        assert_eq!(rig.device.running(), [false, false]);
    }
}

#[test]
fn dirty_log_messages_have_their_sizes_and_descriptors() {
    let log = memfd(LOG);
    let twice = [log.as_fd(), log.as_fd()];
    let text = Rig::running().offend(SET_LOG_BASE, &area(LOG, 0), &twice);
    assert!(text.contains("2"), "{text}");
    for size in [8, 24] {
        Rig::running().offend(SET_LOG_BASE, &vec![0; size], &[log.as_fd()]);
    }
    let mut rig = Rig::running();
    rig.tell(SET_LOG_FD, &[], &[event().as_fd()]);
    rig.offend(SET_LOG_FD, &[], &[]);
}

#[test]
fn dirty_log_is_refused_without_its_protocol_feature() {
    let mut rig = Rig::new(2);
    let text = rig.offend(SET_LOG_BASE, &area(LOG, 0), &[memfd(LOG).as_fd()]);
    assert!(text.contains("not supported"), "{text}");
}

/// The bits end up in the frontend's file, at the pages' places.
#[test]
fn dirty_log_shows_writes_in_the_frontends_file() {
    let mut rig = Rig::with_device(port("log"));
    let guest = File::from(memfd(SIZE));
    rig.bring_up(guest.as_fd());
    let log = memfd(LOG);
    set_log(&mut rig, &log, LOG);
    let features = number_of(&rig.ask(GET_FEATURES, &[]));
    rig.tell(SET_FEATURES, &number(features | F_LOG_ALL), &[]);
    let bits = || {
        let mut bits = vec![0; LOG as usize];
        File::from(log.try_clone().unwrap())
            .read_exact_at(&mut bits, 0)
            .unwrap();
        bits
    };
    // A transmit chain that is given back: the second queue's used ring is 16 KiB behind its
    // descriptors.
    let queue = 0x8000;
    let descriptor = [number(GUEST + 0x2_0000), number(100)].concat();
    guest.write_all_at(&descriptor, queue).unwrap();
    guest.write_all_at(&[0; 4], queue + 0x6000 + 4).unwrap();
    guest
        .write_all_at(&1u16.to_le_bytes(), queue + 0x6000 + 2)
        .unwrap();
    let kick = event();
    rustix::io::write(&kick, &number(1)).unwrap();
    rig.tell(SET_VRING_KICK, &number(1), &[kick.as_fd()]);
    // Before the queue is stopped: a chain that was not taken until then stays where it is.
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut used = [0; 2];
    while u16::from_le_bytes(used) != 1 {
        assert!(Instant::now() < deadline, "The chain does not come back");
        std::thread::yield_now();
        guest.read_exact_at(&mut used, queue + 0x4002).unwrap();
    }
    // The answer comes when the queue is touched no more.
    rig.ask(GET_VRING_BASE, &state(1, 0));
    let page = (GUEST + queue + 0x4000) / PAGE;
    let bits = bits();
    assert_ne!(bits[page as usize / 8] & 1 << (page % 8), 0, "{bits:?}");
}
