//! The settings of one queue, and whether they suffice to start it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::memory_table::RingPlace;
use super::ranges::RingAddresses;

/// One queue of a session.
///
/// A queue runs on the device while it is enabled and has a size, addresses and a kick. A transmit
/// queue that was enabled and is disabled now [drains](Self::draining): the device discards its
/// frames whenever it is kicked, as the specification requires ("Ring states"). User Mode Linux
/// disables a ring and then frees its memory without ever stopping it, but does not kick it either.
#[derive(Debug, Default)]
pub(crate) struct Vring {
    /// Number of entries, from SET_VRING_NUM.
    pub(crate) size: Option<u16>,
    /// From SET_VRING_ADDR; translated with the memory table of the moment when the queue starts.
    pub(crate) addresses: Option<RingAddresses>,
    /// From SET_VRING_BASE, or from the device when it stopped the queue. Only the reply to
    /// GET_VRING_BASE uses it: the device starts at the ring's used index in any case.
    pub(crate) base: u16,
    /// From SET_VRING_KICK, which starts the queue ("Ring states").
    pub(crate) kick: Option<OwnedFd>,
    /// From SET_VRING_CALL. Survives a stop: not every frontend sends it again.
    pub(crate) call: Option<OwnedFd>,
    /// From SET_VRING_ERR. Never signalled, but held open: the frontend may poll the other end.
    pub(crate) error: Option<OwnedFd>,
    /// From SET_VRING_ENABLE, or from features without PROTOCOL_FEATURES.
    pub(crate) enabled: bool,
    /// Its guest addresses while it runs or drains on the device.
    pub(crate) running: Option<RingPlace>,
    /// Whether the device only discards its frames.
    pub(crate) draining: bool,
    /// Why it does not run, although it has all settings.
    pub(crate) waits: Option<QueueWaits>,
}

/// A queue that has all settings and cannot start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueWaits {
    /// The frontend shares no guest memory at all.
    pub without_memory: bool,
    /// The reason, with what to do.
    pub text: String,
}

/// The settings with which a queue starts.
pub(crate) struct VringSetup<'a> {
    pub(crate) size: u16,
    pub(crate) addresses: RingAddresses,
    pub(crate) kick: &'a OwnedFd,
    pub(crate) call: Option<&'a OwnedFd>,
}

impl Vring {
    /// Whether the queue would run if it were enabled.
    pub(crate) fn is_only_disabled(&self) -> bool {
        !self.enabled && self.size.is_some() && self.addresses.is_some() && self.kick.is_some()
    }

    /// The settings with which the queue starts; `None` while one is missing.
    pub(crate) fn ready(&self) -> Option<VringSetup<'_>> {
        Some(VringSetup {
            size: self.size?,
            addresses: self.addresses?,
            kick: self.kick.as_ref().filter(|_| self.enabled)?,
            call: self.call.as_ref(),
        })
    }
}

/// Makes a call descriptor non-blocking. Otherwise a pipe (User Mode Linux) that the guest does not
/// read would block the data path. A full pipe has the same effect as one more interrupt.
pub(crate) fn make_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(&fd)?;
    Ok(fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?)
}
