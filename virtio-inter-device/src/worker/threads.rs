//! The two threads of a worker, of which one rests while the worker runs on the other.
//!
//! A thread may make itself nicer, but may not take that back without a privilege (setpriority(2)). So there is one
//! thread for each, and the worker, which is a value, is handed from one to the other ([`super::niceness`] says when).

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::process::{getpriority_process, setpriority_process};

use virtio_inter_link::let_others_go_first;

use super::Worker;
use super::account::Account;
use super::niceness::Thread;

/// The largest nice value.
const NICEST: i32 = 19;
/// How long a nicer thread runs at a time where others want to: the least that Linux has. One that gives its CPU away is
/// not asked again for as long as it could have run; with the usual 3 ms, and a tenth of the weight, that is 30.
const SLICE: Duration = Duration::from_micros(100);

/// A worker's threads. They end when the worker's commands do.
#[derive(Debug)]
pub(crate) struct Threads(Vec<JoinHandle<()>>);

impl Threads {
    /// Starts `worker` on the thread that it belongs on. The nicer one is by `nice`; 0: there is none.
    pub(crate) fn start(worker: Worker, nice: u8) -> io::Result<Self> {
        let index = worker.index;
        let (to_plain, for_plain) = channel();
        let (to_nicer, for_nicer) = channel();
        let first = match worker.thread() {
            Thread::Plain => to_plain.clone(),
            Thread::Nicer => to_nicer.clone(),
        };
        let start =
            |name: String, mine: Receiver<Box<Worker>>, other: Sender<Box<Worker>>, nice| {
                Builder::new().name(name).spawn(move || {
                    let nicer = (nice != 0).then(|| Nicer::make(nice)).flatten();
                    // Ends when the other thread has ended, as nobody else holds a sender.
                    while let Ok(worker) = mine.recv() {
                        let Some(worker) = worker.run(nicer.as_ref()) else {
                            break;
                        };
                        if other.send(worker).is_err() {
                            break;
                        }
                    }
                })
            };
        let mut threads = vec![start(format!("queue-{index}"), for_plain, to_nicer, 0)?];
        if nice != 0 {
            let name = format!("queue-{index}-nicer"); // At most 15 bytes: there are 64 pairs at most.
            threads.push(start(name, for_nicer, to_plain, nice)?);
        }
        // Neither has ended yet: both wait for it.
        let _ = first.send(Box::new(worker));
        Ok(Threads(threads))
    }

    /// Waits for their end.
    pub(crate) fn join(self) {
        for thread in self.0 {
            if thread.join().is_err() {
                log::error!("A worker thread panicked");
            }
        }
    }
}

/// What there is to know of the nicer thread.
pub(super) struct Nicer {
    /// Tells whether it is starved.
    pub(super) account: Account,
    /// It may give its CPU away and soon has it again.
    pub(super) takes_short_turns: bool,
}

impl Nicer {
    /// Makes the calling thread nicer. On Linux a nice value is a thread's own, although POSIX says process. None: it cannot be,
    /// or nobody could tell whether that starves it.
    fn make(by: u8) -> Option<Self> {
        let nice = getpriority_process(None)
            .ok()
            .filter(|nice| *nice < NICEST)?;
        let nice = nice.saturating_add(by.into()).min(NICEST);
        setpriority_process(None, nice)
            .inspect_err(|e| log::debug!("Cannot make a queue thread nicer: {e}"))
            .ok()?;
        let takes_short_turns = let_others_go_first(nice, SLICE)
            .inspect_err(|e| log::debug!("Cannot give a queue thread short slices: {e}"))
            .unwrap_or(false);
        let account = Account::of_this_thread()
            .inspect_err(|e| log::debug!("No queue thread is nicer: it has no account: {e}"))
            .ok()?;
        Some(Nicer {
            account,
            takes_short_turns,
        })
    }
}
