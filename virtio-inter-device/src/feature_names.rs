//! Names of feature bits, for logs, errors and the status document.

use std::borrow::Cow;
use std::fmt;

/// Feature bits, printed by their names in VIRTIO 1.3 (5.1.3, 5.1.3.2 and 6) without `VIRTIO_F_`
/// and the like. Bits of vhost-user (26, 30) have its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureNames(pub u64);

const NAMES: [(u32, &str); 51] = [
    (0, "CSUM"),
    (1, "GUEST_CSUM"),
    (2, "CTRL_GUEST_OFFLOADS"),
    (3, "MTU"),
    (5, "MAC"),
    (6, "GSO"),
    (7, "GUEST_TSO4"),
    (8, "GUEST_TSO6"),
    (9, "GUEST_ECN"),
    (10, "GUEST_UFO"),
    (11, "HOST_TSO4"),
    (12, "HOST_TSO6"),
    (13, "HOST_ECN"),
    (14, "HOST_UFO"),
    (15, "MRG_RXBUF"),
    (16, "STATUS"),
    (17, "CTRL_VQ"),
    (18, "CTRL_RX"),
    (19, "CTRL_VLAN"),
    (20, "CTRL_RX_EXTRA"),
    (21, "GUEST_ANNOUNCE"),
    (22, "MQ"),
    (23, "CTRL_MAC_ADDR"),
    (24, "NOTIFY_ON_EMPTY"),
    (26, "LOG_ALL"),
    (27, "ANY_LAYOUT"),
    (28, "INDIRECT_DESC"),
    (29, "EVENT_IDX"),
    (30, "PROTOCOL_FEATURES"),
    (32, "VERSION_1"),
    (33, "ACCESS_PLATFORM"),
    (34, "RING_PACKED"),
    (35, "IN_ORDER"),
    (36, "ORDER_PLATFORM"),
    (37, "SR_IOV"),
    (38, "NOTIFICATION_DATA"),
    (39, "NOTIF_CONFIG_DATA"),
    (40, "RING_RESET"),
    (41, "ADMIN_VQ"),
    (50, "DEVICE_STATS"),
    (52, "VQ_NOTF_COAL"),
    (53, "NOTF_COAL"),
    (54, "GUEST_USO4"),
    (55, "GUEST_USO6"),
    (56, "HOST_USO"),
    (57, "HASH_REPORT"),
    (59, "GUEST_HDRLEN"),
    (60, "RSS"),
    (61, "RSC_EXT"),
    (62, "STANDBY"),
    (63, "SPEED_DUPLEX"),
];

impl FeatureNames {
    /// The names, lowest bit first; a bit without a name by its number.
    pub fn iter(self) -> impl Iterator<Item = Cow<'static, str>> {
        (0..u64::BITS)
            .filter(move |bit| self.0 & (1 << bit) != 0)
            .map(|bit| {
                NAMES
                    .iter()
                    .find(|(known, _)| *known == bit)
                    .map_or_else(|| format!("bit {bit}").into(), |(_, name)| (*name).into())
            })
    }
}

impl fmt::Display for FeatureNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("none");
        }
        for (place, name) in self.iter().enumerate() {
            let separator = if place == 0 { "" } else { ", " };
            write!(f, "{separator}{name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::offered;

    #[test]
    fn feature_names_cover_what_is_offered() {
        let names = FeatureNames(offered(2)).to_string();
        assert!(names.contains("MQ"), "{names}");
        assert!(!names.contains("bit"), "{names}");
    }

    #[test]
    fn feature_names_are_numbers_where_there_is_none() {
        assert_eq!(FeatureNames(1 << 42 | 1).to_string(), "CSUM, bit 42");
        assert_eq!(FeatureNames(0).to_string(), "none");
    }
}
