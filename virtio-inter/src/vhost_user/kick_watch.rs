//! Finds out that a guest's memory is not shared, although its frontend handed it over.
//!
//! QEMU with `-object memory-backend-memfd` but without `share=on` maps the file privately: the guest
//! writes to copies of its pages, and we look at a file that stays as it was. Nothing fails; there is just
//! never a buffer. What gives it away is a guest that kicks a queue again and again while its ring stays
//! blank. Once a ring shows that the guest wrote it, its queue is watched no more.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use log::debug;
use virtio_inter_device::GuestMemory;
use vm_memory::Bytes;

use super::memory::RingPlace;
use crate::poll::Poll;

/// Kicks on a blank ring that are one too many. The first comes from QEMU itself, which makes its eventfds
/// with one in them.
const SUSPICIOUS: u32 = 2;

/// The kicks of queues whose memory is still to be trusted.
#[derive(Debug)]
pub(crate) struct KickWatch {
    poll: Poll,
    /// Kicks so far on the blank rings of these queues.
    kicks: BTreeMap<u16, u32>,
}

impl KickWatch {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            kicks: BTreeMap::new(),
        })
    }

    /// Readable when there was a kick.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    /// Watches the kick of a queue that starts.
    pub(crate) fn add(&mut self, index: u16, kick: impl AsFd) {
        match self.poll.add_edge(kick, index.into()) {
            Ok(()) => drop(self.kicks.insert(index, 0)),
            // The device has its own opinion of such a descriptor; this is only a service.
            Err(error) => debug!("Cannot watch the kick of queue {index}: {error}"),
        }
    }

    /// Watches no more, if that is still done.
    pub(crate) fn remove(&mut self, index: u16, kick: impl AsFd) {
        if self.kicks.remove(&index).is_some()
            && let Err(error) = self.poll.remove(kick)
        {
            debug!("Cannot stop watching the kick of queue {index}: {error}");
        }
    }

    /// Queues that need not be watched any more, and whether that is because of a ring that stays blank.
    pub(crate) fn check(&mut self, is_blank: impl Fn(u16) -> bool) -> io::Result<Vec<(u16, bool)>> {
        let mut verdicts = Vec::new();
        for token in self.poll.wait(false)? {
            // Every token is an index of ours.
            let index = token as u16;
            let Some(kicks) = self.kicks.get_mut(&index) else {
                continue;
            };
            if !is_blank(index) {
                verdicts.push((index, false));
                continue;
            }
            *kicks += 1;
            if *kicks >= SUSPICIOUS {
                verdicts.push((index, true));
            }
        }
        Ok(verdicts)
    }
}

/// Whether a ring looks as if no driver had ever used it.
pub(crate) fn is_blank(memory: &GuestMemory, place: &RingPlace) -> bool {
    // Flags and index of the available ring (VIRTIO 1.3, 2.7.6), then the first descriptor (2.7.5).
    let head = memory.read_obj::<u32>(place.available);
    let descriptor = memory.read_obj::<[u64; 2]>(place.descriptors);
    matches!((head, descriptor), (Ok(0), Ok([0, 0])))
}
