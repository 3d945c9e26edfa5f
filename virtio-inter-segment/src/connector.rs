//! Decides when to connect to which peer.
//!
//! A port connects to all ports whose sockets it finds when it joins; those that join later connect
//! to it. So each pair has at least one side that tries, and tries again (decision 0066).
//!
//! Bookkeeping without system calls: times and observations come from the caller.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use virtio_inter_common::PortId;

use crate::directory::SocketId;

/// Pause before the first retry; doubled by each failure.
pub(crate) const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest pause between retries of a peer that accepts connections.
pub(crate) const LAST_RETRY: Duration = Duration::from_millis(3200);
/// Pause after the first attempt that found a peer's queue full; doubled by each further one.
const FIRST_RETRY_QUEUE: Duration = Duration::from_millis(25);
/// Longest pause between attempts that find it full.
const LAST_RETRY_QUEUE: Duration = Duration::from_millis(800);
/// Longest pause between attempts at a peer that lets them time out: each attempt keeps a place
/// among those under way for as long as a handshake may take.
const LAST_RETRY_SILENT: Duration = Duration::from_secs(60);
/// Pause after a peer said that it connects, or is connected, to this port itself. Only if its
/// connection does not come is there anything to try again.
pub(crate) const DUPLICATE_RETRY: Duration = Duration::from_secs(3);
/// Longest pause after a peer broke a rule again and again: each such link costs what it costs.
const LAST_RETRY_VIOLATION: Duration = Duration::from_secs(3600);
/// Time for which other peers go before a peer that let its last attempt time out. Not for ever: it
/// may be an honest peer on a busy machine.
const PRECEDENCE: Duration = Duration::from_secs(600);
/// A link that was up for this long was no failure: pauses start from the first one again.
const STABLE: Duration = Duration::from_secs(5);
/// Most peers that are remembered. Bounds the memory that files in the directory can cost.
const MAX_TARGETS: usize = 4096;

/// The end of an attempt to connect, or of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttemptOutcome {
    /// The link was up for so long, and is no more.
    Lost(Duration),
    /// No link, for a reason that may pass: peer busy, connection cut.
    Failed,
    /// Too many connections wait at the peer: somebody floods it.
    QueueFull,
    /// The peer let the time run out.
    TimedOut,
    /// The peer is at one of its limits, and does not say when that passes.
    Full,
    /// One side refused the other. It may come to be possible (a MAC address gets free): try again,
    /// but rarely.
    Refused,
    /// One side closed the link because the other one broke a rule: try again, but ever more
    /// rarely, and not sooner when another link ends. Such a link can cost much before it is
    /// closed, and an attacker may have several ports.
    Violation,
    /// The peer has or makes a connection of its own.
    Duplicate,
    /// Nobody listens on the socket: wait for the next one.
    WaitForNewSocket,
    /// There is no socket any more.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Connect at this time.
    Due(Instant),
    /// Connect at this time, after a refusal; sooner if the reason for it may be gone.
    Refused(Instant),
    /// This port refused the peer, which tries again by itself, but rarely: connect when the reason
    /// for the refusal may be gone.
    TurnedAway,
    /// An attempt is under way, or the link that came of it is up.
    Busy,
    /// The peer has connected to this port: its connection is accepted, or its link up.
    Accepted,
    /// Wait for another socket.
    WaitForNewSocket,
}

impl State {
    /// When to connect.
    fn due(self) -> Option<Instant> {
        match self {
            State::Due(at) | State::Refused(at) => Some(at),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Target {
    socket: SocketId,
    state: State,
    pause: Duration,
    /// The next pause after an attempt that found its queue full.
    queue_pause: Duration,
    /// The next pause after a violation.
    violation_pause: Duration,
    /// It let the last attempt time out.
    silent: bool,
    /// While busy: another socket has appeared; connect to that one next.
    again: bool,
    /// While busy: the socket has gone, forget the peer afterwards.
    gone: bool,
    /// Decides who goes first of those that are due at the same time: ports that start together are
    /// not to connect to the same peer all at once.
    order: u32,
}

impl Target {
    /// Its place in the queues, if it waits for a time.
    fn place(&self, id: &PortId) -> Option<(usize, Place)> {
        let at = self.state.due()?;
        Some((usize::from(self.silent), (at, self.order, id.clone())))
    }
}

type Place = (Instant, u32, PortId);

/// All peers to which this port connects.
#[derive(Debug)]
pub(crate) struct Connector {
    targets: BTreeMap<PortId, Target>,
    /// Those that wait for a time, in order; those that were silent apart.
    queues: [BTreeSet<Place>; 2],
    slow_retry: Duration,
    spread: Spread,
}

/// Marsaglia's xorshift: spread is all that is asked of it. With zero as seed, all numbers are
/// zero.
#[derive(Debug)]
struct Spread(u64);

impl Spread {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }
}

impl Connector {
    pub(crate) fn new(slow_retry: Duration, seed: u64) -> Connector {
        Connector {
            targets: BTreeMap::new(),
            queues: [BTreeSet::new(), BTreeSet::new()],
            slow_retry,
            spread: Spread(seed),
        }
    }

    /// Changes what is known of a peer, and its place in the queues with it.
    fn update(&mut self, id: &PortId, change: impl FnOnce(&mut Target)) {
        let Some(target) = self.targets.get_mut(id) else {
            return;
        };
        let before = target.place(id);
        change(target);
        let after = target.place(id);
        if before == after {
            return;
        }
        if let Some((queue, place)) = before {
            self.queues[queue].remove(&place);
        }
        if let Some((queue, place)) = after {
            self.queues[queue].insert(place);
        }
    }

    fn remove(&mut self, id: &PortId) {
        if let Some((queue, place)) = self.targets.remove(id).and_then(|t| t.place(id)) {
            self.queues[queue].remove(&place);
        }
    }

    /// Adds a peer, if there is room for one more. Those to which there is nothing to try make
    /// room.
    fn add(&mut self, id: &PortId, socket: SocketId, state: State) -> bool {
        if self.targets.len() >= MAX_TARGETS {
            let waits = |t: &Target| matches!(t.state, State::WaitForNewSocket | State::TurnedAway);
            self.targets.retain(|_, target| !waits(target));
        }
        if self.targets.len() >= MAX_TARGETS {
            return false;
        }
        let target = Target {
            socket,
            state: State::WaitForNewSocket,
            pause: FIRST_RETRY,
            queue_pause: FIRST_RETRY_QUEUE,
            violation_pause: self.slow_retry,
            silent: false,
            again: false,
            gone: false,
            order: self.spread.next(),
        };
        self.targets.insert(id.clone(), target);
        self.update(id, |target| target.state = state);
        true
    }

    /// A socket is there. Nothing changes if it is the one already known.
    ///
    /// Returns false if there are too many to remember this one.
    pub(crate) fn seen(&mut self, id: &PortId, socket: SocketId, now: Instant) -> bool {
        if !self.targets.contains_key(id) {
            return self.add(id, socket, State::Due(now));
        }
        self.update(id, |target| {
            target.gone = false;
            if target.socket == socket {
                return;
            }
            target.socket = socket;
            target.pause = FIRST_RETRY;
            target.queue_pause = FIRST_RETRY_QUEUE;
            target.silent = false;
            match target.state {
                State::Busy => target.again = true,
                State::Accepted => {}
                State::Due(_) | State::Refused(_) | State::TurnedAway | State::WaitForNewSocket => {
                    target.state = State::Due(now);
                }
            }
        });
        true
    }

    /// A socket is no longer there.
    pub(crate) fn vanished(&mut self, id: &PortId) {
        match self.targets.get_mut(id) {
            Some(target) if matches!(target.state, State::Busy | State::Accepted) => {
                target.gone = true;
            }
            _ => self.remove(id),
        }
    }

    /// All peers that are known.
    pub(crate) fn known(&self) -> Vec<PortId> {
        self.targets.keys().cloned().collect()
    }

    /// Whether this port would try again if there is no link with the peer.
    pub(crate) fn knows(&self, id: &PortId) -> bool {
        self.targets.contains_key(id)
    }

    /// The peer whose turn it is, if any peer's time has come; it is busy from now on, until
    /// [`Connector::ended`]. The peer that has waited longest goes first, whatever its id; peers
    /// that let attempts time out go behind the others.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<PortId> {
        let first = |queue: usize, behind: Duration| {
            let (at, _, id) = self.queues[queue].first()?;
            (*at <= now).then(|| (*at + behind, id))
        };
        let firsts = [first(0, Duration::ZERO), first(1, PRECEDENCE)];
        let (_, id) = firsts.into_iter().flatten().min_by_key(|(turn, _)| *turn)?;
        let id = id.clone();
        self.update(&id, |target| target.state = State::Busy);
        Some(id)
    }

    /// Makes refused attempts due soon, because the reason for a refusal may be gone. Other
    /// attempts keep their pauses, so that a peer that comes and goes does not undo them.
    pub(crate) fn retry_refused(&mut self, now: Instant) {
        let soon = now + FIRST_RETRY;
        let refused = |target: &Target| match target.state {
            State::Refused(at) => at > soon,
            State::TurnedAway => true,
            _ => false,
        };
        let all = self.targets.iter();
        let refused: Vec<PortId> = all
            .filter(|(_, target)| refused(target))
            .map(|(id, _)| id.clone())
            .collect();
        for id in &refused {
            self.update(id, |target| target.state = State::Refused(soon));
        }
    }

    /// Whether several attempts at this peer failed in a row.
    pub(crate) fn keeps_failing(&self, id: &PortId) -> bool {
        let target = self.targets.get(id);
        target.is_some_and(|target| target.pause >= FIRST_RETRY * 8)
    }

    /// When the next attempt is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let firsts = self.queues.iter().filter_map(BTreeSet::first);
        firsts.map(|(at, ..)| *at).min()
    }

    /// A connection of this peer was accepted. An attempt that is under way counts no more.
    pub(crate) fn accepted(&mut self, id: &PortId) {
        self.update(id, |target| {
            target.state = State::Accepted;
            target.again = false;
        });
    }

    /// This port refused the peer for a reason that goes when another peer does.
    pub(crate) fn turned_away(&mut self, id: &PortId, socket: SocketId) {
        match self.targets.get(id).map(|target| target.state) {
            None => {
                self.add(id, socket, State::TurnedAway);
            }
            Some(State::WaitForNewSocket) => {
                self.update(id, |target| target.state = State::TurnedAway);
            }
            Some(_) => {}
        }
    }

    /// The connection that was accepted from this peer is over.
    pub(crate) fn accepted_ended(&mut self, id: &PortId, outcome: AttemptOutcome, now: Instant) {
        self.over(id, State::Accepted, outcome, now);
    }

    /// An attempt, or its link, is over.
    pub(crate) fn ended(&mut self, id: &PortId, outcome: AttemptOutcome, now: Instant) {
        self.over(id, State::Busy, outcome, now);
    }

    fn over(&mut self, id: &PortId, of: State, outcome: AttemptOutcome, now: Instant) {
        // Of another connection with this peer, nothing follows.
        let Some(target) = self.targets.get(id).filter(|target| target.state == of) else {
            return;
        };
        if target.gone || (outcome == AttemptOutcome::Gone && !target.again) {
            return self.remove(id);
        }
        let (slow, spread) = (self.slow_retry, self.spread.next());
        self.update(id, |target| {
            if std::mem::take(&mut target.again) {
                target.state = State::Due(now);
            } else {
                target.close(outcome, slow, spread, now);
            }
        });
    }
}

impl Target {
    /// Decides what follows from the end of a connection. `spread` is a random number.
    fn close(&mut self, outcome: AttemptOutcome, slow: Duration, spread: u32, now: Instant) {
        if matches!(outcome, AttemptOutcome::Lost(lived) if lived >= STABLE) {
            self.pause = FIRST_RETRY;
        }
        if matches!(outcome, AttemptOutcome::Lost(lived) if lived >= self.violation_pause) {
            self.violation_pause = slow;
        }
        if outcome != AttemptOutcome::QueueFull {
            self.queue_pause = FIRST_RETRY_QUEUE;
        }
        self.silent = outcome == AttemptOutcome::TimedOut;
        let (pause, longest) = match outcome {
            AttemptOutcome::Lost(_) | AttemptOutcome::Failed => (self.pause, LAST_RETRY),
            // The peer empties its queue now and then; an attempt costs little, and says nothing
            // of the peer.
            AttemptOutcome::QueueFull => (self.queue_pause, self.pause),
            AttemptOutcome::TimedOut => (self.pause, LAST_RETRY_SILENT),
            AttemptOutcome::Full => (self.pause.min(slow), slow),
            // Not the beginning of anything: the other pauses stay as they are.
            AttemptOutcome::Refused => (slow, self.pause),
            AttemptOutcome::Violation => (self.violation_pause, self.pause),
            AttemptOutcome::Duplicate => (DUPLICATE_RETRY, self.pause),
            AttemptOutcome::WaitForNewSocket | AttemptOutcome::Gone => {
                self.state = State::WaitForNewSocket;
                return;
            }
        };
        if outcome == AttemptOutcome::QueueFull {
            self.queue_pause = (pause * 2).min(LAST_RETRY_QUEUE);
        }
        if outcome == AttemptOutcome::Violation {
            self.violation_pause = (pause * 2).min(LAST_RETRY_VIOLATION.max(slow));
        }
        self.pause = (self.pause * 2).min(longest);
        // Up to half as long again: those who were turned away together are not to come back
        // together.
        let at = now + pause + pause * (spread >> 24) / 512;
        self.state = match outcome {
            AttemptOutcome::Full | AttemptOutcome::Refused => State::Refused(at),
            _ => State::Due(at),
        };
    }
}

#[cfg(test)]
#[path = "connector_tests.rs"]
mod tests;
