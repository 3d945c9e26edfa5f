//! From the peers' rings into the guest's receive queue.

use virtio_inter_link::{Receiver, Violation};
use virtio_inter_segment::{MacAddr, PeerKey};
use vm_memory::VolatileSlice;

use super::steering::Ready;
use super::{BATCH, Failure, LinkFault, Pace, Rules, publish};
use crate::counters::{Counter, Counters};
use crate::device::GuestMemory;
use crate::features::Segmentation;
use crate::frame::{HEAD, Head, Invalid, NET_HEADER};
use crate::queue::{Chain, Direction, QueueViolation, Rings, SplitQueue};

/// Frames from one peer before the next one's turn.
const TURN: usize = 16;
/// Bytes after which the guest is shown what it has, and peers get their room back, in mid-batch.
const PUBLISH_BYTES: usize = 64 * 1024;

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
        }
    }
}

/// The receive half of a worker.
pub(crate) struct Collector {
    sources: Vec<Source>,
    /// Whose turn is next.
    turn: usize,
    /// Chains for the frame at hand: their buffers, and of each its head and bytes.
    chain: Chain,
    heads: Vec<(u16, u32)>,
    /// A frame waits for the guest's buffers.
    starved: bool,
    /// Sources that broke the rules in this batch.
    faults: Vec<LinkFault>,
}

/// What became of a source's next frame.
enum Outcome {
    /// Delivered: this many bytes.
    Delivered(usize),
    /// Taken and dropped.
    Dropped,
    /// There is none.
    Empty,
    /// It waits for buffers.
    Starved,
}

/// Buffers for a frame.
enum Buffers {
    Enough,
    TooFew,
    TooSmall,
}

impl Collector {
    pub(crate) fn new() -> Self {
        Collector {
            sources: Vec::new(),
            turn: 0,
            chain: Chain::default(),
            heads: Vec::new(),
            starved: false,
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
        let mut quiet = 0;
        self.chain.begin_batch();
        while left != 0 && quiet < self.sources.len() {
            self.turn = (self.turn + 1) % self.sources.len();
            quiet += 1;
            for _ in 0..TURN.min(left) {
                match self.deliver(self.turn, queue, rings, rules) {
                    Ok(Outcome::Delivered(len)) => bytes += len,
                    Ok(Outcome::Dropped) => {}
                    Ok(Outcome::Empty) => break,
                    Ok(Outcome::Starved) => {
                        self.starved = true;
                        // The same source goes on when there are buffers: others' small frames would otherwise
                        // take them away from a large one for ever.
                        self.turn = (self.turn + self.sources.len() - 1) % self.sources.len();
                        return Ok(());
                    }
                    Err(Failure::Link(violation)) => {
                        let source = &mut self.sources[self.turn];
                        fail(&mut self.faults, source, violation);
                        break;
                    }
                    Err(Failure::Queue(violation)) => return Err(violation),
                }
                *pace = Pace::Busy;
                quiet = 0;
                left -= 1;
                if self.chain.batch_is_long() {
                    return Ok(());
                }
                if bytes >= PUBLISH_BYTES {
                    bytes = 0;
                    publish(queue, rings, &rules.counters)?;
                    self.release();
                }
            }
        }
        Ok(())
    }

    /// Delivers the next frame of one source.
    fn deliver(
        &mut self,
        position: usize,
        queue: &mut SplitQueue,
        rings: &Rings<'_>,
        rules: &Rules,
    ) -> Result<Outcome, Failure> {
        let Self {
            sources,
            chain,
            heads,
            ..
        } = self;
        let source = &mut sources[position];
        if source.dead {
            return Ok(Outcome::Empty);
        }
        let Some(record) = source.receiver.peek()? else {
            return Ok(Outcome::Empty);
        };
        source.armed = false;
        let slice = record.slice();
        let mut head = match read_head(&slice, source.mac, rules) {
            Ok(head) => head,
            Err(counter) => {
                counter.add(1);
                record.consume();
                return Ok(Outcome::Dropped);
            }
        };
        let len = slice.len();
        match collect(
            queue,
            rings,
            len,
            rules.negotiated.mergeable_buffers(),
            chain,
            heads,
        )? {
            Buffers::Enough => {}
            Buffers::TooFew => return Ok(Outcome::Starved),
            Buffers::TooSmall => {
                rules.counters.rx_small_buffer.add(1);
                record.consume();
                return Ok(Outcome::Dropped);
            }
        }
        head.set_buffers(heads.len() as u16); // At most the queue size, 32768.
        if let Ok(rest) = slice.offset(HEAD) {
            chain.scatter(rings.memory(), head.bytes(), &rest)?;
        }
        let mut left = len as u32; // At most `MAX_RECORD`.
        for &(head, bytes) in heads.iter() {
            let written = bytes.min(left);
            left -= written;
            queue.give_back(rings, head, written)?;
        }
        record.consume();
        rules.counters.rx_frames.add(1);
        rules.counters.rx_bytes.add((len - NET_HEADER) as u64);
        Ok(Outcome::Delivered(len))
    }

    /// Takes and drops everything that peers have sent: there is no guest to give it to.
    pub(crate) fn discard(&mut self, counters: &Counters) {
        self.starved = false;
        for source in self.sources.iter_mut().filter(|s| !s.dead) {
            loop {
                match source.receiver.peek() {
                    Ok(Some(record)) => {
                        record.consume();
                        source.armed = false;
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
        if self.starved {
            // Buffers are waited for, not frames: those are there.
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
fn read_head<'a>(
    record: &VolatileSlice<'_>,
    peer: MacAddr,
    rules: &'a Rules,
) -> Result<Head, &'a Counter> {
    let counters = &*rules.counters;
    let mut bytes = [0; HEAD];
    record.copy_to(&mut bytes[..]);
    let head = Head::new(bytes, record.len()).map_err(|_| &counters.rx_bad_frame)?;
    let destination = head.destination();
    if head.source() != peer || (destination != rules.mac && !destination.is_multicast()) {
        return Err(&counters.rx_bad_address);
    }
    let negotiated = rules.negotiated;
    head.check(negotiated.takes_partial_checksums(), negotiated.takes_tso())
        .map_err(|invalid| {
            match invalid {
                // A header that no guest could take is the peer's fault, one that this guest cannot take is nobody's.
                _ if head.check(true, Segmentation::ALL).is_err() => &counters.rx_bad_frame,
                Invalid::Checksum | Invalid::SegmentationType => &counters.rx_not_negotiated,
                _ => &counters.rx_bad_frame,
            }
        })?;
    if !head.fits(rules.mtu) {
        return Err(&counters.rx_too_long);
    }
    // The peer's port has done the same, if it is an honest one.
    Ok(head.for_peer())
}

/// Finds buffers for `len` bytes: one chain, or as many as it takes when they are mergeable.
fn collect(
    queue: &mut SplitQueue,
    rings: &Rings<'_>,
    len: usize,
    mergeable: bool,
    chain: &mut Chain,
    heads: &mut Vec<(u16, u32)>,
) -> Result<Buffers, QueueViolation> {
    chain.clear();
    heads.clear();
    let places = u32::from(rings.size());
    loop {
        let ahead = heads.len() as u16; // At most the queue size: `available` says no more.
        if queue.available(rings, ahead + 1)? <= ahead {
            return Ok(Buffers::TooFew);
        }
        let (head, bytes) = queue.walk(rings, ahead, Direction::ToDriver, chain)?;
        heads.push((head, bytes));
        if chain.len() as usize >= len {
            return Ok(Buffers::Enough);
        }
        if !mergeable {
            return Ok(Buffers::TooSmall);
        }
        if (bytes as usize) < NET_HEADER {
            return Err(QueueViolation::TinyBuffer { len: bytes });
        }
        if chain.places() > places {
            return Err(QueueViolation::SharedDescriptors { size: rings.size() });
        }
        if chain.places() == places {
            // All of the queue's places, and still too small: more will not come.
            return Ok(Buffers::TooSmall);
        }
    }
}

fn fail(faults: &mut Vec<LinkFault>, source: &mut Source, violation: Violation) {
    source.dead = true;
    faults.push(LinkFault {
        peer: source.peer,
        violation,
    });
}
