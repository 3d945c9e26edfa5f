//! The last frame that a worker dropped for each reason that an operator can remove, with the
//! values that say why.
//!
//! Written by that worker alone, readable by anyone, like [`Counters`](crate::Counters): a dropped
//! frame costs two plain stores. The control thread turns them into warnings. It is told of the
//! first drop and then asks again at its own pace
//! ([`Port::watch_drops`](crate::Port::watch_drops)), so that no number of dropped frames keeps it
//! busy.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use virtio_inter_common::MacAddr;

use crate::counter::Counter;
use crate::forbidden::Forbidden;

macro_rules! reasons {
    ($(
        $(#[doc = $doc:literal])*
        $name:ident
        $(($value:ident: $type:ty))?
        $({$($(#[doc = $field_doc:literal])* $field:ident: $field_type:ty),+ $(,)?})?
    ),* $(,)?) => {
        /// Why a frame was dropped, in the values of the last such frame.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum DropReason {
            $($(#[doc = $doc])*
            $name $(($type))? $({$($(#[doc = $field_doc])* $field: $field_type),+})?,)*
        }

        /// The same without the values: the index of its [`Last`].
        #[derive(Debug, Clone, Copy)]
        enum Kind {
            $($name,)*
        }

        const KINDS: &[Kind] = &[$(Kind::$name),*];

        impl DropReason {
            fn pack(self) -> (Kind, [u64; 2]) {
                match self {
                    $(DropReason::$name $(($value))? $({$($field),+})? => {
                        (Kind::$name, ($($value,)? $($($field,)+)?).pack())
                    })*
                }
            }

            fn unpack(kind: Kind, words: [u64; 2]) -> Self {
                match kind {
                    $(Kind::$name => {
                        let ($($value,)? $($($field,)+)?) = Values::unpack(words);
                        DropReason::$name $(($value))? $({$($field),+})?
                    })*
                }
            }
        }
    };
}

// A line for each reason. Its values are a tuple that implements `Values` below.
reasons! {
    /// From the guest, with a source address that is not the port's.
    ForeignSource(address: MacAddr),
    /// From the guest, claiming an IP address that its port does not list.
    ForeignIp(address: IpAddr),
    /// From the guest, claiming an IP address for another hardware address than the frame's source.
    ForeignNeighbor(address: MacAddr),
    /// From the guest: a reply of a DHCP server, or an advertisement of a router.
    DhcpServer,
    /// From the guest: what the port's guard cannot examine.
    Unexamined,
    /// From a peer with this address, whose port should have dropped it for one of these reasons.
    PeerGuard(from: MacAddr),
    /// From the guest, to a unicast address that no peer has, while there are peers.
    NoDestination(address: MacAddr),
    /// From the guest, to a peer that takes nothing.
    PeerStalled(address: MacAddr),
    /// From the guest, for the uplink, whose device is down or gone.
    UplinkDown,
    /// From the guest, for the uplink, whose device takes nothing, or too little.
    UplinkFull,
    /// From a peer, larger than this port's MTU.
    TooLong {
        /// The peer's address.
        from: MacAddr,
        /// The packet's bytes, without the Ethernet header; at most 65535 are told.
        packet: u16,
    },
    /// From a peer, larger than the guest's receive buffer.
    SmallBuffer {
        /// The frame's bytes, with the Ethernet header.
        frame: u32,
        /// The bytes of a frame that the buffer holds.
        buffer: u32,
    },
}

impl From<Forbidden> for DropReason {
    fn from(forbidden: Forbidden) -> Self {
        match forbidden {
            Forbidden::Address(address) => DropReason::ForeignIp(address),
            Forbidden::HardwareAddress(address) => DropReason::ForeignNeighbor(address),
            Forbidden::Server => DropReason::DhcpServer,
            Forbidden::Unknown => DropReason::Unexamined,
        }
    }
}

/// The values of a reason in two words, of which most need only the first. A reader may see one of
/// the last frame and one of the frame before.
trait Values {
    fn pack(self) -> [u64; 2];
    fn unpack(words: [u64; 2]) -> Self;
}

impl Values for () {
    fn pack(self) -> [u64; 2] {
        [0; 2]
    }

    fn unpack(_words: [u64; 2]) -> Self {}
}

impl Values for (MacAddr,) {
    fn pack(self) -> [u64; 2] {
        let [a, b, c, d, e, f] = self.0.octets();
        [u64::from_be_bytes([0, 0, a, b, c, d, e, f]), 0]
    }

    fn unpack([word, _]: [u64; 2]) -> Self {
        let [.., a, b, c, d, e, f] = word.to_be_bytes();
        (MacAddr::new([a, b, c, d, e, f]),)
    }
}

impl Values for (IpAddr,) {
    fn pack(self) -> [u64; 2] {
        let bits = match self.0 {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        }
        .to_bits();
        [bits as u64, (bits >> 64) as u64]
    }

    fn unpack([low, high]: [u64; 2]) -> Self {
        let bits = u128::from(high) << 64 | u128::from(low);
        (IpAddr::from(Ipv6Addr::from_bits(bits)).to_canonical(),)
    }
}

impl Values for (MacAddr, u16) {
    fn pack(self) -> [u64; 2] {
        let [address, _] = (self.0,).pack();
        [address | u64::from(self.1) << 48, 0]
    }

    fn unpack(words: [u64; 2]) -> Self {
        let (address,) = Values::unpack(words);
        (address, (words[0] >> 48) as u16)
    }
}

impl Values for (u32, u32) {
    fn pack(self) -> [u64; 2] {
        [u64::from(self.0) | u64::from(self.1) << 32, 0]
    }

    fn unpack([word, _]: [u64; 2]) -> Self {
        (word as u32, (word >> 32) as u32)
    }
}

/// Drops for one reason: how many, and the values of the last one.
#[derive(Debug, Default)]
struct Last {
    count: Counter,
    words: [AtomicU64; 2],
}

/// Drops of one worker, since the port started.
#[derive(Debug, Default)]
pub struct Drops {
    /// Of each [`Kind`].
    last: [Last; KINDS.len()],
    /// Something was noted since the worker last asked whether the control thread is to be told.
    fresh: AtomicBool,
    /// The control thread was told, and looks by itself.
    watched: AtomicBool,
}

impl Drops {
    /// Notes that a frame was dropped. Its counter is counted apart from that.
    #[cold]
    pub(crate) fn note(&self, reason: DropReason) {
        let (kind, words) = reason.pack();
        let last = &self.last[kind as usize];
        for (at, word) in last.words.iter().zip(words) {
            at.store(word, Ordering::Relaxed);
        }
        last.count.add(1);
        self.fresh.store(true, Ordering::Relaxed);
    }

    /// Whether the control thread is to be told that there is something to see. Asked by the worker
    /// alone.
    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        self.fresh.load(Ordering::Relaxed) && self.take_news()
    }

    #[cold]
    fn take_news(&self) -> bool {
        self.fresh.store(false, Ordering::Relaxed);
        // What was noted before is visible to whoever takes the mark back.
        !self.watched.swap(true, Ordering::AcqRel)
    }

    /// Has the worker tell of the next drop.
    pub(crate) fn watch(&self) {
        self.watched.swap(false, Ordering::AcqRel);
    }

    /// Every reason that there was, with the number of frames.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> {
        let all = KINDS.iter().zip(&self.last);
        all.filter(|(_, last)| last.count.get() != 0)
            .map(|(kind, last)| {
                let words = last.words.each_ref();
                let words = words.map(|word| word.load(Ordering::Relaxed));
                (DropReason::unpack(*kind, words), last.count.get())
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr::new([0x52, 0x54, 0, 0xff, 0, 1]);

    #[test]
    fn drops_keep_the_values_of_the_last_frame_of_each_reason() {
        let drops = Drops::default();
        assert_eq!(drops.iter().count(), 0);
        drops.note(DropReason::ForeignSource(MacAddr::new([2; 6])));
        drops.note(DropReason::ForeignSource(MAC));
        let long = DropReason::TooLong {
            from: MAC,
            packet: 65_535,
        };
        let small = DropReason::SmallBuffer {
            frame: 65_557,
            buffer: 1514,
        };
        drops.note(long);
        drops.note(small);
        let seen: Vec<_> = drops.iter().collect();
        assert_eq!(
            seen,
            [(DropReason::ForeignSource(MAC), 2), (long, 1), (small, 1)]
        );
    }

    #[test]
    fn drops_keep_what_a_guard_forbade() {
        let drops = Drops::default();
        let (v4, v6) = ("10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap());
        for (address, count) in [(v4, 1), (v6, 2)] {
            drops.note(Forbidden::Address(address).into());
            let seen: Vec<_> = drops.iter().collect();
            assert_eq!(seen, [(DropReason::ForeignIp(address), count)]);
        }
        drops.note(Forbidden::HardwareAddress(MAC).into());
        drops.note(Forbidden::Server.into());
        drops.note(Forbidden::Unknown.into());
        drops.note(DropReason::PeerGuard(MAC));
        let seen: Vec<_> = drops.iter().skip(1).map(|(reason, _)| reason).collect();
        let neighbor = DropReason::ForeignNeighbor(MAC);
        let (server, unexamined) = (DropReason::DhcpServer, DropReason::Unexamined);
        assert_eq!(
            seen,
            [neighbor, server, unexamined, DropReason::PeerGuard(MAC)]
        );
    }

    #[test]
    fn drops_are_pending_once_until_they_are_watched_again() {
        let drops = Drops::default();
        assert!(!drops.is_pending());
        drops.note(DropReason::NoDestination(MAC));
        assert!(drops.is_pending());
        assert!(!drops.is_pending());
        drops.note(DropReason::NoDestination(MAC));
        assert!(!drops.is_pending());
        drops.watch();
        assert!(!drops.is_pending(), "seen by whoever watches");
        drops.note(DropReason::PeerStalled(MAC));
        assert!(drops.is_pending());
    }
}
