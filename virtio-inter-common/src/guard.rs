//! What a port's guest must not send, whoever it says that it is.

use crate::ip_sets::IpSets;

/// A guard on the frames of a guest. Off by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// The IP addresses that the guest may claim; empty: any, and any protocol.
    pub ips: IpSets,
    /// It must not answer as a DHCP server, or advertise itself as a router.
    pub no_dhcp_server: bool,
}

impl Guard {
    /// Whether nothing is forbidden.
    #[inline]
    pub fn is_off(&self) -> bool {
        self.ips.is_empty() && !self.no_dhcp_server
    }
}
