//! What a frontend has said about one queue, and whether that suffices to run it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::memory::RingPlace;
use super::request::RingAddresses;

/// One queue of a session.
///
/// A queue runs on the device while it has a size, a place, a kick and is enabled. A transmit queue that was
/// enabled and is not any more is [retired](Self::retired) there, and emptied whenever it is kicked: the specification ("Ring
/// states") wants its frames discarded. User Mode Linux disables a ring and then frees its memory, without ever
/// stopping it, but does not kick it either.
#[derive(Debug, Default)]
pub(crate) struct Vring {
    /// Number of entries, from SET_VRING_NUM.
    pub(crate) size: Option<u16>,
    /// From SET_VRING_ADDR; translated when the queue starts, with the memory that there is then.
    pub(crate) addresses: Option<RingAddresses>,
    /// What the frontend said, or the device when it stopped the queue. The device starts at the ring's used
    /// index in any case, so this is only an answer to GET_VRING_BASE.
    pub(crate) base: u16,
    /// Its presence makes the queue a started one.
    pub(crate) kick: Option<OwnedFd>,
    /// Kept over a stop: not every frontend sends it again.
    pub(crate) call: Option<OwnedFd>,
    /// Held for the frontend, which may wait for its other end.
    pub(crate) error: Option<OwnedFd>,
    /// From SET_VRING_ENABLE, or from features without PROTOCOL_FEATURES.
    pub(crate) enabled: bool,
    /// Where it runs; None: the device does not know of it.
    pub(crate) running: Option<RingPlace>,
    /// It runs, but only for its frames to be discarded.
    pub(crate) retired: bool,
}

/// What a queue that is to run runs with.
pub(crate) struct Ready<'a> {
    pub(crate) size: u16,
    pub(crate) addresses: RingAddresses,
    pub(crate) kick: &'a OwnedFd,
    pub(crate) call: Option<&'a OwnedFd>,
}

impl Vring {
    /// Whether nothing is missing for the queue to run but that it be enabled.
    pub(crate) fn is_only_disabled(&self) -> bool {
        !self.enabled && self.size.is_some() && self.addresses.is_some() && self.kick.is_some()
    }

    /// All that the queue needs to run, None while something is missing.
    pub(crate) fn ready(&self) -> Option<Ready<'_>> {
        Some(Ready {
            size: self.size?,
            addresses: self.addresses?,
            kick: self.kick.as_ref().filter(|_| self.enabled)?,
            call: self.call.as_ref(),
        })
    }
}

/// Makes a call descriptor non-blocking. A pipe (User Mode Linux) that the guest does not drain would stop
/// the data path otherwise; a full one says the same as one more interrupt.
pub(crate) fn make_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(&fd)?;
    Ok(fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?)
}
