//! The life of a port on its segment: accepts, calls, lets in, and tells of peers that come and go.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use log::Level;
use rustix::io::Errno;
use rustix::process::Resource;
use rustix::rand::GetRandomFlags;

use crate::connection::{Connection, End, Step};
use crate::credentials::Credentials;
use crate::dials::{Dials, Outcome};
use crate::directory::{Change, Directory, Watch};
use crate::handshake::{Candidate, Local, Refusal, Role, WithSources};
use crate::id::PortId;
use crate::join_error::JoinError;
use crate::log_limit::LogLimit;
use crate::log_limited;
use crate::membership::Membership;
use crate::poll::Poll;
use crate::port::{DownReason, LocalPort, PeerKey, PeerLink, SegmentEvent};
use crate::socket;

/// Tokens of the event loop; those of connections are their keys, which count up from 1.
const LISTENER: u64 = u64::MAX - 1;
const WATCH: u64 = u64::MAX - 2;

/// Work per call of [`Segment::process`]: connections taken, peers called, messages per connection.
const ACCEPTS_PER_CALL: usize = 16;
const DIALS_PER_CALL: usize = 16;
const STEPS_PER_CALL: usize = 32;

/// Pause before trying again what failed for want of descriptors or memory, or lists the directory.
const PAUSE: Duration = Duration::from_millis(100);

/// Incarnations that are remembered as not wanted.
const MAX_BANNED: usize = 1024;

/// What a segment may cost. The defaults do for any segment of one host.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Time from the start of a connection to a link that is up; 5 s.
    pub handshake_timeout: Duration,
    /// Pause before calling a peer again after one side refused the other; 30 s.
    pub slow_retry: Duration,
    /// Handshakes under way, in each direction; 64. A further caller replaces the oldest one.
    pub max_half_open: usize,
    /// Peers at a time; 1024.
    pub max_peers: usize,
    /// Data bytes of all rings of all links; 8 GiB.
    pub max_ring_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            handshake_timeout: Duration::from_secs(5),
            slow_retry: Duration::from_secs(30),
            max_half_open: 64,
            max_peers: 1024,
            max_ring_bytes: 8 << 30,
        }
    }
}

/// What has happened on a segment since the port joined: running counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentStats {
    /// Links that came up.
    pub up: u64,
    /// Links that went down.
    pub down: u64,
    /// Processes turned away for their user and groups.
    pub strangers: u64,
    /// Handshakes that we refused for another reason.
    pub refused: u64,
    /// Handshakes that the peer refused.
    pub refused_by_peer: u64,
    /// Handshakes that took too long.
    pub timeouts: u64,
    /// Half-open connections dropped for newer ones.
    pub crowded_out: u64,
}

/// A port's membership of a segment.
///
/// All methods return at once. Wait for [`Segment::fd`] to become readable, then call
/// [`Segment::process`]. Dropping it leaves the segment: the port's files go, and its peers see its
/// connections end. Links that were handed out stay usable until they are dropped themselves.
pub struct Segment {
    // First, so that the socket's name is gone before the connections end: nobody calls in between.
    membership: Membership,
    local: Local,
    limits: Limits,
    directory: Directory,
    watch: Watch,
    poll: Poll,
    connections: BTreeMap<u64, Connection>,
    dials: Dials,
    banned: VecDeque<Banned>,
    events: Vec<SegmentEvent>,
    /// When to take connections again, after a pause.
    accept_at: Option<Instant>,
    /// When to list the directory again.
    list_at: Option<Instant>,
    stats: SegmentStats,
    refusals: LogLimit,
    changes: LogLimit,
}

/// An incarnation of a peer that we want no link with.
struct Banned {
    id: PortId,
    incarnation: u64,
    reason: String,
}

impl Segment {
    /// Joins the segment of this directory, which has to exist. Peers that are there already come as
    /// events, like later ones.
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
        limits: Limits,
    ) -> Result<Segment, JoinError> {
        port.check()?;
        let directory = Directory::open(directory)?;
        let poll = Poll::new().map_err(JoinError::EventLoop)?;
        let incarnation = random().map_err(|e| JoinError::EventLoop(e.into()))?;
        // Socket, watch, list, in this order: of two ports that join at once at least the later one
        // sees the other, and whoever is not on the list yet comes as a change.
        let membership = Membership::new(&directory, &port.id)?;
        let watch_error = |source| JoinError::Watch {
            path: directory.path().to_owned(),
            source,
        };
        let watch = Watch::new(&directory).map_err(watch_error)?;
        poll.add(membership.listener(), LISTENER)
            .map_err(JoinError::EventLoop)?;
        poll.add(watch.fd(), WATCH).map_err(JoinError::EventLoop)?;
        let mut segment = Segment {
            membership,
            local: Local {
                port,
                incarnation,
                pid: std::process::id(),
            },
            directory,
            watch,
            poll,
            connections: BTreeMap::new(),
            dials: Dials::new(limits.slow_retry),
            banned: VecDeque::new(),
            events: Vec::new(),
            accept_at: None,
            list_at: None,
            stats: SegmentStats::default(),
            refusals: LogLimit::new(Duration::from_secs(1), 20),
            changes: LogLimit::new(Duration::from_millis(100), 200),
            limits,
        };
        let now = Instant::now();
        segment.list(now).map_err(|source| JoinError::Unreadable {
            path: segment.directory.path().to_owned(),
            source,
        })?;
        segment.arm(now).map_err(JoinError::EventLoop)?;
        log::info!(
            "Port {} joined segment {}",
            segment.local.port.id,
            segment.directory.path().display()
        );
        Ok(segment)
    }

    /// Readable when [`Segment::process`] has something to do. An epoll instance: watch it for
    /// reading, level-triggered, and do nothing else with it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.poll.fd()
    }

    /// Running counts.
    pub fn stats(&self) -> SegmentStats {
        self.stats
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
                WATCH => self.directory_changed(now),
                // Gone, if an earlier event of this round ended it.
                key => {
                    if let Some(connection) = self.connections.remove(&key) {
                        self.drive(connection, now);
                    }
                }
            }
        }
        self.expire(now);
        if self.list_at.is_some_and(|at| at <= now) {
            self.list_again(now);
        }
        if self.accept_at.is_some_and(|at| at <= now) {
            self.accept_at = None;
            self.pause_listener(false);
        }
        self.call_due(now);
        if let Err(e) = self.arm(now) {
            log_limited!(
                self.refusals,
                Level::Error,
                "Failed to set the segment's timer: {e}"
            );
        }
        std::mem::take(&mut self.events)
    }

    /// Closes the connection to a peer that broke a rule, and has nothing more to do with this
    /// incarnation of it. The caller drops the links; no [`SegmentEvent::Down`] follows. A key that
    /// is down already is ignored.
    pub fn close_peer(&mut self, key: PeerKey, reason: &str) {
        let Some(connection) = self.connections.remove(&key.get()) else {
            return;
        };
        let Some(peer) = connection.peer() else {
            return;
        };
        log_limited!(
            self.refusals,
            Level::Warn,
            "Port {}: closed the link with {}: {reason}",
            self.local.port.id,
            connection.name()
        );
        if self.banned.len() == MAX_BANNED {
            self.banned.pop_front();
        }
        self.banned.push_back(Banned {
            id: peer.id.clone(),
            incarnation: peer.incarnation,
            reason: reason.to_owned(),
        });
        self.stats.down += 1;
        connection.refuse(&Refusal::Violation(reason.to_owned()));
        self.call_ended(&connection.role, Outcome::Parked, Instant::now());
    }

    /// Takes new connections.
    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS_PER_CALL {
            match socket::accept(self.membership.listener()) {
                Ok(socket) => self.start(Role::Callee, socket, now),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(e) => {
                    // The connection stays in the queue, and the listener readable: look away for a
                    // while instead of spinning.
                    log_limited!(
                        self.refusals,
                        Level::Warn,
                        "Port {}: failed to accept a connection: {e}",
                        self.local.port.id
                    );
                    self.pause_listener(true);
                    self.accept_at = Some(now + PAUSE);
                    return;
                }
            }
        }
    }

    fn pause_listener(&mut self, pause: bool) {
        if let Err(e) = self.poll.pause(self.membership.listener(), LISTENER, pause) {
            log_limited!(
                self.refusals,
                Level::Error,
                "Failed to watch the listener: {e}"
            );
        }
    }

    /// Calls the peers whose time has come.
    fn call_due(&mut self, now: Instant) {
        for _ in 0..DIALS_PER_CALL {
            if self.calls_under_way() >= self.limits.max_half_open {
                return;
            }
            let Some(id) = self.dials.take_due(now) else {
                return;
            };
            let outcome = match socket::connect(&self.directory.socket_path(&id)) {
                Ok(socket) => {
                    self.start(Role::Caller(id), socket, now);
                    continue;
                }
                // A dead port's file. Its successor will put another one in its place.
                Err(Errno::CONNREFUSED) => Outcome::Parked,
                Err(Errno::NOENT) => Outcome::Gone,
                Err(Errno::AGAIN | Errno::INTR) => Outcome::Failed,
                Err(e) => {
                    log_limited!(
                        self.refusals,
                        Level::Warn,
                        "Port {}: failed to connect to {id}: {e}",
                        self.local.port.id
                    );
                    match e {
                        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => {
                            Outcome::Failed
                        }
                        _ => Outcome::Refused,
                    }
                }
            };
            self.dials.ended(&id, outcome, now);
        }
    }

    fn calls_under_way(&self) -> usize {
        self.half_open()
            .filter(|connection| connection.role != Role::Callee)
            .count()
    }

    fn half_open(&self) -> impl Iterator<Item = &Connection> {
        self.connections
            .values()
            .filter(|connection| connection.up_since().is_none())
    }

    /// Starts the handshake on a new connection, if the process at the other end may join at all.
    fn start(&mut self, role: Role, socket: OwnedFd, now: Instant) {
        let key = PeerKey::next();
        let (credentials, rule) = match peer_and_rule(&socket, &self.directory) {
            Ok(both) => both,
            Err(e) => {
                let refusal = Refusal::resources(e);
                let connection = Connection::new(key, role, socket, None, now);
                return self.end(connection, End::Refused(refusal), now);
            }
        };
        let connection = Connection::new(key, role, socket, credentials.pid, now);
        if let Err(stranger) = rule.check(&credentials) {
            let refusal = Refusal::Stranger(stranger.to_string());
            return self.end(connection, End::Refused(refusal), now);
        }
        if connection.role == Role::Callee {
            self.make_room(now);
        }
        match self.poll.add(connection.fd(), key.get()) {
            Ok(()) => self.drive(connection, now),
            Err(e) => self.end(connection, End::Refused(Refusal::resources(e)), now),
        }
    }

    /// Drops a half-open caller if there are as many as there may be: the oldest of those that have
    /// not said who they are, or else the oldest.
    fn make_room(&mut self, now: Instant) {
        let callers = || {
            self.half_open()
                .filter(|connection| connection.role == Role::Callee)
        };
        if callers().count() < self.limits.max_half_open {
            return;
        }
        let oldest = callers().min_by_key(|caller| (caller.peer().is_some(), caller.started));
        if let Some(key) = oldest.map(|caller| caller.key.get())
            && let Some(connection) = self.connections.remove(&key)
        {
            self.stats.crowded_out += 1;
            let refusal = Refusal::Full("too many handshakes are under way".to_owned());
            self.end(connection, End::Refused(refusal), now);
        }
    }

    /// Moves a connection forward as far as it goes, and keeps it if it lives on.
    fn drive(&mut self, mut connection: Connection, now: Instant) {
        if let Err(refusal) = self.flush(&mut connection) {
            return self.end(connection, End::Refused(refusal), now);
        }
        for _ in 0..STEPS_PER_CALL {
            match connection.step(&self.local, now) {
                Step::Idle => break,
                Step::Progress => {}
                Step::Introduced(candidate) => {
                    let admitted = self
                        .room_for(&candidate, now)
                        .and_then(|()| connection.admit(&self.local, candidate))
                        .and_then(|()| self.flush(&mut connection));
                    if let Err(refusal) = admitted {
                        return self.end(connection, End::Refused(refusal), now);
                    }
                }
                Step::Up(link) => self.up(&connection, link),
                Step::Ended(end) => return self.end(connection, end, now),
                Step::Down(reason) => return self.down(&connection, reason, now),
            }
        }
        self.connections.insert(connection.key.get(), connection);
    }

    /// Sends what can be sent, and has the rest wait for room.
    fn flush(&self, connection: &mut Connection) -> Result<(), Refusal> {
        let wait = !connection.flush(&self.local)?;
        if wait != connection.watches_write {
            self.poll
                .watch_write(connection.fd(), connection.key.get(), wait)
                .map_err(Refusal::resources)?;
            connection.watches_write = wait;
        }
        Ok(())
    }

    /// Tells whether a peer that is valid as such can be let in beside the others.
    fn room_for(&mut self, peer: &Candidate, now: Instant) -> Result<(), Refusal> {
        let banned = |b: &&Banned| b.id == peer.id && b.incarnation == peer.incarnation;
        if let Some(banned) = self.banned.iter().find(banned) {
            return Err(Refusal::Banned(banned.reason.clone()));
        }
        self.reap(|other| other.id == peer.id || other.mac == peer.mac, now);
        for other in self.connections.values().filter_map(Connection::peer) {
            if other.id == peer.id {
                return Err(Refusal::IdTaken(peer.id.clone()));
            }
            if other.mac == peer.mac {
                return Err(Refusal::MacTaken {
                    mac: peer.mac,
                    holder: other.id.clone(),
                });
            }
        }
        let with = |cost: &dyn Fn(&Candidate) -> u64| -> u64 {
            let others = self.connections.values().filter_map(Connection::peer);
            others.chain([peer]).map(cost).sum()
        };
        let full = |what: &str, max: u64| Err(Refusal::Full(format!("more than {max} {what}")));
        let max_peers = self.limits.max_peers as u64;
        if with(&|_| 1) > max_peers {
            return full("peers", max_peers);
        }
        if with(&|peer| self.local.link_bytes(peer)) > self.limits.max_ring_bytes {
            return full("bytes of rings", self.limits.max_ring_bytes);
        }
        // A quarter is left to the rest of the process: guest memory, kicks, interrupts, log.
        let descriptors = rustix::process::getrlimit(Resource::Nofile).current;
        let max_fds = descriptors.map_or(u64::MAX, |limit| limit / 4 * 3);
        if with(&|peer| self.local.link_fds(peer)) > max_fds {
            return full("descriptors for links", max_fds);
        }
        Ok(())
    }

    /// Notices the end of those connections whose end has not come up as an event yet.
    fn reap(&mut self, which: impl Fn(&Candidate) -> bool, now: Instant) {
        let ended: Vec<u64> = self
            .connections
            .values()
            .filter(|connection| connection.peer().is_some_and(&which) && connection.has_ended())
            .map(|connection| connection.key.get())
            .collect();
        for key in ended {
            let Some(connection) = self.connections.remove(&key) else {
                continue;
            };
            match connection.up_since() {
                Some(_) => self.drive(connection, now),
                None => self.end(connection, End::Closed, now),
            }
        }
    }

    fn up(&mut self, connection: &Connection, link: PeerLink) {
        log_limited!(
            self.changes,
            Level::Info,
            "Port {}: link with {}, {}, is up",
            self.local.port.id,
            connection.name(),
            link.peer.mac
        );
        self.stats.up += 1;
        self.events.push(SegmentEvent::Up(link));
    }

    fn down(&mut self, connection: &Connection, reason: DownReason, now: Instant) {
        log_limited!(
            self.changes,
            Level::Info,
            "Port {}: link with {} is down: {}",
            self.local.port.id,
            connection.name(),
            WithSources(&reason)
        );
        let lived = connection
            .up_since()
            .map_or(Duration::ZERO, |since| now - since);
        let outcome = match reason {
            DownReason::Closed | DownReason::Socket(_) => Outcome::Lost(lived),
            DownReason::Refused(_) | DownReason::UnexpectedData => Outcome::Refused,
        };
        self.stats.down += 1;
        self.events.push(SegmentEvent::Down(connection.key, reason));
        self.call_ended(&connection.role, outcome, now);
    }

    /// A connection has come to nothing.
    fn end(&mut self, connection: Connection, end: End, now: Instant) {
        let own = &self.local.port.id;
        let outcome = match &end {
            End::Closed => {
                log::debug!(
                    "Port {own}: {} closed during the handshake",
                    connection.name()
                );
                Outcome::Failed
            }
            End::RefusedByPeer(text) => {
                self.stats.refused_by_peer += 1;
                log_limited!(
                    self.refusals,
                    Level::Warn,
                    "Port {own}: refused by {}: {text}",
                    connection.name()
                );
                Outcome::Refused
            }
            End::Refused(refusal) => {
                match refusal {
                    Refusal::Stranger(_) => self.stats.strangers += 1,
                    Refusal::Timeout(_) => self.stats.timeouts += 1,
                    _ => self.stats.refused += 1,
                }
                connection.refuse(refusal);
                log_limited!(
                    self.refusals,
                    Level::Warn,
                    "Port {own}: refused {}: {}",
                    connection.name(),
                    WithSources(refusal)
                );
                match refusal {
                    Refusal::Timeout(_) | Refusal::Resources(_) => Outcome::Failed,
                    Refusal::Banned(_) => Outcome::Parked,
                    _ => Outcome::Refused,
                }
            }
        };
        self.call_ended(&connection.role, outcome, now);
    }

    fn call_ended(&mut self, role: &Role, outcome: Outcome, now: Instant) {
        if let Role::Caller(id) = role {
            self.dials.ended(id, outcome, now);
        }
    }

    /// Ends handshakes that take too long.
    fn expire(&mut self, now: Instant) {
        let timeout = self.limits.handshake_timeout;
        let late: Vec<u64> = self
            .half_open()
            .filter(|connection| now.saturating_duration_since(connection.started) >= timeout)
            .map(|connection| connection.key.get())
            .collect();
        for key in late {
            if let Some(connection) = self.connections.remove(&key) {
                let refusal = Refusal::Timeout(timeout.as_millis());
                self.end(connection, End::Refused(refusal), now);
            }
        }
    }

    /// Sets the timer to the nearest deadline.
    fn arm(&mut self, now: Instant) -> io::Result<()> {
        let handshakes = self
            .half_open()
            .map(|c| c.started + self.limits.handshake_timeout)
            .min();
        // At the bound it is the end of a handshake that makes room for the next call.
        let room = self.calls_under_way() < self.limits.max_half_open;
        let call = if room { self.dials.next_due() } else { None };
        let next = [handshakes, call, self.accept_at, self.list_at]
            .into_iter()
            .flatten()
            .min();
        self.poll.wake_at(next, now)
    }

    fn directory_changed(&mut self, now: Instant) {
        let changes = self.watch.read().unwrap_or_else(|e| {
            log_limited!(
                self.refusals,
                Level::Error,
                "Failed to read directory changes: {e}"
            );
            vec![Change::Overflow]
        });
        for change in changes {
            match change {
                Change::Appeared(id) | Change::Vanished(id) if id == self.local.port.id => {
                    if !self.membership.is_ours() {
                        log_limited!(
                            self.refusals,
                            Level::Error,
                            "Port {id}: its socket was removed or replaced in {}; links stay, new \
                             peers will not find it",
                            self.directory.path().display()
                        );
                    }
                }
                // A change is only a reason to look; what counts is what is there now.
                Change::Appeared(id) | Change::Vanished(id) if id > self.local.port.id => {
                    self.look_at(&id, now);
                }
                Change::Appeared(_) | Change::Vanished(_) => {}
                Change::Overflow => self.list_at = Some(self.list_at.unwrap_or(now + PAUSE)),
                Change::DirectoryMoved => log_limited!(
                    self.refusals,
                    Level::Error,
                    "Port {}: segment directory {} has moved; links stay, new peers will not be \
                     found",
                    self.local.port.id,
                    self.directory.path().display()
                ),
            }
        }
    }

    /// Takes note of whether a port that we call has a socket, and which.
    fn look_at(&mut self, id: &PortId, now: Instant) {
        match self.directory.socket(id) {
            Some(socket) => {
                // A new socket means that its predecessor's process is gone.
                self.reap(|peer| peer.id == *id, now);
                if !self.dials.seen(id, socket, now) {
                    log_limited!(
                        self.refusals,
                        Level::Warn,
                        "Port {}: too many sockets in the segment directory, {id} is not called",
                        self.local.port.id
                    );
                }
            }
            None => self.dials.vanished(id),
        }
    }

    /// Lists the directory.
    fn list(&mut self, now: Instant) -> io::Result<()> {
        let found: BTreeMap<_, _> = self
            .directory
            .list(&self.local.port.id)?
            .into_iter()
            .collect();
        self.reap(|_| true, now);
        for id in self.dials.known() {
            if !found.contains_key(&id) {
                self.dials.vanished(&id);
            }
        }
        for (id, socket) in found {
            if !self.dials.seen(&id, socket, now) {
                log::warn!(
                    "Too many sockets in the segment directory, {id} and later are not called"
                );
                break;
            }
        }
        Ok(())
    }

    fn list_again(&mut self, now: Instant) {
        self.list_at = None;
        if let Err(e) = self.list(now) {
            log_limited!(
                self.refusals,
                Level::Warn,
                "Failed to list the segment directory: {e}"
            );
            self.list_at = Some(now + PAUSE);
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

fn peer_and_rule(
    socket: &OwnedFd,
    directory: &Directory,
) -> io::Result<(Credentials, crate::credentials::Rule)> {
    use std::os::fd::AsFd;
    Ok((Credentials::of_peer(socket.as_fd())?, directory.rule()?))
}

fn random() -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    // Eight bytes come whole or not at all.
    rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u64::from_le_bytes(bytes))
}
