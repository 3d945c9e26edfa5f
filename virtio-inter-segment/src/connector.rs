//! Decides when to connect to which peer, by what is known of the sockets of the ports with larger
//! ids.
//!
//! Bookkeeping without system calls: times and observations come from the caller.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use virtio_inter_common::PortId;

use crate::directory::SocketId;

/// Pause before the first retry; doubled by each failure.
pub(crate) const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest pause between retries of a peer that accepts connections.
pub(crate) const LAST_RETRY: Duration = Duration::from_millis(3200);
/// Longest pause between attempts at a peer that lets them time out: each attempt keeps a place
/// among those under way for as long as a handshake may take.
const LAST_RETRY_SILENT: Duration = Duration::from_secs(60);
/// Time for which other peers go before a peer that let its last attempt time out. Not for ever: it
/// may be an honest peer on a busy machine.
const PRECEDENCE: Duration = Duration::from_secs(600);
/// A link that was up for this long was no failure: pauses start from the first one again.
const STABLE: Duration = Duration::from_secs(5);
/// Most peers that are remembered. Bounds the memory that files in the directory can cost.
const MAX_TARGETS: usize = 4096;

/// The end of an attempt to connect, or of the link that came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttemptOutcome {
    /// The link was up for so long, and is no more.
    Lost(Duration),
    /// No link, for a reason that may pass: peer busy, connection cut.
    Failed,
    /// The peer let the time run out.
    TimedOut,
    /// The peer is at one of its limits, and does not say when that passes.
    Full,
    /// One side refused the other. It may come to be possible (a MAC address gets free): try again,
    /// but rarely.
    Refused,
    /// Nobody listens on the socket, or we want nothing of this incarnation: wait for the next one.
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
    /// An attempt is under way, or the link is up.
    Busy,
    /// Wait for another socket.
    WaitForNewSocket,
}

#[derive(Debug)]
struct Target {
    socket: SocketId,
    state: State,
    pause: Duration,
    /// It let the last attempt time out.
    silent: bool,
    /// While busy: another socket has appeared; connect to that one next.
    again: bool,
    /// While busy: the socket has gone, forget the peer afterwards.
    gone: bool,
}

/// All peers to which this port connects.
#[derive(Debug)]
pub(crate) struct Connector {
    targets: BTreeMap<PortId, Target>,
    slow_retry: Duration,
    jitter: Jitter,
}

/// Lengthens pauses by up to a half, so that those who were turned away together do not come back
/// together.
#[derive(Debug)]
struct Jitter(u64);

impl Jitter {
    /// A pause from here on. With zero as seed all pauses stay as they are.
    fn lengthen(&mut self, pause: Duration) -> Duration {
        // Marsaglia's xorshift: spread is all that is asked of it.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        pause + pause * (self.0 >> 56) as u32 / 512
    }
}

impl Connector {
    pub(crate) fn new(slow_retry: Duration, seed: u64) -> Connector {
        Connector {
            targets: BTreeMap::new(),
            slow_retry,
            jitter: Jitter(seed),
        }
    }

    /// A socket is there. Nothing changes if it is the one already known.
    ///
    /// Returns false if there are too many to remember this one. Those on whose socket nobody
    /// listens make room: their successors come as another socket.
    pub(crate) fn seen(&mut self, id: &PortId, socket: SocketId, now: Instant) -> bool {
        if let Some(target) = self.targets.get_mut(id) {
            target.gone = false;
            if target.socket != socket {
                target.socket = socket;
                target.pause = FIRST_RETRY;
                target.silent = false;
                match target.state {
                    State::Busy => target.again = true,
                    State::Due(_) | State::Refused(_) | State::WaitForNewSocket => {
                        target.state = State::Due(now);
                    }
                }
            }
            return true;
        }
        if self.targets.len() == MAX_TARGETS {
            self.targets
                .retain(|_, target| target.state != State::WaitForNewSocket);
        }
        let room = self.targets.len() < MAX_TARGETS;
        if room {
            let state = State::Due(now);
            let target = Target {
                socket,
                state,
                pause: FIRST_RETRY,
                silent: false,
                again: false,
                gone: false,
            };
            self.targets.insert(id.clone(), target);
        }
        room
    }

    /// A socket is no longer there.
    pub(crate) fn vanished(&mut self, id: &PortId) {
        if let Some(target) = self.targets.get_mut(id) {
            if target.state == State::Busy {
                target.gone = true;
            } else {
                self.targets.remove(id);
            }
        }
    }

    /// All peers that are known.
    pub(crate) fn known(&self) -> Vec<PortId> {
        self.targets.keys().cloned().collect()
    }

    /// The peer whose turn it is, if any peer's time has come; it is busy from now on, until
    /// [`Connector::ended`]. The peer that has waited longest goes first, whatever its id; peers
    /// that let attempts time out go behind the others.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<PortId> {
        let turn = |target: &Target| match target.state {
            State::Due(at) | State::Refused(at) if at <= now => Some(
                at + if target.silent {
                    PRECEDENCE
                } else {
                    Duration::ZERO
                },
            ),
            _ => None,
        };
        let (_, id, target) = self
            .targets
            .iter_mut()
            .filter_map(|(id, target)| Some((turn(target)?, id, target)))
            .min_by_key(|(turn, ..)| *turn)?;
        target.state = State::Busy;
        Some(id.clone())
    }

    /// Makes refused attempts due soon, because the reason for a refusal may be gone. Other
    /// attempts keep their pauses, so that a peer that comes and goes does not undo them.
    pub(crate) fn retry_refused(&mut self, now: Instant) {
        for target in self.targets.values_mut() {
            if let State::Refused(at) = &mut target.state {
                *at = (*at).min(now + FIRST_RETRY);
            }
        }
    }

    /// Whether several attempts at this peer failed in a row.
    pub(crate) fn keeps_failing(&self, id: &PortId) -> bool {
        let target = self.targets.get(id);
        target.is_some_and(|target| target.pause >= FIRST_RETRY * 8)
    }

    /// When the next attempt is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.targets
            .values()
            .filter_map(|target| match target.state {
                State::Due(at) | State::Refused(at) => Some(at),
                State::Busy | State::WaitForNewSocket => None,
            })
            .min()
    }

    /// An attempt, or its link, is over.
    pub(crate) fn ended(&mut self, id: &PortId, outcome: AttemptOutcome, now: Instant) {
        let Some(target) = self.targets.get_mut(id) else {
            return;
        };
        if target.again && !target.gone {
            target.again = false;
            target.state = State::Due(now);
            return;
        }
        if target.gone || outcome == AttemptOutcome::Gone {
            self.targets.remove(id);
            return;
        }
        if matches!(outcome, AttemptOutcome::Lost(lived) if lived >= STABLE) {
            target.pause = FIRST_RETRY;
        }
        target.silent = outcome == AttemptOutcome::TimedOut;
        let (pause, longest) = match outcome {
            AttemptOutcome::Lost(_) | AttemptOutcome::Failed => (target.pause, LAST_RETRY),
            AttemptOutcome::TimedOut => (target.pause, LAST_RETRY_SILENT),
            AttemptOutcome::Full => (target.pause.min(self.slow_retry), self.slow_retry),
            // Not the beginning of anything: the other pauses stay as they are.
            AttemptOutcome::Refused => (self.slow_retry, target.pause),
            AttemptOutcome::WaitForNewSocket | AttemptOutcome::Gone => {
                target.state = State::WaitForNewSocket;
                return;
            }
        };
        target.pause = (target.pause * 2).min(longest);
        let at = now + self.jitter.lengthen(pause);
        target.state = match outcome {
            AttemptOutcome::Full | AttemptOutcome::Refused => State::Refused(at),
            _ => State::Due(at),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::directory::Directory;

    const SLOW: Duration = Duration::from_secs(30);

    fn id(text: &str) -> PortId {
        text.parse().unwrap()
    }

    /// Two different sockets.
    fn sockets() -> [SocketId; 2] {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path()).unwrap();
        ["x", "y"].map(|name| {
            let _ = UnixListener::bind(temp.path().join(format!("{name}.sock"))).unwrap();
            directory.socket(&id(name)).unwrap()
        })
    }

    #[test]
    fn connector_tries_a_socket_once() {
        let (mut connector, [socket, _], now) =
            (Connector::new(SLOW, 0), sockets(), Instant::now());
        assert_eq!(connector.next_due(), None);
        assert!(connector.seen(&id("b"), socket, now));
        assert_eq!(connector.next_due(), Some(now));
        assert_eq!(connector.take_due(now), Some(id("b")));
        connector.seen(&id("b"), socket, now);
        assert_eq!(
            (connector.take_due(now), connector.next_due()),
            (None, None)
        );
    }

    #[test]
    fn connector_pauses_double_up_to_a_bound_until_a_stable_link() {
        let (mut connector, [socket, _], mut now) =
            (Connector::new(SLOW, 0), sockets(), Instant::now());
        connector.seen(&id("b"), socket, now);
        let mut pauses = Vec::new();
        for outcome in [AttemptOutcome::Failed, AttemptOutcome::Lost(Duration::ZERO)]
            .into_iter()
            .cycle()
            .take(8)
        {
            assert_eq!(connector.take_due(now), Some(id("b")));
            connector.ended(&id("b"), outcome, now);
            let due = connector.next_due().unwrap();
            assert_eq!(connector.take_due(due - Duration::from_nanos(1)), None);
            pauses.push((due - now).as_millis());
            now = due;
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 3200, 3200]);
        connector.take_due(now).unwrap();
        connector.ended(&id("b"), AttemptOutcome::Lost(STABLE), now);
        assert_eq!(connector.next_due(), Some(now + FIRST_RETRY));
    }

    #[test]
    fn connector_retries_refused_peers_rarely_and_dead_ones_never() {
        let (mut connector, [socket, _], now) =
            (Connector::new(SLOW, 0), sockets(), Instant::now());
        connector.seen(&id("b"), socket, now);
        connector.take_due(now).unwrap();
        connector.ended(&id("b"), AttemptOutcome::Refused, now);
        assert_eq!(connector.next_due(), Some(now + SLOW));
        connector.retry_refused(now);
        assert_eq!(connector.next_due(), Some(now + FIRST_RETRY));
        connector.take_due(now + FIRST_RETRY).unwrap();
        connector.ended(&id("b"), AttemptOutcome::Lost(STABLE), now);
        connector.retry_refused(now - SLOW);
        assert_eq!(connector.next_due(), Some(now + FIRST_RETRY));
        connector.take_due(now + FIRST_RETRY).unwrap();
        connector.ended(&id("b"), AttemptOutcome::WaitForNewSocket, now);
        connector.retry_refused(now);
        assert_eq!(connector.next_due(), None);
        connector.seen(&id("b"), socket, now);
        assert_eq!(connector.next_due(), None);
    }

    /// A limit may be reached for a moment or for good: the first retries come soon, later ones as
    /// rarely as after any refusal.
    #[test]
    fn connector_retries_a_full_peer_more_and_more_rarely() {
        let (mut connector, [socket, _], mut now) =
            (Connector::new(SLOW, 0), sockets(), Instant::now());
        connector.seen(&id("b"), socket, now);
        let mut pauses = Vec::new();
        for _ in 0..11 {
            assert_eq!(connector.keeps_failing(&id("b")), pauses.len() > 2);
            connector.take_due(now).unwrap();
            connector.ended(&id("b"), AttemptOutcome::Full, now);
            let due = connector.next_due().unwrap();
            pauses.push((due - now).as_millis());
            now = due;
        }
        assert_eq!(
            pauses,
            [
                100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000
            ]
        );
    }

    #[test]
    fn connector_spreads_attempts_that_failed_together() {
        let ([socket, _], now) = (sockets(), Instant::now());
        let due: Vec<Duration> = (1..=100u64)
            .map(|seed| {
                let mut connector = Connector::new(SLOW, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                connector.seen(&id("b"), socket, now);
                connector.take_due(now).unwrap();
                connector.ended(&id("b"), AttemptOutcome::Failed, now);
                connector.next_due().unwrap() - now
            })
            .collect();
        assert!(
            due.iter()
                .all(|due| (FIRST_RETRY..FIRST_RETRY * 3 / 2).contains(due)),
            "{due:?}"
        );
        let early = due.iter().filter(|due| **due < FIRST_RETRY * 5 / 4).count();
        assert!((25..75).contains(&early), "{due:?}");
    }

    #[test]
    fn connector_tries_another_socket_at_once_whatever_the_last_one_did() {
        let now = Instant::now();
        let [old, new] = sockets();
        for outcome in [
            AttemptOutcome::Failed,
            AttemptOutcome::Refused,
            AttemptOutcome::WaitForNewSocket,
        ] {
            let mut connector = Connector::new(SLOW, 0);
            connector.seen(&id("b"), old, now);
            connector.take_due(now).unwrap();
            connector.ended(&id("b"), outcome, now);
            connector.seen(&id("b"), new, now);
            assert_eq!(connector.next_due(), Some(now), "{outcome:?}");

            let mut connector = Connector::new(SLOW, 0);
            connector.seen(&id("b"), old, now);
            connector.take_due(now).unwrap();
            connector.seen(&id("b"), new, now);
            connector.ended(&id("b"), outcome, now);
            assert_eq!(connector.next_due(), Some(now), "while busy, {outcome:?}");
        }
    }

    #[test]
    fn connector_forgets_a_socket_that_is_gone() {
        let ([socket, _], now) = (sockets(), Instant::now());
        let mut connector = Connector::new(SLOW, 0);
        connector.seen(&id("b"), socket, now);
        connector.vanished(&id("b"));
        assert_eq!(connector.known(), []);
        connector.seen(&id("b"), socket, now);
        connector.take_due(now).unwrap();
        connector.vanished(&id("b"));
        assert_eq!(connector.known(), [id("b")]);
        connector.ended(&id("b"), AttemptOutcome::Lost(Duration::ZERO), now);
        assert_eq!(connector.known(), []);
        connector.seen(&id("b"), socket, now);
        connector.take_due(now).unwrap();
        connector.ended(&id("b"), AttemptOutcome::Gone, now);
        assert_eq!(connector.known(), []);
    }

    /// Sockets that never answer, many times as many as there are places, with the first ids.
    #[test]
    fn connector_does_not_let_silent_peers_delay_others() {
        const PLACES: usize = 64;
        const TIMEOUT: Duration = Duration::from_secs(5);
        let (mut connector, [socket, _], start) =
            (Connector::new(SLOW, 0), sockets(), Instant::now());
        for i in 0..1024 {
            connector.seen(&id(&format!("b{i}")), socket, start);
        }
        connector.seen(&id("c"), socket, start);
        let mut under_way: Vec<(Instant, PortId)> = Vec::new();
        let (mut now, mut good, mut attempts) = (start, Vec::new(), 0);
        while now < start + Duration::from_secs(1800) {
            while under_way.len() < PLACES
                && let Some(id) = connector.take_due(now)
            {
                attempts += 1;
                if id.as_str().starts_with('b') {
                    under_way.push((now + TIMEOUT, id));
                } else {
                    // A healthy one that is lost at once, again and again, and one that comes late.
                    connector.ended(&id, AttemptOutcome::Lost(Duration::ZERO), now);
                    good.push((id, now - start));
                }
            }
            now += Duration::from_millis(100);
            if now - start == Duration::from_secs(300) {
                connector.seen(&id("d"), socket, now);
            }
            let (over, rest): (Vec<_>, _) = under_way.into_iter().partition(|(end, _)| *end <= now);
            under_way = rest;
            for (_, id) in over {
                connector.ended(&id, AttemptOutcome::TimedOut, now);
            }
        }
        let attempts_at = |id: &'static str| good.iter().filter(move |(who, _)| who.as_str() == id);
        // In its turn the first time, and after each pause as soon as a place is free.
        let first = attempts_at("c").next().unwrap().1;
        assert!(first <= TIMEOUT * 17, "{first:?}");
        assert!(
            attempts_at("c").count() > 150,
            "{}",
            attempts_at("c").count()
        );
        let late = attempts_at("d").next().unwrap().1;
        assert!(late <= Duration::from_secs(300) + 2 * TIMEOUT, "{late:?}");
        // The silent ones get their turn too.
        assert!(attempts > 5 * 1024, "{attempts}");
    }

    #[test]
    fn connector_pauses_after_silence_grow_long_and_end_with_it() {
        let (mut connector, [socket, other], mut now) =
            (Connector::new(SLOW, 0), sockets(), Instant::now());
        connector.seen(&id("b"), socket, now);
        for _ in 0..12 {
            connector.take_due(now).unwrap();
            connector.ended(&id("b"), AttemptOutcome::TimedOut, now);
            now = connector.next_due().unwrap();
        }
        connector.take_due(now).unwrap();
        connector.ended(&id("b"), AttemptOutcome::TimedOut, now);
        assert_eq!(connector.next_due(), Some(now + LAST_RETRY_SILENT));
        // It goes behind one that is due later, though not for ever.
        let later = now + LAST_RETRY_SILENT + Duration::from_secs(1);
        connector.seen(&id("c"), socket, later);
        assert_eq!(connector.take_due(later), Some(id("c")));
        connector.seen(&id("d"), socket, later + PRECEDENCE);
        assert_eq!(connector.take_due(later + PRECEDENCE), Some(id("b")));
        // Another socket is another process.
        connector.ended(&id("b"), AttemptOutcome::TimedOut, later);
        connector.seen(&id("b"), other, later);
        assert_eq!(connector.next_due(), Some(later));
    }

    #[test]
    fn connector_bounds_the_number_of_peers() {
        let (mut connector, [socket, _], now) =
            (Connector::new(SLOW, 0), sockets(), Instant::now());
        for i in 0..MAX_TARGETS {
            assert!(connector.seen(&id(&format!("p{i}")), socket, now));
        }
        assert!(!connector.seen(&id("one-more"), socket, now));
        assert!(connector.seen(&id("p0"), socket, now));
        // A dead one makes room.
        let dead = connector.take_due(now).unwrap();
        connector.ended(&dead, AttemptOutcome::WaitForNewSocket, now);
        assert!(connector.seen(&id("one-more"), socket, now));
        assert_eq!(connector.known().len(), MAX_TARGETS);
        assert!(!connector.known().contains(&dead));
        assert!(!connector.seen(&dead, socket, now));
    }
}
