//! The receiving half of one queue of an uplink's device.

use std::sync::Arc;

use virtio_inter_common::{MacAddr, MacSets};
use vm_memory::VolatileSlice;

use crate::backend::interface::{
    ReadError, RxProgress, RxRecord, RxSink, RxStatus, UplinkDevice, UplinkReader,
};
use crate::backend::link::Learned;
use crate::backend::source::RxSource;
use crate::counters::Counters;
use crate::features::Offloads;
use crate::frame::{FRAME_HEADER, FrameHeader, Invalid, MAX_RECORD, NET_HEADER, UDP_CHECKSUM};
use crate::offload::DHCP_SERVER;

/// Number of frames before another queue's turn, or that of the links.
pub(super) const TURN: usize = 64;
/// Length in bytes of the records for which buffers are collected at least: one buffer of a driver
/// for an MTU of 1500 holds as much.
const SHORT: usize = FRAME_HEADER + 1500;
/// Number of short frames in a row after which buffers are collected for half the length.
const SHORT_FRAMES: u32 = 16;
/// Number of errors in a row after which a queue is read again only when the worker is woken: an
/// error that stays must not keep the worker busy.
const ERRORS: u32 = 64;

/// What the queues that a worker reads have in common.
pub(super) struct ReadRules {
    pub(super) mac: MacAddr,
    /// Addresses that the guest may use beside `mac`.
    pub(super) allowed: MacSets,
    /// It takes frames for any.
    pub(super) trunk: bool,
    /// Those of all ports of the segment.
    pub(super) listed: MacSets,
    /// Where these were heard.
    pub(super) learned: Arc<Learned>,
    pub(super) mtu: u16,
    pub(super) takes: Offloads,
    pub(super) counters: Arc<Counters>,
}

impl ReadRules {
    fn is_for_guest(&self, destination: MacAddr) -> bool {
        destination == self.mac
            || destination.is_multicast()
            || self.trunk
            || self.allowed.contains(destination)
    }

    /// Learns that an address is in the network.
    fn hear(&self, source: MacAddr) {
        if !self.listed.is_empty() && self.listed.contains(source) {
            self.learned.hear_network(source);
        }
    }
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// There are no more frames.
    Empty,
    /// The batch or the turn is full, or the next frame has made progress and waits for buffers.
    Full,
    /// The next frame waits for the guest's buffers.
    OutOfBuffers,
    /// The same, but those of others go first.
    TooFewBuffers,
    /// The device is gone.
    Gone,
}

/// What becomes of a frame that was read.
enum Action {
    /// The guest takes it as it is.
    Pass,
    /// It needs offloads, or is to be dropped with the reason for records of links.
    Adapt,
    /// It is not for this guest.
    Ignore,
}

/// Reads one queue. Which worker does depends on whose receive queue is in use.
pub struct ReadQueue<D: UplinkDevice> {
    pub(super) reader: D::Reader,
    /// The worker that reads it if that worker's receive queue is in use.
    pub(super) preferred: u16,
    /// There may be frames: the device has not said otherwise since the worker was woken.
    may_read: bool,
    /// Number of errors in a row.
    errors: u32,
    /// Length in bytes of the records for which buffers are collected.
    room: usize,
    /// Number of frames in a row that were much shorter.
    short: u32,
    /// What does not fit the guest's buffers, or the whole record that waits.
    rest: Box<[u8]>,
    /// Length in bytes of the record that waits there; 0: none.
    waiting: usize,
    /// Of that record.
    progress: RxProgress,
    /// It waits for more of the guest's buffers, and others go first.
    waits: bool,
}

impl<D: UplinkDevice> ReadQueue<D> {
    pub(super) fn new(reader: D::Reader, preferred: u16) -> Self {
        ReadQueue {
            reader,
            preferred,
            may_read: true,
            errors: 0,
            room: SHORT,
            short: 0,
            rest: vec![0; MAX_RECORD].into(),
            waiting: 0,
            progress: RxProgress::default(),
            waits: false,
        }
    }

    /// The worker that reads it if that worker's receive queue is in use.
    pub(crate) fn preferred(&self) -> u16 {
        self.preferred
    }

    pub(super) fn wake(&mut self) {
        self.may_read = true;
    }

    #[inline]
    pub(super) fn has_work(&self) -> bool {
        self.may_read || self.waiting != 0
    }

    /// Whether there is nothing to deliver without more of the guest's buffers.
    pub(super) fn is_idle(&self) -> bool {
        self.waits || !self.has_work()
    }

    /// Delivers `most` frames, up to [`TURN`].
    pub(super) fn receive<S: RxSink>(
        &mut self,
        rules: &ReadRules,
        sink: &mut S,
        most: usize,
    ) -> Turn {
        let mut left = most;
        for _ in 0..TURN {
            if left == 0 {
                break;
            }
            if self.waiting != 0 {
                let segments = self.progress.segments;
                match self.deliver(sink) {
                    RxStatus::Taken => {
                        left -= 1;
                        continue;
                    }
                    RxStatus::Retry => continue,
                    // A record that made progress gives up its turn: it may have many segments.
                    RxStatus::OutOfBuffers if self.progress.segments != segments => {
                        return Turn::Full;
                    }
                    RxStatus::OutOfBuffers => return Turn::OutOfBuffers,
                    RxStatus::TooFewBuffers => return Turn::TooFewBuffers,
                    RxStatus::BatchFull => return Turn::Full,
                }
            }
            if !self.may_read {
                return Turn::Empty;
            }
            let mut gone = false;
            let mut delivered = false;
            let status = sink.fill(self.room, |pieces| {
                let len = self.read(rules, pieces, &mut gone);
                delivered = len.is_some();
                len
            });
            match status {
                // It may also have been for another guest, or wait now.
                RxStatus::Taken => left -= usize::from(delivered),
                RxStatus::Retry => {}
                // There may be enough for a short one.
                RxStatus::OutOfBuffers | RxStatus::TooFewBuffers if self.room > SHORT => {
                    self.room = SHORT;
                }
                RxStatus::OutOfBuffers => return Turn::OutOfBuffers,
                // How many it needs is known when it is here.
                RxStatus::TooFewBuffers => {
                    self.read(rules, &[], &mut gone);
                }
                RxStatus::BatchFull => return Turn::Full,
            }
            if gone {
                return Turn::Gone;
            }
        }
        Turn::Full
    }

    /// Delivers the record that waits.
    fn deliver<S: RxSink>(&mut self, sink: &mut S) -> RxStatus {
        let record = RxRecord {
            bytes: VolatileSlice::from(&mut self.rest[..self.waiting]),
            source: RxSource::any(),
            same_size_hint: 1,
        };
        let status = sink.deliver(&record, &mut self.progress);
        self.waits = status == RxStatus::TooFewBuffers;
        if status == RxStatus::Taken {
            self.waiting = 0;
            self.progress = RxProgress::default();
        }
        status
    }

    /// Reads a record into private memory. None: there is none, or, if `gone`, no device any more.
    pub(super) fn read_whole(
        &mut self,
        rules: &ReadRules,
        buffer: &mut [u8],
        gone: &mut bool,
    ) -> Option<usize> {
        while self.may_read {
            match self.reader.read(&[], buffer) {
                Ok(len) => {
                    self.errors = 0;
                    return Some(len);
                }
                Err(error) => *gone = self.not_read(rules, error),
            }
        }
        None
    }

    /// Reads a frame into the guest's buffers. Returns the length of its record. None: there is
    /// none, or it is not to stay there.
    fn read(
        &mut self,
        rules: &ReadRules,
        pieces: &[VolatileSlice<'_>],
        gone: &mut bool,
    ) -> Option<usize> {
        let pieces = &pieces[..pieces.len().min(D::MAX_PIECES)];
        let len = match self.reader.read(pieces, &mut self.rest) {
            Ok(len) => len,
            Err(error) => {
                *gone = self.not_read(rules, error);
                return None;
            }
        };
        self.errors = 0;
        let room = pieces.iter().map(|piece| piece.len()).sum();
        self.expect(len, room);
        match self.action(rules, pieces, len) {
            Action::Ignore => return None,
            Action::Pass if len <= room => {}
            Action::Pass | Action::Adapt => {
                self.put_together(pieces, len, room);
                self.count(rules, len);
                return None;
            }
        }
        self.count(rules, len);
        Some(len)
    }

    /// Nothing was read. True: the device is gone.
    #[cold]
    fn not_read(&mut self, rules: &ReadRules, error: ReadError) -> bool {
        if error != ReadError::Failed {
            self.may_read = false;
            self.errors = 0;
            return error == ReadError::Gone;
        }
        // The device has dropped the frame that it could not hand over. Others are behind it.
        rules.counters.uplink_rx_failed.add(1);
        self.errors += 1;
        if self.errors == ERRORS {
            self.may_read = false;
            self.errors = 0;
        }
        false
    }

    fn count(&self, rules: &ReadRules, len: usize) {
        rules.counters.uplink_rx_frames.add(1);
        let frame = (len - NET_HEADER) as u64;
        rules.counters.uplink_rx_bytes.add(frame);
    }

    /// Chooses the length for which buffers are collected from now on.
    fn expect(&mut self, len: usize, room: usize) {
        if len > room {
            (self.room, self.short) = ((2 * len).clamp(SHORT, MAX_RECORD), 0);
        } else if len > self.room / 4 {
            self.short = 0;
        } else if self.room > SHORT {
            self.short += 1;
            if self.short == SHORT_FRAMES {
                (self.room, self.short) = (SHORT.max(self.room / 2), 0);
            }
        }
    }

    /// Examines the header of a record of `len` bytes. The guest may change what it has of it: a
    /// frame that is passed on then differs for that guest alone.
    fn action(&self, rules: &ReadRules, pieces: &[VolatileSlice<'_>], len: usize) -> Action {
        let counters = &rules.counters;
        let mut header = FrameHeader::default();
        let result = match pieces.first() {
            Some(first) if first.len() >= FRAME_HEADER => header.read(first, len),
            _ => {
                let mut bytes = [0; FRAME_HEADER];
                self.gather(pieces, 0, &mut bytes[..len.min(FRAME_HEADER)]);
                FrameHeader::new(bytes, len).map(|read| header = read)
            }
        };
        match result {
            Ok(()) => {}
            Err(Invalid::Short) => {
                counters.rx_bad_length.add(1);
                return Action::Ignore;
            }
            // Dropped where that is counted.
            Err(_) => return Action::Adapt,
        }
        if !rules.is_for_guest(header.destination()) {
            // A switch floods what it has not learnt yet.
            counters.uplink_rx_other.add(1);
            return Action::Ignore;
        }
        if header.source() == rules.mac {
            // The network returns what this guest has sent.
            counters.uplink_rx_own.add(1);
            return Action::Ignore;
        }
        // One that the guest uses as well is for it to hear: virtual routers find each other so.
        rules.hear(header.source());
        if !header.fits(rules.mtu) || header.check(rules.takes).is_err() {
            return Action::Adapt;
        }
        if !rules.takes.checksum && header.has_flags() {
            return Action::Adapt;
        }
        if header.is_gso() {
            return Action::Pass;
        }
        match header.checksum() {
            Some((start, UDP_CHECKSUM)) if self.is_dhcp(pieces, start) => Action::Adapt,
            _ => Action::Pass,
        }
    }

    fn is_dhcp(&self, pieces: &[VolatileSlice<'_>], start: usize) -> bool {
        let mut ports = [0; 4];
        self.gather(pieces, NET_HEADER + start, &mut ports);
        let [a, b, c, d] = ports;
        [[a, b], [c, d]].contains(&DHCP_SERVER.to_be_bytes())
    }

    /// Copies bytes of the record, from offset `at` on, out of `pieces` and what is behind them.
    fn gather(&self, pieces: &[VolatileSlice<'_>], mut at: usize, mut bytes: &mut [u8]) {
        for piece in pieces {
            if bytes.is_empty() {
                return;
            }
            if let Ok(rest) = piece.offset(at.min(piece.len())) {
                let copied = rest.copy_to(bytes);
                bytes = &mut bytes[copied..];
            }
            at = at.saturating_sub(piece.len());
        }
        if let Some(rest) = self.rest.get(at..at + bytes.len()) {
            bytes.copy_from_slice(rest);
        }
    }

    /// Puts the record together: the `room` bytes that `pieces` have of it, and the rest.
    fn put_together(&mut self, pieces: &[VolatileSlice<'_>], len: usize, room: usize) {
        let len = len.min(MAX_RECORD);
        if len > room {
            self.rest.copy_within(..len - room, room);
        }
        let mut at = 0;
        for piece in pieces {
            let end = len.min(at + piece.len());
            piece.copy_to(&mut self.rest[at..end]);
            at = end;
        }
        self.waiting = len;
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::super::testing::{Inbox, Reader, Socket, frame, rules};
    use super::*;

    /// A UDP socket in place of a queue: an answer of the network that nobody listens becomes one
    /// error of its reader, before the frames that came later.
    #[test]
    fn uplink_queue_is_read_on_after_an_error() {
        let rules = rules();
        let queue = UdpSocket::bind("127.0.0.1:0").unwrap();
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        let far_address = far.local_addr().unwrap();
        queue.connect(far_address).unwrap();
        queue.set_nonblocking(true).unwrap();
        drop(far);
        queue.send(&[0]).unwrap();
        let far = UdpSocket::bind(far_address).unwrap();
        for seed in 0..3 {
            let queue = queue.local_addr().unwrap();
            far.send_to(&frame(seed), queue).unwrap();
        }
        let mut queue = ReadQueue::<Socket>::new(Reader(queue.into()), 0);
        let mut inbox = Inbox::of(10);
        assert_eq!(queue.receive(&rules, &mut inbox, TURN), Turn::Empty);
        assert_eq!(inbox.seeds, [0, 1, 2]);
        assert_eq!(rules.counters.uplink_rx_failed.get(), 1);
        assert!(!queue.has_work());
    }

    /// A directory cannot be read at all.
    #[test]
    fn uplink_queue_rests_when_an_error_stays() {
        let rules = rules();
        let queue = std::fs::File::open("/").unwrap();
        let mut queue = ReadQueue::<Socket>::new(Reader(queue.into()), 0);
        let mut turns = 0;
        while queue.has_work() {
            assert!(queue.receive(&rules, &mut Inbox::of(10), TURN) != Turn::Gone);
            turns += 1;
        }
        assert!(turns <= 2);
        queue.wake();
        assert!(queue.has_work());
    }
}
