//! Busy-polling: a thread that has nothing to do polls for some microseconds before it sleeps.
//!
//! To be put to sleep and woken again costs two to four microseconds where both sides share a CPU,
//! and ten times that where an idle CPU has to be woken. A side that polls needs no doorbell. But
//! it keeps its CPU from whoever else could run there, perhaps from the guest whose frames it waits
//! for. So a thread busy-polls only
//!
//! - where work has come soon: the thread's last idle time ended within the limit, so an idle
//!   thread sleeps;
//! - where others do not wait for its CPU, by the kernel's account, whatever control group they are
//!   in. Where the kernel keeps no account, a thread does not busy-poll.
//!
//! Why: decision 0061.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

use rustix::thread::sched_getcpu;

use crate::schedstat::WaitAccount;

/// How often the account is read, at most.
const WINDOW: Duration = Duration::from_millis(100);
/// A thread does not busy-poll if in the latest window others waited for its CPU for more than one
/// part in so many of the time for which it busy-polled.
const PARTS: u32 = 4;
/// For so long it does not; then one window shows whether others still wait. They are held up in
/// at most one part in fifty of the time.
const PAUSE: Duration = Duration::from_secs(5);

/// Whether and how long threads busy-poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusyPollConfig {
    /// Longest time that a thread busy-polls before it sleeps. Zero: not at all.
    pub limit: Duration,
    /// The kernel's account of its run queues: another path than `/proc/schedstat` is for tests.
    pub run_queues: &'static str,
}

impl Default for BusyPollConfig {
    fn default() -> Self {
        BusyPollConfig {
            limit: Duration::from_micros(50),
            run_queues: "/proc/schedstat",
        }
    }
}

/// Busy-polling of one thread. The default does not busy-poll.
#[derive(Debug, Default)]
pub struct BusyPoll {
    limit: Duration,
    /// The last idle time ended within the limit.
    work_came_soon: bool,
    /// None: the kernel keeps no account, or the limit is zero.
    account: Option<WaitAccount>,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// Nothing is known of this CPU.
    #[default]
    Unknown,
    /// The thread may busy-poll.
    Polling(Window),
    /// Others waited: the thread may not busy-poll before this time.
    Paused(Instant),
}

/// The time that is judged next.
#[derive(Debug, Clone, Copy)]
struct Window {
    start: Instant,
    cpu: usize,
    /// The account at the start, in nanoseconds.
    others_waited: i64,
    /// Time for which the thread busy-polled since the start.
    polled: Duration,
}

impl BusyPoll {
    /// For the calling thread.
    pub fn of_this_thread(config: BusyPollConfig) -> Self {
        let account = (!config.limit.is_zero())
            .then(|| WaitAccount::of_this_thread(config.run_queues.as_ref()))
            .transpose()
            .inspect_err(|e| {
                log::debug!(
                    "No busy-polling: cannot tell from {} who waits for a CPU: {e}",
                    config.run_queues
                );
            });
        BusyPoll {
            limit: config.limit,
            account: account.unwrap_or_default(),
            ..BusyPoll::default()
        }
    }

    /// Calls `poll` until it finds work or the limit has passed, if busy-polling pays. The thread
    /// has been idle since `idle_since`. Returns whether work was found; if not, the thread is to
    /// sleep, and to report with [`BusyPoll::idle_ended`] when work has come.
    pub fn poll(&mut self, idle_since: Instant, mut poll: impl FnMut() -> bool) -> bool {
        if !self.may_poll(idle_since) {
            return false;
        }
        loop {
            // Before the poll: the work that it finds and does is no idle time.
            let idle = idle_since.elapsed();
            let found = poll();
            if found || idle >= self.limit {
                if let State::Polling(window) = &mut self.state {
                    window.polled += idle;
                }
                if found {
                    self.idle_ended(idle);
                }
                return found;
            }
            spin_loop();
        }
    }

    /// Work came after the thread had been idle for this time.
    pub fn idle_ended(&mut self, idle: Duration) {
        self.work_came_soon = idle <= self.limit;
    }

    fn may_poll(&mut self, now: Instant) -> bool {
        if !self.work_came_soon || self.account.is_none() {
            return false;
        }
        match self.state {
            State::Polling(window) if now < window.start + WINDOW => {}
            State::Paused(until) if now < until => {}
            State::Polling(window) if now < window.start + WINDOW * 2 => {
                self.end_window(window, now);
            }
            // What others did while this thread slept for long does not count.
            _ => self.state = self.window(now).map_or(State::Unknown, State::Polling),
        }
        matches!(self.state, State::Polling(_))
    }

    #[cold]
    fn end_window(&mut self, former: Window, now: Instant) {
        let may_go_on = |window: &Window| {
            let others_waited = window.others_waited.wrapping_sub(former.others_waited);
            let others_waited = Duration::from_nanos(others_waited.max(0).cast_unsigned());
            // If the thread was moved to another CPU, the account of neither covers the window.
            window.cpu == former.cpu && others_waited * PARTS <= former.polled
        };
        self.state = match self.window(now).filter(may_go_on) {
            Some(window) => State::Polling(window),
            None => State::Paused(now + PAUSE),
        };
    }

    /// A window that starts now. None: the account cannot be read any more.
    fn window(&mut self, now: Instant) -> Option<Window> {
        let cpu = sched_getcpu();
        let waited = self.account.as_mut()?.others_waited(cpu);
        let others_waited = waited
            .inspect_err(|e| {
                log::debug!("No more busy-polling: cannot tell who waits for a CPU: {e}");
                self.account = None;
            })
            .ok()?;
        Some(Window {
            start: now,
            cpu,
            others_waited,
            polled: Duration::ZERO,
        })
    }
}

#[cfg(all(test, not(any(miri, loom))))]
mod tests {
    use std::fmt::Write as _;
    use std::fs;
    use std::path::Path;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);
    const SOON: Duration = Duration::from_micros(10);
    /// Time busy-polled in a window: far more than there can be, so that what this machine does
    /// meanwhile counts for nothing.
    const POLLED: Duration = Duration::from_secs(40);
    /// Less and more than a quarter of that.
    const LITTLE: Duration = Duration::from_secs(9);
    const MUCH: Duration = Duration::from_secs(11);

    /// A thread that stays on its CPU, with an account of the test's.
    struct Trial {
        _directory: tempfile::TempDir,
        path: &'static Path,
        busy_poll: BusyPoll,
        now: Instant,
        others_waited: Duration,
    }

    impl Trial {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory
                .path()
                .join("schedstat")
                .to_str()
                .unwrap()
                .to_owned();
            let path: &'static str = path.leak();
            write_account(path.as_ref(), Duration::ZERO);
            let config = BusyPollConfig {
                limit: LIMIT,
                run_queues: path,
            };
            let mut busy_poll = BusyPoll::of_this_thread(config);
            busy_poll.idle_ended(SOON);
            Trial {
                _directory: directory,
                path: path.as_ref(),
                busy_poll,
                now: Instant::now(),
                others_waited: Duration::ZERO,
            }
        }

        fn may_poll(&mut self) -> bool {
            self.busy_poll.may_poll(self.now)
        }

        /// A window in which the thread busy-polled and others waited for so long. Says whether it
        /// may go on.
        fn window(&mut self, polled: Duration, others_waited: Duration) -> bool {
            let State::Polling(window) = &mut self.busy_poll.state else {
                panic!("It does not busy-poll");
            };
            window.polled += polled;
            self.others_waited += others_waited;
            // The thread's own waiting is taken off.
            write_account(self.path, self.others_waited + own_waiting());
            self.now += WINDOW;
            self.may_poll()
        }
    }

    /// Time for which this thread has waited for a CPU.
    fn own_waiting() -> Duration {
        let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        let waited = text.split_whitespace().nth(1).unwrap().parse().unwrap();
        Duration::from_nanos(waited)
    }

    /// Writes that threads have waited so long for each CPU.
    fn write_account(path: &Path, waited: Duration) {
        let mut text = "version 17\ntimestamp 4300000000\n".to_owned();
        for cpu in 0..CpuSet::MAX_CPU {
            let waited = waited.as_nanos();
            writeln!(text, "cpu{cpu} 0 0 9 8 7 6 12345 {waited} 3").unwrap();
            writeln!(text, "domain0 SMT 3 0 0 0 0 0 0 0 0 0").unwrap();
        }
        fs::write(path, text).unwrap();
    }

    /// Runs a test in a thread of its own that stays on one CPU.
    fn on_one_cpu(test: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let allowed = sched_getaffinity(None).unwrap();
                let cpu = (0..CpuSet::MAX_CPU).find(|&cpu| allowed.is_set(cpu));
                let mut one = CpuSet::new();
                one.set(cpu.unwrap());
                sched_setaffinity(None, &one).unwrap();
                test();
            });
        });
    }

    #[test]
    fn busy_poll_begins_and_ends_with_the_latest_idle_time() {
        let mut trial = Trial::new();
        assert!(trial.may_poll());
        trial.busy_poll.idle_ended(LIMIT + SOON);
        assert!(!trial.may_poll());
        trial.busy_poll.idle_ended(LIMIT);
        assert!(trial.may_poll());
        // A thread that never was idle for a short time.
        trial.busy_poll.work_came_soon = BusyPoll::default().work_came_soon;
        assert!(!trial.busy_poll.poll(Instant::now(), || true));
    }

    #[test]
    fn busy_poll_polls_until_it_finds_work_or_the_limit_has_passed() {
        let mut trial = Trial::new();
        let mut polls = 0;
        let found = trial.busy_poll.poll(Instant::now(), || {
            polls += 1;
            polls == 3
        });
        // A busy machine may have taken the CPU away between two polls.
        assert!(polls == 3 || !found);
        trial.busy_poll.idle_ended(SOON);
        let start = Instant::now();
        assert!(!trial.busy_poll.poll(start, || false));
        assert!(start.elapsed() >= LIMIT);
        // Nothing came: whatever comes next does so late.
        trial.busy_poll.idle_ended(start.elapsed());
        assert!(!trial.may_poll());
    }

    #[test]
    fn busy_poll_goes_on_while_others_hardly_wait() {
        on_one_cpu(|| {
            let mut trial = Trial::new();
            assert!(trial.may_poll());
            for _ in 0..10 {
                assert!(trial.window(POLLED, LITTLE));
            }
        });
    }

    #[test]
    fn busy_poll_pauses_while_others_wait_for_the_cpu() {
        on_one_cpu(|| {
            let mut trial = Trial::new();
            assert!(trial.may_poll());
            assert!(trial.window(POLLED, Duration::ZERO));
            assert!(!trial.window(POLLED, MUCH));
            trial.now += PAUSE - Duration::from_nanos(1);
            assert!(!trial.may_poll());
            // One window shows whether they still do.
            trial.now += Duration::from_nanos(1);
            assert!(trial.may_poll());
            assert!(!trial.window(POLLED, MUCH));
            trial.now += PAUSE;
            assert!(trial.may_poll());
            assert!(trial.window(POLLED, LITTLE));
        });
    }

    #[test]
    fn busy_poll_ignores_who_waited_while_the_thread_slept() {
        on_one_cpu(|| {
            let mut trial = Trial::new();
            assert!(trial.may_poll());
            trial.now += WINDOW;
            assert!(trial.window(Duration::ZERO, MUCH));
        });
    }

    #[test]
    fn busy_poll_pauses_when_its_thread_was_moved_to_another_cpu() {
        on_one_cpu(|| {
            let mut trial = Trial::new();
            assert!(trial.may_poll());
            let State::Polling(window) = &mut trial.busy_poll.state else {
                panic!("It does not busy-poll");
            };
            window.cpu += 1;
            assert!(!trial.window(POLLED, Duration::ZERO));
        });
    }

    #[test]
    fn busy_poll_is_off_where_the_kernel_keeps_no_account() {
        let never = |mut busy_poll: BusyPoll| {
            busy_poll.idle_ended(Duration::ZERO);
            assert!(!busy_poll.may_poll(Instant::now()));
        };
        never(BusyPoll::of_this_thread(BusyPollConfig {
            run_queues: "/proc/no-schedstat",
            ..BusyPollConfig::default()
        }));
        never(BusyPoll::of_this_thread(BusyPollConfig {
            limit: Duration::ZERO,
            ..BusyPollConfig::default()
        }));
        let mut trial = Trial::new();
        fs::write(trial.path, "version 99\n").unwrap();
        assert!(!trial.may_poll());
        assert!(trial.busy_poll.account.is_none(), "It is off for good");
    }
}
