//! Writes frames without offloads, for a switch that takes no partial checksums and no frames to be
//! segmented from the uplink's device, as Open vSwitch's userspace datapath.

use vm_memory::VolatileSlice;

use crate::backend::interface::{TxFrame, UplinkWriter, WriteError};
use crate::features::Offloads;
use crate::frame::{FrameHeader, MAX_RECORD};
use crate::offload::{GsoSegments, RxAction, RxLimits, SoftwareOffload};

/// Completes checksums and segments frames in private memory.
pub(super) struct PlainWriter {
    offload: SoftwareOffload,
    whole: Box<[u8]>,
}

impl PlainWriter {
    pub(super) fn new() -> Self {
        PlainWriter {
            offload: SoftwareOffload::new(),
            whole: vec![0; MAX_RECORD].into(),
        }
    }

    /// Whether a frame is to be written by this.
    #[inline]
    pub(super) fn is_for(header: &FrameHeader) -> bool {
        header.needs_checksum() || header.is_gso()
    }

    /// Writes a frame, in segments that fit `mtu` if it is to be segmented. If the device gets full
    /// in the middle, the rest is lost.
    ///
    /// # Errors
    ///
    /// When the frame cannot be read.
    pub(super) fn write<F: TxFrame>(
        &mut self,
        writer: &mut impl UplinkWriter,
        frame: &F,
        mtu: u16,
    ) -> Result<Result<(), WriteError>, F::Error> {
        let whole = &mut self.whole[..frame.record_len()];
        frame.write_to(&VolatileSlice::from(&mut *whole))?;
        let record = VolatileSlice::from(whole);
        let mut header = frame.header().clone();
        let limits = RxLimits {
            takes: Offloads::NONE,
            mtu,
            frame_room: None,
        };
        let action = header
            .check(Offloads::ALL)
            .and_then(|gso| self.offload.plan(&mut header, gso, &record, limits));
        Ok(match action {
            Ok(RxAction::PassThrough) => writer.write(&[record]),
            Ok(RxAction::CompleteChecksum { start, offset }) => {
                let checksum = (start, offset);
                let bytes = self.offload.checksummed(&header, &record, checksum);
                writer.write(&[VolatileSlice::from(bytes)])
            }
            Ok(RxAction::Segment { segments, .. }) => self
                .offload
                .write_segments(writer, &header, &segments, &record),
            Err(_) => Err(WriteError::Refused),
        })
    }
}

impl SoftwareOffload {
    fn write_segments(
        &mut self,
        writer: &mut impl UplinkWriter,
        header: &FrameHeader,
        segments: &GsoSegments,
        record: &VolatileSlice<'_>,
    ) -> Result<(), WriteError> {
        for index in 0..segments.count() {
            let bytes = self.segment(header, segments, index, record);
            let written = writer.write(&[VolatileSlice::from(bytes)]);
            // The whole frame must not be offered again when a part of it is sent.
            written.map_err(|error| match error {
                WriteError::Full if index != 0 => WriteError::Refused,
                _ => error,
            })?;
        }
        Ok(())
    }
}
