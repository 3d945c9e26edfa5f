//! Entry points of fuzz targets (`fuzz/`), where the parts of this crate are not public.

use std::cell::RefCell;

use vm_memory::VolatileSlice;

use crate::features::Offloads;
use crate::frame::{FRAME_HEADER, FrameHeader, NET_HEADER};
use crate::offload::{RxAction, RxLimits, SoftwareOffload};

/// The records that a guest gets for one record of a peer.
#[derive(Debug, PartialEq, Eq)]
pub enum Delivered {
    /// The record as it was, but for its header.
    Whole(Vec<u8>),
    /// The record with its checksum completed.
    Completed(Vec<u8>),
    /// The record's segments, and whether their checksums are completed.
    Segments(Vec<Vec<u8>>, bool),
}

/// What becomes of a record for a guest that takes these offloads, behind a port of this MTU, and
/// whose buffers hold frames of `room` bytes. `None`: it is dropped.
pub fn deliver(
    record: &mut [u8],
    takes: Offloads,
    mtu: u16,
    room: Option<usize>,
) -> Option<Delivered> {
    thread_local! {
        static OFFLOAD: RefCell<SoftwareOffload> = RefCell::new(SoftwareOffload::new());
    }
    let bytes = VolatileSlice::from(record);
    let mut header = FrameHeader::default();
    header.read(&bytes, bytes.len()).ok()?;
    let gso = header.check(Offloads::ALL).ok()?;
    header.sanitize();
    let limits = RxLimits {
        takes,
        mtu,
        frame_room: room,
    };
    OFFLOAD.with_borrow_mut(|offload| {
        let action = offload.plan(&mut header, gso, &bytes, limits).ok()?;
        Some(match action {
            RxAction::PassThrough => {
                let mut whole = vec![0; bytes.len()];
                bytes.copy_to(&mut whole[..]);
                whole[..FRAME_HEADER].copy_from_slice(&header.bytes());
                Delivered::Whole(whole)
            }
            RxAction::CompleteChecksum { start, offset } => {
                let checksum = (start, offset);
                Delivered::Completed(offload.checksummed(&header, &bytes, checksum).to_vec())
            }
            RxAction::Segment {
                segments,
                complete_checksums,
            } => {
                let mut segment = |index| {
                    if complete_checksums {
                        return offload.segment(&header, &segments, index, &bytes).to_vec();
                    }
                    let mut segment = offload.segment_headers(&header, &segments, index).to_vec();
                    let payload = segments.payload(index);
                    let at = segment.len();
                    segment.resize(at + payload.len(), 0);
                    let source = bytes.offset(NET_HEADER + payload.start);
                    source.unwrap().copy_to(&mut segment[at..]);
                    segment
                };
                let all = (0..segments.count()).map(&mut segment).collect();
                Delivered::Segments(all, complete_checksums)
            }
        })
    })
}

#[cfg(test)]
#[path = "../../fuzz/runs/offload.rs"]
mod run;
#[cfg(test)]
#[path = "../../fuzz/runs/seeds.rs"]
mod seeds;

#[cfg(test)]
mod tests {
    use super::seeds::run_all;

    #[test]
    fn fuzz_seeds_of_offload_hold() {
        run_all("offload", super::run::run);
    }
}
