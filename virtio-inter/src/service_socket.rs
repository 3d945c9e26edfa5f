//! A socket of the port in its segment's directory, watched by the epoll instance of its clients.

use std::io;
use std::os::fd::OwnedFd;

use virtio_inter_common::{Epoll, Events};
use virtio_inter_segment::ServiceListener;

/// How sockets that listen are watched: without a descriptor for a client, its connection stays,
/// and to be notified of that again and again would be a busy loop.
pub(crate) const LISTENING: Events = Events::EPOLLIN.union(Events::EPOLLET);

/// The socket, as soon as it listens.
#[derive(Debug)]
pub(crate) struct ServiceSocket {
    listener: Option<ServiceListener>,
    /// Names it among the events.
    token: u64,
}

impl ServiceSocket {
    /// One that does not listen yet.
    pub(crate) fn new(token: u64) -> Self {
        Self {
            listener: None,
            token,
        }
    }

    /// Whether clients find it.
    pub(crate) fn is_in_place(&self) -> bool {
        let listener = self.listener.as_ref();
        listener.is_some_and(ServiceListener::is_in_place)
    }

    /// Listens by `listen`, if clients do not find it.
    ///
    /// # Errors
    ///
    /// Those of `listen`, and of epoll_ctl(2).
    pub(crate) fn restore(
        &mut self,
        poll: &Epoll,
        listen: impl FnOnce() -> io::Result<ServiceListener>,
    ) -> io::Result<()> {
        if self.is_in_place() {
            return Ok(());
        }
        let listener = listen()?;
        if let Some(former) = self.listener.take() {
            poll.remove(&former)?;
        }
        poll.add_with(&listener, LISTENING, self.token)?;
        self.listener = Some(listener);
        Ok(())
    }

    /// The next client, if there is one. A client for which there is no descriptor is accepted
    /// after the next one that connects when there is.
    ///
    /// # Errors
    ///
    /// Those of epoll_ctl(2).
    pub(crate) fn accept(&self, poll: &Epoll) -> io::Result<Option<OwnedFd>> {
        let Some(listener) = &self.listener else {
            return Ok(None);
        };
        let Ok(accepted) = listener.accept() else {
            return Ok(None);
        };
        // Others may have come with it, of which there is no event.
        poll.modify(listener, LISTENING, self.token)?;
        Ok(accepted)
    }
}
