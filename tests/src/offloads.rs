//! Offloads of a device, and how a test withholds them.

use std::fmt;

/// The offloads that a guest's device offers, in both directions. Others cannot be negotiated,
/// whatever ethtool sets later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// Every frame is complete.
    None,
    /// Checksums may be left open.
    Checksums,
    /// And TCP may come in pieces of up to 64 KiB.
    Segmentation,
}

impl Offloads {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Checksums, Self::Segmentation];

    /// QEMU's properties that take the others away.
    pub(crate) fn properties(self) -> &'static str {
        match self {
            Self::None => {
                "csum=off,guest_csum=off,\
                 host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off,host_uso=off,\
                 guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,\
                 guest_uso4=off,guest_uso6=off"
            }
            Self::Checksums => {
                "host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off,host_uso=off,\
                 guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,\
                 guest_uso4=off,guest_uso6=off"
            }
            Self::Segmentation => "",
        }
    }
}

/// As the names of tests have it.
impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Checksums => "csum",
            Self::Segmentation => "csum+tso",
        })
    }
}
