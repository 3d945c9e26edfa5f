//! The life of a port on its segment: drives its connections and tells of peers that come and go.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::Level;
use rustix::io::Errno;
use rustix::rand::GetRandomFlags;
use virtio_inter_common::{LogLimit, MacSets, log_limited};

use crate::connect_rate::ConnectRate;
use crate::connection::{Connection, End, Step};
use crate::connector::{AttemptOutcome, Connector};
use crate::deferred_close::Closer;
use crate::directory::Directory;
use crate::handshake::{Local, Refusal, Role};
use crate::join_error::JoinError;
use crate::limits::{Limits, SegmentStats};
use crate::membership::Membership;
use crate::pins::{self, Pins};
use crate::pins_error::PinsError;
use crate::poll::{Interest, Poll};
use crate::port::{LocalPort, PeerInfo, PeerKey, SegmentEvent};
use crate::quota::UserQuotas;
use crate::refused::{RefusedPeer, RefusedPeers};
use crate::service_listener::ServiceListener;
use crate::socket;
use crate::token_bucket::Rate;

mod admission;
mod budget;
mod connections;
mod discovery;
mod ends;
mod files;
mod guest;
mod guest_state;
mod links;
mod upkeep;
mod window;

use connections::Connections;
use guest_state::GuestState;
use upkeep::Upkeep;
pub use upkeep::WatchDirectory;
use window::ConnectWindow;

/// Tokens of the event loop; those of connections are their keys, which count up from 1.
const LISTENER: u64 = u64::MAX - 1;

/// Messages taken from one connection per call of [`Segment::process`].
const STEPS_PER_CALL: usize = 32;

/// Pause before trying again what failed for want of descriptors or memory, or lists the directory.
const PAUSE: Duration = Duration::from_millis(100);

/// A port's membership of a segment.
///
/// All methods return at once. Wait for [`Segment::fd`] to become readable, then call
/// [`Segment::process`]. Dropping it leaves the segment: the port's files go, and its peers see its
/// connections end. Links that were handed out stay usable until they are dropped themselves.
pub struct Segment {
    // First, so that the socket's name is gone before the connections end: no peer connects
    // between.
    membership: Membership,
    local: Local,
    guest: GuestState,
    limits: Limits,
    directory: Directory,
    poll: Poll,
    closer: Closer,
    connections: Connections,
    connector: Connector,
    events: Vec<SegmentEvent>,
    /// Connections that are not read for now, until when.
    paused: VecDeque<(Instant, u64)>,
    window: ConnectWindow,
    upkeep: Upkeep,
    /// When to accept connections and connect to peers again, after a pause.
    resume_at: Option<Instant>,
    connect_rate: ConnectRate,
    user_quotas: UserQuotas,
    /// When to accept connections again, after too many.
    accept_at: Option<Instant>,
    /// When to list the directory again.
    list_at: Option<Instant>,
    /// When that was done last, and how long to wait before the next time.
    listed_at: Instant,
    list_pause: Duration,
    stats: SegmentStats,
    refused: RefusedPeers,
    refusals: LogLimit,
    crowds: LogLimit,
    changes: LogLimit,
}

/// Says HELLO to the live port that has this port's id. It refuses, and its status says who wanted
/// the id: this process ends, and only its log would.
fn introduce(directory: &Directory, local: &Local) {
    let path = directory.socket_path(&local.port.id);
    let sent = socket::connect(&path)
        .and_then(|socket| socket::send(socket.as_fd(), &local.hello().to_bytes(), &[]));
    if let Err(error) = sent {
        log::debug!("The port that has the id is not told: {error}");
    }
}

impl Segment {
    /// Joins the segment of this directory, which has to exist. Peers that are there already come
    /// as events, like later ones.
    ///
    /// # Errors
    /// See [`JoinError`]; nothing is left behind then.
    pub fn join(directory: &Path, port: LocalPort) -> Result<Segment, JoinError> {
        Segment::join_with(directory, port, Limits::default())
    }

    /// Joins with other limits.
    ///
    /// # Errors
    /// As [`Segment::join`].
    pub fn join_with(
        directory: &Path,
        port: LocalPort,
        mut limits: Limits,
    ) -> Result<Segment, JoinError> {
        port.check()?;
        limits.fit_descriptors();
        let directory = Directory::open(directory)?;
        pins::check_own(&directory, &port)?;
        let poll = Poll::new().map_err(JoinError::EventLoop)?;
        let closer = Closer::new();
        let incarnation = random().map_err(|e| JoinError::EventLoop(e.into()))?;
        // First the socket, then the list: of two ports that join at once at least the later one
        // sees the other, and connects to it.
        let local = Local {
            port,
            incarnation,
            pid: std::process::id(),
            away: false,
            addresses: Default::default(),
        };
        let membership =
            Membership::new(&directory, &local.port.id, &closer).inspect_err(|error| {
                if let JoinError::IdTaken { stays: true, .. } = error {
                    introduce(&directory, &local);
                }
            })?;
        poll.add(membership.listener(), LISTENER)
            .map_err(JoinError::EventLoop)?;
        let now = Instant::now();
        let connects = Rate {
            burst: limits.connect_burst,
            per_second: limits.connects_per_second,
        };
        let mut segment = Segment {
            membership,
            local,
            guest: GuestState::default(),
            directory,
            poll,
            closer,
            connections: Connections::default(),
            connector: Connector::new(limits.slow_retry, incarnation),
            events: Vec::new(),
            paused: VecDeque::new(),
            window: ConnectWindow::new(now),
            upkeep: Upkeep::new(now + limits.file_check),
            resume_at: None,
            connect_rate: ConnectRate::new(connects, now),
            user_quotas: UserQuotas::default(),
            accept_at: None,
            list_at: None,
            listed_at: now,
            list_pause: PAUSE,
            stats: SegmentStats::default(),
            refused: RefusedPeers::default(),
            refusals: LogLimit::new(Duration::from_secs(1), 20),
            crowds: LogLimit::new(Duration::from_secs(10), 1),
            changes: LogLimit::new(Duration::from_millis(100), 200),
            limits,
        };
        segment.list(now).map_err(|source| JoinError::Unreadable {
            path: segment.directory.path().to_owned(),
            source,
        })?;
        segment.arm(now);
        log::info!(
            "Port {} joined segment {}",
            segment.local.port.id,
            segment.directory.path().display()
        );
        Ok(segment)
    }

    /// Forgets refused ports that wanted this port's id and have not tried again for a while: they
    /// never join, so nothing else says that they have given up.
    pub fn forget_old_conflicts(&mut self) {
        self.refused.forget_old(&self.local.port.id);
    }

    /// Readable when [`Segment::process`] has something to do. An epoll instance: watch it for
    /// reading, level-triggered, and do nothing else with it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.poll.fd()
    }

    /// Addresses that the guest of this port may not use, if it is a trunk: those that the owner of
    /// the segment has pinned to other ports, as the file says now.
    ///
    /// # Errors
    /// Pins that do not hold.
    pub fn barred(&self) -> Result<MacSets, PinsError> {
        let pins = Pins::read(&self.directory)?;
        Ok(pins::of_others(pins.as_ref(), &self.local.port.id))
    }

    /// Listens for readers of the port's status, in the segment's directory.
    ///
    /// # Errors
    ///
    /// When another process listens there, or the socket cannot be made.
    pub fn listen_status(&self) -> io::Result<ServiceListener> {
        ServiceListener::status(&self.directory, &self.local.port.id)
    }

    /// The path of the socket of [`Segment::listen_status`].
    pub fn status_path(&self) -> PathBuf {
        self.directory.status_path(&self.local.port.id)
    }

    /// Listens for processes that capture this port's frames, in the segment's directory.
    ///
    /// # Errors
    ///
    /// When another process listens there, or the socket cannot be made.
    pub fn listen_capture(&self) -> io::Result<ServiceListener> {
        ServiceListener::capture(&self.directory, &self.local.port.id)
    }

    /// The path of the socket of [`Segment::listen_capture`].
    pub fn capture_path(&self) -> PathBuf {
        self.directory.capture_path(&self.local.port.id)
    }

    /// Running counts.
    pub fn stats(&self) -> SegmentStats {
        self.stats
    }

    /// Peers that this port refused or that refused it, and that have neither got a link nor left
    /// the segment since: the latest ones, the last one last.
    pub fn refused(&self) -> &[RefusedPeer] {
        self.refused.as_slice()
    }

    /// Does what is to be done now, a bounded part of it, and tells what has happened, in order.
    /// Never blocks. What is left makes [`Segment::fd`] readable again.
    pub fn process(&mut self) -> Vec<SegmentEvent> {
        let ready = self.poll.ready().unwrap_or_else(|e| {
            log_limited!(
                self.refusals,
                Level::Error,
                "Failed to wait for events: {e}"
            );
            Vec::new()
        });
        let now = Instant::now();
        for token in ready {
            match token {
                LISTENER => self.accept(now),
                // Gone, if an earlier event of this round ended it.
                key => {
                    if let Some(connection) = self.connections.remove(&key) {
                        self.drive(connection, now);
                    }
                }
            }
        }
        self.resume_connections(now);
        self.expire(now);
        if self.list_at.is_some_and(|at| at <= now) {
            self.list_again(now);
        }
        if self.guest.is_due(now) {
            self.tell_of_guest(now);
        }
        self.resume(now);
        if self.upkeep.retry_at.is_some_and(|at| at <= now) {
            self.keep_files(now);
        }
        if self.upkeep.check_at.is_some_and(|at| at <= now) {
            self.check(now);
        }
        self.connect_due(now);
        let events = std::mem::take(&mut self.events);
        self.arm(now);
        events
    }

    /// Closes the connection to a peer that broke a rule on a link. REFUSE tells the peer. There
    /// may be a link again: whichever side connects tries after [`Limits::slow_retry`], and after
    /// twice the pause each time that this happens again, up to an hour. A peer that does not keep
    /// to that is held to the connections of its user.
    ///
    /// The caller drops the links; no [`SegmentEvent::Down`] follows. A key that is down already is
    /// ignored.
    pub fn close_peer(&mut self, key: PeerKey, reason: &str) {
        let Some(connection) = self.take_peer(key, reason) else {
            return;
        };
        self.refused.add(RefusedPeer {
            by_peer: false,
            ..RefusedPeer::by_peer(&connection, reason, false)
        });
        connection.refuse(&Refusal::Violation(reason.to_owned()));
        let now = Instant::now();
        self.connect_rate.punish(connection.owner.uid, now);
        // As when a link is down for another reason.
        self.connector.retry_refused(now);
        self.connection_ended(&connection, AttemptOutcome::Violation, now);
        // Nothing else may be due: the retry has to wake the caller.
        self.arm(now);
    }

    /// Closes the connection to a peer that did nothing wrong, because this side failed to make use
    /// of the link: for want of descriptors or memory. REFUSE tells the peer, and the connector
    /// tries again: after 100 ms at first, then after pauses that double up to 3.2 s.
    ///
    /// The caller drops the links; no [`SegmentEvent::Down`] follows. A key that is down already is
    /// ignored.
    pub fn drop_peer(&mut self, key: PeerKey, reason: &str) {
        let Some(connection) = self.take_peer(key, reason) else {
            return;
        };
        let now = Instant::now();
        connection.refuse(&Refusal::Resources(reason.to_owned()));
        self.connect_rate
            .left(connection.owner.uid, connection.ring_cost());
        let outcome = AttemptOutcome::Lost(connection.lived(now));
        self.connector.retry_refused(now);
        self.connection_ended(&connection, outcome, now);
        // Nothing else may be due: the retry has to wake the caller.
        self.arm(now);
    }

    /// Takes a link that is up out of all books, to be closed for a reason of ours.
    fn take_peer(&mut self, key: PeerKey, reason: &str) -> Option<Connection> {
        let connection = self.connections.remove(&key.get())?;
        self.poll.remove(connection.fd());
        log_limited!(
            self.refusals,
            Level::Warn,
            "Port {}: closed the link with {}: {reason}",
            self.local.port.id,
            connection.name()
        );
        self.stats.down += 1;
        Some(connection)
    }

    /// Moves a connection forward as far as it goes, and keeps it if it lives on.
    fn drive(&mut self, mut connection: Connection, now: Instant) {
        // Nothing more to close from a user of whom too much waits already: links that are up take
        // nothing.
        let overload = self.closer.overload(connection.owner);
        if let Some(overload) = overload.filter(|_| connection.up_since().is_none()) {
            let refusal = Refusal::Full(overload.to_string());
            return self.end(connection, End::Refused(refusal), now);
        }
        if let Err(refusal) = self.flush(&mut connection) {
            return self.end(connection, End::Refused(refusal), now);
        }
        for _ in 0..STEPS_PER_CALL {
            let peer = connection.key;
            match connection.step(&self.local, now) {
                Step::Idle => break,
                Step::Progress => {}
                Step::Pause(until) => {
                    self.pause_connection(&mut connection, until);
                    break;
                }
                Step::Introduced(mut candidate) => {
                    if connection.role != Role::Acceptor {
                        self.window.answered(connection.started, now);
                    }
                    let may_join = self
                        .room_for(&connection, &candidate, now)
                        .and_then(|()| self.check_uplink(&connection, &candidate))
                        .and_then(|()| self.check_pin(&connection, &mut candidate))
                        .and_then(|()| self.settle_crossing(&connection.role, &candidate.id));
                    if let Err(refusal) = may_join {
                        return self.end(connection, End::Refused(refusal), now);
                    }
                    let uid = connection.owner.uid;
                    let user = self.user_quotas.of(uid, now);
                    let ring_cost = self.connect_rate.ring_cost(uid, now);
                    connection.admit(candidate, user, ring_cost, now);
                    self.up(&connection);
                    if let Err(refusal) = self.flush(&mut connection) {
                        return self.end(connection, End::Refused(refusal), now);
                    }
                }
                Step::Offered(link) => {
                    if let Err(refusal) = self.offered(&mut connection, link) {
                        return self.end(connection, End::Refused(refusal), now);
                    }
                }
                Step::Accepted {
                    queue,
                    number,
                    page,
                } => self.events.push(SegmentEvent::Accepted {
                    peer,
                    queue,
                    number,
                    page,
                }),
                Step::Done {
                    queue,
                    number,
                    declined,
                } => self.events.push(SegmentEvent::LinkDone {
                    peer,
                    queue,
                    number,
                    declined,
                }),
                Step::Frame(record) => self.events.push(SegmentEvent::Frame { peer, record }),
                Step::Guest(away) => self.events.push(SegmentEvent::Guest { peer, away }),
                Step::Addresses(addresses) => {
                    let event = SegmentEvent::Addresses { peer, addresses };
                    self.events.push(event);
                }
                Step::Ended(end) => return self.end(connection, end, now),
                Step::Down(reason) => return self.down(&connection, reason, now),
            }
        }
        self.connections.insert(connection.key.get(), connection);
    }

    /// Sends what can be sent, and has the rest wait for room.
    fn flush(&self, connection: &mut Connection) -> Result<(), Refusal> {
        let write = !connection.flush(&self.local)?;
        let read = connection.interest.read;
        self.watch(connection, Interest { read, write })
            .map_err(Refusal::resources)
    }

    /// Waits for these events of a connection from now on.
    fn watch(&self, connection: &mut Connection, interest: Interest) -> io::Result<()> {
        if interest != connection.interest {
            let key = connection.key.get();
            self.poll.watch(connection.fd(), key, interest)?;
            connection.interest = interest;
        }
        Ok(())
    }

    /// Tells of a peer that was let in.
    fn up(&mut self, connection: &Connection) {
        let Some(peer) = connection.peer() else {
            return;
        };
        log_limited!(
            self.changes,
            Level::Info,
            "Port {}: link with {}, {}, is up",
            self.local.port.id,
            connection.name(),
            peer.mac
        );
        self.stats.up += 1;
        self.refused.remove(&peer.id);
        self.events.push(SegmentEvent::Up(PeerInfo {
            key: connection.key,
            id: peer.id.clone(),
            mac: peer.mac,
            mtu: peer.mtu,
            queues: peer.queues,
            ring_capacity: peer.ring_capacity,
            uplinks: peer.uplinks.clone(),
            allowed: peer.allowed.clone(),
            guard: peer.guard.clone(),
            trunk: peer.trunk,
            barred: peer.barred.clone(),
            away: peer.away,
        }));
    }

    /// Does not read a connection for a while.
    fn pause_connection(&mut self, connection: &mut Connection, until: Instant) {
        // Its end, and room for what waits to be sent, are events all the same.
        let interest = Interest {
            read: false,
            ..connection.interest
        };
        if connection.interest.read && self.watch(connection, interest).is_ok() {
            self.paused.push_back((until, connection.key.get()));
        }
    }

    /// Reads those connections again whose pause is over. All pauses are equally long.
    fn resume_connections(&mut self, now: Instant) {
        while let Some(&(until, key)) = self.paused.front()
            && until <= now
        {
            self.paused.pop_front();
            if let Some(mut connection) = self.connections.remove(&key) {
                let interest = Interest {
                    read: true,
                    ..connection.interest
                };
                // It is read once now even if it cannot be watched.
                let _ = self.watch(&mut connection, interest);
                self.drive(connection, now);
            }
        }
    }

    /// Sets the timer to the nearest deadline.
    fn arm(&mut self, now: Instant) {
        let handshakes = self.half_open().map(|c| c.deadline(&self.limits).1).min();
        // At the limit, the end of a handshake makes room for the next attempt.
        let attempt = self
            .connector
            .next_due()
            .and_then(|due| self.may_connect_at(due, now));
        let (retry, check) = (self.upkeep.retry_at, self.upkeep.check_at);
        let paused = self.paused.front().map(|&(until, _)| until);
        // Events that did not come of [`Segment::process`] wait for its next call.
        let waiting = (!self.events.is_empty()).then_some(now);
        let next = [
            handshakes,
            paused,
            attempt,
            self.resume_at,
            self.accept_at,
            self.list_at,
            self.guest.tell_at(),
            retry,
            check,
            waiting,
        ];
        if let Err(e) = self.poll.wake_at(next.into_iter().flatten().min(), now) {
            log_limited!(
                self.refusals,
                Level::Error,
                "Failed to set the segment's timer: {e}"
            );
        }
    }
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment")
            .field("port", &self.local.port)
            .field("directory", &self.directory.path())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

fn random() -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    // Eight bytes come whole or not at all.
    rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
