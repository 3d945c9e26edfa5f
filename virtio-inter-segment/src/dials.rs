//! When to connect to which peer: what is known of the sockets of ports that this one has to call.
//!
//! Pure bookkeeping: times and observations come from the caller.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::directory::SocketId;
use virtio_inter_common::PortId;

/// Pause before the first retry; doubled by each failure.
pub(crate) const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest pause between retries of a peer that accepts connections.
pub(crate) const LAST_RETRY: Duration = Duration::from_millis(3200);
/// Longest pause between calls of a peer that lets them time out: each keeps a place among the calls
/// under way for as long as a handshake may take.
const LAST_RETRY_SILENT: Duration = Duration::from_secs(60);
/// How long others go first, before a peer that let its last call time out. Not for ever: it may have
/// been an honest one on a busy machine.
const PRECEDENCE: Duration = Duration::from_secs(600);
/// A link that has lived this long was no failure: the pauses start anew.
const STABLE: Duration = Duration::from_secs(5);
/// Most peers that are called. Bounds what files in the directory can cost.
const MAX_DIALS: usize = 4096;

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The link was up for so long, and is no more.
    Lost(Duration),
    /// No link, for no reason that has to stay: peer busy, connection cut.
    Failed,
    /// The peer let the time run out.
    TimedOut,
    /// The peer is at one of its limits, and does not say when that passes.
    Full,
    /// One side refused the other. It may come to be possible (a MAC address gets free): try again,
    /// but rarely.
    Refused,
    /// Nobody listens on the socket, or we want nothing of this incarnation: wait for the next one.
    Parked,
    /// There is no socket any more.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Call at this time.
    Due(Instant),
    /// Call at this time, after a refusal; sooner if what was in the way may be gone.
    Refused(Instant),
    /// A call, or a link that came of it, is there.
    Busy,
    /// Wait for another socket.
    Parked,
}

#[derive(Debug)]
struct Dial {
    socket: SocketId,
    state: State,
    pause: Duration,
    /// It let the last call time out.
    silent: bool,
    /// While busy: another socket has appeared, call that one next.
    again: bool,
    /// While busy: the socket has gone, forget the peer afterwards.
    gone: bool,
}

/// All peers to be called.
#[derive(Debug)]
pub(crate) struct Dials {
    dials: BTreeMap<PortId, Dial>,
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

impl Dials {
    pub(crate) fn new(slow_retry: Duration, seed: u64) -> Dials {
        Dials {
            dials: BTreeMap::new(),
            slow_retry,
            jitter: Jitter(seed),
        }
    }

    /// A socket is there. Nothing changes if it is the one already known.
    ///
    /// Returns false if there are too many to remember this one. Those on whose socket nobody listens
    /// make room: their successors come as another socket.
    pub(crate) fn seen(&mut self, id: &PortId, socket: SocketId, now: Instant) -> bool {
        if let Some(dial) = self.dials.get_mut(id) {
            dial.gone = false;
            if dial.socket != socket {
                dial.socket = socket;
                dial.pause = FIRST_RETRY;
                dial.silent = false;
                match dial.state {
                    State::Busy => dial.again = true,
                    State::Due(_) | State::Refused(_) | State::Parked => {
                        dial.state = State::Due(now);
                    }
                }
            }
            return true;
        }
        if self.dials.len() == MAX_DIALS {
            self.dials.retain(|_, dial| dial.state != State::Parked);
        }
        let room = self.dials.len() < MAX_DIALS;
        if room {
            let state = State::Due(now);
            let dial = Dial {
                socket,
                state,
                pause: FIRST_RETRY,
                silent: false,
                again: false,
                gone: false,
            };
            self.dials.insert(id.clone(), dial);
        }
        room
    }

    /// A socket is no longer there.
    pub(crate) fn vanished(&mut self, id: &PortId) {
        if let Some(dial) = self.dials.get_mut(id) {
            if dial.state == State::Busy {
                dial.gone = true;
            } else {
                self.dials.remove(id);
            }
        }
    }

    /// All peers that are known.
    pub(crate) fn known(&self) -> Vec<PortId> {
        self.dials.keys().cloned().collect()
    }

    /// The peer whose turn it is, if any peer's time has come; it is busy from now on, until
    /// [`Dials::ended`]. Whoever has waited longest goes first, whatever its id; those that let calls
    /// time out go behind the others.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<PortId> {
        let turn = |dial: &Dial| match dial.state {
            State::Due(at) | State::Refused(at) if at <= now => Some(
                at + if dial.silent {
                    PRECEDENCE
                } else {
                    Duration::ZERO
                },
            ),
            _ => None,
        };
        let (_, id, dial) = self
            .dials
            .iter_mut()
            .filter_map(|(id, dial)| Some((turn(dial)?, id, dial)))
            .min_by_key(|(turn, ..)| *turn)?;
        dial.state = State::Busy;
        Some(id.clone())
    }

    /// Something has changed that may have been in the way: calls that were refused are due soon.
    /// Others keep their pauses, so that a peer that comes and goes does not undo them.
    pub(crate) fn hurry(&mut self, now: Instant) {
        for dial in self.dials.values_mut() {
            if let State::Refused(at) = &mut dial.state {
                *at = (*at).min(now + FIRST_RETRY);
            }
        }
    }

    /// Whether calls of a peer came to nothing several times in a row.
    pub(crate) fn keeps_failing(&self, id: &PortId) -> bool {
        let dial = self.dials.get(id);
        dial.is_some_and(|dial| dial.pause >= FIRST_RETRY * 8)
    }

    /// When the next call is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.dials
            .values()
            .filter_map(|dial| match dial.state {
                State::Due(at) | State::Refused(at) => Some(at),
                State::Busy | State::Parked => None,
            })
            .min()
    }

    /// A call is over.
    pub(crate) fn ended(&mut self, id: &PortId, outcome: Outcome, now: Instant) {
        let Some(dial) = self.dials.get_mut(id) else {
            return;
        };
        if dial.again && !dial.gone {
            dial.again = false;
            dial.state = State::Due(now);
            return;
        }
        if dial.gone || outcome == Outcome::Gone {
            self.dials.remove(id);
            return;
        }
        if matches!(outcome, Outcome::Lost(lived) if lived >= STABLE) {
            dial.pause = FIRST_RETRY;
        }
        dial.silent = outcome == Outcome::TimedOut;
        let (pause, longest) = match outcome {
            Outcome::Lost(_) | Outcome::Failed => (dial.pause, LAST_RETRY),
            Outcome::TimedOut => (dial.pause, LAST_RETRY_SILENT),
            Outcome::Full => (dial.pause.min(self.slow_retry), self.slow_retry),
            // Not the beginning of anything: the other pauses stay as they are.
            Outcome::Refused => (self.slow_retry, dial.pause),
            Outcome::Parked | Outcome::Gone => {
                dial.state = State::Parked;
                return;
            }
        };
        dial.pause = (dial.pause * 2).min(longest);
        let at = now + self.jitter.lengthen(pause);
        dial.state = match outcome {
            Outcome::Full | Outcome::Refused => State::Refused(at),
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
    fn a_socket_is_called_once() {
        let (mut dials, [socket, _], now) = (Dials::new(SLOW, 0), sockets(), Instant::now());
        assert_eq!(dials.next_due(), None);
        assert!(dials.seen(&id("b"), socket, now));
        assert_eq!(dials.next_due(), Some(now));
        assert_eq!(dials.take_due(now), Some(id("b")));
        dials.seen(&id("b"), socket, now);
        assert_eq!((dials.take_due(now), dials.next_due()), (None, None));
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_start_anew_after_a_stable_link() {
        let (mut dials, [socket, _], mut now) = (Dials::new(SLOW, 0), sockets(), Instant::now());
        dials.seen(&id("b"), socket, now);
        let mut pauses = Vec::new();
        for outcome in [Outcome::Failed, Outcome::Lost(Duration::ZERO)]
            .into_iter()
            .cycle()
            .take(8)
        {
            assert_eq!(dials.take_due(now), Some(id("b")));
            dials.ended(&id("b"), outcome, now);
            let due = dials.next_due().unwrap();
            assert_eq!(dials.take_due(due - Duration::from_nanos(1)), None);
            pauses.push((due - now).as_millis());
            now = due;
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 3200, 3200]);
        dials.take_due(now).unwrap();
        dials.ended(&id("b"), Outcome::Lost(STABLE), now);
        assert_eq!(dials.next_due(), Some(now + FIRST_RETRY));
    }

    #[test]
    fn refused_ones_are_called_rarely_and_dead_ones_never() {
        let (mut dials, [socket, _], now) = (Dials::new(SLOW, 0), sockets(), Instant::now());
        dials.seen(&id("b"), socket, now);
        dials.take_due(now).unwrap();
        dials.ended(&id("b"), Outcome::Refused, now);
        assert_eq!(dials.next_due(), Some(now + SLOW));
        dials.hurry(now);
        assert_eq!(dials.next_due(), Some(now + FIRST_RETRY));
        dials.take_due(now + FIRST_RETRY).unwrap();
        dials.ended(&id("b"), Outcome::Lost(STABLE), now);
        dials.hurry(now - SLOW);
        assert_eq!(dials.next_due(), Some(now + FIRST_RETRY));
        dials.take_due(now + FIRST_RETRY).unwrap();
        dials.ended(&id("b"), Outcome::Parked, now);
        dials.hurry(now);
        assert_eq!(dials.next_due(), None);
        dials.seen(&id("b"), socket, now);
        assert_eq!(dials.next_due(), None);
    }

    /// A limit may be reached for a moment or for good: the first retries come soon, later ones as
    /// rarely as after any refusal.
    #[test]
    fn dials_to_a_peer_that_is_full_get_rare() {
        let (mut dials, [socket, _], mut now) = (Dials::new(SLOW, 0), sockets(), Instant::now());
        dials.seen(&id("b"), socket, now);
        let mut pauses = Vec::new();
        for _ in 0..11 {
            assert_eq!(dials.keeps_failing(&id("b")), pauses.len() > 2);
            dials.take_due(now).unwrap();
            dials.ended(&id("b"), Outcome::Full, now);
            let due = dials.next_due().unwrap();
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
    fn dials_that_failed_together_are_made_apart() {
        let ([socket, _], now) = (sockets(), Instant::now());
        let due: Vec<Duration> = (1..=100u64)
            .map(|seed| {
                let mut dials = Dials::new(SLOW, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                dials.seen(&id("b"), socket, now);
                dials.take_due(now).unwrap();
                dials.ended(&id("b"), Outcome::Failed, now);
                dials.next_due().unwrap() - now
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
    fn another_socket_is_called_at_once_whatever_the_last_one_did() {
        let now = Instant::now();
        let [old, new] = sockets();
        for outcome in [Outcome::Failed, Outcome::Refused, Outcome::Parked] {
            let mut dials = Dials::new(SLOW, 0);
            dials.seen(&id("b"), old, now);
            dials.take_due(now).unwrap();
            dials.ended(&id("b"), outcome, now);
            dials.seen(&id("b"), new, now);
            assert_eq!(dials.next_due(), Some(now), "{outcome:?}");

            let mut dials = Dials::new(SLOW, 0);
            dials.seen(&id("b"), old, now);
            dials.take_due(now).unwrap();
            dials.seen(&id("b"), new, now);
            dials.ended(&id("b"), outcome, now);
            assert_eq!(dials.next_due(), Some(now), "while busy, {outcome:?}");
        }
    }

    #[test]
    fn a_socket_that_is_gone_is_forgotten() {
        let ([socket, _], now) = (sockets(), Instant::now());
        let mut dials = Dials::new(SLOW, 0);
        dials.seen(&id("b"), socket, now);
        dials.vanished(&id("b"));
        assert_eq!(dials.known(), []);
        dials.seen(&id("b"), socket, now);
        dials.take_due(now).unwrap();
        dials.vanished(&id("b"));
        assert_eq!(dials.known(), [id("b")]);
        dials.ended(&id("b"), Outcome::Lost(Duration::ZERO), now);
        assert_eq!(dials.known(), []);
        dials.seen(&id("b"), socket, now);
        dials.take_due(now).unwrap();
        dials.ended(&id("b"), Outcome::Gone, now);
        assert_eq!(dials.known(), []);
    }

    /// Sockets that never answer, many times as many as there are places, with the first ids.
    #[test]
    fn those_that_stay_silent_do_not_starve_others() {
        const PLACES: usize = 64;
        const TIMEOUT: Duration = Duration::from_secs(5);
        let (mut dials, [socket, _], start) = (Dials::new(SLOW, 0), sockets(), Instant::now());
        for i in 0..1024 {
            dials.seen(&id(&format!("b{i}")), socket, start);
        }
        dials.seen(&id("c"), socket, start);
        let mut under_way: Vec<(Instant, PortId)> = Vec::new();
        let (mut now, mut good, mut calls) = (start, Vec::new(), 0);
        while now < start + Duration::from_secs(1800) {
            while under_way.len() < PLACES
                && let Some(id) = dials.take_due(now)
            {
                calls += 1;
                if id.as_str().starts_with('b') {
                    under_way.push((now + TIMEOUT, id));
                } else {
                    // A healthy one that is lost at once, again and again, and one that comes late.
                    dials.ended(&id, Outcome::Lost(Duration::ZERO), now);
                    good.push((id, now - start));
                }
            }
            now += Duration::from_millis(100);
            if now - start == Duration::from_secs(300) {
                dials.seen(&id("d"), socket, now);
            }
            let (over, rest): (Vec<_>, _) = under_way.into_iter().partition(|(end, _)| *end <= now);
            under_way = rest;
            for (_, id) in over {
                dials.ended(&id, Outcome::TimedOut, now);
            }
        }
        let calls_of = |id: &'static str| good.iter().filter(move |(who, _)| who.as_str() == id);
        // In its turn the first time, and after each pause as soon as a place is free.
        let first = calls_of("c").next().unwrap().1;
        assert!(first <= TIMEOUT * 17, "{first:?}");
        assert!(calls_of("c").count() > 150, "{}", calls_of("c").count());
        let late = calls_of("d").next().unwrap().1;
        assert!(late <= Duration::from_secs(300) + 2 * TIMEOUT, "{late:?}");
        // The silent ones get their turn too.
        assert!(calls > 5 * 1024, "{calls}");
    }

    #[test]
    fn pauses_after_silence_grow_long_and_end_with_it() {
        let (mut dials, [socket, other], mut now) =
            (Dials::new(SLOW, 0), sockets(), Instant::now());
        dials.seen(&id("b"), socket, now);
        for _ in 0..12 {
            dials.take_due(now).unwrap();
            dials.ended(&id("b"), Outcome::TimedOut, now);
            now = dials.next_due().unwrap();
        }
        dials.take_due(now).unwrap();
        dials.ended(&id("b"), Outcome::TimedOut, now);
        assert_eq!(dials.next_due(), Some(now + LAST_RETRY_SILENT));
        // It goes behind one that is due later, though not for ever.
        let later = now + LAST_RETRY_SILENT + Duration::from_secs(1);
        dials.seen(&id("c"), socket, later);
        assert_eq!(dials.take_due(later), Some(id("c")));
        dials.seen(&id("d"), socket, later + PRECEDENCE);
        assert_eq!(dials.take_due(later + PRECEDENCE), Some(id("b")));
        // Another socket is another process.
        dials.ended(&id("b"), Outcome::TimedOut, later);
        dials.seen(&id("b"), other, later);
        assert_eq!(dials.next_due(), Some(later));
    }

    #[test]
    fn their_number_is_bounded() {
        let (mut dials, [socket, _], now) = (Dials::new(SLOW, 0), sockets(), Instant::now());
        for i in 0..MAX_DIALS {
            assert!(dials.seen(&id(&format!("p{i}")), socket, now));
        }
        assert!(!dials.seen(&id("one-more"), socket, now));
        assert!(dials.seen(&id("p0"), socket, now));
        // A dead one makes room.
        let dead = dials.take_due(now).unwrap();
        dials.ended(&dead, Outcome::Parked, now);
        assert!(dials.seen(&id("one-more"), socket, now));
        assert_eq!(dials.known().len(), MAX_DIALS);
        assert!(!dials.known().contains(&dead));
        assert!(!dials.seen(&dead, socket, now));
    }
}
