//! The control thread's view of links: which peers have a ring, and the frames for those without.
//!
//! Such frames go through a ring within the process, the *flood*, one for each worker. Whether a
//! peer has a ring changes at a position of the flood that the worker names: so each frame reaches
//! a peer once, by its ring or without one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_inter_common::{MacAddr, MacSets};
use virtio_inter_link::{
    Doorbell, PairError, Receiver, ReceiverPage, RegionError, RingGauge, SMALL_CAPACITY, Sender,
    pair, pair_with,
};
use virtio_inter_segment::{LocalPort, PeerInfo, PeerKey};

use crate::backend::{
    Forwarding, Holder, Holders, Learned, LinkTraffic, NewPeer, PeerAddresses, PeerTraffic,
    RingFill, RxLink, RxLinkId, RxRing,
};
use crate::device::DeviceError;
use crate::frame::NET_HEADER;
use crate::guard;

/// Frames taken out of each flood before the control thread does something else.
const FLOOD_BATCH: usize = 64;

/// What links want of the process.
#[derive(Debug)]
pub enum LinkEvent {
    /// Queue pair `queue` wants a ring to a peer: [`Port::set_ring`](crate::Port::set_ring) or
    /// [`Port::set_no_ring`](crate::Port::set_no_ring).
    Wanted {
        /// The peer.
        peer: PeerKey,
        /// The queue pair.
        queue: u16,
        /// Size of the ring's data area in bytes, at most.
        capacity: u32,
    },
    /// A ring of a peer was read to its end.
    Finished {
        /// The peer.
        peer: PeerKey,
        /// The ring.
        number: u64,
    },
    /// The guest of a trunk sends from an address that is not known to be its:
    /// [`Port::set_used`](crate::Port::set_used).
    Learn(MacAddr),
    /// A multicast frame for peers without a ring. For each that cannot get it, call
    /// [`Port::flood_lost`](crate::Port::flood_lost).
    Flood {
        /// The peers.
        peers: Vec<PeerKey>,
        /// The queue pair that sent it.
        queue: u16,
        /// The record.
        record: Vec<u8>,
    },
}

/// What the control thread knows of a peer.
#[derive(Debug)]
pub(super) struct Peer {
    addresses: PeerAddresses,
    traffic: Arc<PeerTraffic>,
    /// The queue pairs that have a ring to it, or wait for one: a bit set by index.
    pub(super) with_ring: u64,
    /// The rings to it that are in use, by queue pair.
    gauges: BTreeMap<u16, Gauge>,
}

/// A ring's number, and its fill.
#[derive(Debug)]
struct Gauge {
    number: u64,
    ring: RingGauge,
}

/// The control thread's ends of the floods, and its view of who has a ring.
#[derive(Debug)]
pub(super) struct LinkBook {
    /// Number of workers.
    queues: u16,
    /// By worker.
    pub(super) floods: Vec<Receiver>,
    /// Brings multicast frames of peers without a ring to a worker.
    pub(super) inbound: Option<Sender>,
    pub(super) peers: BTreeMap<PeerKey, Peer>,
    holders: Holders,
    /// The same as each worker's.
    forwarding: Forwarding,
    /// The peers that get no multicast frames by link.
    pub(super) elsewhere: BTreeSet<PeerKey>,
    /// Not told yet.
    pub(super) events: Vec<LinkEvent>,
}

/// A worker's ends of the floods.
pub(super) type FloodEnd = (Sender, Option<RxLink>);
/// Those of all workers.
pub(super) type FloodEnds = std::vec::IntoIter<FloodEnd>;

/// Whether files of this process may not be as large as a ring (RLIMIT_FSIZE).
fn is_too_large(error: &PairError) -> bool {
    matches!(error, PairError::Region(RegionError::Allocate { source, .. })
        if source.kind() == io::ErrorKind::FileTooLarge)
}

impl LinkBook {
    /// A book of no peers, and each worker's ends. `doorbell` is signalled when there is something
    /// in a flood. Without ends if RLIMIT_FSIZE prevents every ring.
    pub(super) fn new(
        local: &LocalPort,
        doorbell: &OwnedFd,
    ) -> Result<(LinkBook, FloodEnds), DeviceError> {
        match Self::make(local, doorbell) {
            // No ring can be made to any peer, either. The guest is served all the same.
            Err(error) if is_too_large(&error) => {
                Ok((Self::without_floods(local), Vec::new().into_iter()))
            }
            made => made.map_err(|error| DeviceError::Io {
                action: "create the rings for multicast frames",
                source: io::Error::other(error),
            }),
        }
    }

    /// A book of no peers, for a port without links.
    pub(super) fn without_floods(local: &LocalPort) -> LinkBook {
        LinkBook {
            queues: local.queues,
            floods: Vec::new(),
            inbound: None,
            peers: BTreeMap::new(),
            holders: Holders::default(),
            forwarding: Forwarding::new(local.mac, local.allowed.clone(), Arc::default()),
            elsewhere: BTreeSet::new(),
            events: Vec::new(),
        }
    }

    /// Where secondary addresses were heard.
    pub(super) fn learned(&self) -> &Arc<Learned> {
        self.forwarding.learned()
    }

    fn make(local: &LocalPort, doorbell: &OwnedFd) -> Result<(LinkBook, FloodEnds), PairError> {
        let (inbound, receiver) = pair(SMALL_CAPACITY)?;
        let id = RxLinkId {
            peer: PeerKey::next(),
            queue: 0,
        };
        let ring = RxRing {
            number: 0,
            receiver,
        };
        let mut receiver = Some(RxLink::new(id, None, ring, Arc::default(), 0));
        let mut book = LinkBook {
            inbound: Some(inbound),
            ..Self::without_floods(local)
        };
        let mut ends = Vec::new();
        for _ in 0..local.queues {
            let doorbell = Doorbell::from_fd(doorbell.try_clone()?).map_err(io::Error::other)?;
            let (sender, mut flood) = pair_with(SMALL_CAPACITY, doorbell)?;
            flood.arm_data_doorbell()?;
            book.floods.push(flood);
            ends.push((sender, receiver.take()));
        }
        // To be one, the doorbell was signalled: nothing has happened.
        let _ = rustix::io::read(doorbell, &mut [0; 8]);
        Ok((book, ends.into_iter()))
    }

    /// Adds peers, without rings.
    pub(super) fn add(&mut self, peers: &[PeerInfo]) -> Vec<NewPeer> {
        let first = self.peers.len();
        let mut add = |peer: &PeerInfo| {
            let addresses = PeerAddresses {
                mac: peer.mac,
                allowed: peer.allowed.clone(),
                guard: peer.guard.clone(),
                holder: self.holders.take().unwrap_or(Holder::NETWORK),
                is_uplink: peer.uplinks.shared.is_some(),
                is_trunk: peer.trunk,
                barred: peer.barred.clone(),
                used: Arc::default(),
            };
            let traffic = Arc::new(PeerTraffic::new(self.queues, peer.queues));
            let new = Peer {
                addresses: addresses.clone(),
                traffic: Arc::clone(&traffic),
                with_ring: 0,
                gauges: BTreeMap::new(),
            };
            self.peers.insert(peer.key, new);
            (peer.key, addresses, traffic)
        };
        let new: Vec<NewPeer> = peers.iter().map(&mut add).collect();
        // Handshakes overtake each other, so a rebuilt table may give a peer another position: the
        // book uses none.
        let all = self.peers.values().map(|peer| &peer.addresses);
        let added = new.iter().map(|(_, addresses, _)| addresses);
        self.forwarding.add(first, added, all);
        new
    }

    /// Removes peers of which nothing is received any more.
    pub(super) fn remove(&mut self, peers: &[PeerKey]) {
        let removed: Vec<Peer> = peers
            .iter()
            .filter_map(|key| self.peers.remove(key))
            .collect();
        if removed.is_empty() {
            return;
        }
        self.rebuild();
        for peer in removed {
            self.holders.release(peer.addresses.holder);
            if peer.addresses.has_more() {
                self.forwarding.learned().forget(peer.addresses.holder);
            }
        }
    }

    /// The guest of a trunk uses these addresses now. Returns all addresses of that peer. None:
    /// there is no such peer.
    pub(super) fn set_used_by(
        &mut self,
        peer: PeerKey,
        used: Arc<[MacAddr]>,
    ) -> Option<PeerAddresses> {
        let peer = self.peers.get_mut(&peer)?;
        peer.addresses.used = used;
        let addresses = peer.addresses.clone();
        self.rebuild();
        Some(addresses)
    }

    /// What this port's guest may not use.
    pub(super) fn set_barred(&mut self, barred: MacSets) {
        self.forwarding.set_barred(barred);
    }

    /// The addresses that this port's guest uses, in order.
    pub(super) fn set_used(&mut self, used: Arc<[MacAddr]>) {
        self.forwarding.set_used(used);
        self.rebuild();
    }

    fn rebuild(&mut self) {
        self.forwarding
            .rebuild(self.peers.values().map(|peer| &peer.addresses));
    }

    /// What is exchanged with a peer.
    pub(super) fn traffic(&self, peer: PeerKey) -> Option<&Arc<PeerTraffic>> {
        self.peers.get(&peer).map(|peer| &peer.traffic)
    }

    /// The frames exchanged with a peer, and the fill of the rings to it.
    pub(super) fn exchanged(&self, peer: PeerKey) -> Option<LinkTraffic> {
        let peer = self.peers.get(&peer)?;
        let rings = peer.gauges.values().map(|gauge| RingFill {
            used: gauge.ring.used(),
            capacity: gauge.ring.capacity(),
        });
        let tx_rings = rings.reduce(|sum, ring| RingFill {
            used: sum.used + ring.used,
            capacity: sum.capacity + ring.capacity,
        });
        Some(LinkTraffic {
            tx_rings,
            ..peer.traffic.total()
        })
    }

    /// A queue pair sends to a peer on this ring.
    pub(super) fn set_gauge(&mut self, peer: PeerKey, queue: u16, number: u64, ring: RingGauge) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.gauges.insert(queue, Gauge { number, ring });
        }
    }

    /// The receiver of a ring writes to this page.
    pub(super) fn attach_gauge(
        &mut self,
        peer: PeerKey,
        queue: u16,
        number: u64,
        page: &ReceiverPage,
    ) {
        let peer = self.peers.get_mut(&peer);
        let gauge = peer.and_then(|peer| peer.gauges.get_mut(&queue));
        if let Some(gauge) = gauge.filter(|gauge| gauge.number == number) {
            gauge.ring.attach(page);
        }
    }

    /// A queue pair sends to a peer on this ring no longer; without a number, on none.
    pub(super) fn remove_gauge(&mut self, peer: PeerKey, queue: u16, number: Option<u64>) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            let is_it = |gauge: &Gauge| number.is_none_or(|number| gauge.number == number);
            peer.gauges
                .retain(|at, gauge| *at != queue || !is_it(gauge));
        }
    }

    /// The addresses of a peer.
    pub(super) fn addresses(&self, peer: PeerKey) -> Option<&PeerAddresses> {
        self.peers.get(&peer).map(|peer| &peer.addresses)
    }

    /// Whether a peer may send this record. Its source address is then where the peer is.
    pub(super) fn admits(&self, peer: PeerKey, record: &[u8]) -> bool {
        let source = record
            .get(NET_HEADER + 6..)
            .and_then(|source| source.first_chunk());
        let (Some(peer), Some(source)) = (self.addresses(peer), source) else {
            return false;
        };
        let source = MacAddr::new(*source);
        self.forwarding.admits(peer, source)
            && (peer.guard.is_off() || guard::check_record(&peer.guard, source, record).is_ok())
    }

    pub(super) fn set_ring(&mut self, peer: PeerKey, queue: u16, with_ring: bool) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            let bit = 1 << queue;
            if with_ring {
                peer.with_ring |= bit;
            } else {
                peer.with_ring &= !bit;
            }
        }
    }

    /// Takes frames out of a worker's flood, for those that have no ring by now: all in front of a
    /// position, or some. False: there are more.
    pub(super) fn drain(&mut self, queue: u16, until: Option<u64>) -> bool {
        let Some(flood) = self.floods.get_mut(usize::from(queue)) else {
            return true;
        };
        let mut left = FLOOD_BATCH;
        while until.is_none_or(|until| flood.consumed() < until) {
            if until.is_none() && left == 0 {
                return false;
            }
            left = left.saturating_sub(1);
            let Ok(Some(record)) = flood.peek() else {
                break;
            };
            let mut bytes = vec![0; record.slice().len()];
            record.slice().copy_to(&mut bytes[..]);
            record.consume();
            let peers = self.peers.iter();
            let peers = peers.filter(|(key, peer)| {
                peer.with_ring & (1 << queue) == 0 && !self.elsewhere.contains(key)
            });
            let peers: Vec<PeerKey> = peers.map(|(key, _)| *key).collect();
            if !peers.is_empty() {
                self.events.push(LinkEvent::Flood {
                    peers,
                    queue,
                    record: bytes,
                });
            }
        }
        let _ = flood.release();
        true
    }

    /// The peer has a ring, or has none, behind this position of a worker's flood.
    pub(super) fn place(&mut self, peer: PeerKey, queue: u16, flooded: u64, with_ring: bool) {
        self.drain(queue, Some(flooded));
        self.set_ring(peer, queue, with_ring);
    }
}
