//! A backend that returns each frame to its sender.

use std::collections::VecDeque;
use std::convert::Infallible;

use vm_memory::VolatileSlice;

use super::interface::{
    Backend, RxBackend, RxProgress, RxRecord, RxSink, RxStatus, TxBackend, TxFrame, TxStatus,
};
use super::source::RxSource;
use crate::batch::Sleep;
use crate::device::DeviceError;
use crate::frame::NET_HEADER;
use crate::poller::Poller;

/// Number of frames that wait for the guest's buffers before the transmit queue is held.
const CAPACITY: usize = 256;
/// Length of an Ethernet address in bytes.
const ADDRESS: usize = 6;

/// Returns each frame to its sender, in order, with source and destination address exchanged.
/// Multicast frames return unchanged.
#[derive(Debug, Default)]
pub struct Loopback {
    frames: VecDeque<Vec<u8>>,
    /// Memory of former frames, to be used again.
    free: Vec<Vec<u8>>,
    /// Of the first frame.
    progress: RxProgress,
    /// It waits for the guest's buffers.
    waits: bool,
}

impl Loopback {
    fn has_room(&self) -> bool {
        self.frames.len() < CAPACITY
    }
}

impl TxBackend for Loopback {
    fn offer<F: TxFrame>(&mut self, frame: &F) -> Result<TxStatus, F::Error> {
        if !self.has_room() {
            return Ok(TxStatus::Held);
        }
        let mut record = self.free.pop().unwrap_or_default();
        record.resize(frame.record_len(), 0);
        frame.write_to(&VolatileSlice::from(&mut record[..]))?;
        if !frame.header().destination().is_multicast() {
            let (destination, rest) = record[NET_HEADER..].split_at_mut(ADDRESS);
            destination.swap_with_slice(&mut rest[..ADDRESS]);
        }
        self.frames.push_back(record);
        Ok(TxStatus::Sent)
    }

    fn flush(&mut self) {}

    fn enable_tx_notification(&mut self, held: bool) -> Sleep {
        // The worker serves the receive queue as well, so it knows when frames have left.
        Sleep {
            allowed: !held || !self.has_room(),
            until: None,
        }
    }
}

impl RxBackend for Loopback {
    fn receive<S: RxSink>(&mut self, sink: &mut S) {
        self.waits = false;
        while let Some(frame) = self.frames.front_mut() {
            let record = RxRecord {
                bytes: VolatileSlice::from(&mut frame[..]),
                source: RxSource::any(),
                same_size_hint: 1,
            };
            match sink.deliver(&record, &mut self.progress) {
                RxStatus::Taken => {
                    self.progress = RxProgress::default();
                    self.free.extend(self.frames.pop_front());
                }
                RxStatus::Retry => {}
                RxStatus::TooFewBuffers => {
                    self.waits = true;
                    return;
                }
                RxStatus::OutOfBuffers | RxStatus::BatchFull => return,
            }
        }
    }

    fn release(&mut self) {}

    fn enable_rx_notification(&mut self) -> bool {
        self.waits || self.frames.is_empty()
    }
}

impl Backend for Loopback {
    type Command = Infallible;
    type Answer = Infallible;

    fn handle_command(
        &mut self,
        command: Infallible,
        _poller: &Poller,
    ) -> Result<Infallible, DeviceError> {
        match command {}
    }
}
