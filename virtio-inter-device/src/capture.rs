//! Copies the heads of frames for a process that captures them (decision 0099).
//!
//! The worker's end: one ring for each queue, in which the worker never waits. What does not fit is
//! counted. Without a capture, each frame costs one branch.

use std::time::SystemTime;

use virtio_inter_link::{Sender, Violation};
use vm_memory::VolatileSlice;

use crate::counter::Counter;
use crate::counters::{Counters, LOSSES};
use crate::frame::{FRAME_HEADER, FrameHeader, NET_HEADER};

/// Size in bytes of what stands before the net header in a record of a capture ring.
pub const CAPTURE_HEADER: usize = 24;
/// Fewest bytes of a frame that are copied: its Ethernet header.
pub const MIN_SNAPLEN: u32 = (FRAME_HEADER - NET_HEADER) as u32;
/// Bytes of records after which they are published in mid-batch.
const PUBLISH_BYTES: usize = 64 * 1024;
/// In place of a reason: the frame was not lost.
const NOT_LOST: u8 = u8::MAX;

/// What a capture copies.
#[derive(Debug, Clone, Copy)]
pub struct CaptureOptions {
    /// Bytes of each frame at most, from its Ethernet header on.
    pub snaplen: u32,
    /// Frames that were lost, and no others.
    pub losses_only: bool,
}

/// How many frames a capture has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaptureCounts {
    /// Frames whose heads are in a ring.
    pub captured: u64,
    /// Frames for which a ring had no room.
    pub missed: u64,
    /// What the capturing process did to end the capture of a queue.
    pub violation: Option<Violation>,
}

impl CaptureCounts {
    /// Adds those of another queue.
    #[must_use]
    pub fn with(self, other: CaptureCounts) -> CaptureCounts {
        CaptureCounts {
            captured: self.captured + other.captured,
            missed: self.missed + other.missed,
            violation: self.violation.or(other.violation),
        }
    }
}

/// A record of a capture ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapturedFrame<'a> {
    /// Nanoseconds since 1970 at which its batch began.
    pub time: u64,
    /// Frames of this queue that the ring had no room for before this one.
    pub missed: u64,
    /// Length of the whole frame in bytes, without the net header.
    pub len: u32,
    /// Position in [`Counters::losses`] of the reason for which it was lost. None: it was not.
    pub loss: Option<u8>,
    /// `struct virtio_net_hdr_v1`.
    pub net_header: &'a [u8; NET_HEADER],
    /// The first bytes of the frame.
    pub bytes: &'a [u8],
}

impl<'a> CapturedFrame<'a> {
    /// Takes a record apart. None: it is no record of a capture.
    pub fn parse(record: &'a [u8]) -> Option<Self> {
        let (header, record) = record.split_first_chunk::<CAPTURE_HEADER>()?;
        let (net_header, bytes) = record.split_first_chunk::<NET_HEADER>()?;
        let (time, header) = header.split_first_chunk::<8>()?;
        let (missed, header) = header.split_first_chunk::<8>()?;
        let (len, header) = header.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(*len);
        Some(CapturedFrame {
            time: u64::from_le_bytes(*time),
            missed: u64::from_le_bytes(*missed),
            len,
            loss: header.first().copied().filter(|loss| *loss != NOT_LOST),
            net_header,
            bytes: &bytes[..bytes.len().min(len as usize)],
        })
    }
}

/// The worker's end of a ring for the frames of one queue.
#[derive(Debug)]
pub struct CaptureRing {
    sender: Sender,
    options: CaptureOptions,
    /// When the batch began. None: no frame of it was copied yet.
    time: Option<u64>,
    counts: CaptureCounts,
    /// The counters of losses as they were last.
    seen: [u64; LOSSES],
}

impl CaptureRing {
    /// The end that sends into `sender`.
    pub fn new(sender: Sender, options: CaptureOptions) -> Self {
        CaptureRing {
            sender,
            options: CaptureOptions {
                snaplen: options.snaplen.max(MIN_SNAPLEN),
                ..options
            },
            time: None,
            counts: CaptureCounts::default(),
            seen: [0; LOSSES],
        }
    }

    pub(crate) fn begin_batch(&mut self, counters: &Counters) {
        self.time = None;
        self.seen = counters.loss_values();
    }

    pub(crate) fn end_batch(&mut self) {
        if self.counts.violation.is_none() {
            self.counts.violation = self.sender.publish().err();
        }
    }

    /// Ends the capture of this queue.
    pub(crate) fn close(mut self) -> CaptureCounts {
        // The counts say more than a failure would.
        let _ = self.sender.close();
        self.counts
    }

    /// Copies a frame that went its way. Its record is `len` bytes long, and `copy` writes as many
    /// of them as its argument has.
    pub(crate) fn passed(&mut self, len: usize, copy: impl FnOnce(&VolatileSlice<'_>)) {
        if !self.options.losses_only {
            self.copy(len, NOT_LOST, copy);
        }
    }

    /// Copies a frame that was lost, as this counter counts.
    pub(crate) fn lost(
        &mut self,
        len: usize,
        counter: &Counter,
        counters: &Counters,
        copy: impl FnOnce(&VolatileSlice<'_>),
    ) {
        self.seen = counters.loss_values();
        if let Some(loss) = counters.loss_of(counter) {
            self.copy(len, loss, copy);
        }
    }

    /// Copies a frame that something else has dealt with. Whether it was lost, and why, is in the
    /// worker's counters: one has moved.
    pub(crate) fn dealt_with(
        &mut self,
        len: usize,
        counters: &Counters,
        copy: impl FnOnce(&VolatileSlice<'_>),
    ) {
        let now = counters.loss_values();
        let mut pairs = now.iter().zip(&self.seen).enumerate();
        let moved =
            pairs.find(|(loss, (now, seen))| now != seen && !Counters::is_of_control_thread(*loss));
        let moved = moved.map(|(loss, _)| loss);
        self.seen = now;
        match moved {
            Some(loss) => self.copy(len, loss as u8, copy),
            None => self.passed(len, copy),
        }
    }

    fn copy(&mut self, len: usize, loss: u8, copy: impl FnOnce(&VolatileSlice<'_>)) {
        if self.counts.violation.is_some() {
            self.counts.missed += 1;
            return;
        }
        let time = *self.time.get_or_insert_with(now);
        let copied = len.clamp(NET_HEADER, NET_HEADER + self.options.snaplen as usize);
        match self.sender.reserve(CAPTURE_HEADER + copied) {
            Ok(Some(slot)) => {
                let mut header = [0; CAPTURE_HEADER + NET_HEADER];
                header[..8].copy_from_slice(&time.to_le_bytes());
                header[8..16].copy_from_slice(&self.counts.missed.to_le_bytes());
                // At most 4 GiB, the length of a chain.
                let frame = len.saturating_sub(NET_HEADER) as u32;
                header[16..20].copy_from_slice(&frame.to_le_bytes());
                header[20] = loss;
                let record = slot.slice();
                record.copy_from(&header[..]);
                if let Ok(rest) = record.offset(CAPTURE_HEADER)
                    && len >= NET_HEADER
                {
                    copy(&rest);
                }
                slot.commit();
                self.counts.captured += 1;
            }
            Ok(None) => self.counts.missed += 1,
            Err(violation) => {
                self.counts.violation = Some(violation);
                self.counts.missed += 1;
            }
        }
        if self.sender.pending() >= PUBLISH_BYTES {
            self.end_batch();
        }
    }
}

/// Writes as many of the bytes as there is room for, but this header before them.
pub(crate) fn write_with(header: &FrameHeader, bytes: &VolatileSlice<'_>, to: &VolatileSlice<'_>) {
    bytes.copy_to_volatile_slice(*to);
    let _ = header.write(to);
}

/// Writes the bytes of these pieces, as many as there is room for.
pub(crate) fn write_pieces(pieces: &[VolatileSlice<'_>], to: &VolatileSlice<'_>) {
    let mut done = 0;
    for piece in pieces {
        let Ok(to) = to.offset(done) else {
            return;
        };
        piece.copy_to_volatile_slice(to);
        done += piece.len().min(to.len());
    }
}

/// Nanoseconds since 1970. No system call, where the kernel lets processes read its clock.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use virtio_inter_link::{SMALL_CAPACITY, pair};

    use super::*;

    #[test]
    fn capture_takes_no_frame_for_lost_that_the_control_thread_counts() {
        let (sender, mut receiver) = pair(SMALL_CAPACITY).unwrap();
        let options = CaptureOptions {
            snaplen: MIN_SNAPLEN,
            losses_only: false,
        };
        let (mut ring, counters) = (CaptureRing::new(sender, options), Counters::default());
        ring.begin_batch(&counters);
        let copy = |_: &VolatileSlice<'_>| ();
        counters.rx_flood_lost.add(1);
        counters.tx_flood_peer_full.add(1);
        ring.dealt_with(100, &counters, copy);
        counters.rx_flood_lost.add(1);
        counters.tx_no_destination.add(1);
        ring.dealt_with(100, &counters, copy);
        ring.end_batch();
        let mut loss = || {
            let record = receiver.peek().unwrap().unwrap();
            let mut bytes = vec![0; record.slice().len()];
            record.slice().copy_to(&mut bytes[..]);
            record.consume();
            CapturedFrame::parse(&bytes).unwrap().loss
        };
        assert_eq!(loss(), None);
        assert_eq!(loss(), counters.loss_of(&counters.tx_no_destination));
    }
}
