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
mod tests {
    use super::*;

    fn mac(last: u8) -> MacAddr {
        MacAddr::new([2, 0, 0, 0, 0, last])
    }

    /// A peer with these secondary addresses; `last` also tells it from others.
    fn peer(last: u8, allowed: &str) -> PeerAddresses {
        PeerAddresses {
            mac: mac(last),
            allowed: sets(allowed),
            guard: Guard::default(),
            holder: Holder::peers().nth(last.into()).unwrap(),
            is_uplink: false,
            is_trunk: false,
            barred: MacSets::default(),
            used: Arc::default(),
        }
    }

    fn sets(text: &str) -> MacSets {
        match text {
            "" => MacSets::default(),
            text => text.parse().unwrap(),
        }
    }

    fn table(own: &str) -> Forwarding {
        Forwarding::new(mac(0), sets(own), Arc::default())
    }

    fn rebuild(table: &mut Forwarding, peers: impl Iterator<Item = MacAddr>) {
        let peers: Vec<_> = peers.map(|mac| peer(mac.octets()[5], "")).collect();
        table.rebuild(peers.iter());
    }

    #[test]
    fn forwarding_lets_a_trunk_use_what_nobody_else_has_or_lists() {
        let trunk = |last: u8, used: &[MacAddr]| PeerAddresses {
            is_trunk: true,
            used: used.into(),
            ..peer(last, "")
        };
        let [free, other, listed] = [mac(50), mac(51), mac(52)];
        let mut table = table("02:00:00:00:00:3d");
        let peers = [
            trunk(1, &[]),
            peer(2, "02:00:00:00:00:34,02:00:01:*"),
            trunk(3, &[]),
        ];
        table.rebuild(peers.iter());
        assert!(table.admits(&peers[0], mac(1)) && table.admits(&peers[0], free));
        // Own ones of ports, this one too; listed ones; none that a port may have.
        let prefixed = MacAddr::new([2, 0, 1, 0, 0, 1]);
        for taken in [
            mac(0),
            mac(2),
            mac(3),
            mac(0x3d),
            listed,
            prefixed,
            MacAddr::BROADCAST,
        ] {
            assert!(!table.admits(&peers[0], taken), "{taken}");
        }
        assert!(!table.admits(&peers[1], free), "That is no trunk");
        // Frames go to it when peers know that it is used.
        assert_eq!(table.destination(free), Destination::Nobody);
        let all = [free, other, listed, mac(2), mac(0x3d)];
        let peers = [trunk(1, &all), peers[1].clone(), trunk(3, &[other])];
        table.rebuild(peers.iter());
        assert_eq!(table.destination(free), Destination::Peer(0));
        assert_eq!(table.destination(listed), Destination::Peer(1));
        assert_eq!(table.destination(mac(2)), Destination::Peer(1));
        assert_eq!(table.destination(mac(0x3d)), Destination::Nobody);
        // Between trunks it is where it was heard last.
        assert_eq!(table.destination(other), Destination::Nobody);
        for (sender, position) in [(2, 2), (0, 0), (2, 2)] {
            assert!(table.admits(&peers[sender], other));
            assert_eq!(table.destination(other), Destination::Peer(position));
        }
    }

    /// Pinned to a port that is not there.
    #[test]
    fn forwarding_lets_no_trunk_use_what_is_pinned_to_others() {
        let (pinned, free): (MacSets, _) = ("02:00:00:00:00:33".parse().unwrap(), mac(50));
        let taken = mac(51);
        let trunk = |used: &[MacAddr]| PeerAddresses {
            is_trunk: true,
            barred: pinned.clone(),
            used: used.into(),
            ..peer(1, "")
        };
        let mut table = table("");
        table.set_barred(pinned.clone());
        let peers = [trunk(&[free, taken])];
        table.rebuild(peers.iter());
        assert!(!table.admits(&peers[0], taken));
        assert_eq!(table.destination(taken), Destination::Nobody);
        assert_eq!(table.destination(free), Destination::Peer(0));
        assert_eq!(table.claim(taken), Claim::Refused);
        assert_eq!(table.claim(mac(52)), Claim::New);
    }

    #[test]
    fn forwarding_of_a_trunk_knows_what_its_guest_uses() {
        let mut table = table("");
        let peers = [peer(2, "02:00:00:00:00:34")];
        table.rebuild(peers.iter());
        for taken in [mac(2), mac(52), MacAddr::BROADCAST] {
            assert_eq!(table.claim(taken), Claim::Refused, "{taken}");
        }
        assert_eq!(table.claim(mac(50)), Claim::New);
        let used: Vec<MacAddr> = (100..164).map(mac).collect();
        table.set_used(used[..63].into());
        table.rebuild(peers.iter());
        assert_eq!(table.claim(mac(100)), Claim::Here);
        assert_eq!(table.claim(mac(50)), Claim::New);
        table.set_used(used.into());
        assert_eq!(table.claim(mac(50)), Claim::Refused);
        assert_eq!(table.claim(mac(163)), Claim::Here);
    }

    #[test]
    fn forwarding_knows_peers_without_a_guest_and_does_not_send_to_them() {
        let mut table = table("");
        let further = "02:00:00:00:01:01";
        let peers = [peer(1, further), peer(2, "")];
        table.rebuild(peers.iter());
        let behind: MacAddr = further.parse().unwrap();
        assert_eq!(table.destination(mac(1)), Destination::Peer(0));
        assert_eq!(table.destination(behind), Destination::Peer(0));
        table.set_away(vec![0]);
        for address in [mac(1), behind] {
            assert_eq!(table.destination(address), Destination::Nobody);
            assert_eq!(table.peer_of(address), None);
        }
        assert_eq!(table.destination(mac(2)), Destination::Peer(1));
        // Nobody else may take its address, and it may be heard by the network.
        assert!(table.is_pinned(mac(1)));
        assert_eq!(table.claim(mac(1)), Claim::Refused);
        assert_eq!(table.hear_network(mac(1)), None);
        assert_eq!(table.hear_network(mac(2)), Some(1));
        table.set_away(Vec::new());
        assert_eq!(table.destination(mac(1)), Destination::Peer(0));
    }

    #[test]
    fn forwarding_finds_exact_addresses_broadcast_and_multicast() {
        let mut table = table("");
        assert_eq!(table.destination(mac(1)), Destination::Nobody);
        rebuild(&mut table, [mac(9), mac(3), mac(5)].into_iter());
        for _ in 0..2 {
            assert_eq!(table.destination(mac(3)), Destination::Peer(1));
            assert_eq!(table.destination(mac(9)), Destination::Peer(0));
            assert_eq!(table.destination(mac(5)), Destination::Peer(2));
            assert_eq!(table.destination(mac(4)), Destination::Nobody);
            assert_eq!(table.destination(MacAddr::new([0xff; 6])), Destination::All);
            assert_eq!(
                table.destination(MacAddr::new([0x33, 0x33, 0, 0, 0, 1])),
                Destination::All
            );
        }
        rebuild(&mut table, [mac(5)].into_iter());
        assert_eq!(table.destination(mac(9)), Destination::Nobody);
        assert_eq!(table.destination(mac(5)), Destination::Peer(0));
    }

    #[test]
    fn forwarding_finds_each_of_many_peers_in_any_order() {
        let count: usize = 250;
        // Not in the order of their positions.
        let address = |position: usize| mac((position * 37 % 251) as u8);
        let mut table = table("");
        rebuild(&mut table, (0..count).map(address));
        for step in [1, 7, 100] {
            for i in 0..count {
                let position = i * step % count;
                // Frames come in trains, and alternate.
                for position in [position, position, (position + 40) % count, position] {
                    let expected = Destination::Peer(position);
                    assert_eq!(table.destination(address(position)), expected);
                }
                assert_eq!(table.destination(mac(251)), Destination::Nobody);
            }
        }
    }

    const ROUTER: MacAddr = MacAddr::new([0, 0, 0x5e, 0, 1, 7]);

    #[test]
    fn forwarding_finds_secondary_addresses_where_they_were_heard_last() {
        let mut table = table("");
        let peers = [
            peer(1, "00:00:5e:00:01:*,02:00:00:00:01:01"),
            peer(2, "00:00:5e:00:01:*,02:00:00:00:01:02"),
            peer(3, ""),
        ];
        table.rebuild(peers.iter());
        let other = MacAddr::new([2, 0, 0, 0, 1, 1]);
        // One by one: there from the beginning. Of a prefix: when it was heard.
        assert_eq!(table.destination(other), Destination::Peer(0));
        assert_eq!(table.destination(ROUTER), Destination::Nobody);
        for position in [0, 1, 0] {
            assert!(table.admits(&peers[position], ROUTER));
            assert_eq!(table.destination(ROUTER), Destination::Peer(position));
        }
        // Not of a peer that has not listed it.
        assert!(!table.admits(&peers[2], ROUTER) && !table.admits(&peers[1], other));
        assert_eq!(table.destination(ROUTER), Destination::Peer(0));
        assert_eq!(table.destination(other), Destination::Peer(0));
        // The network has it, also one that was never heard.
        assert_eq!(table.hear_network(other), None);
        assert_eq!(table.destination(other), Destination::Nobody);
        assert_eq!(table.hear_network(ROUTER), None);
        assert_eq!(
            table.destination(ROUTER),
            Destination::Peer(0),
            "just heard there"
        );
        assert_eq!(table.hear_network(mac(3)), Some(2));
        // Positions change.
        table.rebuild(peers[1..].iter());
        table.admits(&peers[1], ROUTER);
        assert_eq!(table.destination(ROUTER), Destination::Peer(0));
    }

    #[test]
    fn forwarding_never_gives_a_ports_own_address_to_another() {
        let mut table = table("02:00:00:*");
        let peers = [peer(1, "02:00:00:00:00:02,02:00:00:*"), peer(2, "")];
        table.rebuild(peers.iter());
        for taken in [mac(0), mac(2)] {
            assert!(!table.admits(&peers[0], taken), "{taken}");
            assert_eq!(table.claim(taken), Claim::Refused, "{taken}");
        }
        assert_eq!(table.destination(mac(2)), Destination::Peer(1));
        assert_eq!(table.destination(mac(0)), Destination::Nobody);
        assert_eq!(table.fixed().count(), 0);
        // A port that comes has its address, whoever used it before.
        assert!(table.admits(&peers[0], mac(3)));
        assert_eq!(table.destination(mac(3)), Destination::Peer(0));
        let more = [peers[0].clone(), peers[1].clone(), peer(3, "")];
        table.rebuild(more.iter());
        assert_eq!(table.destination(mac(3)), Destination::Peer(2));
        assert!(!table.admits(&peers[0], mac(3)));
    }

    #[test]
    fn forwarding_lets_an_address_move_between_the_guest_and_peers() {
        let mut table = table("02:00:00:00:01:01");
        let peers = [peer(1, "02:00:00:00:01:01,02:00:00:00:01:02")];
        let both = [peers[0].clone(), peer(2, "02:00:00:00:01:02")];
        table.rebuild(both.iter());
        let address = |last| MacAddr::new([2, 0, 0, 0, 1, last]);
        // Where two have listed one, nobody has it before one was heard.
        assert_eq!(table.destination(address(1)), Destination::Nobody);
        assert_eq!(table.destination(address(2)), Destination::Nobody);
        assert!(table.admits(&peers[0], address(1)));
        assert_eq!(table.destination(address(1)), Destination::Peer(0));
        assert_eq!(table.claim(address(1)), Claim::Here);
        assert_eq!(table.destination(address(1)), Destination::Nobody);
        // It has another when the other one leaves.
        table.rebuild(peers.iter());
        assert_eq!(table.destination(address(2)), Destination::Peer(0));
    }
}
