//! The uplink of a port: a device by which its guest reaches everything that is no peer. What kind
//! of device that is, its [`UplinkDevice`] alone knows.
//!
//! Frames are written from the guest's memory and read into it, without a copy by this process. A
//! frame that the guest cannot take as it is, or that is longer than the buffers that were
//! collected for it, is copied once more and goes the way of a link's record, with its offloads
//! (decision 0070).

mod plain;
mod read_queue;
#[cfg(test)]
mod testing;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_inter_common::MacSets;
use vm_memory::VolatileSlice;

use plain::PlainWriter;
pub(super) use read_queue::ReadQueue;
use read_queue::{ReadRules, TURN, Turn};

use super::interface::{
    BackendSetup, Generation, RxSink, TxFrame, TxStatus, UplinkDevice, UplinkQueue, UplinkWriter,
    WriteError,
};
use crate::batch::Sleep;
use crate::drops::DropReason;
use crate::features::Offloads;
use crate::frame::NET_HEADER;
use crate::poller::Poller;

/// Number of batches after which a worker that never sleeps looks for frames by itself.
const LOOK_EVERY: u32 = 16;
/// Time after which a frame that is held is offered to the device again in any case: one that is
/// taken down while it is full has no event.
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// One worker's part of an uplink: a queue of its device to write to, and those that it reads.
pub(super) struct Uplink<D: UplinkDevice> {
    writer: D::Writer,
    /// Of the device.
    generation: Generation,
    queues: Vec<ReadQueue<D>>,
    /// Position of the queue whose turn is next.
    turn: usize,
    /// That queue keeps its turn for one frame, which waits for the guest's buffers.
    keeps_turn: bool,
    rules: ReadRules,
    /// Frames that are in too many pieces are put together here.
    whole: Vec<u8>,
    /// The device's switch takes no offloads.
    plain: Option<Box<PlainWriter>>,
    /// The device is gone. It has been reported.
    gone: bool,
    to_report: bool,
    /// Batches since the queues were known to have nothing.
    batches: u32,
}

impl<D: UplinkDevice> Uplink<D> {
    /// A worker writes to one queue of the device, and reads it until queues are moved.
    pub(super) fn new(
        (writer, reader): UplinkQueue<D>,
        generation: Generation,
        setup: &BackendSetup,
    ) -> Self {
        Uplink {
            writer,
            generation,
            queues: vec![ReadQueue::new(reader, setup.index)],
            turn: 0,
            keeps_turn: false,
            rules: ReadRules {
                mac: setup.mac,
                allowed: setup.allowed.clone(),
                trunk: setup.trunk,
                listed: setup.allowed.clone(),
                learned: Arc::clone(&setup.learned),
                mtu: setup.mtu,
                takes: Offloads::ALL,
                counters: Arc::clone(&setup.counters),
            },
            whole: Vec::new(),
            plain: None,
            gone: false,
            to_report: false,
            batches: 0,
        }
    }

    /// Has checksums completed and frames segmented before they are written.
    pub(super) fn set_plain(&mut self) {
        self.plain = Some(Box::new(PlainWriter::new()));
    }

    /// Has `poller` watch this uplink in place of the one in `place`, if there is one.
    pub(super) fn replace(self, place: &mut Option<Self>, poller: &Poller) -> io::Result<()> {
        self.attach(poller)?;
        if let Some(former) = place.replace(self) {
            former.detach(poller);
        }
        Ok(())
    }

    /// Has `poller` wake the worker for frames, and for room after the device was full.
    pub(super) fn attach(&self, poller: &Poller) -> io::Result<()> {
        poller.add_writable(&self.writer)?;
        self.queues
            .iter()
            .try_for_each(|queue| poller.add_source(&queue.reader))
    }

    /// Ends the watch.
    fn detach(&self, poller: &Poller) {
        poller.remove(&self.writer);
        for queue in &self.queues {
            poller.remove(&queue.reader);
        }
    }

    /// Sets the offloads that the guest takes.
    pub(super) fn set_offloads(&mut self, takes: Offloads) {
        self.rules.takes = takes;
        self.writer.set_offloads(takes);
    }

    /// Sets the addresses that ports of the segment may use beside their own.
    pub(super) fn set_listed(&mut self, listed: MacSets) {
        self.rules.listed = listed;
    }

    /// Writes a frame.
    pub(super) fn send<F: TxFrame>(&mut self, frame: &F) -> Result<TxStatus, F::Error> {
        if self.gone {
            return Ok(self.lose_frame());
        }
        if let Some(plain) = &mut self.plain
            && PlainWriter::is_for(frame.header())
        {
            let written = plain.write(&mut self.writer, frame, self.rules.mtu)?;
            return Ok(self.written(written, frame.record_len()));
        }
        let writer = &mut self.writer;
        let written = frame
            .with_slices(|slices| (slices.len() <= D::MAX_PIECES).then(|| writer.write(slices)))?;
        let written = match written {
            Some(written) => written,
            None => {
                self.whole.resize(frame.record_len(), 0);
                let whole = VolatileSlice::from(&mut self.whole[..]);
                frame.write_to(&whole)?;
                self.writer.write(&[whole])
            }
        };
        Ok(self.written(written, frame.record_len()))
    }

    /// Writes a record of the port's own.
    pub(super) fn announce(&mut self, record: &[u8]) -> bool {
        if self.gone {
            return false;
        }
        let mut record = record.to_vec();
        let written = self.writer.write(&[VolatileSlice::from(&mut record[..])]);
        self.written(written, record.len()) == TxStatus::Sent
    }

    fn written(&mut self, written: Result<(), WriteError>, len: usize) -> TxStatus {
        let counters = &self.rules.counters;
        match written {
            Ok(()) => {
                counters.uplink_tx_frames.add(1);
                counters.uplink_tx_bytes.add((len - NET_HEADER) as u64);
                TxStatus::Sent
            }
            Err(error) => self.not_written(error),
        }
    }

    #[cold]
    fn not_written(&mut self, error: WriteError) -> TxStatus {
        match error {
            WriteError::Full => TxStatus::Held,
            WriteError::Down => self.lose_frame(),
            WriteError::Gone => {
                self.set_gone();
                self.lose_frame()
            }
            WriteError::Refused => {
                self.rules.counters.uplink_tx_refused.add(1);
                TxStatus::Dropped
            }
        }
    }

    #[cold]
    fn lose_frame(&mut self) -> TxStatus {
        self.rules.counters.uplink_tx_down.add(1);
        self.rules.counters.drops.note(DropReason::UplinkDown);
        TxStatus::Dropped
    }

    fn set_gone(&mut self) {
        self.to_report |= !self.gone;
        self.gone = true;
    }

    /// The device's generation, if it is gone and that was not reported yet.
    pub(super) fn take_loss(&mut self) -> Option<Generation> {
        std::mem::take(&mut self.to_report).then_some(self.generation)
    }

    /// Has the worker sleep until the device has room for a frame again.
    pub(super) fn wait_for_room(&self, sleep: &mut Sleep) {
        let mut fds = [PollFd::new(&self.writer, PollFlags::OUT)];
        let has_room = poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready != 0);
        // If not, the end of its congestion is an event.
        sleep.allowed &= !has_room;
        sleep.wake_at(Instant::now() + TRY_AGAIN);
    }

    /// The worker was woken by a queue that it reads. `is_lost`: the device is gone. The kernel
    /// wakes those who wait for a tap device just before reading it is an error, so that its
    /// descriptor says it first.
    pub(super) fn wake(&mut self, is_lost: bool) {
        if is_lost {
            self.set_gone();
        }
        self.wake_queues();
    }

    fn wake_queues(&mut self) {
        for queue in &mut self.queues {
            queue.wake();
        }
    }

    /// Whether there may be frames to read. Called once a batch.
    #[inline]
    pub(super) fn is_due(&mut self) -> bool {
        if self.queues.iter().any(ReadQueue::has_work) {
            return true;
        }
        self.batches += 1;
        if self.batches < LOOK_EVERY || self.gone {
            return false;
        }
        self.batches = 0;
        self.wake_queues();
        true
    }

    /// Whether all frames were read when the worker looked last, besides those that wait for more
    /// of the guest's buffers.
    pub(super) fn is_idle(&self) -> bool {
        self.queues.iter().all(ReadQueue::is_idle)
    }

    /// Delivers frames. True: one waits for the guest's buffers, and is to be delivered first.
    pub(super) fn receive<S: RxSink>(&mut self, sink: &mut S) -> bool {
        for _ in 0..self.queues.len() {
            // Queues come and go.
            self.turn %= self.queues.len();
            // A guest whose buffers run out again and again has buffers for the others, too.
            let most = if std::mem::take(&mut self.keeps_turn) {
                1
            } else {
                TURN
            };
            match self.queues[self.turn].receive(&self.rules, sink, most) {
                Turn::Empty | Turn::TooFewBuffers => self.turn += 1,
                Turn::Full => {
                    self.turn += 1;
                    return false;
                }
                Turn::OutOfBuffers => {
                    self.keeps_turn = true;
                    return true;
                }
                Turn::Gone => {
                    self.turn += 1;
                    self.set_gone();
                }
            }
        }
        false
    }

    /// Reads a record into `buffer`, which holds the longest one, of each queue in turn. None:
    /// there is none.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let mut gone = false;
        let mut read = None;
        for _ in 0..self.queues.len() {
            let turn = self.turn % self.queues.len();
            self.turn = turn + 1;
            read = self.queues[turn].read_whole(&self.rules, buffer, &mut gone);
            if read.is_some() {
                break;
            }
        }
        if gone {
            self.set_gone();
        }
        read
    }

    /// Removes the queues to read that `misplaced` is true of, by their numbers.
    pub(super) fn take_queues(
        &mut self,
        poller: &Poller,
        misplaced: impl Fn(u16) -> bool,
    ) -> Vec<ReadQueue<D>> {
        let taken = self
            .queues
            .extract_if(.., |queue| misplaced(queue.preferred));
        taken
            .inspect(|queue| poller.remove(&queue.reader))
            .collect()
    }

    /// Reads another queue.
    pub(super) fn add_queue(&mut self, mut queue: ReadQueue<D>, poller: &Poller) -> io::Result<()> {
        poller.add_source(&queue.reader)?;
        queue.wake();
        self.queues.push(queue);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Inbox, Socket, frame, queue, setup};
    use super::*;
    use crate::backend::RxStatus;
    use crate::frame::NET_HEADER;

    fn uplink_of_two(first: UplinkQueue<Socket>, second: UplinkQueue<Socket>) -> Uplink<Socket> {
        let mut uplink = Uplink::new(first, 0, &setup());
        uplink.queues.push(ReadQueue::new(second.1, 1));
        uplink
    }

    /// Frames for the guest in the order in which a worker with batches of four reads them.
    #[test]
    fn uplink_serves_its_queues_in_turn() {
        let (first, first_far) = queue();
        let (second, second_far) = queue();
        let mut uplink = uplink_of_two(first, second);
        for seed in 0..8 {
            first_far.send(&frame(seed)).unwrap();
            second_far.send(&frame(100 + seed)).unwrap();
        }
        let mut got = Vec::new();
        for _ in 0..4 {
            let mut inbox = Inbox::of(4);
            assert!(!uplink.receive(&mut inbox));
            got.push(inbox.seeds);
        }
        let turns = [[0, 1, 2, 3], [100, 101, 102, 103]];
        let again = [[4, 5, 6, 7], [104, 105, 106, 107]];
        assert_eq!(got, [turns, again].concat());
    }

    /// The guest has buffers for three frames at a time.
    #[test]
    fn uplink_queue_that_waits_for_buffers_keeps_its_turn_for_one_frame() {
        let (first, first_far) = queue();
        let (second, second_far) = queue();
        let mut uplink = uplink_of_two(first, second);
        for seed in 0..8 {
            first_far.send(&frame(seed)).unwrap();
            second_far.send(&frame(100 + seed)).unwrap();
        }
        let mut batch = || {
            let mut inbox = Inbox::of(3);
            inbox.when_full = RxStatus::OutOfBuffers;
            (uplink.receive(&mut inbox), inbox.seeds)
        };
        assert_eq!(batch(), (true, vec![0, 1, 2]));
        // One more, and with it the turn ends.
        assert_eq!(batch(), (false, vec![3]));
        assert_eq!(batch(), (true, vec![100, 101, 102]));
        assert_eq!(batch(), (false, vec![103]));
        assert_eq!(batch(), (true, vec![4, 5, 6]));
    }

    /// Buffers for 100 bytes: enough for some of the frames, whose lengths are not known before.
    #[test]
    fn uplink_frame_without_enough_buffers_does_not_stop_other_queues() {
        let (first, first_far) = queue();
        let (second, second_far) = queue();
        let mut uplink = uplink_of_two(first, second);
        let mut long = frame(0);
        long.resize(101, 0);
        first_far.send(&frame(1)).unwrap();
        first_far.send(&long).unwrap();
        first_far.send(&frame(2)).unwrap();
        second_far.send(&frame(3)).unwrap();
        let mut inbox = Inbox::of(10);
        inbox.room = 100;
        for _ in 0..2 {
            assert!(!uplink.receive(&mut inbox));
            assert_eq!(inbox.seeds, [1, 3]);
            assert!(uplink.is_idle() && uplink.is_due());
        }
        inbox.room = 101;
        uplink.receive(&mut inbox);
        assert_eq!(inbox.seeds, [1, 3, 0, 2]);
    }

    /// It comes as segments, and the guest has buffers for three at a time.
    #[test]
    fn uplink_frame_whose_segments_wait_for_buffers_gives_up_its_turn() {
        let (first, first_far) = queue();
        let (second, second_far) = queue();
        let mut uplink = uplink_of_two(first, second);
        let mut long = frame(0);
        long.resize(3000, 0);
        first_far.send(&long).unwrap();
        second_far.send(&frame(1)).unwrap();
        let mut batch = || {
            let mut inbox = Inbox::of(3);
            (inbox.when_full, inbox.segments) = (RxStatus::OutOfBuffers, 5);
            (uplink.receive(&mut inbox), inbox.seeds)
        };
        assert_eq!(batch(), (false, vec![0, 0, 0]));
        assert_eq!(batch(), (true, vec![1, 0, 0]));
    }

    #[test]
    fn uplink_is_read_whole_from_its_queues_in_turn() {
        let (first, first_far) = queue();
        let (second, second_far) = queue();
        let mut uplink = uplink_of_two(first, second);
        for seed in 0..3 {
            first_far.send(&frame(seed)).unwrap();
        }
        second_far.send(&frame(100)).unwrap();
        let mut buffer = [0; 128];
        let seed_at = NET_HEADER + 14;
        let mut seeds = Vec::new();
        while uplink.read(&mut buffer).is_some() {
            seeds.push(buffer[seed_at]);
        }
        assert_eq!(seeds, [0, 100, 1, 2]);
    }
}
