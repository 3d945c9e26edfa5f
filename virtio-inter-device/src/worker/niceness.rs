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
/// How long a worker is nicer, starved or not, when its plain thread moved less: at first, and at most. Twice as long when that is
/// so again within [`RELAPSE`].
const FIRST_TRUST: Duration = Duration::from_millis(500);
const LONGEST_TRUST: Duration = Duration::from_secs(2);
/// What a plain thread moves a second, as parts of what the nicer one did, that tells that guests were busy, and it not starved: 0.4 to 0.75
/// was seen with guests alone, seldom less than 0.9 beside other programs. Far less is from guests that have less to say than before.
const PLAIN_TO_NICER: std::ops::Range<f64> = 0.25..0.9;
/// A nicer thread that is trusted and starved moves less than this part of what it was trusted for: something else came to its CPU.
const FALL: f64 = 0.5;

/// One of a worker's two threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thread {
    /// As nice as the process.
    Plain,
    /// Nicer than the process.
    Nicer,
}

/// What a worker had moved at some time ([`Counters::moved`](crate::counters::Counters::moved)).
#[derive(Debug, Clone, Copy, Default)]
struct Moved {
    at: Duration,
    sum: u64,
}

impl Moved {
    /// How much in a second, from `former` on. None of a worker that looks late and did not want to run for most of that
    /// time: it slept.
    fn rate_since(self, former: Moved, wanted: Duration) -> Option<f64> {
        let time = self.at.saturating_sub(former.at);
        let slept = time > WINDOW * 2 && wanted * 2 < time;
        (!slept).then(|| self.sum.wrapping_sub(former.sum) as f64 / time.as_secs_f64())
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
    /// What the nicer thread moved a second, of late and before it was left, and the plain one at its best since then.
    nicer_rate: Option<f64>,
    plain_rate: f64,
    /// Not to be looked at anything before. All times are those of the coarse monotonic clock.
    next_look: Duration,
    /// When the worker became nicer.
    nicer_since: Duration,
    /// How long it stayed on the plain thread the last time; none if it never had to.
    pause: Option<Duration>,
    /// When it began.
    pause_start: Duration,
    /// How long the nicer thread is trusted, from the time that it began; none if it is not.
    trust: Option<Duration>,
    /// What it moved a second when it was trusted.
    trusted_rate: f64,
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
            nicer_rate: None,
            plain_rate: 0.0,
            nicer_since: Duration::ZERO,
            pause: None,
            pause_start: Duration::ZERO,
            trust: None,
            trusted_rate: 0.0,
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
        self.nicer_rate = None;
        self.nicer_since = now;
        self.next_look = now + WINDOW;
    }

    /// Of a worker on its nicer thread. True: it looks starved.
    fn judge_nicer(&mut self, share: Share, moved: Moved) -> bool {
        let now = moved.at;
        let wanted = share.wanted_since(self.share, self.looked_on);
        let rate = moved.rate_since(self.moved, wanted);
        self.moved = moved;
        // Of late: what the plain thread earned is used up soon, and what is on the CPU changes.
        self.nicer_rate = match (self.nicer_rate, rate) {
            (Some(former), Some(rate)) => Some(f64::midpoint(former, rate)),
            (former, rate) => rate.or(former),
        };
        self.next_look = now + WINDOW;
        // Little that is to be done, and late each time, adds up.
        let Some(is_starved) = share.is_starved_since(self.share, self.looked_on) else {
            return false;
        };
        self.share = share;
        self.looked_on = Duration::ZERO;
        let nicer_for = now.saturating_sub(self.nicer_since);
        if !is_starved {
            self.nicer_rate = None; // That was alone, or with guests that said less.
            return false;
        }
        // Guests that are silent for most of a window are no fall.
        let falls = self.trust.is_some()
            && wanted * 2 >= WINDOW
            && rate.is_some_and(|rate| rate < self.trusted_rate * FALL);
        if falls {
            self.nicer_rate = rate; // What was before no longer counts.
        } else if self.trust.is_some_and(|trust| nicer_for < trust) {
            return false;
        }
        if nicer_for >= RELAPSE {
            (self.pause, self.trust) = (None, None);
        }
        self.thread = Thread::Plain;
        self.pause = Some(twice(self.pause, FIRST_PAUSE, LONGEST_PAUSE));
        self.pause_start = now;
        self.plain_rate = 0.0;
        true
    }

    /// Of a worker on its plain thread. True: the pause is over. What the account says of the nicer thread is for
    /// [`begin`](Self::begin) to see.
    fn judge_plain(&mut self, moved: Moved) -> bool {
        let now = moved.at;
        // At its best, as guests fall silent now and then.
        let rate = (moved.rate_since(self.moved, Duration::ZERO)).unwrap_or(0.0);
        self.plain_rate = self.plain_rate.max(rate);
        self.moved = moved;
        let paused = now.saturating_sub(self.pause_start);
        // No part of it if there is none, or nothing was moved.
        let nicer_rate = self.nicer_rate.unwrap_or(0.0);
        let is_less = PLAIN_TO_NICER.contains(&(self.plain_rate / nicer_rate));
        let goes_on = rate >= nicer_rate * PLAIN_TO_NICER.start;
        if paused >= FIRST_PAUSE && is_less && goes_on {
            // It was not starved: it waited for those whom it works for.
            if self.trust.is_some() {
                self.pause = None; // Twice in a row is no chance.
            }
            self.trust = Some(twice(self.trust, FIRST_TRUST, LONGEST_TRUST));
            self.trusted_rate = nicer_rate;
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

        /// One that is trusted with 1000 in each window, as its plain thread moved 600.
        fn trusted() -> Self {
            let mut trial = Self::new();
            assert_eq!(trial.stays(1000), 1);
            assert_eq!(trial.pause(|_| 600), 3);
            trial
        }

        /// It looks starved, and moves twice as much on its plain thread, so many times.
        fn starve(&mut self, times: u32) {
            for _ in 0..times {
                assert_eq!(self.stays(100), 1);
                self.pause(|_| 200);
            }
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
            self.look_late(Duration::ZERO, ran, waited, moved)
        }

        /// The same, so much later.
        fn look_late(&mut self, late: Duration, ran: u32, waited: u32, moved: u64) -> bool {
            assert_eq!(self.niceness.thread(), Thread::Nicer);
            assert_eq!(self.niceness.next_look, self.now + WINDOW);
            self.now = self.niceness.next_look + late;
            self.share.ran += MS * ran;
            self.share.waited += MS * waited;
            self.moved += moved;
            let moved = self.moved();
            self.niceness.judge_nicer(self.share, moved)
        }

        /// How many windows a nicer worker stays that gets little, and moves so much in each.
        fn stays(&mut self, moved: u64) -> u64 {
            (1..).find(|_| self.look(4, 96, moved)).unwrap()
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
        // Four milliseconds late, twice in each window, or twice in a second.
        assert!(!trial.look(0, 8, 10));
        assert!(trial.look(0, 8, 10));
        trial.pause(|_| 10);
        assert!(!trial.look_late(WINDOW * 9, 0, 8, 10));
        assert!(trial.look_late(WINDOW * 9, 0, 8, 10));
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
        assert_eq!(trial.stays(100), 1);
        assert_eq!(trial.niceness.thread(), Thread::Plain);
        assert_eq!(trial.pause(|_| 200), 3); // A quarter of a second, in whole windows.
        assert_eq!(trial.niceness.thread(), Thread::Nicer);
    }

    #[test]
    fn one_that_is_starved_again_and_again_waits_longer_each_time() {
        let mut trial = Trial::new();
        let pauses: Vec<u64> = (0..8)
            .map(|_| {
                assert_eq!(trial.stays(100), 1);
                trial.pause(|_| 100)
            })
            .collect();
        assert_eq!(pauses, [3, 5, 10, 20, 20, 20, 20, 20]);
        // Until it was not starved for long enough.
        while trial.now - trial.niceness.nicer_since < RELAPSE {
            assert!(!trial.look(100, 0, 100));
        }
        assert_eq!(trial.stays(100), 1);
        assert_eq!(trial.pause(|_| 100), 3);
    }

    #[test]
    fn one_whose_plain_thread_moves_less_was_not_starved() {
        for (plain, windows) in [(240, 1), (260, 5), (890, 5), (910, 1), (2000, 1)] {
            let mut trial = Trial::new();
            assert_eq!(trial.stays(1000), 1);
            assert_eq!(trial.pause(|_| plain), 3);
            assert_eq!(trial.stays(1000), windows, "{plain}");
        }
    }

    #[test]
    fn one_that_is_not_starved_again_and_again_stays_nicer_longer_each_time() {
        let mut trial = Trial::new();
        // It had been.
        trial.starve(4);
        // Then came guests that are busy.
        assert_eq!(trial.stays(1000), 1);
        let mut trusts = Vec::new();
        for _ in 0..5 {
            assert_eq!(trial.pause(|_| 600), 3);
            trusts.push(trial.stays(1000));
        }
        assert_eq!(trusts, [5, 10, 20, 20, 20]);
        // Other programs are busy again.
        assert_eq!(trial.pause(|_| 1000), 3);
        assert_eq!(trial.stays(100), 1);
        assert_eq!(trial.pause(|_| 1000), 5);
    }

    #[test]
    fn one_verdict_by_chance_does_not_make_the_next_pause_short() {
        let mut trial = Trial::new();
        trial.starve(4);
        assert_eq!(trial.stays(100), 1);
        assert_eq!(trial.pause(|_| 80), 3);
        assert_eq!(trial.stays(100), 5);
        assert_eq!(trial.pause(|_| 200), 20);
    }

    #[test]
    fn a_program_that_comes_while_it_is_trusted_is_noticed() {
        let mut trial = Trial::trusted();
        // Half as much may be chance, or guests.
        assert!(!trial.look(4, 96, 1000));
        assert!(!trial.look(4, 96, 500));
        assert!(trial.look(1, 99, 400));
        // Compared with what it moved beside that program, it moves more.
        assert_eq!(trial.pause(|_| 500), 5);
        assert_eq!(trial.stays(400), 1);
        // Also one that keeps it from looking for long.
        let mut trial = Trial::trusted();
        assert!(trial.look_late(WINDOW * 2, 3, 290, 30));
        // Guests that say less, or nothing for most of a window, are no such program.
        let mut trial = Trial::trusted();
        assert!(!trial.look(20, 20, 10));
        assert!(!trial.look(2, 38, 400));
    }

    #[test]
    fn a_program_that_comes_when_it_was_not_starved_is_no_guest() {
        let mut trial = Trial::new();
        for _ in 0..10 {
            assert!(!trial.look(50, 50, 1000));
        }
        assert_eq!(trial.stays(350), 1);
        assert_eq!(trial.pause(|_| 600), 3);
        assert_eq!(trial.stays(350), 1);
    }

    #[test]
    fn what_was_moved_of_late_counts() {
        let mut trial = Trial::trusted();
        for moved in [1000, 900, 800, 700] {
            assert!(!trial.look(4, 96, moved));
        }
        assert!(trial.look(4, 96, 600));
        assert_eq!(trial.niceness.nicer_rate, Some(6937.5));
    }

    #[test]
    fn a_worker_that_slept_did_not_move_little() {
        let mut trial = Trial::trusted();
        assert!(!trial.look(4, 96, 1000));
        assert!(!trial.look_late(WINDOW * 2, 1, 30, 300)); // No fall.
        assert!(trial.look_late(WINDOW * 5, 1, 30, 300));
        assert_eq!(trial.niceness.nicer_rate, Some(10000.0));
        // It is trusted again, and for longer.
        assert_eq!(trial.pause(|_| 600), 3);
        assert_eq!(trial.stays(1000), 10);
    }

    #[test]
    fn guests_that_fall_silent_do_not_tell_that_it_was_not_starved() {
        let silences: [fn(u64) -> u64; 5] = [
            |window| if window == 1 { 1000 } else { 300 }, // For a while: the best window counts.
            |window| if window == 0 { 500 } else { 0 },    // In the first window.
            |_| 10,
            |_| 0,
            |window| if window < 2 { 500 } else { 200 },
        ];
        for silence in silences {
            let mut trial = Trial::new();
            assert_eq!(trial.stays(1000), 1);
            assert_eq!(trial.pause(silence), 3);
            assert_eq!(trial.stays(1000), 1);
        }
        // And from the start.
        let mut trial = Trial::new();
        assert!(trial.look(0, 10, 0));
        assert_eq!(trial.pause(|_| 0), 3);
        assert_eq!(trial.stays(0), 1);
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
