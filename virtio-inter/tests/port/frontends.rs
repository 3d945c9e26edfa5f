//! Frontends come and go, and some are none.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::process::{Place, Port, TIMEOUT, until};

/// GET_FEATURES.
const ASK: [u8; 12] = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

/// GET_VRING_BASE of queue 0.
const ASK_BASE: [u8; 20] = [11, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

pub(crate) fn connect(port: &Port) -> UnixStream {
    let socket = UnixStream::connect(&port.socket).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

#[track_caller]
pub(crate) fn assert_served(mut socket: &UnixStream) {
    socket.write_all(&ASK).unwrap();
    let mut answer = [0; 20];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..12], [1, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0]);
}

/// Sends a request that has no reply.
pub(crate) fn tell(socket: &UnixStream, code: u32, body: &[u64], fds: &[BorrowedFd<'_>]) {
    let size = u32::try_from(size_of_val(body)).unwrap();
    let mut bytes: Vec<u8> = [code, 1, size]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect();
    bytes.extend(body.iter().flat_map(|word| word.to_ne_bytes()));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let sent = sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
    assert_eq!(sent, Ok(bytes.len()));
}

/// Whether nothing comes for a moment.
fn is_kept_waiting(mut socket: &UnixStream) -> bool {
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let result = socket.read(&mut [0]);
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    result.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn frontends_are_served_one_after_another() {
    let place = Place::new();
    let port = place.start("a");
    for _ in 0..100 {
        assert_served(&connect(&port));
    }
    port.end();
}

#[test]
fn frontend_that_is_third_is_served_as_soon_as_one_of_two_is_gone() {
    let place = Place::new();
    let port = place.start("a");
    let first = connect(&port);
    assert_served(&first);
    let second = connect(&port);
    assert_served(&second);
    let others = [connect(&port), connect(&port), connect(&port)];
    (&others[0]).write_all(&ASK).unwrap();
    assert!(is_kept_waiting(&others[0]));
    let us = std::process::id();
    port.wait_for(&format!(
        "Another frontend, process {us}, waits until one of 2 hangs up"
    ));
    assert_served(&first);
    drop(first);
    let mut answer = [0; 20];
    (&others[0]).read_exact(&mut answer).unwrap();
    let [third, fourth, fifth] = others;
    drop(third);
    // A connection that waited and was closed is ignored.
    drop(fourth);
    assert_served(&fifth);
    assert_served(&second);
    port.end();
}

const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;

/// Address of the tests' memory in the frontend.
pub(crate) const USER: u64 = 0x1000_0000;

/// Hands memory over; it has the rings of queue 0 at its start.
pub(crate) fn share(socket: &UnixStream, memory: BorrowedFd<'_>) {
    tell(
        socket,
        SET_MEM_TABLE,
        &[1, 0, 0x10_0000, USER, 0],
        &[memory],
    );
}

/// Queue 0 of a driver that accepts VERSION_1 alone. Without PROTOCOL_FEATURES it is enabled.
pub(crate) fn start_queue(socket: &UnixStream) {
    tell(socket, SET_FEATURES, &[1 << 32], &[]);
    set_queue_up(socket, 0);
}

fn set_queue_up(socket: &UnixStream, index: u64) {
    let kick = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    tell(socket, SET_VRING_NUM, &[256 << 32 | index], &[]);
    let at = USER + 0x8000 * index;
    let address = [index, at, at + 0x4000, at + 0x6000, u64::MAX];
    tell(socket, SET_VRING_ADDR, &address, &[]);
    tell(socket, SET_VRING_KICK, &[index], &[kick.as_fd()]);
}

/// Starts queue 1, in the memory that [`share`] handed over: its kick and its interrupt.
pub(crate) fn start_transmit_queue(socket: &UnixStream) -> (OwnedFd, OwnedFd) {
    let event = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let (kick, call) = (event(), event());
    tell(socket, SET_FEATURES, &[1 << 32], &[]);
    tell(socket, SET_VRING_NUM, &[256 << 32 | 1], &[]);
    let address = [1, USER, USER + 0x4000, USER + 0x6000, u64::MAX];
    tell(socket, SET_VRING_ADDR, &address, &[]);
    tell(socket, SET_VRING_CALL, &[1], &[call.as_fd()]);
    tell(socket, SET_VRING_KICK, &[1], &[kick.as_fd()]);
    (kick, call)
}

/// Gives queue 1 another interrupt.
pub(crate) fn set_call(socket: &UnixStream, call: BorrowedFd<'_>) {
    tell(socket, SET_VRING_CALL, &[1], &[call]);
}

/// Makes a frame of 60 bytes available in queue 1.
pub(crate) fn transmit_one(memory: BorrowedFd<'_>) {
    let descriptor = [0x8000u64, 12 + 60].map(u64::to_ne_bytes).concat();
    rustix::io::pwrite(memory, &descriptor, 0).unwrap();
    // The available ring: no flags, one entry, the chain of descriptor 0.
    let available = [0u16, 1, 0].map(u16::to_ne_bytes).concat();
    rustix::io::pwrite(memory, &available, 0x6000).unwrap();
}

/// Stops queue 0, and waits until that is done.
#[track_caller]
pub(crate) fn stop_queue(mut socket: &UnixStream) {
    tell(socket, GET_VRING_BASE, &[0], &[]);
    let mut answer = [0; 20];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(answer[0], 11);
}

pub(crate) fn memory() -> OwnedFd {
    let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, 0x10_0000).unwrap();
    memory
}

/// Like QEMU: its destination negotiates while the source runs, and sets memory up when that
/// has stopped.
#[test]
fn device_goes_to_a_second_frontend_when_the_first_has_stopped() {
    let place = Place::new();
    let port = place.start("a");
    let first = connect(&port);
    share(&first, memory().as_fd());
    start_queue(&first);
    // Before another connects, to which one that has asked for nothing would give way.
    assert_served(&first);
    let second = connect(&port);
    assert_served(&second);
    share(&second, memory().as_fd());
    (&second).write_all(&ASK).unwrap();
    assert!(is_kept_waiting(&second));
    port.wait_for("stops its queues or hangs up");
    // There and back: the first gets it again with what it had set up.
    assert_served(&first);
    stop_queue(&first);
    (&second).read_exact(&mut [0; 20]).unwrap();
    start_queue(&second);
    assert_served(&second);
    for (giver, taker) in [(&second, &first), (&first, &second), (&second, &first)] {
        stop_queue(giver);
        start_queue(taker);
        assert_served(taker);
    }
    // A frontend without the device can disconnect; one that waits gets the device when the other
    // dies.
    share(&second, memory().as_fd());
    (&second).write_all(&ASK).unwrap();
    assert!(is_kept_waiting(&second));
    drop(first);
    (&second).read_exact(&mut [0; 20]).unwrap();
    start_queue(&second);
    assert_served(&second);
    port.end();
}

#[test]
fn frontend_that_waits_for_the_device_may_give_up() {
    let place = Place::new();
    let port = place.start("a");
    let first = connect(&port);
    share(&first, memory().as_fd());
    start_queue(&first);
    assert_served(&first);
    for _ in 0..3 {
        let second = connect(&port);
        share(&second, memory().as_fd());
        (&second).write_all(&ASK).unwrap();
        assert!(is_kept_waiting(&second));
    }
    let third = connect(&port);
    assert_served(&third);
    assert_served(&first);
    port.end();
}

#[test]
fn connection_that_says_nothing_gives_way() {
    let place = Place::new();
    let port = place.start("a");
    let mut silent = connect(&port);
    port.wait_for("Frontend connected");
    assert_served(&connect(&port));
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    port.end();
}

#[test]
fn garbage_ends_the_connection_and_nothing_else() {
    let place = Place::new();
    // So that an ordinary user can count its descriptors.
    let port = place
        .command("a")
        .env("VIRTIO_INTER_ALLOW_DUMPS", "1")
        .start();
    let patient = place.start("b");
    port.wait_for("is up");
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut garbage = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut before = (0, 0);
    for round in 0..2000u64 {
        if round == 500 {
            before = (port.descriptors(), port.resident());
        }
        let mut socket = connect(&port);
        let bytes: Vec<u8> = (0..8).flat_map(|_| garbage().to_le_bytes()).collect();
        let cut = usize::try_from(garbage() % 64).unwrap();
        // It may be closed on us while we write.
        let _ = socket.write_all(&bytes[..cut]);
        if round % 2 == 0 {
            // Half a message, then the end.
            let _ = socket.write_all(&ASK[..cut % 12]);
        }
    }
    assert_served(&connect(&port));
    until("the descriptors are given back", || {
        port.descriptors() <= before.0
    });
    let grown = port.resident().saturating_sub(before.1);
    assert!(grown < 1024, "{grown} KiB more than after the first 500");
    let lines = port.log().lines().count();
    assert!(lines < 500, "{lines} lines in the log");
    patient.end();
    port.end();
}

/// Like QEMU's microvm, whose virtio-mmio devices are legacy ones by default.
#[test]
fn legacy_guest_is_told_of_once_and_costs_no_connection() {
    let place = Place::new();
    let port = place.start("a");
    let socket = connect(&port);
    share(&socket, memory().as_fd());
    tell(&socket, SET_FEATURES, &[0], &[]);
    for index in 0..2 {
        set_queue_up(&socket, index);
    }
    port.wait_for("-global virtio-mmio.force-legacy=false");
    assert_served(&socket);
    let lines = |text| port.log().lines().filter(|l| l.contains(text)).count();
    assert_eq!(lines("force-legacy"), 1, "{}", port.log());
    // The guest reboots into a driver that knows more.
    stop_queue(&socket);
    start_queue(&socket);
    port.wait_for("Driver uses features");
    assert_served(&socket);
    assert_eq!(lines("Frontend connected"), 1, "{}", port.log());
    port.end();
}

/// Like QEMU with `reconnect-ms`.
#[test]
fn refused_frontend_that_comes_back_at_once_does_not_keep_the_port_busy() {
    const WHILE: Duration = Duration::from_secs(3);
    let place = Place::new();
    let port = place.start("a");
    let start = Instant::now();
    let mut sessions = 0;
    let mut refused = connect(&port);
    while start.elapsed() < WHILE {
        sessions += 1;
        // No ring has three entries.
        tell(&refused, SET_VRING_NUM, &[3 << 32], &[]);
        let left = WHILE.saturating_sub(start.elapsed());
        refused
            .set_read_timeout(Some(left.max(Duration::from_millis(1))))
            .unwrap();
        match refused.read(&mut [0]) {
            Ok(0) => refused = connect(&port),
            Ok(_) => panic!("It is answered"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert!(sessions < 5, "{sessions} sessions in {WHILE:?}");
    let lines = |text| port.log().lines().filter(|l| l.contains(text)).count();
    assert_eq!(lines("cannot have 3 entries"), 1, "{}", port.log());
    // Requests without a reply are ignored.
    tell(&refused, SET_FEATURES, &[1 << 32], &[]);
    // Others are served without delay, also with one slot only.
    let other = connect(&port);
    assert_served(&other);
    let third = connect(&port);
    assert_served(&third);
    drop((other, third));
    // One that asks has its answers. When it stops its queues, its guest may have rebooted into
    // another driver: it may come back at once.
    let again = connect(&port);
    tell(&again, SET_VRING_NUM, &[3 << 32], &[]);
    assert_served(&again);
    let stopped = Instant::now();
    while (&again).write_all(&ASK_BASE).is_ok() && (&again).read_exact(&mut [0; 20]).is_ok() {
        assert!(
            stopped.elapsed() < TIMEOUT,
            "It is kept though it has stopped its queues"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let again = connect(&port);
    share(&again, memory().as_fd());
    start_queue(&again);
    port.wait_for("Driver uses features");
    assert_served(&again);
    assert_eq!(lines("cannot have 3 entries"), 1, "{}", port.log());
    port.end();
}

#[test]
fn frontend_without_shared_memory_is_told_what_to_do() {
    let place = Place::new();
    let port = place.start("a");
    let socket = connect(&port);
    // SET_FEATURES to VERSION_1 alone, which enables the queues; then size, place and kick of queue
    // 0.
    tell(&socket, 2, &[1 << 32], &[]);
    tell(&socket, 8, &[256 << 32], &[]);
    tell(&socket, 9, &[0, 0x1000, 0x2000, 0x3000, u64::MAX], &[]);
    let kick = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    tell(&socket, 12, &[0], &[kick.as_fd()]);
    port.wait_for("Queue 0 cannot start: the frontend shares no guest memory");
    port.wait_for("share=on");
    assert_served(&socket);
    port.end();
}
