//! The device's configuration space, `struct virtio_net_config` (VIRTIO 1.3, 5.1.4).

use virtio_bindings::bindings::virtio_net::VIRTIO_NET_S_LINK_UP;
use virtio_inter_segment::LocalPort;

/// Size of the structure in bytes.
pub const CONFIG_SIZE: usize = 24;

/// Values that mean "unknown" (VIRTIO 1.3, 5.1.4).
const UNKNOWN_SPEED: u32 = 0xffff_ffff;
const UNKNOWN_DUPLEX: u8 = 0xff;

/// The structure, little-endian: mac, status, max_virtqueue_pairs, mtu, speed, duplex, and the hash
/// fields, which are zero as no hash feature is offered.
pub(crate) fn config_space(port: &LocalPort) -> [u8; CONFIG_SIZE] {
    let mut space = [0; CONFIG_SIZE];
    space[0..6].copy_from_slice(&port.mac.octets());
    space[6..8].copy_from_slice(&(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
    space[8..10].copy_from_slice(&port.queues.to_le_bytes());
    space[10..12].copy_from_slice(&port.mtu.to_le_bytes());
    space[12..16].copy_from_slice(&UNKNOWN_SPEED.to_le_bytes());
    space[16] = UNKNOWN_DUPLEX;
    space
}
