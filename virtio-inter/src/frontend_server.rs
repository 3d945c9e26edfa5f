//! Accepts frontends on the port's socket, or connects to the one that listens, and decides which
//! of them drives the device.
//!
//! Two frontends are served at a time, each in a slot; one of them has the device. The other may
//! negotiate meanwhile. Its requests that need the device are deferred until none of the first
//! one's queues runs, or until that one hangs up. So a guest moves between two VMMs on one port
//! (QEMU's destination asks for features before anything is moved), and a restarted VMM may
//! connect before the port has seen the end of its old connection. A third frontend waits until
//! one of the two hangs up. A frontend that has sent no request gives way to a waiting one. Of
//! frontends that listen there is one at a time.
//!
//! See decisions 0013 and 0097.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use log::{Level, debug, info};
use virtio_inter_common::{Epoll, ErrorChain, Events, LogLimit, Timeout, log_limited, peer_pid};
use virtio_inter_device::Device;

use crate::connector::Connector;
use crate::fd_store::{FdStore, StoredConnection};
use crate::frontend_source::FrontendSource;
use crate::socket::{Listener, SocketError, SocketLock, WATCH, failed};
use crate::timer::Timer;
use crate::vhost_user::frontend::{Disconnect, Frontend};
use crate::vhost_user::session::{Session, SessionLimits};
use crate::vhost_user::vring::QueueWaits;

const SOURCE: u64 = 0;
const ACCEPT_AGAIN: u64 = 1;
const REFUSED: u64 = 2;
/// The token of the first slot; the next slot has the next token.
const FRONTEND: u64 = 3;

/// Frontends served at a time: both ends of a migration.
const SLOTS: usize = 2;

/// Time without `accept` after it failed: descriptors do not become free at once.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Time for which the connection of a refused frontend stays open: many connect again at once and
/// repeat the request.
const REFUSED_TIME: Duration = Duration::from_secs(10);

/// Limits log lines that anybody with access to the socket can cause.
static CONNECTIONS: LogLimit = LogLimit::new(Duration::from_secs(10), 20);

/// The state of the frontend that is served, for the status document.
#[derive(Debug)]
pub struct FrontendState {
    /// Its process; `None` if that is in another process namespace.
    pub pid: Option<u32>,
    /// Number of running queues.
    pub queues_running: usize,
    /// The features with which the queues run.
    pub features: Option<u64>,
}

/// The VMM to which the port connects, for the status document.
#[derive(Debug)]
pub struct ClientState {
    /// Whether it is connected.
    pub is_connected: bool,
    /// Why the last attempt failed.
    pub error: Option<String>,
}

/// The source of connections and the frontends.
#[derive(Debug)]
pub struct FrontendServer {
    poll: Epoll,
    source: FrontendSource,
    limits: SessionLimits,
    fd_store: FdStore,
    slots: [Option<Frontend>; SLOTS],
    /// Whether the supervisor stores the connection of each slot for the next process.
    stored: [bool; SLOTS],
    /// An accepted connection for which there is no slot yet.
    waiting: Option<UnixStream>,
    /// Whether the source is polled: not while a connection waits, nor after a failure, nor while
    /// the only possible one is there.
    accepting: bool,
    /// Set after `accept` failed, until it is tried again.
    accept_pause: Timer,
    /// Set while a refused frontend is connected.
    refused: Timer,
    /// The refusal that was logged last: the frontend's process, and the text.
    logged_refusal: Option<(Option<u32>, String)>,
}

impl FrontendServer {
    /// Begins to accept frontends.
    ///
    /// # Errors
    ///
    /// When the process has no descriptors left.
    pub fn new(
        source: FrontendSource,
        limits: SessionLimits,
        fd_store: FdStore,
    ) -> io::Result<Self> {
        let poll = Epoll::new()?;
        let (accept_pause, refused) = (Timer::new()?, Timer::new()?);
        poll.add(&source, SOURCE)?;
        poll.add(&accept_pause, ACCEPT_AGAIN)?;
        poll.add(&refused, REFUSED)?;
        Ok(Self {
            poll,
            source,
            limits,
            fd_store,
            slots: [None, None],
            stored: [false; SLOTS],
            waiting: None,
            accepting: true,
            accept_pause,
            refused,
            logged_refusal: None,
        })
    }

    /// Serves the connections of a former process, which its supervisor stored.
    ///
    /// # Errors
    ///
    /// When the kernel cannot watch descriptors.
    pub fn resume(
        &mut self,
        connections: Vec<StoredConnection>,
        device: &mut dyn Device,
    ) -> io::Result<()> {
        for stored in connections {
            let number = stored.number;
            if number >= SLOTS {
                continue;
            }
            let process = describe_peer(&stored.socket);
            match Frontend::resume(stored.socket, stored.state, self.limits, device) {
                Ok(frontend) => {
                    self.poll.add(&frontend, FRONTEND + number as u64)?;
                    self.slots[number] = Some(frontend);
                    self.stored[number] = true;
                    info!("Frontend continues on its former connection, {process}");
                }
                Err(ended) => info!("{}, {process}", ErrorChain(&ended)),
            }
        }
        for number in 0..SLOTS {
            if !self.stored[number] {
                self.fd_store.remove(number);
            }
        }
        Ok(())
    }

    /// Handles pending events. Non-blocking, bounded work per call.
    ///
    /// # Errors
    ///
    /// When the kernel cannot watch descriptors any more.
    pub fn process(&mut self, device: &mut dyn Device) -> io::Result<()> {
        let ready: Vec<u64> = self.poll.wait::<16>(Timeout::Now)?.collect();
        // First, so that a connection that has ended frees its slot for one that came meanwhile.
        for slot in 0..SLOTS {
            if ready.contains(&(FRONTEND + slot as u64)) {
                self.serve(slot, device)?;
            }
        }
        // The other frontend may just have released the device.
        for slot in 0..SLOTS {
            if self.slots[slot].as_ref().is_some_and(Frontend::is_deferred) {
                self.serve(slot, device)?;
            }
        }
        if ready.contains(&ACCEPT_AGAIN) {
            self.accept_pause.clear();
        }
        if ready.contains(&REFUSED) {
            self.refused.clear();
            for slot in 0..SLOTS {
                if let Some(frontend) = self.slots[slot].take_if(|f| f.is_refused()) {
                    self.end(slot, frontend, &Disconnect::RefusedBefore, device)?;
                }
            }
        }
        if ready.contains(&SOURCE) && self.wants_another() {
            self.accept()?;
        }
        self.admit(device)?;
        let accepting = self.wants_another() && !self.accept_pause.is_set();
        if accepting != self.accepting {
            if accepting {
                self.poll.add(&self.source, SOURCE)?;
            } else {
                self.poll.remove(&self.source)?;
            }
            self.accepting = accepting;
        }
        Ok(())
    }

    /// Whether there may be one more connection.
    fn wants_another(&self) -> bool {
        let is_alone = self.slots.iter().all(Option::is_none);
        self.waiting.is_none() && (is_alone || self.source.has_several())
    }

    /// The path of the socket, the port's or the VMM's, if it is known.
    pub fn socket(&self) -> Option<&Path> {
        self.source.path()
    }

    /// Whether the only connection has ended that the port was started with.
    pub fn is_finished(&self) -> bool {
        let is_unused = self.waiting.is_none() && self.slots.iter().all(Option::is_none);
        is_unused && self.source.is_used_up()
    }

    /// The VMM to which the port connects; `None` if the port listens.
    pub fn client(&self) -> Option<ClientState> {
        let connector = self.source.connector()?;
        Some(ClientState {
            is_connected: self.slots.iter().any(Option::is_some),
            error: connector.error().map(ToString::to_string),
        })
    }

    /// Whether this process may not connect to the VMM's socket.
    pub fn is_forbidden_to_connect(&self) -> bool {
        let error = self.source.connector().and_then(Connector::error);
        error.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    }

    /// The state of the frontend that has the device, or else of the one that is connected.
    pub fn frontend(&self) -> Option<FrontendState> {
        let holds_device = |frontend: &&Frontend| frontend.session().holds_device();
        let mut frontends = self.slots.iter().flatten();
        let frontend = frontends
            .clone()
            .find(holds_device)
            .or_else(|| frontends.next())?;
        Some(FrontendState {
            pid: peer_pid(frontend.as_fd()).ok().flatten(),
            queues_running: frontend.session().queues_running(),
            features: frontend.session().features_in_use(),
        })
    }

    /// Why the guest's memory is considered private, if the frontend that has the device shares
    /// none.
    pub fn unshared_memory(&self) -> Option<&str> {
        let mut sessions = self.slots.iter().flatten().map(Frontend::session);
        sessions
            .find(|session| session.holds_device())?
            .unshared_memory()
    }

    /// The first queue that has all settings and cannot start.
    pub fn queue_waits(&self) -> Option<&QueueWaits> {
        let mut sessions = self.slots.iter().flatten().map(Frontend::session);
        sessions.find_map(Session::queue_waits)
    }

    /// Checks whether the guest's memory is shared, after the device found that queue `index` was
    /// kicked while its ring is blank.
    pub fn check_unshared_memory(&mut self, index: u16) {
        let sessions = self.slots.iter_mut().flatten().map(Frontend::session_mut);
        for session in sessions.filter(|session| session.holds_device()) {
            session.check_unshared_memory(index);
        }
    }

    /// Whether connections outlive this process: its supervisor keeps them.
    pub fn outlive_the_process(&self) -> bool {
        self.fd_store.exists()
    }

    /// The listening socket and its files, if the port listens.
    pub fn listener(&self) -> Option<&Listener> {
        self.source.listener()
    }

    /// Restores files of the socket that something else removed.
    ///
    /// # Errors
    ///
    /// When they cannot be made.
    pub fn restore(&mut self, device: &mut dyn Device) -> Result<(), SocketError> {
        let Some(listener) = self.source.listener() else {
            return Ok(());
        };
        let path = listener.path().to_owned();
        // Accept connections that were made before the file was removed.
        self.process(device).map_err(failed(WATCH, &path))?;
        if self.accepting {
            self.poll
                .remove(&self.source)
                .map_err(failed(WATCH, &path))?;
        }
        let listener = self.source.listener_mut();
        let result = listener.map_or(Ok(()), Listener::restore);
        if self.accepting {
            self.poll
                .add(&self.source, SOURCE)
                .map_err(failed(WATCH, &path))?;
        }
        result
    }

    /// Stops listening, calls `then`, then ends the sessions. The socket is removed first: a
    /// frontend that sees its connection end and connects again at once must find no socket, not a
    /// connection that is reset. Returns the lock of the socket's path; another port can take the
    /// path when it is dropped.
    pub fn close(self, device: &mut dyn Device, then: impl FnOnce()) -> Option<SocketLock> {
        let lock = self.source.stop();
        then();
        for frontend in self.slots.into_iter().flatten() {
            frontend.close(device);
        }
        lock
    }

    fn serve(&mut self, slot: usize, device: &mut dyn Device) -> io::Result<()> {
        let Some(mut frontend) = self.slots[slot].take() else {
            return Ok(());
        };
        // Before the frontend gets an answer: it could continue while this process ends.
        if let Some(state) = frontend.state_file()
            && !self.stored[slot]
        {
            self.stored[slot] = self.fd_store.store(slot, frontend.as_fd(), state);
        }
        let before = interest(&frontend);
        let other = self.slots[1 - slot].as_mut();
        let result = frontend.process(device, other);
        let now = interest(&frontend);
        match result {
            Err(refused @ Disconnect::Refused(_)) => {
                return self.refuse(slot, frontend, &refused, device);
            }
            Err(ended) => return self.end(slot, frontend, &ended, device),
            Ok(()) => {}
        }
        if now != before {
            self.poll.modify(&frontend, now, FRONTEND + slot as u64)?;
        }
        if now == Events::empty()
            && before != now
            && let Some(other) = &self.slots[1 - slot]
        {
            log_limited!(
                CONNECTIONS,
                Level::Info,
                "Frontend {} waits until {} stops its queues or hangs up",
                describe_peer(&frontend),
                describe_peer(other)
            );
        }
        self.slots[slot] = Some(frontend);
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        match self.source.next_connection() {
            Ok(Some(stream)) if self.waiting.is_none() => {
                if self.free_slot().is_none() {
                    log_limited!(
                        CONNECTIONS,
                        Level::Info,
                        "Another frontend, {}, waits until one of {SLOTS} hangs up",
                        describe_peer(&stream)
                    );
                }
                self.waiting = Some(stream);
            }
            // The source is not polled while a connection waits (see `accepting`).
            Ok(_) => {}
            Err(error) => {
                log_limited!(
                    CONNECTIONS,
                    Level::Warn,
                    "Cannot accept a frontend: {error}"
                );
                self.accept_pause.set(ACCEPT_PAUSE)?;
            }
        }
        Ok(())
    }

    /// A slot for a new frontend: one whose frontend has sent no request, as that may be a probe;
    /// else an empty one; else one whose frontend was refused.
    fn free_slot(&self) -> Option<usize> {
        let sent_nothing = |slot: &Option<Frontend>| {
            slot.as_ref()
                .is_some_and(|frontend| !frontend.has_sent_request())
        };
        let refused = |slot: &Option<Frontend>| slot.as_ref().is_some_and(Frontend::is_refused);
        let place = |is: &dyn Fn(&Option<Frontend>) -> bool| self.slots.iter().position(is);
        place(&sent_nothing)
            .or_else(|| place(&Option::is_none))
            .or_else(|| place(&refused))
    }

    /// Begins to serve the waiting connection, if there is a slot.
    fn admit(&mut self, device: &mut dyn Device) -> io::Result<()> {
        if self.waiting.is_none() {
            return Ok(());
        }
        let Some(slot) = self.free_slot() else {
            return Ok(());
        };
        if let Some(former) = self.slots[slot].take() {
            let why = if former.is_refused() {
                Disconnect::RefusedBefore
            } else {
                Disconnect::SentNothing
            };
            self.end(slot, former, &why, device)?;
        }
        let Some(stream) = self.waiting.take() else {
            return Ok(());
        };
        let process = describe_peer(&stream);
        let pid = peer_pid(stream.as_fd()).ok().flatten();
        // A frontend that was refused is expected to connect again and again.
        let returns = self
            .logged_refusal
            .as_ref()
            .is_some_and(|(refused, _)| *refused == pid);
        // A connection for which there is no descriptor or watch must not end the others.
        let result = Frontend::new(stream, self.limits, device).and_then(|frontend| {
            self.poll
                .add(&frontend, FRONTEND + slot as u64)
                .map_err(Disconnect::Connection)?;
            Ok(frontend)
        });
        match result {
            Ok(frontend) => {
                if returns {
                    debug!("Frontend connected again, {process}");
                } else {
                    log_limited!(CONNECTIONS, Level::Info, "Frontend connected, {process}");
                }
                self.slots[slot] = Some(frontend);
            }
            Err(error) => {
                log_limited!(
                    CONNECTIONS,
                    Level::Warn,
                    "Cannot serve {process}: {}",
                    ErrorChain(&error)
                );
                self.source.ended(false)?;
            }
        }
        Ok(())
    }

    /// Stops serving a frontend that would only repeat its request, but keeps the connection open
    /// for a while. The same refusal is logged once.
    fn refuse(
        &mut self,
        slot: usize,
        mut frontend: Frontend,
        why: &Disconnect,
        device: &mut dyn Device,
    ) -> io::Result<()> {
        let refusal = Some((
            peer_pid(frontend.as_fd()).ok().flatten(),
            ErrorChain(why).to_string(),
        ));
        if refusal == self.logged_refusal {
            debug!("The same frontend is refused again");
        } else {
            log_limited!(
                CONNECTIONS,
                Level::Warn,
                "{}; it is disconnected in {} s (logged once)",
                ErrorChain(why),
                REFUSED_TIME.as_secs()
            );
            self.logged_refusal = refusal;
        }
        frontend.refuse(device);
        self.poll
            .modify(&frontend, interest(&frontend), FRONTEND + slot as u64)?;
        self.slots[slot] = Some(frontend);
        // A second refusal does not set the timer again: that would keep the first one for ever.
        self.refused.set(REFUSED_TIME)
    }

    fn end(
        &mut self,
        slot: usize,
        frontend: Frontend,
        why: &Disconnect,
        device: &mut dyn Device,
    ) -> io::Result<()> {
        let level = match why {
            _ if frontend.is_refused() => Level::Debug,
            Disconnect::HungUp | Disconnect::NeedsReconnect => Level::Info,
            _ => Level::Warn,
        };
        if frontend.session().features_in_use().is_some() {
            // Its queues have run since the refusal.
            self.logged_refusal = None;
        }
        if level == Level::Debug {
            debug!("{}", ErrorChain(why));
        } else {
            log_limited!(CONNECTIONS, level, "{}", ErrorChain(why));
        }
        self.poll.remove(&frontend)?;
        self.source.ended(frontend.has_sent_request())?;
        frontend.end(device);
        if std::mem::take(&mut self.stored[slot]) {
            self.fd_store.remove(slot);
        }
        Ok(())
    }
}

/// The event of a frontend's connection for which the server waits.
fn interest(frontend: &Frontend) -> Events {
    if frontend.is_sending() {
        Events::EPOLLOUT
    } else if frontend.is_deferred() {
        Events::empty()
    } else {
        Events::EPOLLIN
    }
}

/// Describes the process at the other end, for logs.
fn describe_peer(socket: impl AsFd) -> String {
    match peer_pid(socket.as_fd()) {
        Ok(Some(pid)) => format!("process {pid}"),
        // For example a VMM in a container.
        Ok(None) => "a process of another process namespace".to_owned(),
        Err(error) => format!("a process unknown: {error}"),
    }
}

impl AsFd for FrontendServer {
    /// Readable when [`FrontendServer::process`] has pending events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }
}
