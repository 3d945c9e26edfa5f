//! Keeps a port to be found: what something else has removed of its files is made again.
//!
//! Cleaners of temporary files remove a lock that nobody has written to for days, and people remove
//! whole directories. Links do not depend on files, but new peers do, and the next port of this id
//! would take this one for dead.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use log::Level;
use virtio_inter_common::{ErrorChain, log_limited};

use super::{LISTENER, PAUSE, Segment};
use crate::directory::Directory;
use crate::join_error::JoinError;
use crate::membership::Membership;
use crate::port::SegmentEvent;

/// Longest pause between two attempts: a directory that comes back is noticed within it.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Segment {
    /// Why new peers do not find this port, if its files were removed and cannot be made again.
    pub fn lost(&self) -> Option<&str> {
        self.upkeep.lost.as_deref()
    }

    /// Has [`SegmentEvent::FilesChanged`] tell when this file is removed, moved or replaced. It may
    /// come without need, too. The watch ends with the file.
    ///
    /// For files of the port that have nothing to do with the segment: a user has few inotify
    /// instances, and the segment needs one anyway.
    ///
    /// # Errors
    /// When the file is not there, or the kernel cannot watch it.
    pub fn watch_file(&self, path: &Path) -> io::Result<()> {
        self.watch.add_file(path)
    }

    /// Makes what is missing of the port's own files.
    pub(super) fn keep_files(&mut self, now: Instant) {
        self.upkeep.retry_at = None;
        let result = if self.directory.is_in_place() && self.membership.is_in_place() {
            Ok(())
        } else if let Some(at) = self.upkeep.restored_at.map(|at| at + PAUSE)
            && now < at
        {
            // Who removes them again and again is not to keep this port busy.
            self.upkeep.retry_at = Some(at);
            return;
        } else {
            let result = self.restore(now);
            if result.is_ok() {
                self.upkeep.restored_at = Some(now);
                log_limited!(
                    self.refusals,
                    Level::Warn,
                    "Port {}: something removed its files in {}; made them again",
                    self.local.port.id,
                    self.directory.path().display()
                );
            }
            result
        };
        let was_lost = self.upkeep.lost.take();
        match result {
            Ok(()) => self.upkeep.pause = PAUSE,
            Err(error) => {
                self.upkeep.lost = Some(ErrorChain(&error).to_string());
                self.upkeep.retry_at = now.checked_add(self.upkeep.pause);
                self.upkeep.pause = (self.upkeep.pause * 2).min(LONGEST_PAUSE);
            }
        }
        if self.upkeep.lost != was_lost {
            self.events.push(SegmentEvent::FilesChanged);
        }
    }

    fn restore(&mut self, now: Instant) -> Result<(), JoinError> {
        let id = &self.local.port.id;
        if self.directory.is_in_place() {
            let former = self.membership.restore(&self.directory, id, &self.closer)?;
            if let Some(former) = former {
                self.poll.remove(former.as_fd());
                self.listen_again()?;
                // Ports that joined while the socket was missing did not find this one.
                self.list_again(now);
            }
            return Ok(());
        }
        // Another directory, or none, is where the segment was.
        let directory = Directory::open(self.directory.path())?;
        let membership = Membership::new(&directory, id, &self.closer)?;
        self.watch
            .follow(&directory)
            .map_err(|source| JoinError::watch(directory.path().to_owned(), source))?;
        self.poll.remove(self.membership.listener());
        self.membership = membership;
        self.directory = directory;
        self.listen_again()?;
        self.list(now).map_err(|source| JoinError::Unreadable {
            path: self.directory.path().to_owned(),
            source,
        })
    }

    fn listen_again(&mut self) -> Result<(), JoinError> {
        self.poll
            .add(self.membership.listener(), LISTENER)
            .map_err(JoinError::EventLoop)?;
        if self.resume_at.is_some() {
            self.watch_listener(false);
        }
        Ok(())
    }
}
