//! Keeps a port to be found: what something else has removed of its files is made again.
//!
//! Cleaners of temporary files remove a lock that nobody has written to for days, and people remove
//! whole directories. Links do not depend on files, but new peers do, and the next port of this id
//! would take this one for dead.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use log::Level;
use virtio_inter_common::{ErrorChain, log_limited};

use super::upkeep::WatchDirectory;
use super::{LISTENER, Segment};
use crate::directory::Directory;
use crate::join_error::JoinError;
use crate::membership::Membership;
use crate::port::SegmentEvent;

/// Pause before the next attempt if something in the directory has changed since the last one.
const CHANGED_PAUSE: Duration = Duration::from_secs(1);

impl Segment {
    /// Why new peers do not find this port, if its files were removed and cannot be made again.
    pub fn lost(&self) -> Option<&str> {
        self.upkeep.lost.as_deref()
    }

    /// Has `watch` called for each directory in which files of this port can be removed or renamed.
    /// After such a change, call [`Segment::check_files`], at some time within a second or two.
    ///
    /// Without it, or where it fails, the port checks its files by itself every
    /// [`Limits::file_check`](crate::Limits::file_check).
    pub fn watch_with(&mut self, watch: WatchDirectory) {
        self.upkeep.watch = Some(watch);
        let now = Instant::now();
        self.watch_directories(now);
        self.arm(now);
    }

    /// Checks whether the port's own files are where they belong, and makes what is missing again.
    pub fn check_files(&mut self) {
        let now = Instant::now();
        self.check(now);
        self.arm(now);
    }

    pub(super) fn check(&mut self, now: Instant) {
        match self.upkeep.retry_at {
            None => self.keep_files(now),
            // What failed is not tried again with each change of something else.
            Some(at) => self.upkeep.retry_at = Some(at.min(now + CHANGED_PAUSE)),
        }
        self.forget_refused();
        if self.upkeep.check_at.is_some() {
            self.upkeep.check_at = Some(now + self.limits.file_check);
        }
    }

    /// Has the directory watched in which this port's files are, and that in which it is itself.
    fn watch_directories(&mut self, now: Instant) {
        let Some(watch) = self.upkeep.watch else {
            return;
        };
        let watches = &mut self.upkeep.watches;
        watches.clear();
        let watched = watch(self.directory.fd()).and_then(|own| {
            watches.push(own);
            let parent = self.directory.open_parent()?;
            watches.push(watch(parent.as_fd())?);
            Ok(())
        });
        match watched {
            Ok(()) => self.upkeep.check_at = None,
            Err(error) => {
                log::info!(
                    "Port {}: checks its files every {} s, as the kernel does not notify of their \
                     removal: {error}",
                    self.local.port.id,
                    self.limits.file_check.as_secs()
                );
                self.upkeep.check_at = Some(now + self.limits.file_check);
            }
        }
    }

    /// Makes what is missing of the port's own files.
    pub(super) fn keep_files(&mut self, now: Instant) {
        self.upkeep.retry_at = None;
        let result = if self.directory.is_in_place() && self.membership.is_in_place() {
            Ok(())
        } else if let Some(at) = self.upkeep.backoff.not_before(now) {
            self.upkeep.retry_at = Some(at);
            return;
        } else {
            let result = self.restore(now);
            if result.is_ok() {
                self.upkeep.backoff.restored(now);
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
            Ok(()) => self.upkeep.backoff.complete(),
            Err(error) => {
                self.upkeep.lost = Some(ErrorChain(&error).to_string());
                self.upkeep.retry_at = Some(now + self.upkeep.backoff.failed());
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
        self.poll.remove(self.membership.listener());
        self.membership = membership;
        self.directory = directory;
        self.watch_directories(now);
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
        self.watch_listener();
        Ok(())
    }
}
