//! Why a guard forbids a frame.

use std::net::IpAddr;

use virtio_inter_common::MacAddr;

/// Why a frame is forbidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forbidden {
    /// It is from this address, or claims it by ARP or Neighbour Discovery.
    Address(IpAddr),
    /// It says by ARP or Neighbour Discovery that an IP address is at a hardware address that is
    /// not its source.
    HardwareAddress(MacAddr),
    /// It is a DHCP server's or a router's.
    Server,
    /// It cannot be examined, or is of a protocol that carries no address that is listed.
    Unknown,
}
