//! Forwarding table: the addresses that peers named in their handshakes. There is no learning and
//! no ageing.

use virtio_inter_common::MacAddr;

/// The peers that a destination address stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    /// The peer at this position.
    Peer(usize),
    /// Every peer.
    All,
    /// No peer.
    Nobody,
}

/// Peers' addresses, in order, each with the peer's position.
#[derive(Debug, Default)]
pub(super) struct Forwarding {
    addresses: Vec<(MacAddr, usize)>,
    /// Entry of the last frame: frames come in trains.
    last: usize,
}

impl Forwarding {
    /// Rebuilds the table from the peers in the order of their positions.
    pub(super) fn rebuild(&mut self, peers: impl Iterator<Item = MacAddr>) {
        self.addresses.clear();
        self.addresses
            .extend(peers.enumerate().map(|(position, mac)| (mac, position)));
        self.addresses.sort_unstable();
        self.last = 0;
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
        match self
            .addresses
            .binary_search_by_key(&address, |&(mac, _)| mac)
        {
            Ok(entry) => {
                self.last = entry;
                Destination::Peer(self.addresses[entry].1)
            }
            Err(_) => Destination::Nobody,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(last: u8) -> MacAddr {
        MacAddr::new([2, 0, 0, 0, 0, last])
    }

    #[test]
    fn forwarding_finds_exact_addresses_broadcast_and_multicast() {
        let mut table = Forwarding::default();
        assert_eq!(table.destination(mac(1)), Destination::Nobody);
        table.rebuild([mac(9), mac(3), mac(5)].into_iter());
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
        table.rebuild([mac(5)].into_iter());
        assert_eq!(table.destination(mac(9)), Destination::Nobody);
        assert_eq!(table.destination(mac(5)), Destination::Peer(0));
    }
    #[test]
    fn forwarding_finds_each_of_many_peers_in_any_order() {
        let count: usize = 250;
        // Not in the order of their positions.
        let address = |position: usize| mac((position * 37 % 251) as u8);
        let mut table = Forwarding::default();
        table.rebuild((0..count).map(address));
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
}
