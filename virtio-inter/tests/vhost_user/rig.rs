//! A session between a mock device and a socket on which a test says whatever it likes.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use virtio_inter::vhost_user::frontend::{Disconnect, Frontend};
use virtio_inter::vhost_user::session::SessionLimits;
use virtio_inter_device::{BusyPollConfig, Device, Port};
use virtio_inter_segment::LocalPort;

use crate::mock::MockDevice;

pub(crate) const GET_FEATURES: u32 = 1;
pub(crate) const SET_FEATURES: u32 = 2;
pub(crate) const SET_OWNER: u32 = 3;
pub(crate) const RESET_OWNER: u32 = 4;
pub(crate) const SET_MEM_TABLE: u32 = 5;
pub(crate) const SET_LOG_BASE: u32 = 6;
pub(crate) const SET_LOG_FD: u32 = 7;
pub(crate) const SET_VRING_NUM: u32 = 8;
pub(crate) const SET_VRING_ADDR: u32 = 9;
pub(crate) const SET_VRING_BASE: u32 = 10;
pub(crate) const GET_VRING_BASE: u32 = 11;
pub(crate) const SET_VRING_KICK: u32 = 12;
pub(crate) const SET_VRING_CALL: u32 = 13;
pub(crate) const SET_VRING_ERR: u32 = 14;
pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
pub(crate) const GET_QUEUE_NUM: u32 = 17;
pub(crate) const SET_VRING_ENABLE: u32 = 18;
pub(crate) const SEND_RARP: u32 = 19;
pub(crate) const NET_SET_MTU: u32 = 20;
pub(crate) const SET_BACKEND_REQ_FD: u32 = 21;
pub(crate) const IOTLB_MSG: u32 = 22;
pub(crate) const GET_CONFIG: u32 = 24;
pub(crate) const SET_CONFIG: u32 = 25;
pub(crate) const RESET_DEVICE: u32 = 34;
pub(crate) const GET_MAX_MEM_SLOTS: u32 = 36;
pub(crate) const ADD_MEM_REG: u32 = 37;
pub(crate) const REM_MEM_REG: u32 = 38;

pub(crate) const VERSION: u32 = 1;
pub(crate) const REPLY: u32 = 4;
pub(crate) const NEED_REPLY: u32 = 8;

/// The feature bit of protocol features.
pub(crate) const F_PROTOCOL: u64 = 1 << 30;
pub(crate) const F_REPLY_ACK: u64 = 1 << 3;
pub(crate) const F_LOG_SHMFD: u64 = 1 << 1;
pub(crate) const F_RARP: u64 = 1 << 2;
pub(crate) const F_INBAND_NOTIFICATIONS: u64 = 1 << 14;
/// The feature bit by which everything that the device writes is to be logged.
pub(crate) const F_LOG_ALL: u64 = 1 << 26;

/// Addresses of the tests' memory in the frontend and in the guest.
pub(crate) const USER: u64 = 0x7f00_0000_0000;
pub(crate) const GUEST: u64 = 0x10_0000;
pub(crate) const SIZE: u64 = 0x10_0000;

pub(crate) struct Rig<D = MockDevice> {
    pub(crate) frontend: Option<Frontend>,
    pub(crate) device: D,
    pub(crate) socket: UnixStream,
}

impl Rig {
    /// With so many queues, of at most 256 entries.
    pub(crate) fn new(queues: usize) -> Self {
        Self::with_device(MockDevice::new(queues))
    }

    /// The session's warning after the device has found queue `index` kicked and blank.
    pub(crate) fn suspect(&mut self, index: u16) -> Option<&str> {
        let session = self.frontend.as_mut().expect("a session").session_mut();
        session.check_unshared_memory(index);
        session.unshared_memory()
    }

    /// A session with shared memory and two running queues.
    pub(crate) fn running() -> Self {
        let mut rig = Self::new(2);
        rig.bring_up(memfd(SIZE).as_fd());
        assert_eq!(rig.device.running(), [true, true]);
        rig
    }
}

impl<D: Device> Rig<D> {
    pub(crate) fn with_device(device: D) -> Self {
        let (socket, ours) = UnixStream::pair().unwrap();
        let limits = SessionLimits {
            queue_size: 256,
            mtu: 1500,
        };
        let frontend = Some(Frontend::new(ours, limits, &device).unwrap());
        Self {
            frontend,
            device,
            socket,
        }
    }

    /// Two running queues in the memory given.
    pub(crate) fn bring_up(&mut self, memory: BorrowedFd<'_>) {
        self.negotiate();
        self.tell(SET_MEM_TABLE, &table(&[(GUEST, SIZE, USER, 0)]), &[memory]);
        for index in 0..2 {
            self.set_up_queue(index);
            self.tell(SET_VRING_ENABLE, &state(index, 1), &[]);
        }
    }

    /// Writes a message as it is, wrong or right.
    pub(crate) fn send(&self, code: u32, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        let size = u32::try_from(body.len()).unwrap();
        let mut bytes: Vec<u8> = [code, flags, size]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        bytes.extend_from_slice(body);
        self.send_bytes(&bytes, fds);
    }

    pub(crate) fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let sent = sendmsg(
            &self.socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        );
        assert_eq!(sent.unwrap(), bytes.len());
    }

    /// Has the frontend's requests processed. Closes the session at its end, like the server.
    pub(crate) fn process(&mut self) -> Result<(), Disconnect> {
        let frontend = self.frontend.as_mut().expect("a session");
        let result = frontend.process(&mut self.device, None);
        if result.is_err() {
            self.frontend
                .take()
                .expect("a session")
                .close(&mut self.device);
        }
        result
    }

    /// Ends the session from this end.
    pub(crate) fn hang_up(&mut self) {
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
        while self.process().is_ok() {}
    }

    /// The reply that has come in: code, flags, payload. None when there is none.
    pub(crate) fn reply(&mut self) -> Option<(u32, u32, Vec<u8>)> {
        self.socket.set_nonblocking(true).unwrap();
        let mut header = [0; 12];
        self.socket.read_exact(&mut header).ok()?;
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; word(8).try_into().unwrap()];
        self.socket.read_exact(&mut payload).unwrap();
        Some((word(0), word(4), payload))
    }

    /// Sends a request that has no reply, and gets none.
    #[track_caller]
    pub(crate) fn tell(&mut self, code: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.send(code, VERSION, body, fds);
        self.process().unwrap();
        assert_eq!(self.reply(), None);
    }

    /// Sends a request that has a reply of its own.
    #[track_caller]
    pub(crate) fn ask(&mut self, code: u32, body: &[u8]) -> Vec<u8> {
        self.send(code, VERSION, body, &[]);
        self.process().unwrap();
        let (answered, flags, payload) = self.reply().expect("a reply");
        assert_eq!((answered, flags), (code, VERSION | REPLY));
        payload
    }

    /// Sends a request that asks for an acknowledgement: whether it was carried out.
    #[track_caller]
    pub(crate) fn ack(&mut self, code: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        self.send(code, VERSION | NEED_REPLY, body, fds);
        self.process().unwrap();
        let (answered, flags, payload) = self.reply().expect("an acknowledgement");
        assert_eq!((answered, flags), (code, VERSION | REPLY));
        assert_eq!(self.reply(), None, "one reply only");
        number_of(&payload) == 0
    }

    /// Sends a request after which the session is over, and why.
    #[track_caller]
    pub(crate) fn offend(&mut self, code: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> String {
        self.send(code, VERSION, body, fds);
        let ended = self.process().expect_err("the session goes on");
        let text = chain(&ended);
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    }

    /// Negotiates everything that is offered.
    pub(crate) fn negotiate(&mut self) {
        let features = number_of(&self.ask(GET_FEATURES, &[]));
        let protocol = number_of(&self.ask(GET_PROTOCOL_FEATURES, &[]));
        self.tell(SET_PROTOCOL_FEATURES, &number(protocol), &[]);
        self.tell(SET_FEATURES, &number(features & !F_LOG_ALL), &[]);
    }

    /// Brings queue `index` up as far as its kick; `SET_VRING_ENABLE` is left.
    pub(crate) fn set_up_queue(&mut self, index: u32) -> OwnedFd {
        let kick = event();
        self.tell(SET_VRING_NUM, &state(index, 256), &[]);
        self.tell(
            SET_VRING_ADDR,
            &addresses(index, USER + 0x8000 * u64::from(index)),
            &[],
        );
        self.tell(SET_VRING_BASE, &state(index, 0), &[]);
        self.tell(SET_VRING_CALL, &number(index.into()), &[event().as_fd()]);
        self.tell(SET_VRING_KICK, &number(index.into()), &[kick.as_fd()]);
        kick
    }
}

/// The real device, with one queue pair.
pub(crate) fn port(id: &str) -> Port {
    let mac = "52:54:00:00:00:01".parse().unwrap();
    let local = LocalPort {
        ring_capacity: virtio_inter_link::MIN_CAPACITY,
        ..LocalPort::new(id.parse().unwrap(), mac)
    };
    Port::new(&local, BusyPollConfig::default()).unwrap()
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    virtio_inter_common::ErrorChain(error).to_string()
}

pub(crate) fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

pub(crate) fn memfd(size: u64) -> OwnedFd {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, size).unwrap();
    fd
}

pub(crate) fn number(value: u64) -> [u8; 8] {
    value.to_ne_bytes()
}

pub(crate) fn number_of(payload: &[u8]) -> u64 {
    u64::from_ne_bytes(payload.try_into().expect("a number"))
}

pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub(crate) fn state(index: u32, value: u32) -> Vec<u8> {
    words(&[index, value])
}

/// A queue at a user address: descriptors, then 16 KiB later the used ring, 24 KiB later the
/// available one.
pub(crate) fn addresses(index: u32, user: u64) -> Vec<u8> {
    ring_addresses(index, user, user + 0x4000, user + 0x6000)
}

pub(crate) fn ring_addresses(index: u32, descriptors: u64, used: u64, available: u64) -> Vec<u8> {
    let mut body = words(&[index, 0]);
    body.extend(
        [descriptors, used, available, u64::MAX]
            .into_iter()
            .flat_map(u64::to_ne_bytes),
    );
    body
}

pub(crate) type Region = (u64, u64, u64, u64);

/// A memory table: guest address, size, user address and offset of each region.
pub(crate) fn table(regions: &[Region]) -> Vec<u8> {
    let mut body = words(&[u32::try_from(regions.len()).unwrap(), 0]);
    body.extend(regions.iter().flat_map(|region| region_bytes(*region)));
    body
}

pub(crate) fn single(region: Region) -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend(region_bytes(region));
    body
}

fn region_bytes((guest, size, user, offset): Region) -> Vec<u8> {
    [guest, size, user, offset]
        .into_iter()
        .flat_map(u64::to_ne_bytes)
        .collect()
}
