//! Addresses of a trunk's guest that a worker has seen and the control thread has not learned yet.

use virtio_inter_common::MacAddr;
use virtio_inter_segment::MAX_TRUNK_ADDRESSES;

/// In the order in which they came.
#[derive(Debug, Default)]
pub(super) struct NewAddresses {
    all: Vec<MacAddr>,
    /// Number of those that the control thread was told of.
    reported: usize,
}

impl NewAddresses {
    /// The guest sends from an address. False: there is no room for it.
    #[cold]
    pub(super) fn add(&mut self, address: MacAddr) -> bool {
        if self.all.contains(&address) {
            return true;
        }
        let has_room = self.all.len() < MAX_TRUNK_ADDRESSES;
        if has_room {
            self.all.push(address);
        }
        has_room
    }

    /// The next one that the control thread is to be told of.
    pub(super) fn next(&mut self) -> Option<MacAddr> {
        let address = *self.all.get(self.reported)?;
        self.reported += 1;
        Some(address)
    }

    /// The control thread has learned what it has room for.
    pub(super) fn clear(&mut self) {
        self.all.clear();
        self.reported = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_addresses_are_told_once_and_bounded() {
        let mut new = NewAddresses::default();
        let mac = |last: u8| MacAddr::new([2, 0, 0, 0, 0, last]);
        for last in [1, 2, 1, 2] {
            assert!(new.add(mac(last)));
        }
        assert_eq!(new.next(), Some(mac(1)));
        assert!(new.add(mac(1)));
        assert_eq!([new.next(), new.next()], [Some(mac(2)), None]);
        for last in 3..=64 {
            assert!(new.add(mac(last)));
        }
        assert!(!new.add(mac(65)) && new.add(mac(64)));
        new.clear();
        assert!(new.add(mac(65)));
        assert_eq!(new.next(), Some(mac(65)));
    }
}
