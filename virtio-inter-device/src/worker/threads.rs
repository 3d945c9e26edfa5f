//! The two threads of a worker, of which one rests while the worker runs on the other.
//!
//! A thread may make itself nicer, but may not take that back without a privilege (setpriority(2)). So there is one
//! thread for each, and the worker, which is a value, is handed from one to the other ([`super::niceness`] says when).

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use rustix::process::{getpriority_process, setpriority_process};

use super::Worker;
use super::niceness::{Account, Thread};

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
                    let account = (nice != 0).then(|| make_nicer(nice)).flatten();
                    // Ends when the other thread has ended, as nobody else holds a sender.
                    while let Ok(worker) = mine.recv() {
                        let Some(worker) = worker.run(account.as_ref()) else {
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

/// Makes the calling thread nicer. On Linux a nice value is a thread's own, although POSIX says process. Returns the account
/// that tells whether that starves it, if there is one.
fn make_nicer(by: u8) -> Option<Account> {
    let result = getpriority_process(None)
        .and_then(|nice| setpriority_process(None, nice.saturating_add(i32::from(by))));
    if let Err(e) = result {
        // Always allowed in this direction; and without it the port works all the same.
        log::warn!("Cannot make a queue thread nicer: {e}");
    }
    Account::of_this_thread()
        .inspect_err(|e| log::debug!("No queue thread is nicer: there is no account of it: {e}"))
        .ok()
}
