//! The stream to a guest and from it, which may move to another process with the guest.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, PoisonError};

use anyhow::Context;

use super::shared::Shared;
use crate::Result;

/// The near end of a guest's channel.
pub(crate) struct Channel {
    pub(crate) from_guest: File,
    pub(crate) to_guest: File,
}

impl Channel {
    /// A channel of one socket, and its far end.
    pub(crate) fn on_socket() -> Result<(Self, OwnedFd)> {
        let (near, far) = UnixStream::pair().context("Making the agent's channel")?;
        let twin = near.try_clone().context("Making the agent's channel")?;
        let near = Self {
            from_guest: OwnedFd::from(near).into(),
            to_guest: OwnedFd::from(twin).into(),
        };
        Ok((near, far.into()))
    }
}

/// The guest's bytes: over one stream until its end, then over its successor. A frame may begin on
/// one and end on the other, because a guest that moves to another VMM does not notice.
pub(super) struct Incoming {
    pub(super) current: File,
    pub(super) shared: Arc<Shared>,
}

impl Incoming {
    /// Goes on with the successor; waits for it if there is none yet. False: there will be none.
    fn advance(&mut self) -> bool {
        let mut state = self.shared.state();
        loop {
            if let Some(next) = state.successor.take() {
                self.current = next;
                state.is_closed = false;
                return true;
            }
            if state.is_given_up {
                return false;
            }
            if !state.is_closed {
                state.is_closed = true;
                state.end_all("The guest's machine ended");
                self.shared.changed.notify_all();
            }
            let woken = self.shared.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.current.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(len) if len > 0 => return Ok(len),
                // An error is the end as well: the guest's process was killed.
                _ => {
                    if !self.advance() {
                        return Ok(0);
                    }
                }
            }
        }
    }
}
