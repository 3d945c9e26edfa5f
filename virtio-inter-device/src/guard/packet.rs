//! What the checks of all protocols share.

use std::net::IpAddr;

use virtio_inter_common::Guard;

use crate::forbidden::Forbidden;

/// Protocol number of UDP.
pub(super) const UDP: u8 = 17;

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Forbidden> {
    let pair = bytes.get(at..).and_then(|rest| rest.first_chunk());
    pair.map(|pair| u16::from_be_bytes(*pair))
        .ok_or(Forbidden::Unknown)
}

pub(super) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Forbidden> {
    let array = bytes.get(at..).and_then(|rest| rest.first_chunk());
    array.copied().ok_or(Forbidden::Unknown)
}

/// Whether a packet may claim an address.
pub(super) fn check_claim(guard: &Guard, address: IpAddr) -> Result<(), Forbidden> {
    if guard.ips.contains(address) && !address.is_multicast() {
        Ok(())
    } else {
        Err(Forbidden::Address(address))
    }
}
