//! What a port says of itself, and what the segment tells it of its peers.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;
use virtio_inter_common::{
    Guard, IpSetError, MAX_IP_SETS, MAX_MAC_SETS, MAX_QUEUE_PAIRS, MacAddr, MacError, MacSetError,
    MacSets, PortId,
};
use virtio_inter_link::{
    DEFAULT_CAPACITY, MAX_CAPACITY, MIN_CAPACITY, Receiver, ReceiverPage, RegionError, Sender,
};

/// Smallest MTU: what every IPv4 host must be able to forward (RFC 791, section 3.2), in bytes.
pub const MIN_MTU: u16 = 68;

/// What a port has to do with networks outside of its segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplinks {
    /// Name of the network that an uplink of its own is on; `None`: it has none. Ports whose
    /// uplinks are on one network hear each other's multicast frames there.
    pub network: Option<PortId>,
    /// It is the uplink of ports that have none, with this priority; `None`: it is the port of a
    /// guest. Of several, the ports use that of the highest priority.
    pub shared: Option<u16>,
}

/// A port, as its owner describes it when it joins a segment.
#[derive(Clone, Debug)]
pub struct LocalPort {
    /// Unique on the segment.
    pub id: PortId,
    /// The guest's address.
    pub mac: MacAddr,
    /// Largest IP packet, without the Ethernet header, in bytes: 68 to 65535.
    pub mtu: u16,
    /// Queue pairs: 1 to [`MAX_QUEUE_PAIRS`].
    pub queues: u16,
    /// Largest data area of a ring that this port makes or opens, in bytes: a power of two, from
    /// [`MIN_CAPACITY`] to [`MAX_CAPACITY`].
    pub ring_capacity: u32,
    /// Its uplinks.
    pub uplinks: Uplinks,
    /// Addresses that its guest may use beside `mac`: at most [`MAX_MAC_SETS`] sets.
    pub allowed: MacSets,
    /// What its guest must not send; at most [`MAX_IP_SETS`] sets of IP addresses.
    pub guard: Guard,
    /// Its guest may use any address that no other port has or lists: root and the owner of the
    /// segment's directory alone may have such a port.
    pub trunk: bool,
}

/// What is wrong with the description of a port, ours or a peer's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PortError {
    /// Multicast or zero.
    #[error(transparent)]
    Mac(#[from] MacError),
    /// Below what IPv4 needs.
    #[error("MTU is {0}, allowed are {MIN_MTU} to 65535")]
    Mtu(u16),
    /// None or too many.
    #[error("Number of queue pairs is {0}, allowed are 1 to {MAX_QUEUE_PAIRS}")]
    Queues(u16),
    /// Out of bounds, or not a power of two.
    #[error(
        "Ring capacity is {0} bytes, allowed are powers of two from {MIN_CAPACITY} to \
         {MAX_CAPACITY}"
    )]
    RingCapacity(u32),
    /// Too many.
    #[error("List of further MAC addresses is not valid")]
    Allowed(#[source] MacSetError),
    /// Too many.
    #[error("List of IP addresses is not valid")]
    Ips(#[source] IpSetError),
}

pub(crate) fn check_port(
    mac: MacAddr,
    mtu: u16,
    queues: u16,
    ring_capacity: u32,
) -> Result<(), PortError> {
    mac.check_port()?;
    if mtu < MIN_MTU {
        return Err(PortError::Mtu(mtu));
    }
    if !(1..=MAX_QUEUE_PAIRS).contains(&queues) {
        return Err(PortError::Queues(queues));
    }
    if !ring_capacity.is_power_of_two() || !(MIN_CAPACITY..=MAX_CAPACITY).contains(&ring_capacity) {
        return Err(PortError::RingCapacity(ring_capacity));
    }
    Ok(())
}

impl LocalPort {
    /// A port with an MTU of 1500 bytes, one queue pair and rings of the default size, without an
    /// uplink. Its guest may use `mac` alone.
    pub fn new(id: PortId, mac: MacAddr) -> Self {
        LocalPort {
            id,
            mac,
            mtu: 1500,
            queues: 1,
            ring_capacity: DEFAULT_CAPACITY,
            uplinks: Uplinks::default(),
            allowed: MacSets::default(),
            guard: Guard::default(),
            trunk: false,
        }
    }

    pub(crate) fn check(&self) -> Result<(), PortError> {
        check_port(self.mac, self.mtu, self.queues, self.ring_capacity)?;
        match self.allowed.iter().count() {
            count if count > MAX_MAC_SETS => {
                return Err(PortError::Allowed(MacSetError::TooMany(count)));
            }
            _ => {}
        }
        match self.guard.ips.iter().count() {
            count if count > MAX_IP_SETS => Err(PortError::Ips(IpSetError::TooMany(count))),
            _ => Ok(()),
        }
    }
}

/// Names one incarnation of a peer: a port that leaves and comes back has another key. Unique
/// within this process, over all its segments, and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(u64);

impl PeerKey {
    /// The next unused key of this process.
    pub fn next() -> PeerKey {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Relaxed: only uniqueness counts.
        PeerKey(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A peer, as it described itself. The values are checked; that the peer keeps to them is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// This incarnation of the peer.
    pub key: PeerKey,
    /// Its name.
    pub id: PortId,
    /// Its guest's address: unicast, and no live peer's or our own.
    pub mac: MacAddr,
    /// Its MTU, in bytes as in [`LocalPort::mtu`].
    pub mtu: u16,
    /// Its queue pairs, 1 to [`MAX_QUEUE_PAIRS`].
    pub queues: u16,
    /// Largest data area of a ring to it, in bytes.
    pub ring_capacity: u32,
    /// Its uplinks. A shared one is run by root or the owner of the segment's directory.
    pub uplinks: Uplinks,
    /// Addresses that its guest may use beside `mac`, unless another port has one as its `mac`.
    pub allowed: MacSets,
    /// What its guest must not send, as it says.
    pub guard: Guard,
    /// Its guest may use any address that no other port has or lists: those that it does use come
    /// as events.
    pub trunk: bool,
    /// Addresses that no guest of a trunk may use: the segment's owner has pinned them to others.
    pub barred: MacSets,
    /// It has no guest now: who sends to its address may find the guest on another host.
    pub away: bool,
}

/// A ring that a queue pair of this port sends on.
#[derive(Debug)]
pub struct OpenedLink {
    /// Names it among the rings to the same peer.
    pub number: u64,
    /// The sending end. It can be sent on at once.
    pub sender: Sender,
}

/// Why a ring to a peer cannot be made now.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// There is no such peer any more.
    #[error("Peer is gone")]
    NoPeer,
    /// The peer still has to read two former rings of the queue pair.
    #[error("Peer has not read two former rings")]
    Busy,
    /// A limit is reached.
    #[error("No room: more than {max} {what}")]
    Full {
        /// Of what there would be too much.
        what: &'static str,
        /// The limit.
        max: u64,
    },
    /// The kernel refuses memory for it.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The kernel refuses descriptors for it.
    #[error("Cannot create a doorbell")]
    Doorbell(#[from] io::Error),
}

/// Why a peer went away.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DownReason {
    /// It left, or it died.
    #[error("Peer closed the connection")]
    Closed,
    /// It said so, after its side of the handshake had ended.
    #[error("Peer refused the link: {0:?}")]
    Refused(String),
    /// It failed to keep the link for a reason of its own that may pass: the connector tries again
    /// soon.
    #[error("Peer lacks resources for the link: {0:?}")]
    NoResources(String),
    /// It broke the protocol.
    #[error("Peer violated the protocol: {0}")]
    Violation(String),
    /// This side lacks a resource without which the connection is of no use.
    #[error("Out of resources: {0}")]
    OwnResources(String),
    /// The socket failed.
    #[error("Failed to read from the peer's connection")]
    Socket(#[source] io::Error),
}

/// What happened on the segment.
#[derive(Debug)]
pub enum SegmentEvent {
    /// A peer is there, and frames can flow: as single records by
    /// [`Segment::send_frame`](crate::Segment::send_frame), or by rings from
    /// [`Segment::open_link`](crate::Segment::open_link).
    Up(PeerInfo),
    /// A peer sends on a ring from now on, if it has one for that queue pair already: when it has
    /// closed that one.
    Link {
        /// The peer.
        peer: PeerKey,
        /// Its queue pair.
        queue: u16,
        /// Names the ring, for [`Segment::finish_link`](crate::Segment::finish_link).
        number: u64,
        /// The receiving end.
        receiver: Receiver,
    },
    /// A peer reads a ring of this port: to be passed to [`Sender::attach`].
    Accepted {
        /// The peer.
        peer: PeerKey,
        /// The queue pair of this port that sends on it.
        queue: u16,
        /// The ring.
        number: u64,
        /// The peer's answer.
        page: ReceiverPage,
    },
    /// A peer does not read a ring of this port any more.
    LinkDone {
        /// The peer.
        peer: PeerKey,
        /// The queue pair of this port that sent on it.
        queue: u16,
        /// The ring.
        number: u64,
        /// The peer has not taken it: nothing of it was read.
        declined: bool,
    },
    /// A record that a peer sent without a ring.
    Frame {
        /// The peer.
        peer: PeerKey,
        /// The record: not checked.
        record: Box<[u8]>,
    },
    /// The guest of a peer has come or gone.
    Guest {
        /// The peer.
        peer: PeerKey,
        /// It has gone.
        away: bool,
    },
    /// The addresses that a trunk's guest uses now, in place of the former ones: at most
    /// [`MAX_TRUNK_ADDRESSES`](crate::MAX_TRUNK_ADDRESSES).
    Addresses {
        /// The trunk.
        peer: PeerKey,
        /// The addresses: unicast, and none that is zero.
        addresses: Vec<MacAddr>,
    },
    /// A peer that was up is gone. Whatever it had sent before is still in the receivers.
    Down(PeerKey, DownReason),
    /// [`Segment::lost`](crate::Segment::lost) has another answer.
    FilesChanged,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr::new([0x52, 0x54, 0, 0, 0, 1]);

    #[test]
    fn bounds_of_a_port() {
        assert_eq!(check_port(MAC, 68, 1, MIN_CAPACITY), Ok(()));
        assert_eq!(
            check_port(MAC, 65535, MAX_QUEUE_PAIRS, MAX_CAPACITY),
            Ok(())
        );
        let error = |mac, mtu, queues, capacity| {
            check_port(mac, mtu, queues, capacity)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            error(MAC, 67, 1, MIN_CAPACITY),
            "MTU is 67, allowed are 68 to 65535"
        );
        let queues = "Number of queue pairs is 0, allowed are 1 to 64";
        assert_eq!(error(MAC, 68, 0, MIN_CAPACITY), queues);
        assert!(matches!(
            check_port(MAC, 68, 65, MIN_CAPACITY),
            Err(PortError::Queues(65))
        ));
        for capacity in [
            0,
            MIN_CAPACITY / 2,
            MIN_CAPACITY + 4096,
            MAX_CAPACITY * 2,
            u32::MAX,
        ] {
            let result = check_port(MAC, 68, 1, capacity);
            assert_eq!(result, Err(PortError::RingCapacity(capacity)));
        }
        let broadcast = check_port(MacAddr::BROADCAST, 68, 1, MIN_CAPACITY);
        assert!(matches!(
            broadcast,
            Err(PortError::Mac(MacError::Multicast(_)))
        ));
    }

    #[test]
    fn keys_are_never_reused() {
        assert_ne!(PeerKey::next(), PeerKey::next());
    }
}
