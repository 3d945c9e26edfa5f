//! How nice a worker is to the programs that it shares a CPU with: nicer than its process, while that does not starve it.
//!
//! A guest that kicks has seldom said all that it has to say. A worker that takes its CPU away at once is woken, and wakes
//! others, for each frame; one that lets it go on finds many frames at once, and is there as soon as the guest
//! sleeps. The scheduler does just that with a thread of a higher nice value. But on a CPU where others are busy all the time
//! such a thread gets little, and late: it then goes on as nice as its process, for a while.
//! `docs/decisions/0060-nicer-workers.md` says what was measured.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How often a nicer worker looks at what it gets, at most. Shorter times tell too little: where nobody is starved, one in a
/// hundred of 20 ms looked like it.
const WINDOW: Duration = Duration::from_millis(100);
/// Time in which a thread wanted to run, below which a window tells nothing yet.
const TOO_LITTLE: Duration = Duration::from_millis(10);
/// A thread that ran for less than one part in so many of the time in which it wanted to is starved. By its weight one that is ten
/// nicer has one part in ten beside one other thread; a guest is one or two.
const PARTS: u32 = 16;
/// A worker that gives its CPU away while it has nothing to do is back before that, where others do as well: a guest has its say
/// and sleeps.
const LONG: Duration = Duration::from_micros(250);
/// How long a worker that was starved is as nice as its process: at first, and at most. Twice as long when it is starved
/// again within [`RELAPSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const RELAPSE: Duration = Duration::from_secs(10);

/// One of a worker's two threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thread {
    /// As nice as the process.
    Plain,
    /// Nicer than the process.
    Nicer,
}

/// What a thread has got of its CPU so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Share {
    ran: Duration,
    /// Could have run, but another thread did.
    waited: Duration,
}

impl Share {
    /// Whether too little was run from `former` on; none where that cannot be told yet. For `looked_on` of that time there
    /// was nothing to wait for.
    fn is_starved_since(self, former: Share, looked_on: Duration) -> Option<bool> {
        let ran = self.ran.saturating_sub(former.ran);
        let waited = self.waited.saturating_sub(former.waited);
        let wanted = ran + waited.saturating_sub(looked_on);
        (wanted >= TOO_LITTLE).then_some(ran * PARTS < wanted)
    }
}

/// The kernel's account of one thread.
#[derive(Debug)]
pub(crate) struct Account(File);

impl Account {
    /// Of the calling thread. The descriptor stays that thread's account.
    pub(crate) fn of_this_thread() -> io::Result<Self> {
        File::open("/proc/thread-self/schedstat").map(Account)
    }

    /// Three numbers: nanoseconds run, nanoseconds waited, time slices (Linux, `Documentation/scheduler/sched-stats.rst`).
    fn read(&self) -> io::Result<Share> {
        let mut text = [0; 64]; // At most 3 × 20 digits, two spaces, a line feed.
        let len = self.0.read_at(&mut text, 0)?;
        parse(&text[..len]).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

fn parse(text: &[u8]) -> Option<Share> {
    let mut numbers = str::from_utf8(text).ok()?.split_ascii_whitespace();
    let mut next = || numbers.next()?.parse().ok();
    let (ran, waited, slices) = (next()?, next()?, next()?);
    // A kernel that does not count leaves all at zero.
    (slices != 0).then_some(Share {
        ran: Duration::from_nanos(ran),
        waited: Duration::from_nanos(waited),
    })
}

/// Decides which of its two threads a worker runs on.
#[derive(Debug)]
pub(crate) struct Niceness {
    thread: Thread,
    /// What the nicer thread's account said at the last look.
    share: Share,
    /// Time since then in which the thread had nothing to do and only looked on: it waited for nothing.
    looked_on: Duration,
    /// Not to be looked at anything before. All times are those of the coarse monotonic clock.
    next_look: Duration,
    /// When the worker became nicer.
    since: Duration,
    /// How long it stayed on the plain thread the last time; none if it never had to.
    pause: Option<Duration>,
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
            since: Duration::ZERO,
            pause: None,
        }
    }

    /// The thread that the worker belongs on.
    pub(crate) fn thread(&self) -> Thread {
        self.thread
    }

    /// To be called on the thread that the worker belongs on, when it begins or goes on there. True: it belongs on the
    /// other one after all.
    pub(crate) fn begin(&mut self, account: Option<&Account>) -> bool {
        if self.thread == Thread::Plain {
            return false;
        }
        if let Some(Ok(share)) = account.map(Account::read) {
            self.become_nicer(now(), share);
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

    /// Whether the worker belongs on its other thread from now on. Costs a few nanoseconds, mostly.
    #[inline]
    pub(crate) fn changes(&mut self, account: Option<&Account>) -> bool {
        let now = now();
        now >= self.next_look && self.look(now, account)
    }

    #[cold]
    fn look(&mut self, now: Duration, account: Option<&Account>) -> bool {
        match account.map(Account::read) {
            Some(Ok(share)) => self.judge(now, share),
            // On the plain thread none is needed. And where there was one once, it can be read again.
            Some(Err(_)) | None => self.judge(now, self.share),
        }
    }

    fn become_nicer(&mut self, now: Duration, share: Share) {
        self.thread = Thread::Nicer;
        self.share = share;
        self.looked_on = Duration::ZERO;
        self.since = now;
        self.next_look = now + WINDOW;
    }

    fn judge(&mut self, now: Duration, share: Share) -> bool {
        if self.thread == Thread::Plain {
            // The pause is over. What the account says is for `begin` to see.
            self.thread = Thread::Nicer;
            return true;
        }
        match share.is_starved_since(self.share, self.looked_on) {
            Some(true) => {
                self.thread = Thread::Plain;
                let relapsed = now.saturating_sub(self.since) < RELAPSE;
                let pause = match self.pause.filter(|_| relapsed) {
                    Some(pause) => (pause * 2).min(LONGEST_PAUSE),
                    None => FIRST_PAUSE,
                };
                self.pause = Some(pause);
                self.next_look = now + pause;
                true
            }
            told => {
                // Little that is to be done, and late each time, adds up.
                if told.is_some() {
                    self.share = share;
                    self.looked_on = Duration::ZERO;
                }
                self.next_look = now + WINDOW;
                false
            }
        }
    }
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

    fn share(ran: u32, waited: u32) -> Share {
        Share {
            ran: MS * ran,
            waited: MS * waited,
        }
    }

    /// A worker that became nicer at `now`, of which the account says nothing yet.
    fn nicer(now: Duration) -> Niceness {
        let mut niceness = Niceness::new(Thread::Nicer);
        niceness.become_nicer(now, Share::default());
        niceness
    }

    #[test]
    fn the_account_of_a_thread_is_read() {
        let account = Account::of_this_thread().unwrap();
        let before = account.read().unwrap();
        let until = std::time::Instant::now() + MS * 20; // A few ticks of any kernel.
        while std::time::Instant::now() < until {}
        assert!(account.read().unwrap().ran > before.ran);
        assert_eq!(
            parse(b"2000000 3000000 7\n"),
            Some(Share {
                ran: MS * 2,
                waited: MS * 3
            })
        );
        for wrong in [&b""[..], b"1 2", b"1 x 3", b"-1 2 3", b"\xff 2 3", b"0 0 0"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn one_that_gets_its_part_stays_nicer() {
        let mut niceness = nicer(MS);
        for look in 1..100 {
            // One part in eleven.
            assert!(!niceness.judge(WINDOW * look, share(look * 8, look * 80)));
        }
        assert_eq!(niceness.thread(), Thread::Nicer);
    }

    #[test]
    fn one_that_hardly_wants_to_run_is_judged_in_the_end() {
        let mut niceness = nicer(MS);
        // Four milliseconds late, twice in each window.
        assert!(!niceness.judge(WINDOW, share(0, 8)));
        assert!(niceness.judge(WINDOW * 2, share(0, 16)));
    }

    #[test]
    fn one_that_only_looks_on_is_not_starved() {
        let mut niceness = nicer(MS);
        for _ in 0..300 {
            niceness.looked_on(MS / 5);
        }
        assert!(!niceness.judge(WINDOW, share(5, 95)));
        // That was then. And somebody has the CPU for long when it is given away.
        for _ in 0..20 {
            niceness.looked_on(MS * 3);
        }
        assert!(niceness.judge(WINDOW * 2, share(10, 190)));
    }

    #[test]
    fn one_that_is_starved_is_as_nice_as_its_process_for_a_while() {
        let mut niceness = nicer(MS);
        assert!(niceness.judge(WINDOW, share(5, 95)));
        assert_eq!(niceness.thread(), Thread::Plain);
        assert_eq!(niceness.next_look, WINDOW + FIRST_PAUSE);
        assert!(niceness.judge(niceness.next_look, Share::default()));
        assert_eq!(niceness.thread(), Thread::Nicer);
    }

    #[test]
    fn one_that_is_starved_again_and_again_waits_longer_each_time() {
        let mut now = MS;
        let mut niceness = nicer(now);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            now += WINDOW;
            assert!(niceness.judge(now, share(0, 100)));
            pauses.push((niceness.next_look - now).as_secs_f64());
            now = niceness.next_look;
            assert!(niceness.judge(now, Share::default()));
            niceness.become_nicer(now, Share::default());
        }
        assert_eq!(pauses, [0.25, 0.5, 1., 2., 2., 2., 2., 2., 2., 2.]);
        // Until it was not starved for long enough.
        now += RELAPSE;
        assert!(!niceness.judge(now, share(100, 0)));
        now += WINDOW;
        assert!(niceness.judge(now, share(100, 100)));
        assert_eq!(niceness.next_look - now, FIRST_PAUSE);
    }

    #[test]
    fn one_that_begins_on_the_plain_thread_stays_there() {
        let mut niceness = Niceness::new(Thread::Plain);
        assert!(!niceness.begin(None));
        assert!(!niceness.changes(None));
        assert_eq!(niceness.thread(), Thread::Plain);
    }

    #[test]
    fn one_without_an_account_does_not_stay_nicer() {
        let account = Account::of_this_thread().unwrap();
        let mut niceness = Niceness::new(Thread::Nicer);
        assert!(!niceness.begin(Some(&account)));
        assert_eq!(niceness.thread(), Thread::Nicer);
        assert!(niceness.begin(None));
        assert_eq!(niceness.thread(), Thread::Plain);
        assert!(!niceness.begin(None) && !niceness.changes(None));
    }
}
