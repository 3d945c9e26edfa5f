//! Guest memory: what is mapped, what is refused, and where rings may lie.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::pipe;
use vm_memory::{Bytes, GuestAddress};

use crate::rig::*;

const END: u64 = u64::MAX - 0xfff;

#[test]
fn memory_is_the_frontends() {
    let mut rig = Rig::new(2);
    let fd = memfd(4 * SIZE);
    rig.tell(
        SET_MEM_TABLE,
        &table(&[(GUEST, SIZE, USER, 2 * SIZE)]),
        &[fd.as_fd()],
    );
    rustix::io::pwrite(&fd, b"hello", 2 * SIZE + 16).unwrap();
    let memory = rig.device.memory.clone().unwrap();
    let mut read = [0; 5];
    memory
        .read_slice(&mut read, GuestAddress(GUEST + 16))
        .unwrap();
    assert_eq!(&read, b"hello");
    memory
        .write_slice(b"there", GuestAddress(GUEST + 32))
        .unwrap();
    rustix::io::pread(&fd, &mut read, 2 * SIZE + 32).unwrap();
    assert_eq!(&read, b"there");
}

#[test]
fn bad_regions_are_refused_with_a_reason() {
    for (regions, reason) in [
        (vec![(GUEST, 0, USER, 0)], "it is empty"),
        (
            vec![(END, 0x1000, USER, 0)],
            "beyond the end of an address space",
        ),
        (
            vec![(GUEST, 0x1000, END, 0)],
            "beyond the end of an address space",
        ),
        (
            vec![(GUEST, 0x1000, USER, END)],
            "beyond the end of an address space",
        ),
        (
            vec![(GUEST, SIZE + 0x1000, USER, 0)],
            "beyond the end of its file",
        ),
        (
            vec![(GUEST, 0x1000, USER, SIZE)],
            "beyond the end of its file",
        ),
        (
            vec![(GUEST, u64::MAX >> 1, USER, 0)],
            "beyond the end of its file",
        ),
        (
            vec![(GUEST, 0x1000, USER, 0x800)],
            "does not start on a page",
        ),
        (
            vec![(GUEST, SIZE, USER, 0), (GUEST, SIZE, USER, 0)],
            "overlaps another",
        ),
        (
            vec![(GUEST, SIZE, USER, 0), (GUEST + SIZE - 1, 0x1000, USER, 0)],
            "overlaps another",
        ),
        (
            vec![(GUEST, SIZE, USER, 0), (GUEST - 0x1000, 0x1001, USER, 0)],
            "overlaps another",
        ),
    ] {
        let fds: Vec<OwnedFd> = regions.iter().map(|_| memfd(SIZE)).collect();
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let text = Rig::new(2).offend(SET_MEM_TABLE, &table(&regions), &fds);
        assert!(text.contains(reason), "{text}");
    }
}

#[test]
fn descriptor_that_is_no_memory_is_refused() {
    let region = table(&[(GUEST, 0x1000, USER, 0)]);
    let (reader, _writer) = pipe().unwrap();
    for fd in [event(), reader] {
        let text = Rig::new(2).offend(SET_MEM_TABLE, &region, &[fd.as_fd()]);
        assert!(text.contains("no file in memory"), "{text}");
    }
    let read_only = rustix::fs::open("/proc/self/exe", OFlags::RDONLY, Mode::empty()).unwrap();
    let text = Rig::new(2).offend(SET_MEM_TABLE, &region, &[read_only.as_fd()]);
    assert!(text.contains("cannot be mapped"), "{text}");
}

#[test]
fn refused_table_leaves_the_old_one() {
    let mut rig = Rig::running();
    let bad = single((GUEST + 0x1000, 0x1000, USER, 0));
    assert!(!rig.ack(ADD_MEM_REG, &bad, &[memfd(0x1000).as_fd()]));
    assert!(!rig.ack(
        SET_MEM_TABLE,
        &table(&[(GUEST, 0, USER, 0)]),
        &[memfd(1).as_fd()]
    ));
    assert_eq!(rig.device.running(), [true, true]);
    assert!(
        rig.device
            .memory
            .as_ref()
            .unwrap()
            .read_obj::<u8>(GuestAddress(GUEST))
            .is_ok()
    );
}

#[test]
fn regions_beyond_256_are_refused() {
    const PAGE: u64 = 0x1000;
    let mut rig = Rig::new(2);
    rig.negotiate();
    let file = memfd(PAGE);
    let mut add = |i: u64| {
        let region = (GUEST + i * PAGE, PAGE, USER + i * PAGE, 0);
        rig.ack(ADD_MEM_REG, &single(region), &[file.as_fd()])
    };
    assert_eq!((0..300).filter(|&i| add(i)).count(), 256);
}

#[test]
fn memory_may_come_last() {
    let mut rig = Rig::new(2);
    rig.negotiate();
    for index in 0..2 {
        rig.set_up_queue(index);
        assert!(rig.ack(SET_VRING_ENABLE, &state(index, 1), &[]));
    }
    assert_eq!(rig.device.running(), [false, false]);
    // Elsewhere first: that is no fault of this memory.
    let elsewhere = (GUEST + SIZE, SIZE, USER + SIZE, 0);
    assert!(rig.ack(ADD_MEM_REG, &single(elsewhere), &[memfd(SIZE).as_fd()]));
    assert_eq!(rig.device.running(), [false, false]);
    let region = (GUEST, SIZE, USER, 0);
    assert!(rig.ack(ADD_MEM_REG, &single(region), &[memfd(SIZE).as_fd()]));
    assert_eq!(rig.device.running(), [true, true]);
}

/// A ring outside memory is refused once, and is nobody else's trouble later.
#[test]
fn requests_that_are_refused_leave_nothing_behind() {
    let outside = addresses(1, USER + 2 * SIZE);
    let region = (GUEST, SIZE, USER, 0);
    let more = (GUEST + SIZE, SIZE, USER + SIZE, 0);
    for last in [SET_VRING_ENABLE, SET_VRING_KICK, SET_VRING_ADDR] {
        let mut rig = Rig::new(2);
        rig.negotiate();
        assert!(rig.ack(SET_MEM_TABLE, &table(&[region]), &[memfd(SIZE).as_fd()]));
        rig.tell(SET_VRING_NUM, &state(1, 256), &[]);
        let kick = event();
        let requests: [(u32, Vec<u8>, &[_]); 3] = [
            (SET_VRING_ADDR, outside.clone(), &[]),
            (SET_VRING_KICK, number(1).to_vec(), &[kick.as_fd()]),
            (SET_VRING_ENABLE, state(1, 1), &[]),
        ];
        for (code, body, fds) in requests.iter().filter(|request| request.0 != last) {
            assert!(rig.ack(*code, body, fds));
        }
        let (code, body, fds) = requests.iter().find(|request| request.0 == last).unwrap();
        assert!(!rig.ack(*code, body, fds));
        // It was said to have failed, so it is not to take effect now that it could.
        assert!(rig.ack(ADD_MEM_REG, &single(more), &[memfd(SIZE).as_fd()]));
        let beyond = (GUEST + 2 * SIZE, SIZE, USER + 2 * SIZE, 0);
        assert!(rig.ack(ADD_MEM_REG, &single(beyond), &[memfd(SIZE).as_fd()]));
        assert_eq!(rig.device.running(), [false, false]);
        assert!(rig.ack(*code, body, fds));
        assert_eq!(rig.device.running(), [false, true]);
    }
}

#[test]
fn ring_whose_memory_comes_back_runs_again() {
    let mut rig = Rig::running();
    let region = (GUEST, SIZE, USER, 0);
    let other = (GUEST + SIZE, SIZE, USER + SIZE, 0);
    for others in [false, true] {
        if others {
            assert!(rig.ack(ADD_MEM_REG, &single(other), &[memfd(SIZE).as_fd()]));
        }
        assert!(rig.ack(REM_MEM_REG, &single(region), &[]));
        assert_eq!(rig.device.running(), [false, false]);
        assert!(rig.ack(ADD_MEM_REG, &single(region), &[memfd(SIZE).as_fd()]));
        assert_eq!(rig.device.running(), [true, true]);
    }
    // A stop stays one.
    rig.ask(GET_VRING_BASE, &state(1, 0));
    assert!(rig.ack(REM_MEM_REG, &single(region), &[]));
    assert!(rig.ack(ADD_MEM_REG, &single(region), &[memfd(SIZE).as_fd()]));
    assert_eq!(rig.device.running(), [true, false]);
}

#[test]
fn rings_lie_wholly_and_aligned_in_shared_memory() {
    let inside = USER + 0x1000;
    let past = USER + SIZE;
    for (body, reason) in [
        (
            ring_addresses(0, past, inside, inside),
            "descriptor table at 0x7f0000100000 is outside",
        ),
        (
            ring_addresses(0, USER - 1, inside, inside),
            "descriptor table at 0x7effffffffff is outside",
        ),
        (
            ring_addresses(0, u64::MAX, inside, inside),
            "descriptor table at 0xffffffffffffffff is outside",
        ),
        (
            ring_addresses(0, past - 4095, inside, inside),
            "descriptor table at 0x7f00000ff001 is only partly",
        ),
        (
            ring_addresses(0, inside + 8, inside, inside),
            "descriptor table at 0x7f0000001008 is misaligned",
        ),
        (
            ring_addresses(0, inside, past - 2053, inside),
            "used ring at 0x7f00000ff7fb is only partly",
        ),
        (
            ring_addresses(0, inside, inside + 2, inside),
            "used ring at 0x7f0000001002 is misaligned",
        ),
        (
            ring_addresses(0, inside, inside, past - 516),
            "available ring at 0x7f00000ffdfc is only partly",
        ),
        (
            ring_addresses(0, inside, inside, inside + 1),
            "available ring at 0x7f0000001001 is misaligned",
        ),
    ] {
        let mut rig = Rig::new(2);
        rig.negotiate();
        rig.tell(
            SET_MEM_TABLE,
            &table(&[(GUEST, SIZE, USER, 0)]),
            &[memfd(SIZE).as_fd()],
        );
        rig.tell(SET_VRING_NUM, &state(0, 256), &[]);
        rig.tell(SET_VRING_ENABLE, &state(0, 1), &[]);
        rig.tell(SET_VRING_ADDR, &body, &[]);
        let text = rig.offend(SET_VRING_KICK, &number(0), &[event().as_fd()]);
        assert!(text.contains(reason), "{text}");
        assert_eq!(rig.device.running(), [false, false]);
    }
}

#[test]
fn ring_does_not_span_regions() {
    let mut rig = Rig::new(2);
    rig.negotiate();
    let fds = [memfd(SIZE), memfd(SIZE)];
    let regions = [(GUEST, SIZE, USER, 0), (GUEST + SIZE, SIZE, USER + SIZE, 0)];
    rig.tell(
        SET_MEM_TABLE,
        &table(&regions),
        &[fds[0].as_fd(), fds[1].as_fd()],
    );
    rig.tell(SET_VRING_NUM, &state(0, 256), &[]);
    let body = ring_addresses(0, USER + SIZE - 0x800, USER, USER);
    rig.tell(SET_VRING_ADDR, &body, &[]);
    rig.tell(SET_VRING_ENABLE, &state(0, 1), &[]);
    let text = rig.offend(SET_VRING_KICK, &number(0), &[event().as_fd()]);
    assert!(
        text.contains("only partly within a memory region"),
        "{text}"
    );
}

#[test]
fn running_queues_follow_the_memory() {
    let mut rig = Rig::running();
    // More memory: nothing happens to them.
    let more = (GUEST + SIZE, SIZE, USER + SIZE, 0);
    assert!(rig.ack(ADD_MEM_REG, &single(more), &[memfd(SIZE).as_fd()]));
    assert_eq!(rig.device.queues[0].starts, 1);
    // The same memory elsewhere in the guest: started again there.
    rig.tell(
        SET_MEM_TABLE,
        &table(&[(2 * GUEST, SIZE, USER, 0)]),
        &[memfd(SIZE).as_fd()],
    );
    assert_eq!(rig.device.queues[0].starts, 2);
    let setup = rig.device.queues[0].setup.as_ref().unwrap();
    assert_eq!(setup.descriptors, GuestAddress(2 * GUEST));
    // Gone: stopped.
    assert!(rig.ack(REM_MEM_REG, &single((2 * GUEST, SIZE, USER, 0)), &[]));
    assert_eq!(rig.device.running(), [false, false]);
    assert!(rig.device.memory.is_none());
    assert!(!rig.ack(REM_MEM_REG, &single((2 * GUEST, SIZE, USER, 0)), &[]));
}

#[test]
fn region_is_removed_even_with_a_descriptor_too_many() {
    let mut rig = Rig::running();
    let region = (GUEST + SIZE, SIZE, USER + SIZE, 0);
    assert!(rig.ack(ADD_MEM_REG, &single(region), &[memfd(SIZE).as_fd()]));
    assert!(rig.ack(REM_MEM_REG, &single(region), &[event().as_fd()]));
    assert_eq!(rig.device.running(), [true, true]);
}

#[test]
fn memory_that_nobody_has_written_to_is_suspected() {
    let mut rig = Rig::running();
    let text = rig.suspect(1).expect("a verdict");
    assert!(text.contains("queue 1 is kicked"), "{text}");
    assert!(text.contains("share=on"), "{text}");
    // Other memory is judged for itself.
    let written = memfd(SIZE);
    rustix::io::pwrite(&written, &[1], SIZE - 1).unwrap();
    let elsewhere = (GUEST + SIZE, SIZE, USER + SIZE, 0);
    assert!(rig.ack(ADD_MEM_REG, &single(elsewhere), &[written.as_fd()]));
    assert_eq!(rig.suspect(1), None);
    assert!(rig.ack(REM_MEM_REG, &single(elsewhere), &[]));
    // Writes by this process itself do not prove that there is a guest.
    for queue in [0, 1] {
        let used = rig.device.queues[queue].setup.as_ref().unwrap().used;
        let memory = rig.device.memory.as_ref().unwrap();
        memory.write_obj(u64::MAX, used).unwrap();
        let event = used.0 + 4 + 8 * 256;
        memory.write_obj(u16::MAX, GuestAddress(event)).unwrap();
    }
    assert!(rig.suspect(0).is_some());
    // No queue runs any more: nobody can have been heard.
    let mut rig = Rig::running();
    rig.ask(GET_VRING_BASE, &state(0, 0));
    rig.ask(GET_VRING_BASE, &state(1, 0));
    assert_eq!(rig.suspect(0), None);
}
