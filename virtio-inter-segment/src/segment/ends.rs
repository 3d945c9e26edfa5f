//! The ends of connections, before and after the link was up: when to connect to the peer again,
//! and what is logged and remembered of a refusal.

use std::time::Instant;

use log::Level;
use virtio_inter_common::{ErrorChain, log_limited};

use super::Segment;
use crate::connection::{Connection, End};
use crate::connector::AttemptOutcome;
use crate::handshake::{Refusal, Role};
use crate::port::{DownReason, SegmentEvent};
use crate::refused::RefusedPeer;
use crate::wire::{
    REASON_DUPLICATE, REASON_FULL, REASON_ID, REASON_MAC, REASON_RESOURCES, REASON_TIMEOUT,
};

impl Segment {
    pub(super) fn down(&mut self, connection: &Connection, reason: DownReason, now: Instant) {
        self.poll.remove(connection.fd());
        log_limited!(
            self.changes,
            Level::Info,
            "Port {}: link with {} is down: {}",
            self.local.port.id,
            connection.name(),
            ErrorChain(&reason)
        );
        let lived = connection.lived(now);
        let outcome = match reason {
            DownReason::Closed
            | DownReason::NoResources(_)
            | DownReason::OwnResources(_)
            | DownReason::Socket(_) => AttemptOutcome::Lost(lived),
            // The peer refuses links that are up for violations only.
            DownReason::Refused(_) | DownReason::Violation(_) => AttemptOutcome::Violation,
        };
        let uid = connection.owner.uid;
        match reason {
            DownReason::Violation(_) => self.connect_rate.punish(uid, now),
            _ => self.connect_rate.left(uid, connection.ring_cost()),
        }
        self.stats.down += 1;
        if let DownReason::Refused(text) = &reason {
            self.refused
                .add(RefusedPeer::by_peer(connection, text, false));
        }
        self.events.push(SegmentEvent::Down(connection.key, reason));
        // What this peer had, its address above all, may have been in the way of another. Its own
        // next attempt keeps its pause.
        self.connector.retry_refused(now);
        self.connection_ended(connection, outcome, now);
    }

    /// A connection has come to nothing, or has to end.
    pub(super) fn end(&mut self, connection: Connection, end: End, now: Instant) {
        if connection.up_since().is_some() {
            let reason = match end {
                End::Closed => DownReason::Closed,
                End::RefusedByPeer { text, .. } => DownReason::Refused(text),
                End::Refused(refusal) => {
                    connection.refuse(&refusal);
                    match refusal {
                        Refusal::Resources(text) => DownReason::OwnResources(text),
                        refusal => DownReason::Violation(refusal.to_string()),
                    }
                }
            };
            return self.down(&connection, reason, now);
        }
        self.poll.remove(connection.fd());
        let own = &self.local.port.id;
        let outcome = match &end {
            End::Closed => {
                log::debug!(
                    "Port {own}: {} closed during the handshake",
                    connection.name()
                );
                AttemptOutcome::Failed
            }
            End::RefusedByPeer { reason, .. } if *reason == REASON_DUPLICATE => {
                log::debug!("Port {own}: {} connects itself", connection.name());
                AttemptOutcome::Duplicate
            }
            End::RefusedByPeer {
                reason,
                text,
                versions,
            } => {
                self.stats.refused_by_peer += 1;
                let outcome = match *reason {
                    REASON_RESOURCES => AttemptOutcome::Failed,
                    REASON_TIMEOUT => AttemptOutcome::TimedOut,
                    REASON_FULL => AttemptOutcome::Full,
                    _ => AttemptOutcome::Refused,
                };
                if outcome != AttemptOutcome::Refused && !self.keeps_failing(&connection.role) {
                    log::debug!("Port {own}: put off by {}: {text:?}", connection.name());
                } else {
                    let line = format!(
                        "refused by {}: {text:?}, speaks version {versions}",
                        connection.name()
                    );
                    let is_conflict = [REASON_ID, REASON_MAC].contains(reason);
                    self.note_refused(RefusedPeer::by_peer(&connection, text, is_conflict), &line);
                }
                outcome
            }
            End::Refused(refusal @ Refusal::Duplicate(_)) => {
                log::debug!("Port {own}: {} connected twice", connection.name());
                connection.refuse(refusal);
                AttemptOutcome::Duplicate
            }
            End::Refused(refusal) => {
                match refusal {
                    Refusal::Unauthorized(_) => self.stats.unauthorized += 1,
                    Refusal::Timeout(_) => self.stats.timeouts += 1,
                    _ => self.stats.refused += 1,
                }
                connection.refuse(refusal);
                self.remember_turned_away(&connection, refusal);
                let own = &self.local.port.id;
                let passing = match refusal {
                    Refusal::Busy(_) => true,
                    Refusal::Timeout(_) => {
                        connection.role != Role::Acceptor && !self.keeps_failing(&connection.role)
                    }
                    _ => false,
                };
                if passing {
                    log::debug!("Port {own}: put off {}: {refusal}", connection.name());
                } else {
                    let text = ErrorChain(refusal).to_string();
                    let refused = RefusedPeer {
                        by_peer: false,
                        ..RefusedPeer::by_peer(&connection, &text, refusal.is_conflict())
                    };
                    let line = format!("refused {}: {text}", connection.name());
                    self.note_refused(refused, &line);
                }
                match refusal {
                    Refusal::Timeout(_) => AttemptOutcome::TimedOut,
                    Refusal::Full(_) => AttemptOutcome::Full,
                    Refusal::Busy(_) | Refusal::Resources(_) => AttemptOutcome::Failed,
                    _ => AttemptOutcome::Refused,
                }
            }
        };
        self.connection_ended(&connection, outcome, now);
    }

    /// Keeps and logs that there is no link. A conflict comes again with each attempt for as long
    /// as both ports are there: it is logged once.
    fn note_refused(&mut self, refused: RefusedPeer, line: &str) {
        let is_conflict = refused.is_conflict;
        let is_new = self.refused.add(refused);
        let own = &self.local.port.id;
        if is_conflict && !is_new {
            log::debug!("Port {own}: {line}");
        } else {
            log_limited!(self.refusals, Level::Warn, "Port {own}: {line}");
        }
    }

    /// Whether this port is the connector, and earlier attempts failed too. Where many ports start
    /// at once, each may be too busy for another for a moment, and the next attempt succeeds. The
    /// connector warns if it does not.
    fn keeps_failing(&self, role: &Role) -> bool {
        matches!(role, Role::Connector(id) if self.connector.keeps_failing(id))
    }
}
