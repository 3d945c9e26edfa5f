//! Admission of peers: accepts connections, checks the process at the other end, and enforces the
//! limits.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use log::Level;
use rustix::io::Errno;
use virtio_inter_common::{ErrorChain, PeerCredentials, PortId, log_limited, peer_pid_and_uid};
use zerocopy::IntoBytes;

use super::{LISTENER, PAUSE, Segment};
use crate::access_rule::AccessRule;
use crate::connection::{Connection, End};
use crate::deferred_close::{DeferredFd, Owner};
use crate::directory::Directory;
use crate::handshake::{Candidate, Refusal, Role};
use crate::pins::{Pins, of_others};
use crate::poll::Interest;
use crate::port::PeerKey;
use crate::socket;

/// Connections taken per call of [`Segment::process`].
const ACCEPTS_PER_CALL: usize = 16;
/// Packets in the queue of a connection that is refused at once that are looked at.
const REFUSED_QUEUE: usize = 32;

impl Segment {
    /// Takes new connections.
    pub(super) fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS_PER_CALL {
            if !self.may_accept() {
                return;
            }
            if self.closer.is_full() {
                return self.pause(&"too many descriptors wait to be closed", now);
            }
            match socket::accept(self.membership.listener()) {
                Ok(socket) => self.accepted(socket, now),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                // The connection stays in the queue, and the listener readable: look away for a
                // while instead of spinning.
                Err(e) => return self.pause(&e, now),
            }
        }
    }

    /// Starts the handshake on a connection that was accepted, unless its user makes too many.
    fn accepted(&mut self, socket: OwnedFd, now: Instant) {
        self.stats.accepted += 1;
        // Where the kernel does not say, one bucket has to do for all.
        let (pid, uid) = match peer_pid_and_uid(socket.as_fd()) {
            Ok((pid, uid)) => (pid, Some(uid)),
            Err(_) => (None, None),
        };
        if self.connect_rate.admit(uid, now) {
            return self.start(Role::Acceptor, socket, now);
        }
        self.stats.rate_limited += 1;
        let user = uid.map_or("unknown".to_owned(), |uid| uid.to_string());
        let refusal = Refusal::Busy(format!(
            "user {user} makes more than {} connections a second",
            self.connect_rate.per_second()
        ));
        let process = pid.map_or(String::new(), |pid| format!(" (process {pid})"));
        log_limited!(
            self.crowds,
            Level::Warn,
            "Port {}: user {user}{process} makes too many connections: refuses all but {} a second",
            self.local.port.id,
            self.connect_rate.per_second()
        );
        // The peer may have closed already.
        let _ = socket::send(socket.as_fd(), refusal.message().as_bytes(), &[]);
        let socket = DeferredFd::new(socket, Owner { uid, pid }, &self.closer);
        let packets = socket.close(REFUSED_QUEUE);
        if let Some(until) = self.connect_rate.refused(packets, now) {
            self.accept_at = Some(until);
            self.watch_listener();
            // Those whom the flood keeps out listen as well.
            self.list_later(now);
        }
    }

    /// Begins nothing new for a while.
    pub(super) fn pause(&mut self, why: &dyn Display, now: Instant) {
        log_limited!(
            self.refusals,
            Level::Warn,
            "Port {}: no new connections for {} ms: {why}",
            self.local.port.id,
            PAUSE.as_millis()
        );
        self.resume_at = Some(now + PAUSE);
        self.watch_listener();
    }

    /// Ends the pauses that are over.
    pub(super) fn resume(&mut self, now: Instant) {
        let is_over = |at: &mut Instant| *at <= now;
        let resumed = self.resume_at.take_if(is_over).is_some();
        if self.accept_at.take_if(is_over).is_some() || resumed {
            self.watch_listener();
        }
    }

    fn may_accept(&self) -> bool {
        self.resume_at.is_none() && self.accept_at.is_none()
    }

    /// Waits for connections, except during a pause.
    pub(super) fn watch_listener(&mut self) {
        let interest = Interest {
            read: self.may_accept(),
            write: false,
        };
        let listener = self.membership.listener();
        if let Err(e) = self.poll.watch(listener, LISTENER, interest) {
            log_limited!(
                self.refusals,
                Level::Error,
                "Failed to watch the listener: {e}"
            );
        }
    }

    /// Starts the handshake on a new connection, if the process at the other end may join at all.
    pub(super) fn start(&mut self, role: Role, socket: OwnedFd, now: Instant) {
        let key = PeerKey::next();
        let (credentials, rule) = match peer_and_rule(&socket, &self.directory) {
            Ok(both) => both,
            Err(e) => {
                let refusal = Refusal::resources(e);
                let owner = Owner::default();
                let connection = Connection::new(key, role, socket, owner, &self.closer, now);
                return self.end(connection, End::Refused(refusal), now);
            }
        };
        let owner = Owner {
            uid: Some(credentials.uid),
            pid: credentials.pid,
        };
        let connection = Connection::new(key, role, socket, owner, &self.closer, now);
        if let Err(unauthorized) = rule.check(&credentials) {
            let refusal = Refusal::Unauthorized(unauthorized.to_string());
            return self.end(connection, End::Refused(refusal), now);
        }
        if connection.role == Role::Acceptor {
            self.make_room(now);
        }
        match self.poll.add(connection.fd(), key.get()) {
            Ok(()) => self.drive(connection, now),
            Err(e) => self.end(connection, End::Refused(Refusal::resources(e)), now),
        }
    }

    /// Drops an accepted connection whose handshake is under way, if there are as many as there may
    /// be: the oldest of the process that has the most of them, as an honest process has one.
    pub(super) fn make_room(&mut self, now: Instant) {
        let accepted = || {
            self.half_open()
                .filter(|connection| connection.role == Role::Acceptor)
        };
        if accepted().count() < self.limits.max_accepting {
            return;
        }
        let mut counts: BTreeMap<_, usize> = BTreeMap::new();
        for connection in accepted() {
            *counts.entry(connection.owner).or_default() += 1;
        }
        let count =
            |connection: &Connection| counts.get(&connection.owner).copied().unwrap_or_default();
        let victim =
            accepted().min_by_key(|connection| (Reverse(count(connection)), connection.started));
        let Some(victim) = victim else { return };
        let (key, count) = (victim.key.get(), count(victim));
        if let Some(connection) = self.connections.remove(&key) {
            if count > 1 {
                log_limited!(
                    self.crowds,
                    Level::Warn,
                    "Port {}: {} handshakes are under way, which is the limit; {count} of them are \
                     with {}, which loses one for each that comes",
                    self.local.port.id,
                    self.limits.max_accepting,
                    connection.name()
                );
            }
            self.stats.crowded_out += 1;
            let refusal = Refusal::Busy("too many handshakes are under way".to_owned());
            self.end(connection, End::Refused(refusal), now);
        }
    }

    /// Tells whether a peer that is valid as such can be let in beside the others.
    pub(super) fn room_for(
        &mut self,
        connection: &Connection,
        peer: &Candidate,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.reap_rivals(peer, now);
        if let Some(other) = self.peer_named(&peer.id) {
            let id = peer.id.clone();
            return Err(if other.incarnation == peer.incarnation {
                Refusal::Duplicate(id)
            } else {
                Refusal::IdTaken(id)
            });
        }
        let rival = self.connections.with_mac(peer.mac);
        if let Some(other) = rival.and_then(Connection::peer) {
            return Err(Refusal::MacTaken {
                mac: peer.mac,
                holder: other.id.clone(),
            });
        }
        self.check_room_for_peer(connection)
    }

    /// Only root and the owner of the directory, who can read and change what passes between
    /// others, may run the uplink of others.
    pub(super) fn check_uplink(
        &self,
        connection: &Connection,
        peer: &Candidate,
    ) -> Result<(), Refusal> {
        let what = match peer.uplinks.shared {
            Some(_) => "an uplink",
            None if peer.trunk => "a trunk",
            None => return Ok(()),
        };
        let owner = self.directory.rule().map_err(Refusal::resources)?;
        match connection.owner.uid {
            Some(uid) if uid == 0 || uid == owner.directory_uid => Ok(()),
            uid => {
                let user = uid.map_or("unknown".to_owned(), |uid| uid.to_string());
                Err(Refusal::Unauthorized(format!(
                    "User {user} may not run {what} of this segment: only root and the owner of \
                     the directory may"
                )))
            }
        }
    }

    /// Checks that the segment's owner lets a port of this name have its address and its user. A
    /// trunk may not use what is others'.
    pub(super) fn check_pin(
        &self,
        connection: &Connection,
        peer: &mut Candidate,
    ) -> Result<(), Refusal> {
        // Without pins that hold nobody is let in.
        let pins = Pins::read(&self.directory);
        let pins = pins.map_err(|error| {
            Refusal::Unauthorized(format!("Pins of the segment: {}", ErrorChain(&error)))
        })?;
        let Some(pins) = pins else {
            return Ok(());
        };
        if peer.trunk {
            peer.barred = of_others(Some(&pins), &peer.id);
        }
        pins.check(&peer.id, peer.mac, &peer.allowed, connection.owner.uid)
            .map_err(|reason| Refusal::Unauthorized(format!("Pins of the segment: {reason}")))
    }

    /// Of two attempts of one pair that cross, that of the smaller id (compared bytewise) is used.
    /// Abandons this port's own attempt at a peer that connected to it, or refuses the peer's.
    pub(super) fn settle_crossing(&mut self, role: &Role, peer: &PortId) -> Result<(), Refusal> {
        if *role != Role::Acceptor {
            return Ok(());
        }
        let crosses = |c: &&Connection| matches!(&c.role, Role::Connector(id) if id == peer);
        let own = self.half_open().find(crosses).map(|own| own.key.get());
        if let Some(own) = own {
            if *peer > self.local.port.id {
                return Err(Refusal::Duplicate(peer.clone()));
            }
            if let Some(own) = self.connections.remove(&own) {
                self.poll.remove(own.fd());
            }
        }
        self.connector.accepted(peer);
        Ok(())
    }

    /// The peer tries again by itself, but rarely: this port connects to it when the reason for the
    /// refusal may be gone.
    pub(super) fn remember_turned_away(&mut self, connection: &Connection, refusal: &Refusal) {
        if matches!(refusal, Refusal::MacTaken { .. } | Refusal::Full(_))
            && connection.role == Role::Acceptor
            && let Some(id) = connection.id()
            && let Some(socket) = self.directory.socket(id)
        {
            self.connector.turned_away(id, socket);
        }
    }

    /// Notices the end of the peers that have this id or address, if it has not come up as an event
    /// yet.
    fn reap_rivals(&mut self, peer: &Candidate, now: Instant) {
        let rivals = [
            self.connections.with_id(&peer.id),
            self.connections.with_mac(peer.mac),
        ];
        let ended = rivals.into_iter().flatten().filter(|c| c.has_ended());
        let ended: Vec<u64> = ended.map(|connection| connection.key.get()).collect();
        self.close_ended(&ended, now);
    }

    /// Notices the end of all peers whose end has not come up as an event yet.
    pub(super) fn reap(&mut self, now: Instant) {
        let peers = self.connections.values().filter(|c| c.peer().is_some());
        let ended = peers.filter(|c| c.has_ended());
        let ended: Vec<u64> = ended.map(|connection| connection.key.get()).collect();
        self.close_ended(&ended, now);
    }

    fn close_ended(&mut self, keys: &[u64], now: Instant) {
        for key in keys {
            // One may be there twice.
            if let Some(connection) = self.connections.remove(key) {
                self.drive(connection, now);
            }
        }
    }

    /// Ends handshakes that take too long. If a message of the peer waits to be read, it is this
    /// port that is late. That cannot go on for ever: each message brings the handshake nearer to
    /// its end.
    pub(super) fn expire(&mut self, now: Instant) {
        let late: Vec<(u64, Duration)> = self
            .half_open()
            .filter_map(|connection| {
                let (allowed, deadline) = connection.deadline(&self.limits);
                let late = deadline <= now && !connection.has_input();
                late.then(|| (connection.key.get(), allowed))
            })
            .collect();
        for (key, allowed) in late {
            if let Some(connection) = self.connections.remove(&key) {
                let refusal = Refusal::Timeout(allowed.as_millis());
                self.end(connection, End::Refused(refusal), now);
            }
        }
    }

    /// Connections whose handshake is not over.
    pub(super) fn half_open(&self) -> impl Iterator<Item = &Connection> {
        self.connections.half_open()
    }
}

fn peer_and_rule(
    socket: &OwnedFd,
    directory: &Directory,
) -> io::Result<(PeerCredentials, AccessRule)> {
    Ok((PeerCredentials::of_peer(socket.as_fd())?, directory.rule()?))
}
