//! The peers with which there is no link because one side refused the other: for whoever looks why.

use std::time::{Duration, SystemTime};

use virtio_inter_common::PortId;

use crate::connection::Connection;

/// Time after which a port that wanted another one's id is forgotten.
const OLD: Duration = Duration::from_mins(10);
/// Most that are remembered; the one that was refused longest ago gives way.
const MAX_REFUSED: usize = 32;

/// A peer that one side refused, and that has neither got a link nor left the segment since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedPeer {
    /// Its name; None: it did not get as far as saying it.
    pub peer: Option<PortId>,
    /// Its process, as far as it is known.
    pub pid: Option<u32>,
    /// The peer refused this port, not this port the peer.
    pub by_peer: bool,
    /// Both sides, or two peers, have one name or one address.
    pub is_conflict: bool,
    /// Why, in the words of whoever refused, without control characters.
    pub reason: String,
    /// How often it happened.
    pub count: u64,
    /// When it happened last.
    pub when: SystemTime,
}

impl RefusedPeer {
    /// Describes a peer that refused this port with these words.
    pub(crate) fn by_peer(connection: &Connection, text: &str, is_conflict: bool) -> RefusedPeer {
        RefusedPeer {
            peer: connection.id().cloned(),
            pid: connection.pid(),
            by_peer: true,
            is_conflict,
            // For terminals: the text may be the peer's.
            reason: text.replace(char::is_control, "?"),
            count: 1,
            when: SystemTime::now(),
        }
    }
}

/// All of them, the latest last.
#[derive(Debug, Default)]
pub(crate) struct RefusedPeers {
    all: Vec<RefusedPeer>,
}

impl RefusedPeers {
    /// Adds one, or counts it if it is known. False: it is.
    pub(crate) fn add(&mut self, mut new: RefusedPeer) -> bool {
        let known = self.all.iter().position(|old| {
            (&old.peer, old.by_peer, &old.reason) == (&new.peer, new.by_peer, &new.reason)
        });
        if let Some(known) = known {
            new.count += self.all.remove(known).count;
        } else if self.all.len() == MAX_REFUSED {
            self.all.remove(0);
        }
        self.all.push(new);
        known.is_none()
    }

    /// There is a link with this peer now, or it has left.
    pub(crate) fn remove(&mut self, peer: &PortId) {
        self.all.retain(|old| old.peer.as_ref() != Some(peer));
    }

    /// Drops those whose port is not there any more. One without a name stays.
    pub(crate) fn retain(&mut self, is_there: impl Fn(&PortId) -> bool) {
        self.all
            .retain(|old| old.peer.as_ref().is_none_or(&is_there));
    }

    /// Drops those that had this id, and have not tried again for [`OLD`].
    pub(crate) fn forget_old(&mut self, id: &PortId) {
        let is_old = |old: &RefusedPeer| old.when.elapsed().is_ok_and(|age| age > OLD);
        self.all
            .retain(|old| old.peer.as_ref() != Some(id) || !is_old(old));
    }

    pub(crate) fn as_slice(&self) -> &[RefusedPeer] {
        &self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(peer: &str, reason: &str) -> RefusedPeer {
        RefusedPeer {
            peer: Some(peer.parse().unwrap()),
            pid: None,
            by_peer: false,
            is_conflict: false,
            reason: reason.to_owned(),
            count: 1,
            when: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn refused_peers_are_counted_and_forgotten() {
        let mut peers = RefusedPeers::default();
        assert!(peers.add(refused("a", "x")));
        assert!(peers.add(refused("a", "y")));
        assert!(peers.add(refused("b", "x")));
        assert!(!peers.add(refused("a", "x")));
        let seen: Vec<_> = peers
            .as_slice()
            .iter()
            .map(|p| (&p.reason, p.count))
            .collect();
        assert_eq!(
            seen,
            [
                (&"y".to_owned(), 1),
                (&"x".to_owned(), 1),
                (&"x".to_owned(), 2)
            ]
        );
        peers.remove(&"a".parse().unwrap());
        assert_eq!(peers.as_slice(), [refused("b", "x")]);
        let unnamed = RefusedPeer {
            peer: None,
            ..refused("c", "x")
        };
        peers.add(unnamed.clone());
        peers.add(refused("c", "x"));
        peers.retain(|peer| peer.as_str() == "c");
        assert_eq!(peers.as_slice(), [unnamed, refused("c", "x")]);
    }

    #[test]
    fn refused_peers_that_wanted_an_id_in_use_are_forgotten_in_time() {
        let mut peers = RefusedPeers::default();
        peers.add(refused("a", "old"));
        peers.add(RefusedPeer {
            when: SystemTime::now(),
            ..refused("a", "new")
        });
        peers.add(refused("b", "old"));
        peers.forget_old(&"a".parse().unwrap());
        let left: Vec<_> = peers
            .as_slice()
            .iter()
            .map(|peer| &peer.reason[..])
            .collect();
        assert_eq!(left, ["new", "old"]);
    }

    #[test]
    fn refused_peers_are_bounded() {
        let mut peers = RefusedPeers::default();
        for number in 0..100 {
            peers.add(refused("a", &number.to_string()));
        }
        assert_eq!(peers.as_slice().len(), MAX_REFUSED);
        assert_eq!(peers.as_slice()[MAX_REFUSED - 1].reason, "99");
    }
}
