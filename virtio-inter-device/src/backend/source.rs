//! The source addresses that the sender of a record may use.

use std::fmt;

use virtio_inter_common::{Guard, MacAddr};

use super::link::{Forwarding, PeerAddresses};

/// The source addresses that the sender of a record may use.
#[derive(Clone, Copy)]
pub struct RxSource<'a>(Source<'a>);

#[derive(Clone, Copy)]
enum Source<'a> {
    Any,
    Only(MacAddr),
    Peer(&'a PeerAddresses, &'a Forwarding),
}

impl<'a> RxSource<'a> {
    /// All, as they were checked before or nobody checks them.
    pub fn any() -> Self {
        RxSource(Source::Any)
    }

    /// This one.
    pub fn only(address: MacAddr) -> Self {
        RxSource(Source::Only(address))
    }

    /// Those of a peer, of which `table` learns.
    pub(super) fn peer(peer: &'a PeerAddresses, table: &'a Forwarding) -> Self {
        RxSource(Source::Peer(peer, table))
    }

    /// Whether this is one of them.
    #[inline]
    pub fn admits(&self, source: MacAddr) -> bool {
        match self.0 {
            Source::Any => true,
            Source::Only(address) => address == source,
            Source::Peer(peer, table) => table.admits(peer, source),
        }
    }

    /// What the sender must not send. None: nothing is forbidden, or it was checked before.
    #[inline]
    pub(crate) fn guard(&self) -> Option<&'a Guard> {
        match self.0 {
            Source::Peer(peer, _) if !peer.guard.is_off() => Some(&peer.guard),
            _ => None,
        }
    }
}

impl fmt::Debug for RxSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Source::Any => f.write_str("any"),
            Source::Only(address) => address.fmt(f),
            Source::Peer(peer, _) => peer.fmt(f),
        }
    }
}
