//! Finds the other ports of the segment, and connects to them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use log::Level;
use rustix::io::Errno;
use virtio_inter_common::{PortId, log_limited, peer_pid_and_uid};

use super::{PAUSE, Segment};
use crate::connection::Connection;
use crate::connector::AttemptOutcome;
use crate::directory::MAX_ENTRIES;
use crate::handshake::{Candidate, Role};
use crate::refused::RefusedPeer;
use crate::socket;

/// Longest pause before the directory is listed again, when there is a reason to each time.
const LAST_LIST_PAUSE: Duration = Duration::from_secs(30);

/// Attempts to connect per call of [`Segment::process`].
const ATTEMPTS_PER_CALL: usize = 16;

impl Segment {
    /// Connects to the peers whose time has come.
    pub(super) fn connect_due(&mut self, now: Instant) {
        for _ in 0..ATTEMPTS_PER_CALL {
            if self.closer.is_full() && self.resume_at.is_none() {
                self.pause(&"too many descriptors wait to be closed", now);
            }
            if self.may_connect_at(now, now) != Some(now) {
                return;
            }
            let Some(id) = self.connector.take_due(now) else {
                return;
            };
            // Never twice to one peer.
            if self.peer_named(&id).is_some() {
                self.connector.accepted(&id);
                continue;
            }
            self.window.begun(self.attempts().count(), now);
            let outcome = match socket::connect(&self.directory.socket_path(&id)) {
                // A user that breaks rules has as many connections as if it made them itself.
                Ok(socket) if self.is_in_debt(&socket, now) => AttemptOutcome::Failed,
                Ok(socket) => {
                    self.start(Role::Connector(id), socket, now);
                    continue;
                }
                // A dead port's file. Its successor will put another one in its place.
                Err(Errno::CONNREFUSED) => AttemptOutcome::WaitForNewSocket,
                Err(Errno::NOENT) => AttemptOutcome::Gone,
                Err(Errno::AGAIN) => AttemptOutcome::QueueFull,
                Err(Errno::INTR) => AttemptOutcome::Failed,
                Err(e) => {
                    log_limited!(
                        self.refusals,
                        Level::Warn,
                        "Port {}: failed to connect to {id}: {e}",
                        self.local.port.id
                    );
                    self.refused.add(RefusedPeer {
                        peer: Some(id.clone()),
                        pid: None,
                        by_peer: false,
                        is_conflict: false,
                        reason: format!("Failed to connect to its socket: {e}"),
                        count: 1,
                        when: SystemTime::now(),
                    });
                    match e {
                        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => {
                            AttemptOutcome::Failed
                        }
                        _ => AttemptOutcome::Refused,
                    }
                }
            };
            if matches!(
                outcome,
                AttemptOutcome::WaitForNewSocket | AttemptOutcome::Gone
            ) {
                self.refused.remove(&id);
            }
            self.connector.ended(&id, outcome, now);
        }
    }

    /// Whether the user behind this connection has broken so many rules that there is to be none.
    fn is_in_debt(&mut self, socket: &OwnedFd, now: Instant) -> bool {
        let uid = peer_pid_and_uid(socket.as_fd()).ok().map(|(_, uid)| uid);
        self.connect_rate.is_in_debt(uid, now)
    }

    /// When another attempt that is due then may begin, if it need not wait for the end of a
    /// handshake.
    pub(super) fn may_connect_at(&self, due: Instant, now: Instant) -> Option<Instant> {
        if self.resume_at.is_some() || self.attempts().count() >= self.limits.max_connecting {
            return None;
        }
        let attempts = self.attempts().map(|connection| connection.started);
        if self.window.is_open(attempts, now) {
            Some(due)
        } else {
            Some(due.max(self.window.opens_at(now)))
        }
    }

    /// Handshakes under way that this port began.
    fn attempts(&self) -> impl Iterator<Item = &Connection> {
        self.half_open()
            .filter(|connection| connection.role != Role::Acceptor)
    }

    /// A connection is over: plans the next attempt.
    pub(super) fn connection_ended(
        &mut self,
        connection: &Connection,
        outcome: AttemptOutcome,
        now: Instant,
    ) {
        match (&connection.role, connection.peer()) {
            (Role::Connector(id), _) => self.connector.ended(id, outcome, now),
            (Role::Acceptor, Some(peer)) => self.connector.accepted_ended(&peer.id, outcome, now),
            // Whoever it was, it is for that side to try again.
            (Role::Acceptor, None) => {}
        }
    }

    /// The peer of this id, if its link is up.
    pub(super) fn peer_named(&self, id: &PortId) -> Option<&Candidate> {
        self.connections.with_id(id)?.peer()
    }

    /// Lists the directory.
    pub(super) fn list(&mut self, now: Instant) -> io::Result<()> {
        self.listed_at = now;
        let (found, truncated) = self.directory.list(&self.local.port.id)?;
        if truncated {
            log_limited!(
                self.refusals,
                Level::Warn,
                "Segment directory {} has more than {MAX_ENTRIES} entries, the rest is not seen",
                self.directory.path().display()
            );
        }
        let found: BTreeMap<_, _> = found.into_iter().collect();
        self.reap(now);
        self.forget_refused();
        for id in self.connector.known() {
            if !found.contains_key(&id) {
                self.connector.vanished(&id);
            }
        }
        for (id, socket) in found {
            // Who has connected to this port tries again itself.
            if self.peer_named(&id).is_some() && !self.connector.knows(&id) {
                continue;
            }
            if !self.connector.seen(&id, socket, now) {
                log_limited!(
                    self.refusals,
                    Level::Warn,
                    "Too many sockets in the segment directory, no connection to {id} and later \
                     ids yet"
                );
                self.list_later(now);
                break;
            }
        }
        Ok(())
    }

    /// Forgets the refused peers that have left.
    pub(super) fn forget_refused(&mut self) {
        let directory = &self.directory;
        self.refused.retain(|id| directory.socket(id).is_some());
    }

    pub(super) fn list_again(&mut self, now: Instant) {
        self.list_at = None;
        if let Err(e) = self.list(now) {
            log_limited!(
                self.refusals,
                Level::Warn,
                "Failed to list the segment directory: {e}"
            );
            self.list_later(now);
        }
    }

    /// Has the directory listed again, the sooner the longer the last time is ago: who changes it
    /// without end is not to keep this port busy.
    pub(super) fn list_later(&mut self, now: Instant) {
        if self.list_at.is_some() {
            return;
        }
        if now.saturating_duration_since(self.listed_at) > 2 * LAST_LIST_PAUSE {
            self.list_pause = PAUSE;
        }
        self.list_at = Some(now + self.list_pause);
        self.list_pause = (self.list_pause * 2).min(LAST_LIST_PAUSE);
    }
}
