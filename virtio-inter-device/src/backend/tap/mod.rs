//! The uplink of a port: a tap device, by which its guest reaches everything that is no peer.
//!
//! Frames are written from the guest's memory and read into it: one system call each, and no copy
//! by this process. A frame that the guest cannot take as it is, or that is longer than the buffers
//! that were collected for it, is copied once more and goes the way of a link's record, with its
//! offloads (decision 0070).

mod device;
mod plain;
mod reader;
mod sys;
#[cfg(test)]
mod testing;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use virtio_inter_common::MacSets;
use vm_memory::VolatileSlice;

pub use device::{MAX_INTERFACE_NAME, TapDevice, TapError, TapState};
use plain::PlainWriter;
pub(super) use reader::TapReader;
use reader::{TapRules, Turn};

use super::interface::{BackendSetup, RxSink, TxFrame, TxStatus};
use crate::drops::DropReason;
use crate::features::Offloads;
use crate::frame::NET_HEADER;
use crate::poller::Poller;

/// Number of batches after which a worker that never sleeps looks for frames by itself.
const LOOK_EVERY: u32 = 16;

/// One worker's part of a tap device: a queue to write to, and those that it reads.
pub(super) struct Tap {
    writer: OwnedFd,
    readers: Vec<TapReader>,
    /// Position of the reader whose turn is next.
    turn: usize,
    context: TapRules,
    /// Frames that are in too many pieces are put together here.
    whole: Vec<u8>,
    /// The device's switch takes no offloads.
    plain: Option<Box<PlainWriter>>,
    /// The device is gone. It has been reported.
    gone: bool,
    to_report: bool,
    /// Batches since the readers were known to have nothing.
    batches: u32,
}

impl Tap {
    /// A worker writes to one queue of the device, and reads it until readers are moved.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for the second half.
    pub(super) fn new(queue: OwnedFd, setup: &BackendSetup) -> io::Result<Self> {
        let reader = TapReader::new(queue.try_clone()?, setup.index);
        Ok(Tap {
            writer: queue,
            readers: vec![reader],
            turn: 0,
            context: TapRules {
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
        })
    }

    /// Has checksums completed and frames segmented before they are written.
    pub(super) fn set_plain(&mut self) {
        self.plain = Some(Box::new(PlainWriter::new()));
    }

    /// Has `poller` wake the worker for frames, and for room after the device was full.
    pub(super) fn attach(&self, poller: &Poller) -> io::Result<()> {
        poller.add_writable(&self.writer)?;
        self.readers
            .iter()
            .try_for_each(|reader| poller.add_source(&reader.fd))
    }

    /// Ends the watch.
    pub(super) fn detach(&self, poller: &Poller) {
        poller.remove(&self.writer);
        for reader in &self.readers {
            poller.remove(&reader.fd);
        }
    }

    /// Sets the offloads that the guest takes: the kernel does the others before frames are read.
    pub(super) fn set_offloads(&mut self, takes: Offloads) {
        self.context.takes = takes;
        let wanted = tun_offloads(takes);
        let set = |offloads| sys::set_offloads(&self.writer, offloads);
        // Kernels before 6.2 know no USO, and then hand over none.
        let result = set(wanted).or_else(|_| set(wanted & !(libc::TUN_F_USO4 | libc::TUN_F_USO6)));
        if let Err(e) = result {
            // Frames that the guest does not take are adapted when they are read.
            log::debug!("Cannot set the offloads of the tap device: {e}");
        }
    }

    /// Sets the addresses that ports of the segment may use beside their own.
    pub(super) fn set_listed(&mut self, listed: MacSets) {
        self.context.listed = listed;
    }

    /// Writes a frame.
    pub(super) fn send<F: TxFrame>(&mut self, frame: &F) -> Result<TxStatus, F::Error> {
        if self.gone {
            return Ok(self.lose_frame());
        }
        if let Some(plain) = &mut self.plain
            && PlainWriter::is_for(frame.header())
        {
            let written = plain.write(&self.writer, frame, self.context.mtu)?;
            return Ok(self.written(written, frame.record_len()));
        }
        let written = frame.with_slices(|slices| {
            (slices.len() <= sys::MAX_PIECES).then(|| sys::write(&self.writer, slices))
        })?;
        let written = match written {
            Some(written) => written,
            None => {
                self.whole.resize(frame.record_len(), 0);
                let whole = VolatileSlice::from(&mut self.whole[..]);
                frame.write_to(&whole)?;
                sys::write(&self.writer, &[whole])
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
        let written = sys::write(&self.writer, &[VolatileSlice::from(&mut record[..])]);
        self.written(written, record.len()) == TxStatus::Sent
    }

    fn written(&mut self, written: io::Result<()>, len: usize) -> TxStatus {
        let counters = &self.context.counters;
        match written {
            Ok(()) => {
                counters.uplink_tx_frames.add(1);
                counters.uplink_tx_bytes.add((len - NET_HEADER) as u64);
                TxStatus::Sent
            }
            Err(error) => self.not_written(&error),
        }
    }

    #[cold]
    fn not_written(&mut self, error: &io::Error) -> TxStatus {
        match Errno::from_io_error(error) {
            Some(Errno::AGAIN) => TxStatus::Held,
            // The interface is down.
            Some(Errno::IO) => self.lose_frame(),
            Some(Errno::BADFD) => {
                self.set_gone();
                self.lose_frame()
            }
            _ => {
                self.context.counters.uplink_tx_refused.add(1);
                TxStatus::Dropped
            }
        }
    }

    #[cold]
    fn lose_frame(&mut self) -> TxStatus {
        self.context.counters.uplink_tx_down.add(1);
        self.context.counters.drops.note(DropReason::UplinkDown);
        TxStatus::Dropped
    }

    fn set_gone(&mut self) {
        self.to_report |= !self.gone;
        self.gone = true;
    }

    /// Whether the device is gone and that was not reported yet.
    pub(super) fn take_loss(&mut self) -> bool {
        std::mem::take(&mut self.to_report)
    }

    /// Whether the device has room for a frame again. If not, the end of its congestion is an
    /// event.
    pub(super) fn is_writable(&self) -> bool {
        let mut fds = [PollFd::new(&self.writer, PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready != 0)
    }

    /// The worker was woken by a reader.
    pub(super) fn wake(&mut self) {
        for reader in &mut self.readers {
            reader.wake();
        }
    }

    /// Whether there may be frames to read. Called once a batch.
    #[inline]
    pub(super) fn is_due(&mut self) -> bool {
        if self.readers.iter().any(TapReader::has_work) {
            return true;
        }
        self.batches += 1;
        if self.batches < LOOK_EVERY || self.gone {
            return false;
        }
        self.batches = 0;
        self.wake();
        true
    }

    /// Whether all frames were read when the worker looked last, besides those that wait for more
    /// of the guest's buffers.
    pub(super) fn is_idle(&self) -> bool {
        self.readers.iter().all(TapReader::is_idle)
    }

    /// Delivers frames. True: one waits for the guest's buffers, and is to be delivered first.
    pub(super) fn receive<S: RxSink>(&mut self, sink: &mut S) -> bool {
        for _ in 0..self.readers.len() {
            // Readers come and go.
            self.turn %= self.readers.len();
            match self.readers[self.turn].receive(&self.context, sink) {
                Turn::Empty | Turn::TooFewBuffers => self.turn += 1,
                Turn::Full => {
                    self.turn += 1;
                    return false;
                }
                // It keeps its turn.
                Turn::OutOfBuffers => return true,
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
        for _ in 0..self.readers.len() {
            let turn = self.turn % self.readers.len();
            self.turn = turn + 1;
            read = self.readers[turn].read_whole(&self.context, buffer, &mut gone);
            if read.is_some() {
                break;
            }
        }
        if gone {
            self.set_gone();
        }
        read
    }

    /// Removes the readers that `misplaced` is true of, by the number of their queue.
    pub(super) fn take_readers(
        &mut self,
        poller: &Poller,
        misplaced: impl Fn(u16) -> bool,
    ) -> Vec<TapReader> {
        let taken = self
            .readers
            .extract_if(.., |reader| misplaced(reader.preferred));
        taken.inspect(|reader| poller.remove(&reader.fd)).collect()
    }

    /// Reads another queue.
    pub(super) fn add_reader(&mut self, mut reader: TapReader, poller: &Poller) -> io::Result<()> {
        poller.add_source(&reader.fd)?;
        reader.wake();
        self.readers.push(reader);
        Ok(())
    }
}

/// `TUN_F_…` of these offloads.
fn tun_offloads(takes: Offloads) -> u32 {
    if !takes.checksum {
        return 0;
    }
    let uso = takes.udp4 && takes.udp6;
    [
        (takes.tcp4, libc::TUN_F_TSO4),
        (takes.tcp6, libc::TUN_F_TSO6),
        (takes.ecn && (takes.tcp4 || takes.tcp6), libc::TUN_F_TSO_ECN),
        (uso, libc::TUN_F_USO4 | libc::TUN_F_USO6),
    ]
    .into_iter()
    .filter(|(takes, _)| *takes)
    .fold(libc::TUN_F_CSUM, |all, (_, offload)| all | offload)
}

#[cfg(test)]
mod tests {
    use super::testing::{Inbox, frame, queue, setup};
    use super::*;

    /// Frames for the guest in the order in which a worker with batches of four reads them.
    #[test]
    fn tap_serves_its_readers_in_turn() {
        let (first, first_far) = queue();
        let (second, second_far) = queue();
        let mut tap = Tap::new(first, &setup()).unwrap();
        tap.readers.push(TapReader::new(second, 1));
        for seed in 0..8 {
            first_far.send(&frame(seed)).unwrap();
            second_far.send(&frame(100 + seed)).unwrap();
        }
        let mut got = Vec::new();
        for _ in 0..4 {
            let mut inbox = Inbox::of(4);
            assert!(!tap.receive(&mut inbox));
            got.push(inbox.seeds);
        }
        let turns = [[0, 1, 2, 3], [100, 101, 102, 103]];
        let again = [[4, 5, 6, 7], [104, 105, 106, 107]];
        assert_eq!(got, [turns, again].concat());
    }

    /// Buffers for 100 bytes: enough for some of the frames, whose lengths are not known before.
    #[test]
    fn tap_frame_without_enough_buffers_does_not_stop_other_queues() {
        let (first, first_far) = queue();
        let (second, second_far) = queue();
        let mut tap = Tap::new(first, &setup()).unwrap();
        tap.readers.push(TapReader::new(second, 1));
        let mut long = frame(0);
        long.resize(101, 0);
        first_far.send(&frame(1)).unwrap();
        first_far.send(&long).unwrap();
        first_far.send(&frame(2)).unwrap();
        second_far.send(&frame(3)).unwrap();
        let mut inbox = Inbox::of(10);
        inbox.room = 100;
        for _ in 0..2 {
            assert!(!tap.receive(&mut inbox));
            assert_eq!(inbox.seeds, [1, 3]);
            assert!(tap.is_idle() && tap.is_due());
        }
        inbox.room = 101;
        tap.receive(&mut inbox);
        assert_eq!(inbox.seeds, [1, 3, 0, 2]);
    }

    #[test]
    fn tap_is_read_whole_from_its_queues_in_turn() {
        let (first, first_far) = queue();
        let (second, second_far) = queue();
        let mut tap = Tap::new(first, &setup()).unwrap();
        tap.readers.push(TapReader::new(second, 1));
        for seed in 0..3 {
            first_far.send(&frame(seed)).unwrap();
        }
        second_far.send(&frame(100)).unwrap();
        let mut buffer = [0; 128];
        let seed_at = NET_HEADER + 14;
        let mut seeds = Vec::new();
        while tap.read(&mut buffer).is_some() {
            seeds.push(buffer[seed_at]);
        }
        assert_eq!(seeds, [0, 100, 1, 2]);
    }

    #[test]
    fn tap_offloads_are_those_that_the_guest_takes() {
        assert_eq!(tun_offloads(Offloads::NONE), 0);
        assert_eq!(tun_offloads(Offloads::ALL), 0x6f);
        let no_checksum = Offloads {
            checksum: false,
            ..Offloads::ALL
        };
        assert_eq!(tun_offloads(no_checksum), 0);
        // The kernel knows USO for both or for none.
        let udp4 = Offloads {
            udp6: false,
            ..Offloads::ALL
        };
        assert_eq!(tun_offloads(udp4), 0xf);
    }
}
