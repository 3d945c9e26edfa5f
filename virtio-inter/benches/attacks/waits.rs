//! For how long the threads that a ping passes were ready and had no CPU, as the kernel counts it
//! (its document sched-stats.rst).

use std::fs::{File, read_dir, read_to_string};
use std::os::unix::fs::FileExt;

/// The threads, by their files `schedstat`.
pub(crate) struct Waits(Vec<File>);

impl Waits {
    pub(crate) fn new(threads: impl IntoIterator<Item = File>) -> Self {
        Self(threads.into_iter().collect())
    }

    /// Time so far in ns, the sum of all threads.
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(wait_of).sum()
    }
}

/// The calling thread.
pub(crate) fn this_thread() -> File {
    File::open("/proc/thread-self/schedstat").unwrap()
}

/// The worker of a port with one queue pair.
pub(crate) fn worker_of(port: u32) -> File {
    let tasks = read_dir(format!("/proc/{port}/task")).unwrap();
    let mut paths = tasks.map(|task| task.unwrap().path());
    let worker = paths.find(|path| read_to_string(path.join("comm")).unwrap().trim() == "queue-0");
    File::open(worker.expect("a worker").join("schedstat")).unwrap()
}

/// The second of three numbers.
fn wait_of(thread: &File) -> u64 {
    let mut text = [0; 64];
    let len = thread.read_at(&mut text, 0).unwrap();
    let text = str::from_utf8(&text[..len]).unwrap();
    text.split(' ').nth(1).unwrap().parse().unwrap()
}
