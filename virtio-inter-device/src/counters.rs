//! Counters of a worker: written by that worker alone, readable by anyone.

use crate::counter::Counter;
use crate::drops::Drops;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What one worker has done and refused, since the port started. All in frames unless said otherwise.
        #[derive(Debug, Default)]
        #[repr(align(128))] // No other worker's counters on these cache lines.
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
            /// The last frames that were dropped for reasons that an operator can remove.
            pub drops: Drops,
        }

        impl Counters {
            /// Each counter's name and value, in the order of their declaration.
            pub fn values(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

counters! {
    /// Frames taken from the guest and handed to at least one peer.
    tx_frames,
    /// Their bytes, without the virtio header.
    tx_bytes,
    /// From the guest: shorter than an Ethernet header, or longer than any MTU.
    tx_bad_length,
    /// From the guest: segmentation of a kind that does not exist, or was not negotiated.
    tx_bad_gso_type,
    /// From the guest: segmentation into segments of no bytes.
    tx_bad_gso_size,
    /// From the guest: to be segmented behind headers (`hdr_len`) that are longer than the frame.
    tx_bad_hdr_len,
    /// From the guest: to be segmented, but not the kind of packet that it says it is.
    tx_bad_gso_frame,
    /// From the guest: partial checksum outside of the frame, missing where it is needed, or not negotiated.
    tx_bad_csum,
    /// From the guest: source address that is not the port's own.
    tx_spoofed,
    /// From the guest: nobody on the segment has the destination address.
    tx_no_destination,
    /// From the guest: the receiving port made no progress for longer than the patience.
    tx_peer_stalled,
    /// From the guest: given back unsent, as the queue was disabled.
    tx_disabled,
    /// Times that a full link stopped the transmit queue.
    tx_waits,
    /// Frames copied aside for a slow peer so that the others' frames could go on.
    tx_spilled,
    /// Frames handed to the guest.
    rx_frames,
    /// Their bytes, without the virtio header.
    rx_bytes,
    /// From a peer, wrong in itself: shorter than an Ethernet header, or longer than any MTU.
    rx_bad_length,
    /// From a peer: segmentation of a kind that does not exist.
    rx_bad_gso_type,
    /// From a peer: segmentation into segments of no bytes.
    rx_bad_gso_size,
    /// From a peer: to be segmented behind headers (`hdr_len`) that are longer than the frame.
    rx_bad_hdr_len,
    /// From a peer: to be segmented, but not the kind of packet that it says it is.
    rx_bad_gso_frame,
    /// From a peer: partial checksum outside of the frame, or missing where it is needed.
    rx_bad_csum,
    /// From a peer: an address that is not the peer's own, or a destination that is not this port.
    rx_bad_address,
    /// From a peer: larger than the port's MTU, and not to be segmented to fit it.
    rx_too_long,
    /// From a peer: larger than the guest's buffer (without mergeable buffers), and not TCP to be
    /// segmented, which is cut to fit. Segments count one by one.
    rx_small_buffer,
    /// Frames from peers that were cut into segments, as the guest did not negotiate to take them
    /// whole or has too small buffers for that. The segments are frames of `rx_frames`.
    rx_segmented,
    /// Frames of `rx_frames` whose checksum was completed, as the guest did not negotiate to take
    /// partial ones, or as DHCP programs want it.
    rx_csum_completed,
    /// From a peer: no guest is there to take it.
    rx_no_guest,
    /// Times that frames had to wait for the guest's buffers.
    rx_waits,
    /// Wake-ups of the worker.
    wakeups,
    /// Interrupts sent to the guest.
    interrupts,
}
