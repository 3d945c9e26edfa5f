//! A port, which is a process of its own, and its guest, whose driver is this one.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost::vhost_user::message::FrontendReq;

use crate::driver::{Arena, END, Guest, Spec, boot_in, mac};
use crate::process::{Place, Port};

/// Where guest memory lies in the frontend.
const USER: u64 = 0x10_0000_0000;
/// PROTOCOL_FEATURES, without which a kick enables a queue, and LOG_ALL.
const LEFT_OUT: u64 = 1 << 30 | 1 << 26;

pub(crate) struct Station {
    pub(crate) port: Port,
    pub(crate) guest: Guest,
    _socket: UnixStream,
}

impl Station {
    /// A port of this name, with the address of this number, and its guest. `call`: in the place of
    /// the interrupt of its receive queue.
    pub(crate) fn new(
        place: &Place,
        id: &str,
        number: usize,
        spec: &Spec,
        call: Option<OwnedFd>,
    ) -> Self {
        let command = place.command(id).with("--mac", mac(number).to_string());
        let port = command.start();
        let mut socket = UnixStream::connect(&port.socket).unwrap();
        let (arena, memory) = Arena::shared();
        let features = features(&mut socket) & spec.features & !LEFT_OUT;
        let guest = boot_in(arena, spec, features);
        tell(&socket, FrontendReq::SET_FEATURES, &[features], &[]);
        tell(
            &socket,
            FrontendReq::SET_MEM_TABLE,
            &[1, 0, END, USER, 0],
            &[memory.as_fd()],
        );
        let queues = [guest.rx[0].queue.setup(), guest.tx[0].queue.setup()];
        let mut calls = [call, None];
        for (index, (setup, other)) in (0..).zip(queues.into_iter().zip(&mut calls)) {
            let at = |address: vm_memory::GuestAddress| USER + address.0;
            let (table, used) = (at(setup.descriptors), at(setup.used));
            let addresses = [index, table, used, at(setup.available), u64::MAX];
            let call = other.take().or(setup.call).unwrap();
            tell(
                &socket,
                FrontendReq::SET_VRING_NUM,
                &[index | u64::from(setup.size) << 32],
                &[],
            );
            tell(&socket, FrontendReq::SET_VRING_ADDR, &addresses, &[]);
            tell(
                &socket,
                FrontendReq::SET_VRING_CALL,
                &[index],
                &[call.as_fd()],
            );
            tell(
                &socket,
                FrontendReq::SET_VRING_KICK,
                &[index],
                &[setup.kick.as_fd()],
            );
        }
        self::features(&mut socket);
        let mut station = Self {
            port,
            guest,
            _socket: socket,
        };
        let (count, len) = spec.buffers;
        station.guest.rx[0].post(count, len);
        station
    }

    /// CPU time of the port's threads so far, in seconds.
    pub(crate) fn cpu_time(&self) -> f64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.port.pid())).unwrap();
        let nanos = tasks.filter_map(|task| {
            let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        nanos.sum::<u64>() as f64 / 1e9
    }
}

/// Asks for the port's features. All requests before have been handled then.
fn features(socket: &mut UnixStream) -> u64 {
    tell(socket, FrontendReq::GET_FEATURES, &[], &[]);
    let mut reply = [0; 20];
    socket.read_exact(&mut reply).unwrap();
    u64::from_ne_bytes(*reply.last_chunk().unwrap())
}

fn tell(socket: &UnixStream, code: FrontendReq, body: &[u64], fds: &[BorrowedFd<'_>]) {
    let head = [code as u32, 1, size_of_val(body) as u32].map(u32::to_ne_bytes);
    let body: Vec<u8> = body.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let bytes = [head.as_flattened(), &body].concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let parts = [IoSlice::new(&bytes)];
    let sent = sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL);
    assert_eq!(sent, Ok(bytes.len()));
}
