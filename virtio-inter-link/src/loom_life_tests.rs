//! The life of a link under the model checker: its ring is made for the first frame and offered
//! while frames are sent already, grows, is given back and made again; and either side breaks the
//! rules while the other works.
//!
//! Workers and control threads of a side are one thread here, and the connection between the sides
//! is two channels. What they do with rings is what a port does: `backend/link/tx_link.rs` and
//! `rx.rs` of virtio-inter-device.

use std::collections::VecDeque;

use loom::sync::mpsc::{self, channel};
use loom::thread;
use vm_memory::Bytes;

use crate::layout::CLOSED;
use crate::memory::{Memory, Signal};
use crate::receiver::Receiver;
use crate::sender::Sender;
use crate::sync::Ordering;
use crate::test_memory::{Edge, Heap};
use crate::violation::Violation;

type TxEnd = Sender<Heap, Edge>;
type RxEnd = Receiver<Heap, Edge>;

/// Sizes of a ring in cache lines, of which a frame takes one.
const SMALL: usize = 2;
const LARGE: usize = 4;

/// Rings of a link that are open at a time.
const OPEN: usize = 2;

/// What the receiving side says of a ring, by its number.
enum Answer {
    /// It is read: the receiver's words can be.
    Accepted(usize),
    /// It was closed, and is read to its end.
    Done(usize),
}

fn check(preemptions: usize, run: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    // A whole life has more than the 1000 of the default.
    model.max_branches = 10_000;
    model.check(run);
}

/// The side that sends.
struct Sending {
    offers: mpsc::Sender<(usize, RxEnd)>,
    answers: mpsc::Receiver<Answer>,
    ring: Option<(usize, TxEnd)>,
    /// A ring that was closed before the receiver had answered.
    closing: Option<(usize, TxEnd)>,
    made: usize,
    done: usize,
    /// What each side sleeps on: doorbells of all rings, and messages.
    own: Edge,
    theirs: Edge,
}

impl Sending {
    fn take_answers(&mut self) {
        while let Ok(answer) = self.answers.try_recv() {
            match answer {
                Answer::Accepted(number) => {
                    let rings = self.ring.iter_mut().chain(&mut self.closing);
                    for (_, ring) in rings.filter(|ring| ring.0 == number) {
                        ring.attach_heap();
                    }
                    if self.closing.as_ref().is_some_and(|ring| ring.0 == number) {
                        self.closing = None;
                    }
                }
                Answer::Done(number) => {
                    assert_eq!(number, self.done, "rings are read in order");
                    self.done += 1;
                }
            }
        }
    }

    fn wait_until(&mut self, condition: impl Fn(&Self) -> bool) {
        loop {
            self.take_answers();
            if condition(self) {
                return;
            }
            self.own.wait();
        }
    }

    /// Sends on a new ring, behind what is in the former one.
    fn make(&mut self, lines: usize) {
        self.wait_until(|side| side.made - side.done < OPEN);
        let number = self.made;
        self.made += 1;
        let (sending, receiving) = Heap::pair(lines * 64);
        let doorbells = || (self.theirs.clone(), self.own.clone());
        let (data, space) = doorbells();
        let receiver = Receiver::over(receiving, data, space);
        let (data, space) = doorbells();
        let sender = Sender::over(sending.detached(), data, space);
        self.offers.send((number, receiver)).unwrap();
        self.theirs.ring().unwrap();
        self.close();
        self.ring = Some((number, sender));
    }

    /// Closes the ring.
    fn close(&mut self) {
        if let Some((number, mut sender)) = self.ring.take() {
            sender.close().unwrap();
            if !sender.has_heap_attached() {
                self.closing = Some((number, sender));
            }
        }
    }

    /// Gives the ring back if all frames are read, as when it has been quiet.
    fn give_back(&mut self) {
        self.take_answers();
        if let Some((_, sender)) = &mut self.ring
            && sender.has_heap_attached()
            && sender.is_drained().unwrap()
        {
            self.close();
        }
    }

    fn send(&mut self, frame: u64) {
        loop {
            self.take_answers();
            let Some((_, sender)) = &mut self.ring else {
                self.make(SMALL);
                continue;
            };
            if let Some(slot) = sender.reserve(8).unwrap() {
                slot.slice().write_obj(frame, 0).unwrap();
                slot.commit();
                return sender.publish().unwrap();
            }
            if sender.capacity() < 64 * LARGE as u64 {
                self.make(LARGE);
            } else if sender.arm_space_doorbell(8).unwrap() {
                self.own.wait();
            }
        }
    }

    /// Closes what is open, and waits until all is read.
    fn end(mut self) {
        self.close();
        self.wait_until(|side| side.done == side.made);
        assert!(self.closing.is_none());
    }
}

/// The side that receives.
struct Receiving {
    offers: mpsc::Receiver<(usize, RxEnd)>,
    answers: mpsc::Sender<Answer>,
    own: Edge,
    theirs: Edge,
}

impl Receiving {
    fn answer(&self, answer: Answer) {
        self.answers.send(answer).unwrap();
        self.theirs.ring().unwrap();
    }

    /// Reads so many frames, in order, and all rings to their ends.
    fn run(self, frames: u64) {
        let mut rings = VecDeque::new();
        let mut next = 0;
        loop {
            while let Ok((number, ring)) = self.offers.try_recv() {
                rings.push_back((number, ring));
                assert!(rings.len() <= OPEN);
                self.answer(Answer::Accepted(number));
            }
            if let Some((number, ring)) = rings.front_mut() {
                if let Some(record) = ring.peek().unwrap() {
                    assert_eq!(record.slice().read_obj::<u64>(0).unwrap(), next);
                    record.consume();
                    ring.release().unwrap();
                    next += 1;
                    continue;
                }
                if ring.is_finished() {
                    self.answer(Answer::Done(*number));
                    rings.pop_front();
                    continue;
                }
                if !ring.arm_data_doorbell().unwrap() || ring.is_finished() {
                    continue;
                }
            } else if next == frames {
                return;
            }
            self.own.wait();
        }
    }
}

/// Runs the sending side against the receiving one.
fn live(
    preemptions: usize,
    frames: u64,
    send: impl Fn(&mut Sending) + Send + Sync + Copy + 'static,
) {
    check(preemptions, move || {
        let (offers, offered) = channel();
        let (answers, answered) = channel();
        let (sender_wakes, receiver_wakes) = (Edge::new(), Edge::new());
        let mut sending = Sending {
            offers,
            answers: answered,
            ring: None,
            closing: None,
            made: 0,
            done: 0,
            own: sender_wakes.clone(),
            theirs: receiver_wakes.clone(),
        };
        let receiving = Receiving {
            offers: offered,
            answers,
            own: receiver_wakes,
            theirs: sender_wakes,
        };
        let sender = thread::spawn(move || {
            send(&mut sending);
            sending.end();
        });
        receiving.run(frames);
        sender.join().unwrap();
    });
}

/// Made for the first frame, given back when all is read, made again.
#[test]
fn link_is_made_given_back_and_made_again_while_frames_are_sent() {
    live(3, 2, |side| {
        side.send(0);
        side.give_back();
        side.send(1);
    });
}

/// The small ring is full before its receiver has answered, or when it has; and the large one is
/// given back.
#[test]
fn link_grows_while_frames_are_sent() {
    live(3, 3, |side| {
        for frame in 0..3 {
            side.send(frame);
        }
        side.give_back();
    });
}

/// Replaced at once, as for a frame that is too large for a small ring: the receiver may sleep on
/// the former ring, of which it was closed nobody could tell it before it had answered.
#[test]
fn link_that_grows_before_its_receiver_has_answered_wakes_it() {
    live(3, 2, |side| {
        side.send(0);
        side.make(LARGE);
        side.send(1);
    });
}

/// What a receiver that breaks the rules stores: positions that cannot be, after ones that can.
const NONSENSE: [u64; 4] = [64, 65, 0, 1 << 20];

/// The receiver claims anything while frames are sent. The sender ends with a violation, also out
/// of its sleep, and has not sent more than it was given room for.
#[test]
fn violation_of_the_receiver_ends_the_sender() {
    check(2, || {
        let (sending, receiving) = Heap::pair(SMALL * 64);
        let (data, space) = (Edge::new(), Edge::new());
        let mut sender = Sender::over(sending, data, space.clone());
        let hostile_space = space.clone();
        let hostile = thread::spawn(move || {
            let words = receiving.receiver_words();
            for value in NONSENSE {
                words.consumed.0.store(value, Ordering::Relaxed);
                words.data_target.0.store(value, Ordering::Relaxed);
            }
            hostile_space.ring().unwrap();
        });
        let mut send = || -> Result<(), Violation> {
            loop {
                if let Some(slot) = sender.reserve(8)? {
                    slot.slice().write_obj(0u64, 0).unwrap();
                    slot.commit();
                    return sender.publish();
                }
                if sender.arm_space_doorbell(8)? {
                    space.wait();
                }
            }
        };
        let mut sent = 0;
        while send().is_ok() {
            sent += 1;
            // What the ring holds, and one for the position that can be.
            assert!(sent <= SMALL + 1);
        }
        hostile.join().unwrap();
    });
}

/// The sender claims anything. The receiver ends with a violation, or sees a ring that is empty or
/// closed; it reads no record that was not published.
#[test]
fn violation_of_the_sender_ends_the_receiver() {
    check(3, || {
        let (sending, receiving) = Heap::pair(SMALL * 64);
        let (data, space) = (Edge::new(), Edge::new());
        let hostile_data = data.clone();
        let mut receiver = Receiver::over(receiving, data.clone(), space);
        let hostile = thread::spawn(move || {
            let words = sending.sender_words();
            // A record of no length, as new memory has it.
            words.published.0.store(64, Ordering::Release);
            hostile_data.ring().unwrap();
            words.space_target.0.store(1 << 20, Ordering::Relaxed);
            words.published.0.store(1 << 20, Ordering::Release);
            words.published.0.store(CLOSED, Ordering::Release);
            hostile_data.ring().unwrap();
        });
        let mut records = 0;
        let mut read = || -> Result<bool, Violation> {
            if let Some(record) = receiver.peek()? {
                assert_eq!(record.slice().len(), 0);
                record.consume();
                records += 1;
                receiver.release()?;
                return Ok(true);
            }
            if receiver.is_finished() {
                return Ok(false);
            }
            if receiver.arm_data_doorbell()? && !receiver.is_finished() {
                data.wait();
            }
            Ok(true)
        };
        let end = loop {
            match read() {
                Ok(true) => {}
                end => break end,
            }
        };
        // At most what was published, in a ring of which it is a part.
        assert!(records <= 1, "{records}");
        // Closed at its beginning is fine for one who has seen nothing else.
        assert!(end.is_err() || records == 0);
        hostile.join().unwrap();
    });
}
