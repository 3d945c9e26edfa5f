//! When the driver is interrupted for frames that it has sent: at once, but late in a conversation.
//!
//! The used index is shown at once. A driver that looks by itself (Linux's does when it sends the next frame, and when
//! it receives one) finds its buffers free and moves its used event on: the interrupt is not wanted any more. In a
//! conversation, one frame there and one back, the answer thus takes the interrupt's place, which is half of all
//! interrupts.
//!
//! Elsewhere the driver may really wait: Linux's TCP holds a small segment back while an earlier one is not known to be
//! sent, so that an application which writes a header and then a body would wait for our alarm each time. So interrupts
//! come late only after [`Completion::patience`] batches in a row that each followed something received. A driver that
//! goes on by itself as soon as it is interrupted late had waited, and has to show twice as many, until that is forgotten; one
//! that does not had just come to an end of what it had to say, as each conversation does.

use std::time::{Duration, Instant};

use super::signal;
use crate::counters::Counters;
use crate::queue::{QueueViolation, Rings, SplitQueue};

/// When the worker's alarm goes off: a driver that waits does so for one to two of these. One timer serves all frames
/// of that time, as setting one is expensive, above all on a host that is a virtual machine itself.
pub(super) const LATE: Duration = Duration::from_millis(2);
/// Entries after which the driver is interrupted at once: well below the places of a queue (see [`Completion::settle`]) and the
/// small packets that a socket's send buffer has room for.
const MANY: u16 = 32;
/// Bytes after which it is: a stream fills its send buffer soon, and the interrupt is shared by many bytes.
const MUCH: usize = 4 * 1024;
/// Rounds of the worker after which it is: the alarm is only heard by a worker that comes to sleep.
const ROUNDS: u32 = 16;
/// Batches in a row, each after something received, that make a conversation: at first, and at most. A driver that
/// waits after all loses up to two of [`LATE`], which is little when spread over so many.
const SHORTEST_PATIENCE: u32 = 256;
const LONGEST_PATIENCE: u32 = 65536;
/// A driver that waited sends so soon after it was interrupted late.
const PROMPTLY: Duration = Duration::from_micros(500);
/// After so long half of the patience is forgotten: a driver that waits for up to two of [`LATE`] in it loses nearly nothing.
const FORGETS_HALF: Duration = Duration::from_secs(10);

/// What is owed to the driver of a transmit queue.
#[derive(Debug)]
pub(super) struct Completion {
    /// Bytes of the frames that are owed.
    bytes: usize,
    /// The worker's rounds since.
    rounds: u32,
    /// The alarm is set, for what had been shown up to this used index.
    alarm: Option<u16>,
    /// The guest was given a frame since it last sent one.
    received: bool,
    /// Batches in a row that each followed something received.
    alternating: u32,
    /// How many of them there must be before interrupts come late.
    patience: u32,
    /// When the driver was last found waiting, moved on by what is forgotten of it.
    waited: Option<Instant>,
    /// When the alarm interrupted the driver, if it has sent nothing since.
    interrupted_late: Option<Instant>,
}

impl Default for Completion {
    fn default() -> Self {
        Completion {
            bytes: 0,
            rounds: 0,
            alarm: None,
            received: false,
            alternating: 0,
            patience: SHORTEST_PATIENCE,
            waited: None,
            interrupted_late: None,
        }
    }
}

impl Completion {
    /// The guest was given a frame: it looks at its transmit queue, too.
    pub(super) fn received(&mut self) {
        self.received = true;
    }

    /// The worker begins another round of work.
    pub(super) fn round(&mut self) {
        self.rounds = self.rounds.saturating_add(1);
    }

    /// Interrupts the driver for what it was shown, if that has to be now. `bytes` were sent in the batch before.
    pub(super) fn settle(
        &mut self,
        queue: &mut SplitQueue,
        rings: &Rings<'_>,
        bytes: usize,
        counters: &Counters,
    ) -> Result<(), QueueViolation> {
        if bytes != 0 {
            let answers = std::mem::take(&mut self.received);
            if let Some(interrupted) = self.interrupted_late.take()
                && !answers
                && interrupted.elapsed() < PROMPTLY
            {
                self.found_waiting();
            }
            if answers {
                self.alternating = self.alternating.saturating_add(1);
                if self.alternating == SHORTEST_PATIENCE {
                    self.forget();
                }
                // The driver looked when it received: only what it sent now can still be waited for.
                self.settled();
            } else {
                self.alternating = 0;
            }
        }
        if queue.unsignalled() == 0 {
            self.rounds = 0;
            return Ok(());
        }
        self.bytes += bytes;
        // A quarter: a small queue must not fill up with entries that the driver does not know to be free.
        let many = MANY.min(rings.size().div_ceil(4));
        if queue.has_event_index()
            && self.alternating >= self.patience
            && queue.unsignalled() < many
            && self.bytes < MUCH
            && self.rounds < ROUNDS
        {
            return Ok(());
        }
        self.settled();
        signal(queue, rings, counters)
    }

    /// The worker is about to sleep. True: it has to set its alarm, and call [`Completion::alarm`] when that goes off.
    pub(super) fn needs_alarm(
        &mut self,
        queue: &mut SplitQueue,
        rings: &Rings<'_>,
    ) -> Result<bool, QueueViolation> {
        if self.alarm.is_some() || queue.unsignalled() == 0 {
            return Ok(false);
        }
        let published = queue.published();
        if !queue.wants_interrupt(rings, published)? {
            self.settled();
            return Ok(false);
        }
        self.alarm = Some(published);
        Ok(true)
    }

    /// The alarm went off.
    pub(super) fn alarm(
        &mut self,
        queue: &mut SplitQueue,
        rings: &Rings<'_>,
        counters: &Counters,
    ) -> Result<(), QueueViolation> {
        let Some(until) = self.alarm.take() else {
            return Ok(());
        };
        // If not, the driver had looked by itself, or had been interrupted.
        if queue.wants_interrupt(rings, until)? {
            self.alternating = 0;
            self.interrupted_late = Some(Instant::now());
            self.settled();
            signal(queue, rings, counters)?;
        }
        Ok(())
    }

    /// The driver had waited for the interrupt that came late.
    fn found_waiting(&mut self) {
        self.patience = (self.patience * 2).min(LONGEST_PATIENCE);
        self.waited = Some(Instant::now());
    }

    /// Forgets what the time since a driver was last found waiting has made unlikely.
    fn forget(&mut self) {
        let Some(waited) = self.waited else { return };
        let times = waited.elapsed().as_secs() / FORGETS_HALF.as_secs();
        let times = u32::try_from(times).unwrap_or(u32::MAX);
        self.patience = self
            .patience
            .checked_shr(times)
            .unwrap_or(0)
            .max(SHORTEST_PATIENCE);
        self.waited = (self.patience > SHORTEST_PATIENCE).then(|| waited + FORGETS_HALF * times);
    }

    fn settled(&mut self) {
        self.bytes = 0;
        self.rounds = 0;
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::device::{GuestMemory, QueueSetup};

    const SIZE: u16 = 256;
    const AVAILABLE: u64 = 0x2000;
    const USED: u64 = 0x4000;
    /// Behind the available ring: VIRTIO 1.3, 2.7.6.
    const USED_EVENT: u64 = AVAILABLE + 4 + 2 * SIZE as u64;

    /// A driver's transmit queue, and a device that has taken nothing from it yet.
    struct Fixture {
        memory: GuestMemory,
        queue: SplitQueue,
        completion: Completion,
        counters: Counters,
    }

    impl Fixture {
        fn new(event_index: bool) -> Self {
            let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
            let memory = GuestMemory::new(map);
            let setup = QueueSetup {
                size: SIZE,
                descriptors: GuestAddress(0),
                available: GuestAddress(AVAILABLE),
                used: GuestAddress(USED),
                kick: eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
                call: None,
            };
            let queue = SplitQueue::start(&memory, setup, event_index).unwrap();
            Fixture {
                memory,
                queue,
                completion: Completion::default(),
                counters: Counters::default(),
            }
        }

        /// In a conversation that has gone on for long enough.
        fn in_conversation() -> Self {
            let mut fixture = Self::new(true);
            fixture.converse(SHORTEST_PATIENCE - 1);
            fixture
        }

        /// Receives and sends so many times; the driver looks when it receives.
        fn converse(&mut self, batches: u32) {
            for _ in 0..batches {
                self.receive();
                self.send(1, 100);
            }
            self.receive();
        }

        fn receive(&mut self) {
            self.driver_looks();
            self.completion.received();
        }

        /// The driver has looked at all that it was shown, and wants an interrupt at the next entry.
        fn driver_looks(&self) {
            self.memory
                .write_obj(self.queue.published(), GuestAddress(USED_EVENT))
                .unwrap();
        }

        /// A batch of `count` frames of `bytes` in all is sent.
        fn send(&mut self, count: u16, bytes: usize) {
            let rings = self.queue.rings(&self.memory).unwrap();
            for _ in 0..count {
                self.queue.give_back(&rings, 0, 0).unwrap();
            }
            self.queue.publish(&rings).unwrap();
            self.completion
                .settle(&mut self.queue, &rings, bytes, &self.counters)
                .unwrap();
        }

        /// Sends at once after the alarm, on however busy a machine.
        fn sends_at_once(&mut self) {
            self.completion.interrupted_late = Some(Instant::now() + Duration::from_secs(3600));
            self.send(1, 100);
        }

        fn needs_alarm(&mut self) -> bool {
            let rings = self.queue.rings(&self.memory).unwrap();
            self.completion
                .needs_alarm(&mut self.queue, &rings)
                .unwrap()
        }

        fn alarm(&mut self) {
            let rings = self.queue.rings(&self.memory).unwrap();
            self.completion
                .alarm(&mut self.queue, &rings, &self.counters)
                .unwrap();
        }

        fn interrupts(&self) -> u64 {
            self.counters.interrupts.get()
        }
    }

    #[test]
    fn a_driver_that_waits_is_interrupted_by_the_alarm() {
        let mut fixture = Fixture::in_conversation();
        let before = fixture.interrupts();
        fixture.send(1, 100);
        assert_eq!(fixture.interrupts(), before);
        assert!(fixture.needs_alarm());
        assert!(!fixture.needs_alarm(), "It is set already");
        fixture.alarm();
        assert_eq!(fixture.interrupts(), before + 1);
        assert!(!fixture.needs_alarm());
    }

    #[test]
    fn a_driver_that_converses_is_not_interrupted() {
        let mut fixture = Fixture::in_conversation();
        let before = fixture.interrupts();
        for _ in 0..100 {
            fixture.send(1, 100);
            assert!(fixture.needs_alarm());
            fixture.receive();
            fixture.alarm();
            // Before the alarm is set, too.
            fixture.send(1, 100);
            fixture.receive();
            assert!(!fixture.needs_alarm());
        }
        assert_eq!(fixture.interrupts(), before);
    }

    #[test]
    fn what_came_after_the_alarm_was_set_waits_for_the_next() {
        let mut fixture = Fixture::in_conversation();
        let before = fixture.interrupts();
        fixture.send(1, 100);
        assert!(fixture.needs_alarm());
        fixture.receive();
        fixture.send(1, 100);
        fixture.alarm();
        assert_eq!(fixture.interrupts(), before);
        assert!(fixture.needs_alarm());
        fixture.alarm();
        assert_eq!(fixture.interrupts(), before + 1);
    }

    #[test]
    fn one_that_sends_twice_before_it_receives_is_told_at_once() {
        let mut fixture = Fixture::in_conversation();
        let before = fixture.interrupts();
        fixture.send(1, 100);
        assert_eq!(fixture.interrupts(), before);
        fixture.send(1, 100);
        assert_eq!(fixture.interrupts(), before + 1);
        // And until it has conversed for long enough again.
        fixture.converse(SHORTEST_PATIENCE - 1);
        assert_eq!(fixture.interrupts(), before + u64::from(SHORTEST_PATIENCE));
        fixture.send(1, 100);
        assert_eq!(fixture.interrupts(), before + u64::from(SHORTEST_PATIENCE));
    }

    #[test]
    fn many_entries_and_many_bytes_are_told_of_at_once() {
        let mut fixture = Fixture::in_conversation();
        let before = fixture.interrupts();
        fixture.send(MANY - 1, 1);
        assert_eq!(fixture.interrupts(), before);
        fixture.receive();
        fixture.send(MANY, 1);
        assert_eq!(fixture.interrupts(), before + 1);
        fixture.receive();
        fixture.send(1, MUCH - 1);
        assert_eq!(fixture.interrupts(), before + 1);
        fixture.receive();
        fixture.send(1, MUCH);
        assert_eq!(fixture.interrupts(), before + 2);
    }

    #[test]
    fn a_worker_that_never_sleeps_tells_all_the_same() {
        let mut fixture = Fixture::in_conversation();
        let before = fixture.interrupts();
        fixture.send(1, 100);
        for _ in 1..ROUNDS {
            fixture.completion.round();
            fixture.send(0, 0);
            assert_eq!(fixture.interrupts(), before);
        }
        fixture.completion.round();
        fixture.send(0, 0);
        assert_eq!(fixture.interrupts(), before + 1);
    }

    /// Has `fixture` converse until interrupts come late, which takes `patience` batches, and the alarm go off.
    fn converse_and_be_late(fixture: &mut Fixture, patience: u32) {
        let before = fixture.interrupts();
        fixture.converse(patience - 1);
        assert_eq!(fixture.interrupts(), before + u64::from(patience) - 1);
        fixture.send(1, 100);
        assert_eq!(fixture.interrupts(), before + u64::from(patience) - 1);
        assert!(fixture.needs_alarm());
        fixture.alarm();
        assert_eq!(fixture.interrupts(), before + u64::from(patience));
    }

    #[test]
    fn a_driver_that_was_found_waiting_has_to_converse_twice_as_long() {
        let mut fixture = Fixture::new(true);
        let mut patience = SHORTEST_PATIENCE;
        for _ in 0..10 {
            converse_and_be_late(&mut fixture, patience);
            fixture.sends_at_once();
            patience = (patience * 2).min(LONGEST_PATIENCE);
        }
    }

    #[test]
    fn one_whose_conversation_ended_need_not_converse_for_longer() {
        let mut fixture = Fixture::new(true);
        // It is spoken to next, or speaks first, as it begins another.
        for answers in [true, false, true, false] {
            converse_and_be_late(&mut fixture, SHORTEST_PATIENCE);
            if answers {
                fixture.receive();
            } else {
                fixture.completion.interrupted_late = Instant::now().checked_sub(2 * PROMPTLY);
            }
            fixture.send(1, 100);
            fixture.completion.alternating = 0;
        }
    }

    #[test]
    fn a_wait_is_forgotten() {
        let mut fixture = Fixture::new(true);
        for _ in 0..6 {
            let patience = fixture.completion.patience;
            converse_and_be_late(&mut fixture, patience);
            fixture.sends_at_once();
        }
        let patience = 64 * SHORTEST_PATIENCE;
        assert_eq!(fixture.completion.patience, patience);
        let mut begin = |ago: Duration| {
            fixture.completion.waited = Instant::now().checked_sub(ago);
            // Far shorter than what was learnt.
            fixture.converse(SHORTEST_PATIENCE);
            fixture.completion.alternating = 0;
            fixture.completion.patience
        };
        let slack = Duration::from_secs(1);
        assert_eq!(begin(FORGETS_HALF - slack), patience);
        assert_eq!(begin(FORGETS_HALF + slack), patience / 2);
        assert_eq!(begin(2 * FORGETS_HALF + slack), patience / 8);
        assert_eq!(begin(200 * FORGETS_HALF), SHORTEST_PATIENCE);
        assert_eq!(fixture.completion.waited, None);
    }

    #[test]
    fn rounds_and_bytes_count_from_the_last_answer() {
        let mut fixture = Fixture::in_conversation();
        let before = fixture.interrupts();
        for _ in 0..MANY / 2 {
            fixture.send(1, MUCH / 4);
            for _ in 1..ROUNDS {
                fixture.completion.round();
            }
            fixture.receive();
        }
        assert_eq!(fixture.interrupts(), before);
    }

    #[test]
    fn without_the_event_index_nothing_is_put_off() {
        let mut fixture = Fixture::new(false);
        for sent in 1..=u64::from(SHORTEST_PATIENCE) + 10 {
            fixture.completion.received();
            fixture.send(1, 100);
            assert_eq!(fixture.interrupts(), sent);
        }
    }
}
