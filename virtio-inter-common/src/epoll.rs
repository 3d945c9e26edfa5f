//! An epoll instance whose events are told apart by tokens.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

pub use ::epoll::Events;
use ::epoll::{ControlOptions, Event};
use rustix::event::epoll::{CreateFlags, create};

/// An epoll instance. Level-triggered, unless a descriptor is added with [`Events::EPOLLET`].
///
/// The kernel reports a descriptor's error and hang-up whether they are asked for or not.
#[derive(Debug)]
pub struct Epoll {
    // Created by rustix: the `epoll` crate returns a bare number, which nothing would close.
    fd: OwnedFd,
}

/// How long [`Epoll::wait`] may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeout {
    /// Only what is ready already.
    Now,
    /// Until this time, rounded up to a millisecond.
    At(Instant),
    /// Until something is ready.
    Never,
}

impl Timeout {
    fn milliseconds(self) -> i32 {
        match self {
            Timeout::Now => 0,
            Timeout::At(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                // Rounded up: a wake-up before the time is of no use.
                left.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32
            }
            Timeout::Never => -1,
        }
    }
}

impl Epoll {
    /// Creates an instance that watches nothing yet.
    ///
    /// # Errors
    ///
    /// Those of epoll_create1(2): no descriptor or no memory is left.
    pub fn new() -> io::Result<Epoll> {
        let fd = create(CreateFlags::CLOEXEC)?;
        Ok(Epoll { fd })
    }

    /// Watches `fd` for input (`EPOLLIN`), under `token`.
    ///
    /// # Errors
    ///
    /// Those of epoll_ctl(2).
    pub fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        self.add_with(fd, Events::EPOLLIN, token)
    }

    /// Watches `fd` for these events, under `token`.
    ///
    /// # Errors
    ///
    /// Those of epoll_ctl(2).
    pub fn add_with(&self, fd: impl AsFd, events: Events, token: u64) -> io::Result<()> {
        self.control(ControlOptions::EPOLL_CTL_ADD, fd.as_fd(), events, token)
    }

    /// Changes the events for which `fd` is watched; none leaves error and hang-up.
    ///
    /// # Errors
    ///
    /// Those of epoll_ctl(2): `fd` must be watched already.
    pub fn modify(&self, fd: impl AsFd, events: Events, token: u64) -> io::Result<()> {
        self.control(ControlOptions::EPOLL_CTL_MOD, fd.as_fd(), events, token)
    }

    /// Stops watching `fd`. The kernel does so by itself when the last copy of it is closed.
    ///
    /// # Errors
    ///
    /// Those of epoll_ctl(2): `fd` must be watched.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        let (delete, none) = (ControlOptions::EPOLL_CTL_DEL, Events::empty());
        self.control(delete, fd.as_fd(), none, 0)
    }

    fn control(
        &self,
        operation: ControlOptions,
        fd: BorrowedFd<'_>,
        events: Events,
        token: u64,
    ) -> io::Result<()> {
        let event = Event::new(events, token);
        ::epoll::ctl(self.fd.as_raw_fd(), operation, fd.as_raw_fd(), event)
    }

    /// Waits, and returns the tokens of at most `N` descriptors that are ready; the next call
    /// returns the others. None is ready after the timeout. Allocates nothing.
    ///
    /// # Errors
    ///
    /// Those of epoll_wait(2), except EINTR, after which it goes on waiting.
    pub fn wait<const N: usize>(
        &self,
        timeout: Timeout,
    ) -> io::Result<impl Iterator<Item = u64> + use<N>> {
        let events = self.wait_for_events::<N>(timeout)?;
        Ok(events.map(|(token, _)| token))
    }

    /// The same, and returns what each of them is ready for.
    ///
    /// # Errors
    ///
    /// Those of [`Epoll::wait`].
    pub fn wait_for_events<const N: usize>(
        &self,
        timeout: Timeout,
    ) -> io::Result<impl Iterator<Item = (u64, Events)> + use<N>> {
        let ready = |event: Event| {
            // Copied: the struct is packed.
            let (token, events) = (event.data, event.events);
            (token, Events::from_bits_truncate(events))
        };
        let mut events = [Event::new(Events::empty(), 0); N];
        loop {
            match ::epoll::wait(self.fd.as_raw_fd(), timeout.milliseconds(), &mut events) {
                Ok(count) => return Ok(events.into_iter().take(count).map(ready)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
    use std::time::Duration;

    use super::*;

    fn ready(epoll: &Epoll) -> Vec<u64> {
        epoll.wait::<4>(Timeout::Now).unwrap().collect()
    }

    fn watched_pipe(epoll: &Epoll) -> (PipeReader, PipeWriter) {
        let (reader, writer) = pipe().unwrap();
        epoll.add(&reader, 7).unwrap();
        (reader, writer)
    }

    #[test]
    fn epoll_reports_input_until_it_is_read() {
        let epoll = Epoll::new().unwrap();
        let (mut reader, mut writer) = watched_pipe(&epoll);
        assert_eq!(ready(&epoll), []);
        writer.write_all(b"x").unwrap();
        assert_eq!((ready(&epoll), ready(&epoll)), (vec![7], vec![7]));
        reader.read_exact(&mut [0]).unwrap();
        assert_eq!(ready(&epoll), []);
        epoll.add_with(&writer, Events::EPOLLOUT, 8).unwrap();
        assert_eq!(ready(&epoll), [8]);
    }

    #[test]
    fn epoll_edge_is_reported_once() {
        let epoll = Epoll::new().unwrap();
        let (reader, mut writer) = pipe().unwrap();
        epoll
            .add_with(&reader, Events::EPOLLIN | Events::EPOLLET, 7)
            .unwrap();
        writer.write_all(b"x").unwrap();
        assert_eq!((ready(&epoll), ready(&epoll)), (vec![7], vec![]));
    }

    #[test]
    fn epoll_modify_and_remove_change_what_is_watched() {
        let epoll = Epoll::new().unwrap();
        let (reader, mut writer) = watched_pipe(&epoll);
        writer.write_all(b"x").unwrap();
        epoll.modify(&reader, Events::empty(), 7).unwrap();
        assert_eq!(ready(&epoll), []);
        drop(writer);
        // The hang-up needs no request.
        assert_eq!(ready(&epoll), [7]);
        epoll.remove(&reader).unwrap();
        assert_eq!(ready(&epoll), []);
        assert!(epoll.remove(&reader).is_err());
    }

    #[test]
    fn epoll_waits_until_the_deadline_and_not_less() {
        let epoll = Epoll::new().unwrap();
        let deadline = Instant::now() + Duration::from_micros(1500);
        assert_eq!(epoll.wait::<1>(Timeout::At(deadline)).unwrap().count(), 0);
        assert!(Instant::now() >= deadline);
    }
}
