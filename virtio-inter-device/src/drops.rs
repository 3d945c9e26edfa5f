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

/// Why a frame was dropped, in the values of the last such frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// From the guest, with a source address that is not the port's.
    ForeignSource(MacAddr),
    /// From the guest, claiming an IP address that its port does not list.
    ForeignIp(IpAddr),
    /// From the guest, claiming an IP address for another hardware address than the frame's source.
    ForeignNeighbor(MacAddr),
    /// From the guest: a reply of a DHCP server, or an advertisement of a router.
    DhcpServer,
    /// From the guest: what the port's guard cannot examine.
    Unexamined,
    /// From a peer with this address, whose port should have dropped it for one of these reasons.
    PeerGuard(MacAddr),
    /// From the guest, to a unicast address that no peer has, while there are peers.
    NoDestination(MacAddr),
    /// From the guest, to a peer that takes nothing.
    PeerStalled(MacAddr),
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

/// Drops for one reason: how many, and the values of the last one.
#[derive(Debug, Default)]
struct Last {
    count: Counter,
    value: AtomicU64,
    /// Of a value that is longer: what is in front.
    high: AtomicU64,
}

/// Drops of one worker, since the port started.
#[derive(Debug, Default)]
pub struct Drops {
    foreign_source: Last,
    foreign_ip: Last,
    foreign_neighbor: Last,
    dhcp_server: Last,
    unexamined: Last,
    peer_guard: Last,
    no_destination: Last,
    peer_stalled: Last,
    uplink_down: Last,
    uplink_full: Last,
    too_long: Last,
    small_buffer: Last,
    /// Something was noted since the worker last asked whether the control thread is to be told.
    fresh: AtomicBool,
    /// The control thread was told, and looks by itself.
    watched: AtomicBool,
}

impl Drops {
    #[cold]
    fn note(&self, last: &Last, value: u64) {
        last.value.store(value, Ordering::Relaxed);
        last.count.add(1);
        self.fresh.store(true, Ordering::Relaxed);
    }

    pub(crate) fn foreign_source(&self, address: MacAddr) {
        self.note(&self.foreign_source, bits(address));
    }

    /// The guard forbids a frame of the guest.
    pub(crate) fn forbidden(&self, forbidden: Forbidden) {
        match forbidden {
            Forbidden::Address(address) => {
                let bits = match address {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                let bits = bits.to_bits();
                let high = (bits >> 64) as u64;
                self.foreign_ip.high.store(high, Ordering::Relaxed);
                self.note(&self.foreign_ip, bits as u64);
            }
            Forbidden::HardwareAddress(mac) => self.note(&self.foreign_neighbor, bits(mac)),
            Forbidden::Server => self.note(&self.dhcp_server, 0),
            Forbidden::Unknown => self.note(&self.unexamined, 0),
        }
    }

    /// The guard of a peer with this address forbids a frame of it.
    pub(crate) fn peer_guard(&self, from: MacAddr) {
        self.note(&self.peer_guard, bits(from));
    }

    pub(crate) fn no_destination(&self, address: MacAddr) {
        self.note(&self.no_destination, bits(address));
    }

    pub(crate) fn peer_stalled(&self, address: MacAddr) {
        self.note(&self.peer_stalled, bits(address));
    }

    pub(crate) fn uplink_down(&self) {
        self.note(&self.uplink_down, 0);
    }

    pub(crate) fn uplink_full(&self) {
        self.note(&self.uplink_full, 0);
    }

    pub(crate) fn too_long(&self, from: MacAddr, packet: usize) {
        let packet = packet.min(usize::from(u16::MAX)) as u64;
        self.note(&self.too_long, bits(from) | packet << 48);
    }

    pub(crate) fn small_buffer(&self, frame: usize, buffer: usize) {
        // Both are less than 2^17: `MAX_RECORD`.
        self.note(&self.small_buffer, frame as u64 | (buffer as u64) << 32);
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
        let address = |value: u64| {
            let [.., a, b, c, d, e, f] = value.to_be_bytes();
            MacAddr::new([a, b, c, d, e, f])
        };
        let high = self.foreign_ip.high.load(Ordering::Relaxed);
        let foreign_ip = |low: u64| {
            let bits = u128::from(high) << 64 | u128::from(low);
            DropReason::ForeignIp(IpAddr::from(Ipv6Addr::from_bits(bits)).to_canonical())
        };
        let all: [(&Last, &dyn Fn(u64) -> DropReason); 12] = [
            (&self.foreign_source, &|v| {
                DropReason::ForeignSource(address(v))
            }),
            (&self.foreign_ip, &foreign_ip),
            (&self.foreign_neighbor, &|v| {
                DropReason::ForeignNeighbor(address(v))
            }),
            (&self.dhcp_server, &|_| DropReason::DhcpServer),
            (&self.unexamined, &|_| DropReason::Unexamined),
            (&self.peer_guard, &|v| DropReason::PeerGuard(address(v))),
            (&self.no_destination, &|v| {
                DropReason::NoDestination(address(v))
            }),
            (&self.peer_stalled, &|v| DropReason::PeerStalled(address(v))),
            (&self.uplink_down, &|_| DropReason::UplinkDown),
            (&self.uplink_full, &|_| DropReason::UplinkFull),
            (&self.too_long, &|v| DropReason::TooLong {
                from: address(v),
                packet: (v >> 48) as u16,
            }),
            (&self.small_buffer, &|v| DropReason::SmallBuffer {
                frame: v as u32,
                buffer: (v >> 32) as u32,
            }),
        ];
        all.map(|(last, drop)| (drop(last.value.load(Ordering::Relaxed)), last.count.get()))
            .into_iter()
            .filter(|(_, count)| *count != 0)
    }
}

/// An address in the lower 48 bits.
fn bits(address: MacAddr) -> u64 {
    let [a, b, c, d, e, f] = address.octets();
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr::new([0x52, 0x54, 0, 0xff, 0, 1]);

    #[test]
    fn drops_keep_the_values_of_the_last_frame_of_each_reason() {
        let drops = Drops::default();
        assert_eq!(drops.iter().count(), 0);
        drops.foreign_source(MacAddr::new([2; 6]));
        drops.foreign_source(MAC);
        drops.too_long(MAC, 70_000);
        drops.small_buffer(65_557, 1514);
        let seen: Vec<_> = drops.iter().collect();
        let long = DropReason::TooLong {
            from: MAC,
            packet: 65_535,
        };
        let small = DropReason::SmallBuffer {
            frame: 65_557,
            buffer: 1514,
        };
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
            drops.forbidden(Forbidden::Address(address));
            let seen: Vec<_> = drops.iter().collect();
            assert_eq!(seen, [(DropReason::ForeignIp(address), count)]);
        }
        drops.forbidden(Forbidden::HardwareAddress(MAC));
        drops.forbidden(Forbidden::Server);
        drops.forbidden(Forbidden::Unknown);
        drops.peer_guard(MAC);
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
        drops.no_destination(MAC);
        assert!(drops.is_pending());
        assert!(!drops.is_pending());
        drops.no_destination(MAC);
        assert!(!drops.is_pending());
        drops.watch();
        assert!(!drops.is_pending(), "seen by whoever watches");
        drops.peer_stalled(MAC);
        assert!(drops.is_pending());
    }
}
