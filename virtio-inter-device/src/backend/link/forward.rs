//! Forwarding table: the addresses that peers named in their handshakes, and those of their further
//! addresses from which they were heard.

use std::sync::Arc;

use virtio_inter_common::{Guard, MacAddr, MacSet, MacSets};
use virtio_inter_segment::MAX_TRUNK_ADDRESSES;

use super::learned::{Holder, Learned};

/// No entry.
const NONE: usize = usize::MAX;

/// The peers that a destination address stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    /// The peer at this position.
    Peer(usize),
    /// Every peer.
    All,
    /// No peer: unknown unicast, or the port's own address.
    Nobody,
}

/// The addresses of a peer.
#[derive(Debug, Clone)]
pub struct PeerAddresses {
    /// Its own. No other port has it.
    pub(crate) mac: MacAddr,
    /// Those that it may use beside that.
    pub(crate) allowed: MacSets,
    /// What it must not send.
    pub(crate) guard: Guard,
    /// Names it in [`Learned`].
    pub(crate) holder: Holder,
    /// It is an uplink: any address may be behind it.
    pub(crate) is_uplink: bool,
    /// It may use any address that no other port has or lists.
    pub(crate) is_trunk: bool,
    /// Except these.
    pub(crate) barred: MacSets,
    /// Those that it does use, of a trunk.
    pub(crate) used: Arc<[MacAddr]>,
}

impl PeerAddresses {
    /// Those of a peer that has this one alone.
    #[cfg(test)]
    pub(crate) fn of(mac: MacAddr) -> Self {
        PeerAddresses {
            mac,
            allowed: MacSets::default(),
            guard: Guard::default(),
            holder: Holder::NETWORK,
            is_uplink: false,
            is_trunk: false,
            barred: MacSets::default(),
            used: Arc::default(),
        }
    }

    /// Whether it may use others than its own.
    pub(crate) fn has_more(&self) -> bool {
        self.is_trunk || !self.allowed.is_empty()
    }
}

/// Whether a guest may send from an address beside its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// Another port has it, or lists it, or it is pinned to one, or there are too many.
    Refused,
    /// It is here.
    Here,
    /// The same for the first time, at a trunk: it is to be learned.
    New,
}

/// Peers' addresses.
#[derive(Debug)]
pub(crate) struct Forwarding {
    /// The port's own addresses.
    mac: MacAddr,
    own: MacSets,
    /// The peers' own ones, in order, each with the peer's position.
    addresses: Vec<(MacAddr, usize)>,
    /// Positions of the peers that have no guest now, in order.
    away: Vec<usize>,
    /// Entry of the last frame: frames come in trains.
    last: usize,
    /// All secondary addresses of ports, this one included.
    listed: MacSets,
    /// Those of them that ports have listed: no trunk may use them.
    reserved: MacSets,
    /// What the guest of this port uses, if it is a trunk, in order.
    used: Arc<[MacAddr]>,
    /// What it may not use.
    barred: MacSets,
    /// Those that one peer alone has listed one by one, in order: they are there until they are
    /// heard elsewhere.
    fixed: Vec<(MacAddr, usize)>,
    /// The peers that have secondary addresses, in order.
    holders: Vec<(Holder, usize)>,
    learned: Arc<Learned>,
}

impl Forwarding {
    /// An empty table of a port with these addresses.
    pub(crate) fn new(mac: MacAddr, own: MacSets, learned: Arc<Learned>) -> Self {
        Forwarding {
            mac,
            listed: own.clone(),
            reserved: own.clone(),
            used: Arc::default(),
            barred: MacSets::default(),
            own,
            addresses: Vec::new(),
            away: Vec::new(),
            last: NONE,
            fixed: Vec::new(),
            holders: Vec::new(),
            learned,
        }
    }

    /// The peers at these positions, in order, have no guest now. They keep their addresses.
    pub(crate) fn set_away(&mut self, away: Vec<usize>) {
        self.away = away;
        self.last = NONE;
    }

    fn is_here(&self, position: usize) -> bool {
        self.away.is_empty() || self.away.binary_search(&position).is_err()
    }

    /// Rebuilds the table from the peers in the order of their positions, which all have guests.
    pub(crate) fn rebuild<'a>(&mut self, peers: impl Iterator<Item = &'a PeerAddresses> + Clone) {
        let peers = peers.enumerate();
        self.addresses.clear();
        self.addresses
            .extend(peers.clone().map(|(position, peer)| (peer.mac, position)));
        self.addresses.sort_unstable();
        self.set_away(Vec::new());
        let with_more = peers.filter(|(_, peer)| peer.has_more());
        let sets = with_more.clone().flat_map(|(_, peer)| peer.allowed.iter());
        self.reserved = sets.chain(self.own.iter()).collect();
        let reserved = &self.reserved;
        let used_by = |peer: &'a PeerAddresses| {
            let used = peer.used.iter().copied();
            used.filter(move |mac| is_free(*mac, reserved, &peer.barred))
        };
        let own = self.used.iter().copied();
        let own = own.filter(|mac| is_free(*mac, reserved, &self.barred));
        let used = with_more.clone().flat_map(|(_, peer)| used_by(peer));
        let used = used.chain(own);
        let used = used.filter_map(|mac| MacSet::new(6, mac).ok());
        self.listed = self.reserved.iter().chain(used).collect();
        self.holders = with_more
            .clone()
            .map(|(position, peer)| (peer.holder, position))
            .collect();
        self.holders.sort_unstable();
        self.fixed = with_more
            .flat_map(|(position, peer)| {
                let all = peer.allowed.exact().chain(used_by(peer));
                all.map(move |mac| (mac, position))
            })
            .collect();
        self.fixed.sort_unstable();
        let shared: Vec<MacAddr> = self
            .fixed
            .windows(2)
            .filter(|pair| pair[0].0 == pair[1].0)
            .map(|pair| pair[0].0)
            .collect();
        let (own, used) = (&self.own, &self.used);
        let is_own = |mac: MacAddr| own.contains(mac) || used.binary_search(&mac).is_ok();
        self.fixed
            .retain(|(mac, _)| shared.binary_search(mac).is_err() && !is_own(*mac));
    }

    /// Adds `new` peers, which all have guests, at the positions from `first` on, behind others.
    /// `all`: these and the others in the order of their positions, for when the table has to be
    /// rebuilt.
    pub(crate) fn add<'a>(
        &mut self,
        first: usize,
        new: impl Iterator<Item = &'a PeerAddresses> + Clone,
        all: impl Iterator<Item = &'a PeerAddresses> + Clone,
    ) {
        if new.clone().any(PeerAddresses::has_more) {
            return self.rebuild(all);
        }
        for (position, peer) in (first..).zip(new) {
            let entry = (peer.mac, position);
            let at = self.addresses.partition_point(|other| *other < entry);
            self.addresses.insert(at, entry);
        }
        self.last = NONE;
    }

    /// What the guest of this port may not use, if it is a trunk.
    pub(crate) fn set_barred(&mut self, barred: MacSets) {
        self.barred = barred;
    }

    /// What the guest of this port uses, if it is a trunk, in order. The table is to be rebuilt.
    pub(crate) fn set_used(&mut self, used: Arc<[MacAddr]>) {
        self.used = used;
    }

    /// Looks up a destination address.
    #[inline]
    pub(super) fn destination(&mut self, address: MacAddr) -> Destination {
        if let Some(&(last, position)) = self.addresses.get(self.last)
            && last == address
        {
            return Destination::Peer(position);
        }
        if address.is_multicast() {
            return Destination::All;
        }
        match find(&self.addresses, address) {
            Some(entry) => {
                let position = self.addresses[entry].1;
                if !self.is_here(position) {
                    return Destination::Nobody;
                }
                self.last = entry;
                Destination::Peer(position)
            }
            None if self.listed.is_empty() => Destination::Nobody,
            None => match self.secondary(address) {
                Some(position) => Destination::Peer(position),
                None => Destination::Nobody,
            },
        }
    }

    /// Position of the peer to which unicast frames for this address go.
    pub(super) fn peer_of(&self, address: MacAddr) -> Option<usize> {
        match find(&self.addresses, address) {
            Some(entry) => Some(self.addresses[entry].1).filter(|at| self.is_here(*at)),
            None if self.listed.is_empty() => None,
            None => self.secondary(address),
        }
    }

    /// The peer that has a secondary address.
    #[cold]
    fn secondary(&self, address: MacAddr) -> Option<usize> {
        if !self.listed.contains(address) || address == self.mac {
            return None;
        }
        let position = match self.learned.find(address) {
            Some(holder) => self.position(holder)?,
            None => self.fixed[find(&self.fixed, address)?].1,
        };
        self.is_here(position).then_some(position)
    }

    fn position(&self, holder: Holder) -> Option<usize> {
        let entry = find(&self.holders, holder)?;
        Some(self.holders[entry].1)
    }

    /// Whether a port has this address as its own.
    pub(super) fn is_pinned(&self, address: MacAddr) -> bool {
        address == self.mac || find(&self.addresses, address).is_some()
    }

    /// The guest sends from a secondary address of the port, or from any if that is a trunk. It may
    /// not if a peer has it as its own.
    pub(super) fn claim(&self, address: MacAddr) -> Claim {
        if self.is_pinned(address) {
            return Claim::Refused;
        }
        let mut claim = Claim::Here;
        if !self.own.contains(address) && self.used.binary_search(&address).is_err() {
            let is_free = is_free(address, &self.reserved, &self.barred);
            if !is_free || self.used.len() >= MAX_TRUNK_ADDRESSES {
                return Claim::Refused;
            }
            claim = Claim::New;
        }
        self.learned.learn(Holder::OWN, address);
        claim
    }

    /// Whether a peer may send from this address, which is then where it is.
    #[inline]
    pub(crate) fn admits(&self, peer: &PeerAddresses, source: MacAddr) -> bool {
        (peer.mac == source && !peer.is_uplink) || self.admits_further(peer, source)
    }

    #[inline(never)]
    fn admits_further(&self, peer: &PeerAddresses, source: MacAddr) -> bool {
        if peer.is_uplink {
            if !self.listed.is_empty() {
                self.hear_network(source);
            }
            return true;
        }
        let may_use = || peer.is_trunk && is_free(source, &self.reserved, &peer.barred);
        let may_send = (peer.allowed.contains(source) || may_use()) && !self.is_pinned(source);
        if may_send {
            self.learned.learn(peer.holder, source);
        }
        may_send
    }

    /// A frame from this address comes from the network. Returns the position of the peer whose own
    /// address it is, if that has a guest: the frame is its own, on its way back. A secondary
    /// address may move behind the uplink while a peer still uses it: virtual routers move so.
    pub(super) fn hear_network(&self, source: MacAddr) -> Option<usize> {
        if let Some(entry) = find(&self.addresses, source) {
            return Some(self.addresses[entry].1).filter(|at| self.is_here(*at));
        }
        if !self.listed.is_empty() && self.listed.contains(source) {
            self.learned.hear_network(source);
        }
        None
    }

    /// Where secondary addresses were heard.
    pub(crate) fn learned(&self) -> &Arc<Learned> {
        &self.learned
    }

    /// The secondary addresses of all ports.
    pub(super) fn listed(&self) -> &MacSets {
        &self.listed
    }

    /// Addresses that one peer alone has listed one by one, with its position.
    pub(super) fn fixed(&self) -> impl Iterator<Item = (MacAddr, usize)> {
        self.fixed
            .iter()
            .copied()
            .filter(|(mac, _)| !self.is_pinned(*mac))
    }
}

/// The entry of a key in a list that is in order.
fn find<K: Ord + Copy>(list: &[(K, usize)], key: K) -> Option<usize> {
    list.binary_search_by_key(&key, |&(key, _)| key).ok()
}

/// Whether a trunk may use an address: nobody has listed it, and it is not barred.
fn is_free(address: MacAddr, reserved: &MacSets, barred: &MacSets) -> bool {
    !reserved.contains(address) && !barred.contains(address) && address.check_port().is_ok()
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
