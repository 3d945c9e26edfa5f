//! What a capturing process and a port say to each other on the socket `<id>.capture`: one JSON
//! document in each packet (`SOCK_SEQPACKET`).
//!
//! 1. The process sends a [`Request`].
//! 2. The port answers with an [`Answer`]. If that has no error, a packet of one byte follows for
//!    each ring, with two descriptors: the ring's region, and the page of its receiver, both made
//!    by the port. Rings come by queue pair, that of the guest's frames before that of frames for
//!    the guest. The port takes no descriptors.
//! 3. The process shuts its side down. The port ends the capture, and sends an [`End`].
//!
//! Records of the rings are those of [`CapturedFrame`](virtio_inter_device::CapturedFrame). Fields
//! may be added without another version.

use serde::{Deserialize, Serialize};

/// Version of the exchange and of the records.
pub const VERSION: u32 = 1;
/// Maximum size of a packet in bytes.
pub const MAX_PACKET: usize = 16 * 1024;

/// What is to be captured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// Bytes of each frame at most.
    pub snaplen: u32,
    /// Frames of the guest.
    pub transmit: bool,
    /// Frames for the guest.
    pub receive: bool,
    /// Frames that were lost, and no others.
    pub losses_only: bool,
}

/// Whether the capture has begun.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// Why it has not.
    pub error: Option<String>,
    /// Number of rings.
    pub rings: usize,
    /// Size of each ring's data area in bytes.
    pub capacity: u32,
    /// Names of the counters of lost frames: the reasons of losses, by number.
    pub losses: Vec<String>,
}

/// What was captured in all.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct End {
    /// Frames in the rings.
    pub captured: u64,
    /// Frames that the rings had no room for.
    pub missed: u64,
    /// Why the capture ended early.
    pub error: Option<String>,
}
