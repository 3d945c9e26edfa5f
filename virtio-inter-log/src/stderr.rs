//! Writes the queue to standard error, in a thread of its own, as a write may block for ever.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use log::Level;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio::stderr;

use crate::journal;
use crate::queue::{Entry, Queue};

/// At the end of the process, a standard error that takes nothing for this long is given up.
const STUCK: Duration = Duration::from_millis(200);

/// Longest wait at the end of the process for a standard error that takes a little now and then.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

static QUEUE: Queue = Queue::new();

/// Whether there is a thread that writes.
static RUNNING: AtomicBool = AtomicBool::new(false);

/// Whether that thread is not to be started yet.
static HELD: AtomicBool = AtomicBool::new(false);

/// Called first in the thread that writes.
static ON_START: OnceLock<fn()> = OnceLock::new();

/// Has `hook` called first in the thread that writes, if it has not started yet.
pub(crate) fn on_start(hook: fn()) {
    let _ = ON_START.set(hook);
}

/// Has the thread that writes not started, or allows it again: the next line starts it then.
pub(crate) fn hold(held: bool) {
    HELD.store(held, Ordering::Relaxed);
}

/// Queues lines, and has them written.
pub(crate) fn push(lines: Vec<u8>) {
    QUEUE.push(lines);
    if HELD.load(Ordering::Relaxed) || RUNNING.swap(true, Ordering::Relaxed) {
        return;
    }
    let thread = thread::Builder::new().name("log".to_owned()).spawn(|| {
        if let Some(hook) = ON_START.get() {
            hook();
        }
        while write_next(true, &FOR_EVER) {}
    });
    if thread.is_err() {
        // RLIMIT_NPROC, say. Another line may find room for it; `flush` does without.
        RUNNING.store(false, Ordering::Relaxed);
    }
}

/// Waits until all is written; not for ever, see [`STUCK`].
pub(crate) fn flush() {
    if !RUNNING.load(Ordering::Relaxed) {
        while write_next(false, &A_MOMENT) {}
    }
    QUEUE.wait_until_empty(STUCK, FLUSH_LIMIT);
}

/// Writes one entry, if there is one.
fn write_next(block: bool, wait: &Wait) -> bool {
    let Some(entry) = QUEUE.take(block) else {
        return false;
    };
    let result = match &entry {
        Entry::Line(line) => write(line, wait),
        Entry::Lost(lines) => write(lost(*lines).as_bytes(), wait),
    };
    QUEUE.finish(&entry, result.is_ok());
    true
}

/// Writes a line with one call if possible: other processes write to the same stream, and the
/// kernel keeps up to PIPE_BUF bytes together.
fn write(mut line: &[u8], wait: &Wait) -> Result<(), Errno> {
    while !line.is_empty() {
        (wait.before)()?;
        let piece = &line[..line.len().min(wait.at_most)];
        match rustix::io::write(stderr(), piece) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => {
                line = &line[written..];
                QUEUE.progress();
            }
            Err(Errno::INTR) => {}
            // Another process that shares the stream made it non-blocking.
            Err(Errno::AGAIN) => (wait.when_full)()?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// How writes wait for a reader.
struct Wait {
    /// Called before each write.
    before: fn() -> Result<(), Errno>,
    /// Called after a write that found no room.
    when_full: fn() -> Result<(), Errno>,
    /// Most bytes that are written with one call.
    at_most: usize,
}

/// For the thread: write(2) does the waiting.
const FOR_EVER: Wait = Wait {
    before: || Ok(()),
    when_full: || poll(&mut [PollFd::new(&stderr(), PollFlags::OUT)], None).map(drop),
    at_most: usize::MAX,
};

/// For a process that has no thread for this. A pipe that poll(2) reports as writable has room for
/// PIPE_BUF bytes (pipe(7)), so that a write of these does not block.
const A_MOMENT: Wait = Wait {
    before: wait_a_moment,
    when_full: wait_a_moment,
    at_most: 4096,
};

/// Waits for room, at most [`STUCK`].
fn wait_a_moment() -> Result<(), Errno> {
    let limit = Timespec {
        tv_sec: 0,
        tv_nsec: STUCK.subsec_nanos().into(),
    };
    match poll(&mut [PollFd::new(&stderr(), PollFlags::OUT)], Some(&limit)) {
        Ok(0) => Err(Errno::TIMEDOUT),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Says that lines were lost, at their place between others.
fn lost(lines: u64) -> String {
    let text = format!("{lines} log line(s) lost here: standard error did not take them");
    if journal::is_stderr() {
        journal::prefix(Level::Warn, &text)
    } else {
        format!("[WARN  {}] {text}\n", module_path!())
    }
}
