//! Two vhost-user frontends at a time, with any messages and descriptors, on a device that insists
//! on the order that it relies on, or on the real one.

use std::cell::RefCell;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use virtio_inter::vhost_user::frontend::{Disconnect, Frontend};
use virtio_inter::vhost_user::session::SessionLimits;
use virtio_inter_device::{BusyPollConfig, Device, Port};
use virtio_inter_segment::fuzzing;

use crate::mock::MockDevice;

const LIMITS: SessionLimits = SessionLimits {
    queue_size: 256,
    mtu: 1500,
};
/// Size of the guest memory that frontends share; it never shrinks.
const SIZE: u64 = 0x10_0000;
const MAX_FDS: usize = 8;

/// What is kept from one input to the next.
struct State {
    port: Port,
    memory: OwnedFd,
    /// Both ends: a write without a reader is SIGPIPE.
    pipe: (OwnedFd, OwnedFd),
}

impl State {
    fn new() -> Self {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = memfd_create("guest", flags).unwrap();
        ftruncate(&memory, SIZE).unwrap();
        fcntl_add_seals(&memory, SealFlags::SHRINK).unwrap();
        State {
            port: Port::new(&fuzzing::port(), BusyPollConfig::default()).unwrap(),
            memory,
            pipe: rustix::pipe::pipe().unwrap(),
        }
    }
}

thread_local! {
    static STATE: RefCell<State> = RefCell::new(State::new());
}

/// Runs one input.
pub(crate) fn run(input: &[u8]) {
    let Some(([first], steps)) = input.split_first_chunk() else {
        return;
    };
    STATE.with_borrow_mut(|state| {
        let State { port, memory, pipe } = state;
        let fds = [memory.as_fd(), pipe.1.as_fd()];
        if first & 1 == 0 {
            let mut device = MockDevice::new(usize::from(first >> 1 & 3) + 1);
            serve(&mut device, fds, steps);
            assert!(device.running().iter().all(|running| !running));
        } else {
            serve(port, fds, steps);
            // Nothing of the former frontends is in its way.
            for index in 0..port.queue_count() {
                port.stop_queue(index).unwrap();
            }
        }
    });
}

/// A frontend and its end of the connection.
struct Connected {
    frontend: Frontend,
    socket: UnixStream,
}

fn serve(device: &mut dyn Device, fds: [BorrowedFd<'_>; 2], mut steps: &[u8]) {
    let mut slots: [Option<Connected>; 2] = [None, None];
    while let Some(([who, code, len, with], rest)) = steps.split_first_chunk() {
        let (body, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        steps = rest;
        let at = usize::from(who & 1);
        if slots[at].is_none() {
            let (socket, ours) = UnixStream::pair().unwrap();
            socket.set_nonblocking(true).unwrap();
            let frontend = Frontend::new(ours, LIMITS, device).unwrap();
            slots[at] = Some(Connected { frontend, socket });
        }
        let Some(slot) = &slots[at] else { return };
        if who & 0xc0 == 0xc0 {
            // Hangs up.
            let _ = slot.socket.shutdown(std::net::Shutdown::Both);
        } else {
            // Version 1, with or without NEED_REPLY, or anything.
            let flags = match who >> 1 & 3 {
                0 | 1 => 1,
                2 => 9,
                _ => u32::from(*with) << 2 | 1,
            };
            let size = if who & 0x20 == 0 {
                body.len() as u32
            } else {
                u32::from(*with) * 5
            };
            send(
                &slot.socket,
                u32::from(code % 48),
                flags,
                size,
                body,
                fds,
                *with,
            );
        }
        // As the server does: the one that was spoken to, then one whose request waits.
        process(&mut slots, at, device);
        for at in 0..2 {
            let slot = slots[at].as_ref();
            if slot.is_some_and(|slot| slot.frontend.is_deferred()) {
                process(&mut slots, at, device);
            }
        }
        for slot in slots.iter_mut().flatten() {
            while matches!(slot.socket.read(&mut [0; 512]), Ok(1..)) {}
        }
    }
    for slot in slots.into_iter().flatten() {
        slot.frontend.end(device);
    }
}

fn process(slots: &mut [Option<Connected>; 2], at: usize, device: &mut dyn Device) {
    let Some(mut slot) = slots[at].take() else {
        return;
    };
    let other = slots[1 - at].as_mut().map(|other| &mut other.frontend);
    match slot.frontend.process(device, other) {
        Ok(()) => slots[at] = Some(slot),
        Err(Disconnect::Refused(_)) => {
            slot.frontend.refuse(device);
            slots[at] = Some(slot);
        }
        Err(_) => slot.frontend.end(device),
    }
}

/// Sends a message. The lower half of `with` says how many descriptors, the upper one which.
fn send(
    socket: &UnixStream,
    code: u32,
    flags: u32,
    size: u32,
    body: &[u8],
    fds: [BorrowedFd<'_>; 2],
    with: u8,
) {
    let head = [code, flags, size].map(u32::to_ne_bytes).concat();
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let count = usize::from(with & 15).min(MAX_FDS);
    let which = match with >> 4 & 3 {
        0 => event.as_fd(),
        1 | 2 => fds[0],
        _ => fds[1],
    };
    let all = vec![which; count];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if count != 0 {
        control.push(SendAncillaryMessage::ScmRights(&all));
    }
    let parts = [IoSlice::new(&head), IoSlice::new(body)];
    // The other side may have hung up.
    let _ = sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL);
}
