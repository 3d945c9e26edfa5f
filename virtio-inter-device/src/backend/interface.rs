//! The interface between the guest side and the network side of a device, and between an uplink and
//! the kinds of its devices.

use std::os::fd::AsFd;
use std::sync::Arc;

use virtio_inter_common::{MacAddr, MacSets};
use virtio_inter_link::Violation;
use virtio_inter_segment::PeerKey;
use vm_memory::VolatileSlice;

use super::link::Learned;
use super::ring_request::PlacedRequest;
use super::source::RxSource;
use super::steering::ActiveQueues;
use crate::batch::Sleep;
use crate::counters::Counters;
use crate::device::DeviceError;
use crate::features::Offloads;
use crate::frame::FrameHeader;
use crate::poller::Poller;
use crate::rx::Wait;

/// A frame that leaves a transmit queue, as the record of a link: net header and Ethernet frame.
pub trait TxFrame {
    /// Why the frame cannot be read.
    type Error;

    /// Its headers, validated.
    fn header(&self) -> &FrameHeader;

    /// Length of the record in bytes.
    fn record_len(&self) -> usize;

    /// Writes the record to memory of just its length. The headers are those that were validated;
    /// the rest is what the guest has there now.
    ///
    /// # Errors
    ///
    /// When the frame cannot be read.
    fn write_to(&self, record: &VolatileSlice<'_>) -> Result<(), Self::Error>;

    /// Calls `write` with the pieces of the record, in order, as for writev(2).
    ///
    /// # Errors
    ///
    /// When the frame cannot be read; `write` is then not called.
    fn with_slices<R>(
        &self,
        write: impl FnOnce(&[VolatileSlice<'_>]) -> R,
    ) -> Result<R, Self::Error>;
}

/// What becomes of a frame that was offered to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxStatus {
    /// The backend has it.
    Sent,
    /// The backend has dropped it, and has counted why.
    Dropped,
    /// There is no room: the frame stays in the transmit queue, and with it those behind it, until
    /// it is offered again.
    Held,
}

/// Takes the frames of a transmit queue.
pub trait TxBackend {
    /// Offers a frame.
    ///
    /// # Errors
    ///
    /// When the frame cannot be read; it counts as not offered.
    fn offer<F: TxFrame>(&mut self, frame: &F) -> Result<TxStatus, F::Error>;

    /// The frame that was held is about to be offered again, if it is still in the queue.
    /// `queued(is_other)` says whether a frame now behind it has a destination for which `is_other`
    /// is true: time for which frames for others waited is charged to a budget.
    fn end_hold(&mut self, queued: impl FnOnce(&dyn Fn(MacAddr) -> bool) -> bool) {
        let _ = queued;
    }

    /// Passes on all frames that the backend has, as far as there is room. Called after each batch,
    /// and while there is no transmit queue.
    fn flush(&mut self);

    /// Asks to be woken when frames that the backend has, or that it holds up, can go on. `held`:
    /// the last frame offered is still held.
    fn enable_tx_notification(&mut self, held: bool) -> Sleep;

    /// Whether the guest may send from this address, which is one that its port has listed beside
    /// its own, or any for a trunk: no other port has it as its own. If so, the table of addresses
    /// has it at this port from now on.
    fn claim_source(&mut self, source: MacAddr) -> bool {
        let _ = source;
        true
    }

    /// Whether such an address can be announced: no other port has it or lists it.
    fn may_announce(&self, address: MacAddr) -> bool {
        let _ = address;
        true
    }

    /// Sends a record of the port's own to everybody. Returns how many get it.
    fn announce(&mut self, record: &[u8]) -> usize {
        let _ = record;
        0
    }

    /// Sends the record towards the uplink alone, when the guest has arrived: peers know its
    /// address from the handshake. False: there is no uplink.
    fn announce_arrival(&mut self, record: &[u8]) -> bool {
        let _ = record;
        false
    }
}

/// A record for a receive queue: net header and Ethernet frame. It may change while it is read.
#[derive(Debug)]
pub struct RxRecord<'a> {
    /// Its bytes.
    pub bytes: VolatileSlice<'a>,
    /// The source addresses that its sender may use.
    pub source: RxSource<'a>,
    /// Estimate of the number of waiting records of this length, this one included; 0 and 1: no
    /// other.
    pub same_size_hint: usize,
}

/// How far the delivery of a record has come. Kept by the backend with the record, and new for each
/// record.
#[derive(Debug, Default)]
pub struct RxProgress {
    /// Number of its segments that the guest has.
    pub(crate) segments: u32,
    /// Length in bytes of the longest frame that the guest's buffers hold, if they were too small
    /// for the record as it is: it is then segmented to fit. The segments must stay the same ones.
    pub(crate) frame_room: Option<usize>,
    /// Its wait for more buffers than there are.
    pub(crate) wait: Option<Wait>,
}

/// What becomes of a record that was delivered to a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RxStatus {
    /// The sink is done with the record: go on with the next one.
    Taken,
    /// Deliver the same record again, now.
    Retry,
    /// The record, or its rest, waits for buffers: deliver it again in another batch. First if the
    /// guest got no segment of it this time, else after those of others: it may have many.
    OutOfBuffers,
    /// The same, but there are buffers, which may be enough for the records of other senders:
    /// deliver those first.
    TooFewBuffers,
    /// The batch is full. Deliver the record, or its rest, again in another batch, after those of
    /// others.
    BatchFull,
}

/// Takes the records of a backend: the receive queue of a guest, or what drops them where there is
/// no guest.
pub trait RxSink {
    /// Delivers a record.
    fn deliver(&mut self, record: &RxRecord<'_>, progress: &mut RxProgress) -> RxStatus;

    /// Delivers a frame that is not in memory yet. Calls `read` with room for a record of
    /// `max_len` bytes, or of as many as the guest's buffers hold, as for readv(2), unless there
    /// are too few buffers. `read` returns the length of the record that it has written, also if
    /// that is longer than the room and was cut off; None: there is none.
    ///
    /// The frame must be one that the guest takes as it is. [`RxStatus::TooFewBuffers`]: there are
    /// some, and a shorter one may fit.
    fn fill(
        &mut self,
        max_len: usize,
        read: impl FnOnce(&[VolatileSlice<'_>]) -> Option<usize>,
    ) -> RxStatus;
}

/// Fills a receive queue.
pub trait RxBackend {
    /// Delivers waiting records to `sink`, until there are none or the sink takes no more. A
    /// backend with several sources serves them in turn.
    fn receive<S: RxSink>(&mut self, sink: &mut S);

    /// Returns the room of the records taken to their senders. Called when the guest can see them.
    fn release(&mut self);

    /// Asks to be woken when there are records. True: there are none besides those that wait for
    /// the guest's buffers, and the worker can sleep.
    fn enable_rx_notification(&mut self) -> bool;
}

/// A violation of a link's rules by its peer.
#[derive(Debug, Clone, Copy)]
pub struct LinkFault {
    /// The peer. Its link is not used any more.
    pub peer: PeerKey,
    /// What it did.
    pub violation: Violation,
}

/// What the links of a worker want of the control thread.
#[derive(Debug, Clone, Copy)]
pub enum LinkRequest {
    /// A ring to a peer.
    Ring(PlacedRequest),
    /// Rings are read to their end.
    TakeFinished,
    /// The guest of a trunk sends from an address that is not known to be its.
    Learn(MacAddr),
}

/// What a backend knows of its port.
#[derive(Debug, Clone)]
pub struct BackendSetup {
    /// The queue pair.
    pub index: u16,
    /// The port's address.
    pub mac: MacAddr,
    /// Addresses that its guest may use beside that.
    pub allowed: MacSets,
    /// It may use any that no other port has or lists, and gets frames for any.
    pub trunk: bool,
    /// Where such addresses of all ports were heard.
    pub(crate) learned: Arc<Learned>,
    /// The port's MTU in bytes.
    pub mtu: u16,
    /// The counters of the queue pair.
    pub counters: Arc<Counters>,
}

/// The network side of one queue pair. Each worker owns one.
pub trait Backend: TxBackend + RxBackend + Send + Sized + 'static {
    /// A change that the control thread asks for. Carried out between two batches.
    type Command: Send;
    /// The answer.
    type Answer: Send;

    /// Whether the backends of a port serve the same senders, so that one whose receive queue is
    /// not in use leaves its records to another one: [`Backend::steer`] moves them.
    const STEERED: bool = false;

    /// Whether nothing is given up because a guest has too few buffers: for tests.
    fn without_timeouts(&self) -> bool {
        false
    }

    /// Has `poller` wake the worker for this backend. Called once, before anything else.
    ///
    /// # Errors
    ///
    /// When that fails.
    fn attach(&mut self, poller: &Poller) -> Result<(), DeviceError> {
        let _ = poller;
        Ok(())
    }

    /// Sets the offloads that the guest takes in frames of [`RxSink::fill`].
    fn set_offloads(&mut self, takes: Offloads) {
        let _ = takes;
    }

    /// The worker was woken by a descriptor of [`Poller::add_source`]. `is_lost`: one reports an
    /// error or a hang-up. That is reported once, whatever can be read at that moment.
    fn wake(&mut self, is_lost: bool) {
        let _ = is_lost;
    }

    /// The worker slept. The doorbells of the links with these tokens were rung; there may be more,
    /// which the next call names.
    fn wake_links(&mut self, rung: &[u64]) {
        let _ = rung;
    }

    /// Carries out a command.
    ///
    /// # Errors
    ///
    /// Those of the command.
    fn handle_command(
        &mut self,
        command: Self::Command,
        poller: &Poller,
    ) -> Result<Self::Answer, DeviceError>;

    /// Moves the sources of records to the `workers` whose receive queues are in use now. `ask`
    /// has a worker carry out a command. Called by the control thread.
    ///
    /// # Errors
    ///
    /// When a worker does not answer.
    fn steer(
        active: ActiveQueues,
        workers: u16,
        ask: &mut dyn FnMut(u16, Self::Command) -> Result<Self::Answer, DeviceError>,
    ) -> Result<(), DeviceError> {
        let _ = (active, workers, ask);
        Ok(())
    }

    /// The next violation by a peer that was not reported yet.
    fn take_fault(&mut self) -> Option<LinkFault> {
        None
    }

    /// The next request of its links that was not reported yet.
    fn take_request(&mut self) -> Option<LinkRequest> {
        None
    }

    /// The generation of the uplink's device, if that is gone and was not reported yet.
    fn take_uplink_loss(&mut self) -> Option<Generation> {
        None
    }
}

/// A backend with an uplink, whose device can be replaced.
pub trait UplinkBackend: Backend {
    /// The kind of the device.
    type Device: UplinkDevice;

    /// The command by which a worker uses this queue, of the device of that generation, in place
    /// of the one before.
    fn set_uplink(queue: UplinkQueue<Self::Device>, generation: Generation) -> Self::Command;
}

/// Number of the device that a port's uplink has, among all that it had: 0 for the one that the
/// port was made with. It identifies reports about a former device.
pub type Generation = u64;

/// A device by which frames reach another network: a kind of uplink. It is open, by as many of its
/// queues as there are workers.
///
/// Frames are records as links carry them: a `virtio_net_hdr_v1`, in little-endian, and an Ethernet
/// frame. The uplink does what is common to all kinds: it chooses the frames that are for its
/// guest, and counts, adapts and returns them.
pub trait UplinkDevice: 'static {
    /// Largest number of pieces of memory that the halves of a queue take for one frame.
    const MAX_PIECES: usize;

    /// One half of a queue. It stays with its worker.
    type Writer: UplinkWriter;
    /// The other half. It moves to a worker whose receive queue is in use.
    type Reader: UplinkReader;

    /// Its queues.
    fn into_queues(self) -> Vec<UplinkQueue<Self>>
    where
        Self: Sized;
}

/// One queue of an uplink's device.
pub type UplinkQueue<D> = (<D as UplinkDevice>::Writer, <D as UplinkDevice>::Reader);

/// Writes frames to a device. Its descriptor polls as writable while there is room.
pub trait UplinkWriter: AsFd + Send + 'static {
    /// Writes one frame, whole or not at all. Does not block.
    ///
    /// # Errors
    ///
    /// Why it was not written.
    fn write(&mut self, pieces: &[VolatileSlice<'_>]) -> Result<(), WriteError>;

    /// The reader takes frames with these offloads from now on. A device that cannot do the others
    /// before frames are read need not: such frames are adapted then.
    fn set_offloads(&mut self, takes: Offloads) {
        let _ = takes;
    }
}

/// Why a frame was not written to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteError {
    /// There is no room now.
    Full,
    /// The device is down, and may be up again.
    Down,
    /// The device is gone: it is to be opened again.
    Gone,
    /// The device does not take this frame.
    Refused,
}

/// Reads frames of a device. Its descriptor signals when there are some after there were none, and
/// reports an error or a hang-up (`EPOLLERR`, `EPOLLHUP`) only when the device is gone.
pub trait UplinkReader: AsFd + Send + 'static {
    /// Reads one frame into `pieces`, and into `rest` what does not fit there, as far as there is
    /// room. Returns the length of the record. Does not block.
    ///
    /// # Errors
    ///
    /// Why none was read.
    fn read(&mut self, pieces: &[VolatileSlice<'_>], rest: &mut [u8]) -> Result<usize, ReadError>;
}

/// Why no frame was read of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadError {
    /// There is none now.
    Empty,
    /// The device is gone: it is to be opened again.
    Gone,
    /// The device lost a frame. There may be others.
    Failed,
}
