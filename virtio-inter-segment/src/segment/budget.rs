//! What peers and their links take of this port, in all and of each user, and how much that may be.

use rustix::process::Resource;

use super::Segment;
use crate::connection::Connection;
use crate::handshake::Refusal;
use crate::limits::{Usage, UsageOf};
use crate::port::LinkError;

/// Descriptors of an open ring: its doorbells.
const FDS_PER_RING: u64 = 2;
/// Descriptors that a ring has besides while it is handed over: its memfd.
const FDS_OF_NEW_RING: u64 = 1;

/// What some connections take.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    peers: u64,
    /// Bytes of the rings that this side sends on.
    ring_bytes: u64,
    /// In both directions.
    rings: u64,
    fds: u64,
}

impl Taken {
    fn add(&mut self, connection: &Connection) {
        let rings = connection.ring_count() as u64;
        self.peers += u64::from(connection.peer().is_some());
        self.ring_bytes += connection.sent_bytes();
        self.rings += rings;
        self.fds += 1 + FDS_PER_RING * rings;
    }
}

/// A limit, and what it is called when it is reached by all peers and by those of one user.
struct Limit {
    max: u64,
    of_all: &'static str,
    of_user: &'static str,
}

impl Segment {
    /// What peers and links take now, and may take.
    pub fn usage(&self) -> Usage {
        let mut taken = Taken::default();
        for connection in self.connections.values() {
            taken.add(connection);
        }
        let of = |used, max| UsageOf { used, max };
        Usage {
            peers: of(taken.peers, self.max_peers().max),
            link_memory: of(taken.ring_bytes, self.max_ring_bytes().max),
            rings: of(taken.rings, self.max_rings().max),
            user_share: self.limits.user_share,
        }
    }

    /// Whether a peer behind this connection can be beside the others.
    pub(super) fn check_room_for_peer(&self, connection: &Connection) -> Result<(), Refusal> {
        let (all, user) = self.taken(connection);
        self.fits(self.max_peers(), all.peers + 1, user.peers + 1)
            .and_then(|()| self.fits(self.max_fds(), all.fds + 1, user.fds + 1))
            .map_err(|(what, max)| Refusal::Full(format!("more than {max} {what}")))
    }

    /// Whether this side can make a ring of so many bytes for the peer of this connection.
    pub(super) fn check_room_to_send(
        &self,
        connection: &Connection,
        bytes: u64,
    ) -> Result<(), LinkError> {
        let (all, user) = self.taken(connection);
        let max = self.max_ring_bytes();
        self.fits(max, all.ring_bytes + bytes, user.ring_bytes + bytes)
            .and_then(|()| self.fits(self.max_rings(), all.rings + 1, user.rings + 1))
            .and_then(|()| {
                let new = FDS_PER_RING + FDS_OF_NEW_RING;
                self.fits(self.max_fds(), all.fds + new, user.fds + new)
            })
            .map_err(|(what, max)| LinkError::Full { what, max })
    }

    /// Whether a ring that the peer of this connection opens, and that is counted there already,
    /// can be beside the others. The connection is in hand.
    pub(super) fn check_room_to_receive(&self, connection: &Connection) -> Result<(), LinkError> {
        let (mut all, mut user) = self.taken(connection);
        for taken in [&mut all, &mut user] {
            taken.add(connection);
            taken.fds += FDS_OF_NEW_RING;
        }
        self.fits(self.max_rings(), all.rings, user.rings)
            .and_then(|()| self.fits(self.max_fds(), all.fds, user.fds))
            .map_err(|(what, max)| LinkError::Full { what, max })
    }

    /// What is taken by all connections, and by those of the user of this one.
    fn taken(&self, connection: &Connection) -> (Taken, Taken) {
        let (mut all, mut user) = (Taken::default(), Taken::default());
        for other in self.connections.values() {
            all.add(other);
            if other.owner.uid == connection.owner.uid {
                user.add(other);
            }
        }
        (all, user)
    }

    /// Whether so much, of all and of one user, is within a limit and a user's share of it.
    fn fits(&self, limit: Limit, all: u64, user: u64) -> Result<(), (&'static str, u64)> {
        let share = self.limits.share_of(limit.max);
        if all > limit.max {
            Err((limit.of_all, limit.max))
        } else if user > share {
            Err((limit.of_user, share))
        } else {
            Ok(())
        }
    }

    fn max_peers(&self) -> Limit {
        Limit {
            max: self.limits.max_peers as u64,
            of_all: "peers",
            of_user: "peers of one user",
        }
    }

    fn max_ring_bytes(&self) -> Limit {
        Limit {
            max: self.limits.max_ring_bytes,
            of_all: "bytes of rings",
            of_user: "bytes of rings to peers of one user",
        }
    }

    fn max_rings(&self) -> Limit {
        Limit {
            max: self.limits.max_rings as u64,
            of_all: "rings",
            of_user: "rings with peers of one user",
        }
    }

    /// Descriptors that links may take. A quarter is left to the rest of the process: guest memory,
    /// kicks, interrupts, log.
    fn max_fds(&self) -> Limit {
        let limit = rustix::process::getrlimit(Resource::Nofile).current;
        Limit {
            max: limit.map_or(u64::MAX, |limit| limit / 4 * 3),
            of_all: "descriptors for links",
            of_user: "descriptors for links with peers of one user",
        }
    }
}
