//! From the peers' rings into the guest's receive queue.

use virtio_inter_link::{Receiver, Violation};
use virtio_inter_segment::{MacAddr, PeerKey};
use vm_memory::VolatileSlice;

use super::adapt::{Adapter, Form, peer_fault};
use super::buffers::{Buffers, Supply};
use super::cut::Cut;
use super::steering::Ready;
use super::{BATCH, Failure, LinkFault, Pace, Rules, publish};
use crate::counters::{Counter, Counters};
use crate::device::GuestMemory;
use crate::features::Offloads;
use crate::frame::{Gso, Head, NET_HEADER};
use crate::queue::{Direction, QueueViolation, Rings, SplitQueue};

/// Frames from one peer before the next one's turn.
const TURN: usize = 16;
/// Bytes after which the guest is shown what it has, and peers get their room back, in mid-batch.
const PUBLISH_BYTES: usize = 64 * 1024;
/// Bytes after which the guest is interrupted in mid-batch. More, as an interrupted guest soon looks by itself, and one
/// that shares the processor would be switched to for each frame.
const SIGNAL_BYTES: usize = 256 * 1024;

/// One link's receiving end.
pub(crate) struct Source {
    pub(crate) peer: PeerKey,
    mac: MacAddr,
    pub(crate) receiver: Receiver,
    /// The worker that serves it when its receive queue is ready.
    home: u16,
    /// Asked for the bell, and nothing has been taken since.
    armed: bool,
    /// Broke the rules: nothing more is taken from it until it is removed.
    dead: bool,
    progress: Progress,
}

/// How far the next record of a source has come.
#[derive(Default)]
struct Progress {
    /// Segments of it that the guest has already.
    segments: u32,
    /// The longest frame that the guest's buffers hold, if they were too small for the record as it
    /// is: it is cut into such frames. Kept until the record is done with, as the segments must
    /// stay the same ones.
    buffer: Option<usize>,
}

impl Source {
    /// The worker that is to serve it.
    pub(crate) fn serving(&self, ready: Ready) -> u16 {
        ready.serving(self.home)
    }

    pub(crate) fn new(peer: PeerKey, mac: MacAddr, receiver: Receiver, home: u16) -> Self {
        Source {
            peer,
            mac,
            receiver,
            home,
            armed: false,
            dead: false,
            progress: Progress::default(),
        }
    }
}

/// The receive half of a worker.
pub(crate) struct Collector {
    sources: Vec<Source>,
    /// Whose turn is next.
    turn: usize,
    /// For the frame at hand.
    buffers: Buffers,
    adapter: Adapter,
    /// A frame waits for the guest's buffers.
    starved: bool,
    /// Frames wait for the links to be moved to another worker.
    held: bool,
    /// Sources that broke the rules in this batch.
    faults: Vec<LinkFault>,
}

/// What came of a source's next record.
pub(super) struct Outcome {
    /// Frames that the guest got, or that were dropped: what a turn and a batch are counted in.
    pub(super) frames: usize,
    /// Bytes that the guest got.
    pub(super) bytes: usize,
    pub(super) next: Next,
}

/// What is to be done with a source next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The record is done with: look at the next one.
    Record,
    /// There is none.
    Nothing,
    /// The record, or the rest of it, waits for the guest's buffers.
    Starved,
    /// The rest of the record waits for its turn.
    Turn,
    /// The record is to be looked at once more, to be cut to what the guest's buffers hold.
    Smaller,
}

impl Outcome {
    fn one(bytes: usize) -> Self {
        Outcome {
            frames: 1,
            bytes,
            next: Next::Record,
        }
    }

    pub(super) fn none(next: Next) -> Self {
        Outcome {
            frames: 0,
            bytes: 0,
            next,
        }
    }
}

impl Collector {
    pub(crate) fn new() -> Self {
        Collector {
            sources: Vec::new(),
            turn: 0,
            buffers: Buffers::default(),
            adapter: Adapter::new(),
            starved: false,
            held: false,
            faults: Vec::new(),
        }
    }

    pub(crate) fn add_source(&mut self, mut source: Source) {
        source.armed = false;
        self.sources.push(source);
    }

    /// Takes all of a peer's links out.
    pub(crate) fn remove_peer(&mut self, peer: PeerKey) -> Vec<Source> {
        self.turn = 0;
        self.sources.extract_if(.., |s| s.peer == peer).collect()
    }

    /// Takes out the links that another worker than `index` is to serve, each with which.
    pub(crate) fn give_sources(&mut self, index: u16, ready: Ready) -> Vec<Source> {
        self.turn = 0;
        self.starved = false;
        self.sources
            .extract_if(.., |s| ready.serving(s.home) != index)
            .collect()
    }

    /// Sources that broke the rules since the last call.
    pub(crate) fn faults(&mut self) -> std::vec::Drain<'_, LinkFault> {
        self.faults.drain(..)
    }

    /// Delivers a batch.
    pub(crate) fn run(
        &mut self,
        queue: &mut SplitQueue,
        memory: &GuestMemory,
        rules: &Rules,
    ) -> Result<Pace, QueueViolation> {
        let rings = queue.rings(memory)?;
        queue.disarm(&rings)?;
        let was_starved = std::mem::take(&mut self.starved);
        self.held = false;
        if !queue.has_had_buffers() {
            // Looked at even when no link is served here: this is how the queue is found to be in use.
            queue.available(&rings, 1)?;
        }
        let mut pace = Pace::Idle;
        let result = self.deliver_batch(queue, &rings, rules, &mut pace);
        // Whatever went wrong in mid-batch, what was delivered before is shown to driver and peers.
        publish(queue, &rings, &rules.counters)?;
        self.release();
        if self.starved && !was_starved {
            rules.counters.rx_waits.add(1);
        }
        result?;
        Ok(pace)
    }

    fn deliver_batch(
        &mut self,
        queue: &mut SplitQueue,
        rings: &Rings<'_>,
        rules: &Rules,
        pace: &mut Pace,
    ) -> Result<(), QueueViolation> {
        let mut left = BATCH;
        let mut bytes = 0;
        let mut unsignalled = 0;
        let mut quiet = 0;
        self.buffers.begin_batch();
        while left != 0 && quiet < self.sources.len() {
            self.turn = (self.turn + 1) % self.sources.len();
            quiet += 1;
            for _ in 0..TURN {
                match self.deliver(self.turn, left, queue, rings, rules) {
                    Ok(outcome) => {
                        if outcome.frames != 0 {
                            *pace = Pace::Busy;
                            quiet = 0;
                            left -= outcome.frames;
                            bytes += outcome.bytes;
                        }
                        match outcome.next {
                            Next::Record | Next::Smaller => {}
                            Next::Nothing => break,
                            // The batch is full.
                            Next::Turn => return Ok(()),
                            Next::Starved => {
                                self.starved = true;
                                // The same source goes on when there are buffers: others' small frames would otherwise
                                // take them away from a large one for ever.
                                self.turn =
                                    (self.turn + self.sources.len() - 1) % self.sources.len();
                                return Ok(());
                            }
                        }
                    }
                    Err(Failure::Link(violation)) => {
                        let source = &mut self.sources[self.turn];
                        fail(&mut self.faults, source, violation);
                        break;
                    }
                    Err(Failure::Queue(violation)) => return Err(violation),
                }
                if left == 0 || self.buffers.batch_is_long() {
                    return Ok(());
                }
                if bytes >= PUBLISH_BYTES {
                    unsignalled += std::mem::take(&mut bytes);
                    if unsignalled >= SIGNAL_BYTES {
                        unsignalled = 0;
                        publish(queue, rings, &rules.counters)?;
                    } else {
                        queue.publish(rings)?;
                    }
                    self.release();
                }
            }
        }
        Ok(())
    }

    /// Delivers the next record of one source, as at most `limit` frames (1 at least).
    fn deliver(
        &mut self,
        position: usize,
        limit: usize,
        queue: &mut SplitQueue,
        rings: &Rings<'_>,
        rules: &Rules,
    ) -> Result<Outcome, Failure> {
        let Self {
            sources,
            buffers,
            adapter,
            ..
        } = self;
        let source = &mut sources[position];
        if source.dead {
            return Ok(Outcome::none(Next::Nothing));
        }
        let Some(record) = source.receiver.peek()? else {
            return Ok(Outcome::none(Next::Nothing));
        };
        source.armed = false;
        let slice = record.slice();
        let frames = record.like_it();
        let counters = &*rules.counters;
        let mut head = Head::default();
        let form = read_head(&slice, source.mac, rules, &mut head)
            .and_then(|gso| adapter.form(&mut head, gso, &slice, rules, source.progress.buffer));
        let form = match form {
            Ok(form) => form,
            Err(counter) => {
                counter.add(1);
                record.consume();
                source.progress = Progress::default();
                return Ok(Outcome::one(0));
            }
        };
        let (checksum, len) = match form {
            Form::AsIs => (None, slice.len()),
            Form::Checksum { start, offset } => (Some((start, offset)), slice.len()),
            Form::Segments {
                segments,
                checksums,
            } => {
                let mut cut = Cut {
                    head: &head,
                    segments: &segments,
                    checksums,
                    done: source.progress.segments,
                    fits_buffers: source.progress.buffer.is_some(),
                };
                let outcome = cut.deliver(limit, &slice, adapter, buffers, queue, rings, rules)?;
                let done = cut.done;
                match outcome.next {
                    Next::Record => {
                        record.consume();
                        counters.rx_segmented.add(1);
                        source.progress = Progress::default();
                    }
                    Next::Smaller => source.progress.buffer = Some(buffers.frame_room()),
                    _ => source.progress.segments = done,
                }
                return Ok(outcome);
            }
        };
        // What was half delivered as segments to a guest that has become another one meanwhile: that one gets it whole.
        source.progress = Progress::default();
        let mergeable = rules.negotiated.mergeable_buffers();
        match buffers.collect(queue, rings, len, frames, mergeable)? {
            Supply::Enough => {}
            Supply::TooFew => return Ok(Outcome::none(Next::Starved)),
            // It takes such frames, but has no room for one.
            Supply::TooSmall if head.is_segmented_later() => {
                source.progress.buffer = Some(buffers.frame_room());
                return Ok(Outcome::none(Next::Smaller));
            }
            Supply::TooSmall => {
                counters.rx_small_buffer.add(1);
                let frame = head.frame_len();
                counters.drops.small_buffer(frame, buffers.frame_room());
                record.consume();
                return Ok(Outcome::one(0));
            }
        }
        if frames > 1 {
            // While this frame is copied, the buffer of the next one comes.
            let next = buffers.chains();
            queue.expect(rings, next, len, Direction::ToDriver);
        }
        if let Some(checksum) = checksum {
            let bytes = adapter.with_checksum(&head, &slice, checksum);
            buffers.fill(queue, rings, bytes, &VolatileSlice::from(&mut [][..]))?;
            counters.rx_csum_completed.add(1);
        } else {
            buffers.fill_record(queue, rings, &mut head, &slice)?;
        }
        record.consume();
        counters.rx_frames.add(1);
        counters.rx_bytes.add((len - NET_HEADER) as u64);
        Ok(Outcome::one(len))
    }

    /// Takes and drops everything that peers have sent: there is no guest to give it to.
    pub(crate) fn discard(&mut self, counters: &Counters) {
        self.starved = false;
        self.held = false;
        for source in self.sources.iter_mut().filter(|s| !s.dead) {
            loop {
                match source.receiver.peek() {
                    Ok(Some(record)) => {
                        record.consume();
                        source.armed = false;
                        source.progress = Progress::default();
                        counters.rx_no_guest.add(1);
                    }
                    Ok(None) => break,
                    Err(violation) => {
                        fail(&mut self.faults, source, violation);
                        break;
                    }
                }
            }
        }
        self.release();
    }

    /// Leaves everything where it is until a command comes: another worker is to deliver it.
    pub(crate) fn hold(&mut self) {
        self.starved = false;
        self.held = true;
    }

    /// Gives peers back the room of what was taken.
    fn release(&mut self) {
        for source in self.sources.iter_mut().filter(|s| !s.dead && !s.armed) {
            if let Err(violation) = source.receiver.release() {
                fail(&mut self.faults, source, violation);
            }
        }
    }

    /// Asks for the bells of everything that is waited for. True: sleeping is safe.
    pub(crate) fn arm(
        &mut self,
        queue: Option<&mut SplitQueue>,
        memory: Option<&GuestMemory>,
    ) -> Result<bool, QueueViolation> {
        let mut safe = true;
        if let (Some(queue), Some(memory)) = (queue, memory)
            && (self.starved || !queue.has_had_buffers())
        {
            let rings = queue.rings(memory)?;
            safe = queue.arm(&rings)?;
        }
        if self.starved || self.held {
            // Buffers are waited for, or a command; not frames: those are there.
            return Ok(safe);
        }
        for source in self.sources.iter_mut().filter(|s| !s.dead) {
            if source.armed {
                // Nothing was taken since the wish was written, so it stands; but something may have come.
                continue;
            }
            match source.receiver.wait_for_data() {
                Ok(armed) => {
                    source.armed = armed;
                    safe &= armed;
                }
                Err(violation) => {
                    fail(&mut self.faults, source, violation);
                    safe = false;
                }
            }
        }
        Ok(safe)
    }
}

/// Reads and checks a frame's head. The error is the counter of what is wrong with it.
#[inline]
fn read_head<'a>(
    record: &VolatileSlice<'_>,
    peer: MacAddr,
    rules: &'a Rules,
    head: &mut Head,
) -> Result<Option<Gso>, &'a Counter> {
    let counters = &*rules.counters;
    head.read(record, record.len())
        .map_err(|e| peer_fault(e, counters))?;
    let destination = head.destination();
    if head.source() != peer || (destination != rules.mac && !destination.is_multicast()) {
        return Err(&counters.rx_bad_address);
    }
    let gso = head
        .check(Offloads::ALL)
        .map_err(|e| peer_fault(e, counters))?;
    // The peer's port has done the same, if it is an honest one.
    head.clean();
    Ok(gso)
}

fn fail(faults: &mut Vec<LinkFault>, source: &mut Source, violation: Violation) {
    source.dead = true;
    faults.push(LinkFault {
        peer: source.peer,
        violation,
    });
}
