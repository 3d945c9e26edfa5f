//! How nice a worker is to the programs that it shares a CPU with: nicer than its process, while that does not starve it.
//!
//! A guest that kicks has seldom said all that it has to say. A worker that takes its CPU away at once is woken, and wakes
//! others, for each frame; one that lets it go on finds many frames at once, and is there as soon as the guest
//! sleeps. The scheduler does just that with a thread of a higher nice value. But on a CPU where others are busy all the time
//! such a thread gets little, and late: it then goes on as nice as its process, for a while. Guests that are busy look alike, and
//! there the nicer thread moves more although it gets little: what both have moved tells the two apart.
//! `docs/decisions/0060-nicer-workers.md` says what was measured.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::account::{Account, Share};

/// How often a nicer worker looks at what it gets, at most. Shorter times tell too little: where nobody is starved, one in a
/// hundred of 20 ms looked like it.
const WINDOW: Duration = Duration::from_millis(100);
/// A worker that gives its CPU away while it has nothing to do is back before that, where others do as well: a guest has its say
/// and sleeps.
const LONG: Duration = Duration::from_micros(250);
/// How long a worker that was starved is as nice as its process: at first, and at most. Twice as long when it is starved
/// again within [`RELAPSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const RELAPSE: Duration = Duration::from_secs(10);
/// How long a worker is nicer unjudged when its plain thread moved less: at first, and at most. Twice as long when that is so
/// again within [`RELAPSE`].
const FIRST_TRUST: Duration = Duration::from_millis(500);
const LONGEST_TRUST: Duration = Duration::from_secs(2);
/// What a plain thread moves a second, as parts of what the nicer one did, that tells that the latter was not starved. Where guests were busy
/// it was 0.4 to 0.75, where other programs were 0.9 to 10. Far less is from guests that have less to say than before.
const LESS: std::ops::Range<f64> = 0.25..0.9;

/// One of a worker's two threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thread {
    /// As nice as the process.
    Plain,
    /// Nicer than the process.
    Nicer,
}

/// What a worker has moved up to some time ([`Counters::moved`](crate::counters::Counters::moved)).
#[derive(Debug, Clone, Copy, Default)]
struct Moved {
    at: Duration,
    sum: u64,
}

impl Moved {
    /// How much in a second, from `former` on.
    fn rate_since(self, former: Moved) -> f64 {
        let seconds = self.at.saturating_sub(former.at).as_secs_f64();
        self.sum.wrapping_sub(former.sum) as f64 / seconds.max(f64::MIN_POSITIVE)
    }
}

/// Decides which of its two threads a worker runs on.
#[derive(Debug)]
pub(crate) struct Niceness {
    thread: Thread,
    /// What the nicer thread's account said at the last look.
    share: Share,
    /// Time since then in which the thread had nothing to do and only looked on: it waited for nothing.
    looked_on: Duration,
    /// What was moved up to the last look.
    moved: Moved,
    /// What the nicer thread moved a second when it was found starved, and the plain one at its best since then.
    nicer_rate: f64,
    plain_rate: f64,
    /// Not to be looked at anything before. All times are those of the coarse monotonic clock.
    next_look: Duration,
    /// When the worker became nicer.
    since: Duration,
    /// How long it stayed on the plain thread the last time; none if it never had to.
    pause: Option<Duration>,
    /// When it began.
    pause_start: Duration,
    /// How long the nicer thread was not judged the last time; none if it always was.
    trust: Option<Duration>,
}

impl Niceness {
    /// Of a worker that starts on `thread`.
    pub(crate) fn new(thread: Thread) -> Self {
        Niceness {
            thread,
            share: Share::default(),
            looked_on: Duration::ZERO,
            // On the plain thread from the start: for ever.
            next_look: Duration::MAX,
            moved: Moved::default(),
            nicer_rate: 0.0,
            plain_rate: 0.0,
            since: Duration::ZERO,
            pause: None,
            pause_start: Duration::ZERO,
            trust: None,
        }
    }

    /// The thread that the worker belongs on.
    pub(crate) fn thread(&self) -> Thread {
        self.thread
    }

    /// To be called on the thread that the worker belongs on, when it begins or goes on there, having moved so much. True: it
    /// belongs on the other one after all.
    pub(crate) fn begin(&mut self, account: Option<&Account>, moved: u64) -> bool {
        if self.thread == Thread::Plain {
            return false;
        }
        if let Some(Ok(share)) = account.map(Account::read) {
            self.become_nicer(now(), share, moved);
            return false;
        }
        // Without knowing whether it starves a worker had better not be nicer.
        self.thread = Thread::Plain;
        self.next_look = Duration::MAX;
        true
    }

    /// The thread had nothing to do for so long, and looked on. From [`LONG`] on it would have been back sooner, had not
    /// others kept the CPU.
    pub(crate) fn looked_on(&mut self, time: Duration) {
        self.looked_on += time.min(LONG);
    }

    /// Whether the worker, which has moved so much, belongs on its other thread from now on. Costs a few nanoseconds, mostly.
    #[inline]
    pub(crate) fn changes(
        &mut self,
        account: Option<&Account>,
        moved: impl FnOnce() -> u64,
    ) -> bool {
        let now = now();
        now >= self.next_look && self.look(now, account, moved())
    }

    #[cold]
    fn look(&mut self, now: Duration, account: Option<&Account>, moved: u64) -> bool {
        let moved = Moved {
            at: now,
            sum: moved,
        };
        match (self.thread, account.map(Account::read)) {
            (Thread::Plain, _) => self.judge_plain(moved),
            (Thread::Nicer, Some(Ok(share))) => self.judge_nicer(share, moved),
            // Where there was an account once, it can be read again.
            (Thread::Nicer, _) => self.judge_nicer(self.share, moved),
        }
    }

    fn become_nicer(&mut self, now: Duration, share: Share, moved: u64) {
        self.thread = Thread::Nicer;
        self.share = share;
        self.looked_on = Duration::ZERO;
        self.moved = Moved {
            at: now,
            sum: moved,
        };
        self.since = now;
        self.next_look = now + self.trust.unwrap_or(WINDOW);
    }

    /// Of a worker on its nicer thread. True: it was starved.
    fn judge_nicer(&mut self, share: Share, moved: Moved) -> bool {
        let now = moved.at;
        let told = share.is_starved_since(self.share, self.looked_on);
        if told != Some(true) {
            // Little that is to be done, and late each time, adds up.
            if told.is_some() {
                self.share = share;
                self.looked_on = Duration::ZERO;
                self.moved = moved;
            }
            self.next_look = now + WINDOW;
            return false;
        }
        if now.saturating_sub(self.since) >= RELAPSE {
            (self.pause, self.trust) = (None, None);
        }
        self.thread = Thread::Plain;
        self.pause = Some(twice(self.pause, FIRST_PAUSE, LONGEST_PAUSE));
        self.pause_start = now;
        self.nicer_rate = moved.rate_since(self.moved);
        self.plain_rate = 0.0;
        self.moved = moved;
        self.next_look = now + WINDOW;
        true
    }

    /// Of a worker on its plain thread. True: the pause is over. What the account says of the nicer thread is for
    /// [`begin`](Self::begin) to see.
    fn judge_plain(&mut self, moved: Moved) -> bool {
        let now = moved.at;
        // At its best, as guests fall silent now and then.
        self.plain_rate = self.plain_rate.max(moved.rate_since(self.moved));
        self.moved = moved;
        let paused = now.saturating_sub(self.pause_start);
        let ratio = self.plain_rate / self.nicer_rate; // Not a number, or infinite, if nothing was moved: no part of it then.
        if paused >= FIRST_PAUSE && LESS.contains(&ratio) {
            // It was not starved: it waited for those whom it works for.
            self.pause = None;
            self.trust = Some(twice(self.trust, FIRST_TRUST, LONGEST_TRUST));
        } else if self.pause.is_some_and(|pause| paused < pause) {
            self.next_look = now + WINDOW;
            return false;
        } else {
            self.trust = None;
        }
        self.thread = Thread::Nicer;
        true
    }
}

/// Twice a time, up to the longest; the first one if there is none.
fn twice(time: Option<Duration>, first: Duration, longest: Duration) -> Duration {
    time.map_or(first, |time| (time * 2).min(longest))
}

/// The clock of the scheduler's tick: some milliseconds coarse, and read in a few nanoseconds.
fn now() -> Duration {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A worker, and what goes on around it.
    struct Trial {
        niceness: Niceness,
        now: Duration,
        share: Share,
        moved: u64,
    }

    impl Trial {
        /// It became nicer just now.
        fn new() -> Self {
            let mut trial = Trial {
                niceness: Niceness::new(Thread::Nicer),
                now: MS,
                share: Share::default(),
                moved: 0,
            };
            trial.begin();
            trial
        }

        fn begin(&mut self) {
            (self.niceness).become_nicer(self.now, self.share, self.moved);
        }

        fn moved(&self) -> Moved {
            Moved {
                at: self.now,
                sum: self.moved,
            }
        }

        /// The next look of a nicer worker, that ran for some milliseconds, waited for some, and moved something since the last one.
        fn look(&mut self, ran: u32, waited: u32, moved: u64) -> bool {
            assert_eq!(self.niceness.thread(), Thread::Nicer);
            self.now = self.niceness.next_look;
            self.share.ran += MS * ran;
            self.share.waited += MS * waited;
            self.moved += moved;
            let moved = self.moved();
            self.niceness.judge_nicer(self.share, moved)
        }

        /// The pause of a worker that moves so much in each window, and then becomes nicer. Returns how long it was, in windows.
        fn pause(&mut self, moved: impl Fn(u64) -> u64) -> u64 {
            for window in 0.. {
                assert_eq!(self.niceness.thread(), Thread::Plain);
                assert_eq!(self.niceness.next_look, self.now + WINDOW);
                self.now = self.niceness.next_look;
                self.moved += moved(window);
                let moved = self.moved();
                if self.niceness.judge_plain(moved) {
                    self.begin();
                    return window + 1;
                }
            }
            unreachable!()
        }

        /// How long it is not looked at, in windows.
        fn trust(&self) -> f64 {
            (self.niceness.next_look - self.now).div_duration_f64(WINDOW)
        }
    }

    #[test]
    fn one_that_gets_its_part_stays_nicer() {
        let mut trial = Trial::new();
        for _ in 0..100 {
            assert!(!trial.look(8, 80, 0)); // One part in eleven.
        }
        assert_eq!(trial.niceness.thread(), Thread::Nicer);
    }

    #[test]
    fn one_that_hardly_wants_to_run_is_judged_in_the_end() {
        let mut trial = Trial::new();
        // Four milliseconds late, twice in each window.
        assert!(!trial.look(0, 8, 10));
        assert!(trial.look(0, 8, 10));
        // By what it moved in all that time.
        assert_eq!(trial.niceness.nicer_rate, 100.0);
    }

    #[test]
    fn one_that_only_looks_on_is_not_starved() {
        let mut trial = Trial::new();
        for _ in 0..300 {
            trial.niceness.looked_on(MS / 5);
        }
        assert!(!trial.look(5, 95, 0));
        // That was then. And somebody has the CPU for long when it is given away.
        for _ in 0..20 {
            trial.niceness.looked_on(MS * 3);
        }
        assert!(trial.look(5, 95, 0));
    }

    #[test]
    fn one_that_is_starved_is_as_nice_as_its_process_for_a_while() {
        let mut trial = Trial::new();
        assert!(trial.look(5, 95, 100));
        assert_eq!(trial.niceness.thread(), Thread::Plain);
        assert_eq!(trial.pause(|_| 200), 3); // A quarter of a second, in whole windows.
        assert_eq!(trial.niceness.thread(), Thread::Nicer);
        assert_eq!(trial.trust(), 1.0);
    }

    #[test]
    fn one_that_is_starved_again_and_again_waits_longer_each_time() {
        let mut trial = Trial::new();
        let pauses: Vec<u64> = (0..8)
            .map(|_| {
                assert!(trial.look(0, 100, 100));
                trial.pause(|_| 100)
            })
            .collect();
        assert_eq!(pauses, [3, 5, 10, 20, 20, 20, 20, 20]);
        // Until it was not starved for long enough.
        while trial.now - trial.niceness.since < RELAPSE {
            assert!(!trial.look(100, 0, 100));
        }
        assert!(trial.look(0, 100, 100));
        assert_eq!(trial.pause(|_| 100), 3);
    }

    #[test]
    fn one_whose_plain_thread_moves_less_was_not_starved() {
        let mut trial = Trial::new();
        // It had been, again and again.
        for _ in 0..4 {
            assert!(trial.look(0, 100, 100));
            trial.pause(|_| 200);
        }
        // Then came guests that are busy: it is back soon, and stays for longer each time.
        let trusts: Vec<f64> = (0..5)
            .map(|_| {
                // As much a second each time.
                let moved = 1000.0 * trial.trust();
                assert!(trial.look(4, 96, moved as u64));
                assert_eq!(trial.pause(|_| 600), 3);
                trial.trust()
            })
            .collect();
        assert_eq!(trusts, [5.0, 10.0, 20.0, 20.0, 20.0]);
        // Other programs are busy again.
        assert!(trial.look(1, 1999, 2000));
        assert_eq!(trial.pause(|_| 1000), 3);
        assert_eq!(trial.trust(), 1.0);
        assert!(trial.look(1, 99, 100));
        assert_eq!(trial.pause(|_| 1000), 5);
    }

    #[test]
    fn guests_that_fall_silent_do_not_tell_that_it_was_not_starved() {
        // For a while: the best window counts.
        let mut trial = Trial::new();
        assert!(trial.look(4, 96, 1000));
        assert_eq!(
            trial.pause(|window| if window == 2 { 1000 } else { 300 }),
            3
        );
        assert_eq!(trial.trust(), 1.0);
        // Nearly, or altogether.
        for silent in [10, 0] {
            let mut trial = Trial::new();
            assert!(trial.look(4, 96, 1000));
            assert_eq!(trial.pause(|_| silent), 3);
            assert_eq!(trial.trust(), 1.0);
        }
        // And from the start.
        let mut trial = Trial::new();
        assert!(trial.look(0, 10, 0));
        assert_eq!(trial.pause(|_| 0), 3);
        assert_eq!(trial.trust(), 1.0);
    }

    #[test]
    fn one_that_begins_on_the_plain_thread_stays_there() {
        let mut niceness = Niceness::new(Thread::Plain);
        assert!(!niceness.begin(None, 0));
        assert!(!niceness.changes(None, || 0));
        assert_eq!(niceness.thread(), Thread::Plain);
    }

    #[test]
    fn one_without_an_account_does_not_stay_nicer() {
        let account = Account::of_this_thread().unwrap();
        let mut niceness = Niceness::new(Thread::Nicer);
        assert!(!niceness.begin(Some(&account), 0));
        assert_eq!(niceness.thread(), Thread::Nicer);
        assert!(niceness.begin(None, 0));
        assert_eq!(niceness.thread(), Thread::Plain);
        assert!(!niceness.begin(None, 0) && !niceness.changes(None, || 0));
    }
}
