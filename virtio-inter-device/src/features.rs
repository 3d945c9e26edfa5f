//! Feature bits: the device's offer, and what the driver's choice means for the data path.

use virtio_bindings::bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use crate::device::DeviceError;

const fn mask(bits: &[u32]) -> u64 {
    let mut mask = 0;
    let mut i = 0;
    while i < bits.len() {
        mask |= 1 << bits[i];
        i += 1;
    }
    mask
}

/// All features of a port but multi-queue, which depends on the number of its queue pairs.
const OFFERED: u64 = mask(&[
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_F_VERSION_1,
    VIRTIO_F_IN_ORDER,
]);

/// The device features that a port with `queue_pairs` offers (VIRTIO 1.3, 5.1.3 and 6).
///
/// The control queue, without which a driver refuses several pairs, is the frontend's: Cloud
/// Hypervisor has one only if the port offers it, QEMU and DPDK always have one. User Mode Linux
/// would need one of the port, so it can use one pair only.
pub(crate) fn offered(queue_pairs: u16) -> u64 {
    if queue_pairs > 1 {
        OFFERED | mask(&[VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_VQ])
    } else {
        OFFERED
    }
}

/// The features that a driver accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Negotiated(u64);

/// (feature, features of which it needs any one, reason): VIRTIO 1.3, 5.1.3.1.
const DEPENDENCIES: [(u32, &[u32], &str); 9] = [
    (
        VIRTIO_NET_F_GUEST_TSO4,
        &[VIRTIO_NET_F_GUEST_CSUM],
        "GUEST_TSO4 needs GUEST_CSUM",
    ),
    (
        VIRTIO_NET_F_GUEST_TSO6,
        &[VIRTIO_NET_F_GUEST_CSUM],
        "GUEST_TSO6 needs GUEST_CSUM",
    ),
    (
        VIRTIO_NET_F_GUEST_ECN,
        &[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6],
        "GUEST_ECN needs GUEST_TSO4 or GUEST_TSO6",
    ),
    (
        VIRTIO_NET_F_HOST_TSO4,
        &[VIRTIO_NET_F_CSUM],
        "HOST_TSO4 needs CSUM",
    ),
    (
        VIRTIO_NET_F_HOST_TSO6,
        &[VIRTIO_NET_F_CSUM],
        "HOST_TSO6 needs CSUM",
    ),
    (
        VIRTIO_NET_F_HOST_ECN,
        &[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6],
        "HOST_ECN needs HOST_TSO4 or HOST_TSO6",
    ),
    (
        VIRTIO_NET_F_GUEST_USO4,
        &[VIRTIO_NET_F_GUEST_CSUM],
        "GUEST_USO4 needs GUEST_CSUM",
    ),
    (
        VIRTIO_NET_F_GUEST_USO6,
        &[VIRTIO_NET_F_GUEST_CSUM],
        "GUEST_USO6 needs GUEST_CSUM",
    ),
    (
        VIRTIO_NET_F_HOST_USO,
        &[VIRTIO_NET_F_CSUM],
        "HOST_USO needs CSUM",
    ),
];

impl Negotiated {
    /// Checks the accepted features against those offered and against each other.
    pub(crate) fn new(acked: u64, offered: u64) -> Result<Self, DeviceError> {
        let refuse = |reason| Err(DeviceError::Features { acked, reason });
        if acked & !offered != 0 {
            return refuse("bits were accepted that were not offered");
        }
        if acked & mask(&[VIRTIO_F_VERSION_1]) == 0 {
            return refuse("VERSION_1 is missing: legacy drivers are not served");
        }
        for (feature, needs, reason) in DEPENDENCIES {
            if acked & mask(&[feature]) != 0 && acked & mask(needs) == 0 {
                return refuse(reason);
            }
        }
        Ok(Negotiated(acked))
    }

    fn has(self, bit: u32) -> bool {
        self.0 & mask(&[bit]) != 0
    }

    /// The rings carry event indices (VIRTIO 1.3, 2.7.10).
    pub(crate) fn event_index(self) -> bool {
        self.has(VIRTIO_RING_F_EVENT_IDX)
    }

    /// A received frame may span several chains (VIRTIO 1.3, 5.1.6.4).
    pub(crate) fn mergeable_buffers(self) -> bool {
        self.has(VIRTIO_NET_F_MRG_RXBUF)
    }

    /// Offloads that the driver may leave to the device in frames that it sends.
    pub(crate) fn sends(self) -> Offloads {
        let udp = self.has(VIRTIO_NET_F_HOST_USO);
        Offloads {
            checksum: self.has(VIRTIO_NET_F_CSUM),
            tcp4: self.has(VIRTIO_NET_F_HOST_TSO4),
            tcp6: self.has(VIRTIO_NET_F_HOST_TSO6),
            ecn: self.has(VIRTIO_NET_F_HOST_ECN),
            udp4: udp,
            udp6: udp,
        }
    }

    /// Offloads that the device may leave to the driver in frames that it delivers.
    pub(crate) fn takes(self) -> Offloads {
        Offloads {
            checksum: self.has(VIRTIO_NET_F_GUEST_CSUM),
            tcp4: self.has(VIRTIO_NET_F_GUEST_TSO4),
            tcp6: self.has(VIRTIO_NET_F_GUEST_TSO6),
            ecn: self.has(VIRTIO_NET_F_GUEST_ECN),
            udp4: self.has(VIRTIO_NET_F_GUEST_USO4),
            udp6: self.has(VIRTIO_NET_F_GUEST_USO6),
        }
    }
}

/// Offloads that were negotiated for one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums that cover the pseudo header alone.
    pub checksum: bool,
    /// TCP over IPv4 that is not segmented.
    pub tcp4: bool,
    /// TCP over IPv6 that is not segmented.
    pub tcp6: bool,
    /// Such TCP with CWR set (RFC 3168, 6.1.2).
    pub ecn: bool,
    /// UDP over IPv4 that is not segmented.
    pub udp4: bool,
    /// UDP over IPv6 that is not segmented.
    pub udp6: bool,
}

impl Offloads {
    /// All offloads.
    pub const ALL: Offloads = Offloads {
        checksum: true,
        tcp4: true,
        tcp6: true,
        ecn: true,
        udp4: true,
        udp6: true,
    };

    /// No offload.
    pub(crate) const NONE: Offloads = Offloads {
        checksum: false,
        tcp4: false,
        tcp6: false,
        ecn: false,
        udp4: false,
        udp6: false,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

    #[test]
    fn features_offer_multi_queue_only_with_several_pairs() {
        let both = mask(&[VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_VQ]);
        assert_eq!(offered(1) & both, 0);
        assert_eq!(offered(2) & both, both);
    }

    #[test]
    fn features_that_were_not_offered_cannot_be_accepted() {
        let ufo = 1 << virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_HOST_UFO;
        assert!(Negotiated::new(VERSION_1 | ufo, offered(1)).is_err());
        assert!(Negotiated::new(offered(1), offered(1)).is_ok());
    }

    #[test]
    fn features_of_legacy_drivers_are_refused() {
        assert!(Negotiated::new(0, offered(1)).is_err());
        assert!(Negotiated::new(VERSION_1, offered(1)).is_ok());
    }

    #[test]
    fn features_are_checked_for_their_dependencies() {
        for (feature, needs, _) in DEPENDENCIES {
            assert!(Negotiated::new(VERSION_1 | 1 << feature, offered(1)).is_err());
            // The closure of one of the needs is accepted.
            let mut acked = VERSION_1 | 1 << feature | 1 << needs[0];
            for (also, its, _) in DEPENDENCIES {
                if acked & 1 << also != 0 {
                    acked |= 1 << its[0];
                }
            }
            assert!(Negotiated::new(acked, offered(1)).is_ok(), "{feature}");
        }
    }
}
