//! The frontend of vhost-user: connects to a port, and gives it the guest's memory and queues.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::queue::{ENTRIES, Queue};
use crate::Result;

/// Requests.
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ENABLE: u32 = 18;

/// VHOST_USER_F_PROTOCOL_FEATURES: queues start disabled.
pub(super) const F_PROTOCOL: u64 = 1 << 30;
/// Address of the guest's memory in the frontend.
const USER: u64 = 0x7f00_0000_0000;
/// A port that takes longer to answer is tried again.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);

/// A connection to a port.
#[derive(Debug)]
pub(super) struct Frontend {
    pub(super) socket: UnixStream,
    features: u64,
}

impl Frontend {
    /// Connects, and starts the queues.
    ///
    /// # Errors
    ///
    /// No port, or one that goes away meanwhile.
    pub(super) fn connect(
        path: &Path,
        features: u64,
        memory: &File,
        queues: [&Queue; 2],
    ) -> Result<Self> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(ANSWERS_WITHIN))?;
        let frontend = Self { socket, features };
        let offered = frontend.ask(GET_FEATURES, &[])?;
        ensure!(
            features & !offered == 0,
            "The port offers {offered:#x} where {features:#x} are needed"
        );
        frontend.tell(SET_OWNER, &[], &[])?;
        frontend.tell(SET_FEATURES, &[features], &[])?;
        let table = [1, 0, memory.metadata()?.len(), USER, 0];
        frontend.tell(SET_MEM_TABLE, &table, &[memory.as_fd()])?;
        frontend.start(queues)?;
        Ok(frontend)
    }

    /// Starts the queues where they are.
    pub(super) fn start(&self, queues: [&Queue; 2]) -> Result<()> {
        for (index, queue) in (0..).zip(queues) {
            let [descriptors, used, available] = queue.layout().map(|at| USER + at);
            let addresses = [index, descriptors, used, available, u64::MAX];
            let base = queue.used_index()?;
            self.tell(SET_VRING_NUM, &[index | u64::from(ENTRIES) << 32], &[])?;
            self.tell(SET_VRING_BASE, &[index | u64::from(base) << 32], &[])?;
            self.tell(SET_VRING_ADDR, &addresses, &[])?;
            self.tell(SET_VRING_CALL, &[index], &[queue.call.as_fd()])?;
            self.tell(SET_VRING_KICK, &[index], &[queue.kick.as_fd()])?;
            if self.features & F_PROTOCOL != 0 {
                self.tell(SET_VRING_ENABLE, &[index | 1 << 32], &[])?;
            }
        }
        // All that was sent before has been handled when this is answered.
        self.ask(GET_FEATURES, &[])?;
        Ok(())
    }

    /// Stops the queues. However long the port takes: until it answers, or is gone, it may write
    /// to them.
    pub(super) fn stop(&self) -> Result<()> {
        self.socket.set_read_timeout(None)?;
        for index in 0..2 {
            self.ask(GET_VRING_BASE, &[index])?;
        }
        self.socket.set_read_timeout(Some(ANSWERS_WITHIN))?;
        Ok(())
    }

    fn tell(&self, code: u32, body: &[u64], fds: &[BorrowedFd<'_>]) -> Result<()> {
        send_request(&self.socket, code, body, fds)
    }

    /// Sends a request, and reads the answer: a number.
    fn ask(&self, code: u32, body: &[u64]) -> Result<u64> {
        self.tell(code, body, &[])?;
        let mut answer = [0; 20];
        (&self.socket).read_exact(&mut answer)?;
        let [code_of_answer, size] = [0, 8]
            .map(|at: usize| u32::from_ne_bytes(answer[at..at + 4].try_into().unwrap_or_default()));
        ensure!(
            (code_of_answer, size) == (code, 8),
            "Request {code} is answered with {code_of_answer} of {size} bytes"
        );
        Ok(u64::from_ne_bytes(answer[12..].try_into()?))
    }
}

/// Sends a request of vhost-user, in its version 1.
///
/// # Errors
///
/// Those of the socket.
pub fn send_request(
    socket: &UnixStream,
    code: u32,
    body: &[u64],
    fds: &[BorrowedFd<'_>],
) -> Result<()> {
    let size = u32::try_from(size_of_val(body))?;
    let words = [code, 1, size].into_iter().flat_map(u32::to_ne_bytes);
    let body = body.iter().flat_map(|word| word.to_ne_bytes());
    let bytes: Vec<u8> = words.chain(body).collect();
    if fds.is_empty() {
        let mut socket = socket;
        return Ok(socket.write_all(&bytes)?);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(fds));
    let packet = [IoSlice::new(&bytes)];
    let sent = sendmsg(socket, &packet, &mut control, SendFlags::NOSIGNAL)?;
    ensure!(sent == bytes.len(), "A request was cut");
    Ok(())
}
