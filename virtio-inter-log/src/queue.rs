//! Lines that wait to be written: in order, bounded in bytes, with the lost ones counted.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most bytes that wait. Some 2,000 lines: more than any burst that rate limits let through.
const MAX_BYTES: usize = 256 * 1024;

/// What a waiting line costs beside its text, so that many short lines are bounded too.
const OVERHEAD: usize = 64;

/// What is to be written next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A line, or several that belong together, with its line feed.
    Line(Vec<u8>),
    /// So many lines were lost here.
    Lost(u64),
}

impl Entry {
    fn lines(&self) -> u64 {
        match self {
            Entry::Line(_) => 1,
            Entry::Lost(lines) => *lines,
        }
    }
}

/// The queue. Its lock is held for moves in memory only, never for a system call that could wait.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    /// Something was added.
    added: Condvar,
    /// Something was written, or given up.
    progressed: Condvar,
}

#[derive(Debug)]
struct State {
    entries: VecDeque<Entry>,
    /// Sum of the costs of all lines in `entries`.
    bytes: usize,
    /// The last line found no room.
    overflows: bool,
    /// An entry was taken and is being written.
    writing: bool,
    /// The last write failed. The next is tried with the next line, not at once and for ever.
    failed: bool,
    /// Counts writes, complete or not.
    progress: u64,
}

impl Queue {
    pub(crate) const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                entries: VecDeque::new(),
                bytes: 0,
                overflows: false,
                writing: false,
                failed: false,
                progress: 0,
            }),
            added: Condvar::new(),
            progressed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line, or counts it as lost where there is no room. Never waits for a reader.
    pub(crate) fn push(&self, line: Vec<u8>) {
        let mut state = self.state();
        let cost = line.len() + OVERHEAD;
        // One long gap tells more than many short ones between lines that just fitted.
        let room = if state.overflows {
            MAX_BYTES / 2
        } else {
            MAX_BYTES
        };
        state.overflows = state.bytes + cost > room;
        if !state.overflows {
            state.bytes += cost;
            state.entries.push_back(Entry::Line(line));
        } else if let Some(Entry::Lost(lines)) = state.entries.back_mut() {
            *lines += 1;
        } else {
            // Costs nothing: between two of them there are lines that do.
            state.entries.push_back(Entry::Lost(1));
        }
        state.failed = false;
        self.added.notify_one();
    }

    /// Takes the next entry, and waits for one if `block`. [`Queue::finish`] must follow.
    pub(crate) fn take(&self, block: bool) -> Option<Entry> {
        let mut state = self.state();
        loop {
            let next = if state.failed {
                None
            } else {
                state.entries.pop_front()
            };
            if let Some(entry) = next {
                if let Entry::Line(line) = &entry {
                    state.bytes -= line.len() + OVERHEAD;
                }
                state.writing = true;
                return Some(entry);
            }
            if !block {
                return None;
            }
            state = self
                .added
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Notes that a part of the entry taken was written.
    pub(crate) fn progress(&self) {
        self.state().progress += 1;
        self.progressed.notify_all();
    }

    /// Ends what [`Queue::take`] began. If the entry could not be written, neither can those that
    /// wait: all are counted as lost.
    pub(crate) fn finish(&self, entry: &Entry, written: bool) {
        let mut state = self.state();
        state.writing = false;
        state.progress += 1;
        if !written {
            let waiting: u64 = state.entries.iter().map(Entry::lines).sum();
            state.entries.clear();
            state
                .entries
                .push_back(Entry::Lost(entry.lines() + waiting));
            state.bytes = 0;
            state.overflows = false;
            state.failed = true;
        }
        drop(state);
        self.progressed.notify_all();
    }

    /// Waits until all is written, or writing fails. Gives up when nothing moves for `stuck`, and
    /// after `limit`; false then.
    pub(crate) fn wait_until_empty(&self, stuck: Duration, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut state = self.state();
        while state.writing || !(state.entries.is_empty() || state.failed) {
            let before = state.progress;
            let left = end.saturating_duration_since(Instant::now()).min(stuck);
            let (next, timeout) = self
                .progressed
                .wait_timeout_while(state, left, |state| state.progress == before)
                .unwrap_or_else(PoisonError::into_inner);
            state = next;
            if timeout.timed_out() {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Entry {
        Entry::Line(text.into())
    }

    /// Takes all that waits and finds it written.
    fn drain(queue: &Queue) -> Vec<Entry> {
        std::iter::from_fn(|| {
            let entry = queue.take(false)?;
            queue.finish(&entry, true);
            Some(entry)
        })
        .collect()
    }

    #[test]
    fn queue_keeps_the_order_and_says_where_lines_were_lost() {
        let queue = Queue::new();
        queue.push(b"first".to_vec());
        queue.push(vec![b'x'; MAX_BYTES - 5 - 2 * OVERHEAD]);
        for _ in 0..3 {
            queue.push(b"too much".to_vec());
        }
        assert_eq!(queue.take(false), Some(line("first")));
        queue.finish(&line("first"), true);
        // There is room for it, but not much.
        queue.push(b"".to_vec());
        let rest = drain(&queue);
        assert_eq!(rest[1..], [Entry::Lost(4)]);
        assert_eq!(drain(&queue), []);
        queue.push(b"again".to_vec());
        assert_eq!(drain(&queue), [line("again")]);
    }

    #[test]
    fn queue_is_bounded_for_short_lines_too() {
        let queue = Queue::new();
        for _ in 0..100_000 {
            queue.push(b"\n".to_vec());
        }
        let entries = drain(&queue);
        assert_eq!(entries.len(), MAX_BYTES / (1 + OVERHEAD) + 1);
        assert_eq!(entries.iter().map(Entry::lines).sum::<u64>(), 100_000);
    }

    #[test]
    fn queue_counts_what_could_not_be_written_and_tries_again_with_the_next_line() {
        let queue = Queue::new();
        queue.push(b"a".to_vec());
        queue.push(b"b".to_vec());
        let first = queue.take(false).unwrap();
        queue.finish(&first, false);
        // Nothing new to say, and nothing to wait for.
        assert_eq!(queue.take(false), None);
        assert!(queue.wait_until_empty(Duration::MAX, Duration::from_secs(3600)));
        queue.push(b"c".to_vec());
        assert_eq!(queue.take(false), Some(Entry::Lost(2)));
        queue.finish(&Entry::Lost(2), false);
        queue.push(b"d".to_vec());
        assert_eq!(drain(&queue), [Entry::Lost(3), line("d")]);
    }

    #[test]
    fn queue_waits_for_a_slow_writer_and_not_for_a_stuck_one() {
        let queue = Queue::new();
        let short = Duration::from_millis(20);
        let long = Duration::from_secs(60);
        assert!(queue.wait_until_empty(short, long));
        queue.push(b"a".to_vec());
        assert!(!queue.wait_until_empty(short, long));
        assert!(!queue.wait_until_empty(long, short));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let entry = queue.take(true).unwrap();
                for _ in 0..10 {
                    std::thread::sleep(Duration::from_millis(5));
                    queue.progress();
                }
                queue.finish(&entry, true);
            });
            assert!(queue.wait_until_empty(long, long));
        });
    }
}
