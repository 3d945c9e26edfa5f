//! SIGTERM, SIGINT and SIGHUP as events of the control loop. The port ends within 10 s after one,
//! whatever blocks; a repeated signal kills it at once. While root opens things for `--user`, both
//! hold only as far as the opening looks for signals: there may be no second thread yet.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::backend::{Handle, SignalDelivery};
use signal_hook::iterator::exfiltrator::SignalOnly;
use signal_hook::low_level::{emulate_default_handler, signal_name};
use virtio_inter_common::thread_role::{self, Role};

const SIGNALS: [i32; 3] = [SIGTERM, SIGINT, SIGHUP];

/// Time after the first signal from which the same signal kills. timeout(1), terminals and
/// supervisors signal a process and then its group: the two come together and mean one.
const KILL_AFTER: Duration = Duration::from_secs(1);

/// Time after the first signal at which the port is killed if it has not ended by itself, which
/// takes milliseconds. A VMM can block a worker, and so the control thread: its guest's memory may
/// be a file whose pages it serves itself.
const END_WITHIN: Duration = Duration::from_secs(10);

/// Readable once a signal asked this process to end. The same signal again, 1 s later or more,
/// kills the process at once, whatever it waits for. A different signal does not: a supervisor's
/// SIGTERM often follows a terminal's SIGINT.
#[derive(Debug)]
pub struct ShutdownSignals {
    reader: UnixStream,
    handle: Handle,
}

/// The same signals, noted while a process may not have a second thread yet.
#[derive(Debug)]
pub(crate) struct EarlySignals(Arc<AtomicBool>);

impl EarlySignals {
    /// Begins to note the signals, for as long as the process lives.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub(crate) fn note() -> io::Result<Self> {
        let came = Arc::new(AtomicBool::new(false));
        for signal in SIGNALS {
            flag::register(signal, Arc::clone(&came))?;
        }
        Ok(Self(came))
    }

    /// Whether one came.
    pub(crate) fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl ShutdownSignals {
    /// Begins to catch the signals.
    ///
    /// # Errors
    ///
    /// When there is no descriptor or thread for it.
    pub fn catch() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        let (caught, waker) = UnixStream::pair()?;
        let caught = SignalDelivery::with_pipe(caught, waker, SignalOnly, SIGNALS)?;
        let handle = caught.handle();
        // In a thread of its own, which still runs when all others are stuck.
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                thread_role::enter(Role::Helper);
                handle_signals(caught, writer);
            })?;
        Ok(Self { reader, handle })
    }
}

fn handle_signals(mut caught: SignalDelivery<UnixStream, SignalOnly>, mut writer: UnixStream) {
    let handle = caught.handle();
    let mut first: BTreeMap<i32, Instant> = BTreeMap::new();
    loop {
        let earliest = first.iter().min_by_key(|(_, at)| **at);
        let end = earliest.map(|(signal, at)| (*signal, *at + END_WITHIN));
        let left = end.map(|(_, end)| end.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [PollFd::new(caught.get_read(), PollFlags::IN)];
        let ready = poll(&mut fds, timeout.as_ref());
        if handle.is_closed() {
            return;
        }
        if let (Ok(0), Some((signal, _))) = (&ready, end) {
            log::error!(
                "{} came {} s ago, and something blocks this port's end: killing it",
                signal_name(signal).unwrap_or("A signal"),
                END_WITHIN.as_secs()
            );
            virtio_inter_log::flush();
            // Fails for unknown signals only.
            let _ = emulate_default_handler(signal);
        }
        for signal in caught.pending() {
            match first.get(&signal) {
                None => {
                    first.insert(signal, Instant::now());
                    // Fails if the port is exiting already and has closed the reader.
                    let _ = writer.write_all(&[0]);
                }
                Some(at) if at.elapsed() >= KILL_AFTER => {
                    let _ = emulate_default_handler(signal);
                }
                Some(_) => {}
            }
        }
    }
}

impl Drop for ShutdownSignals {
    fn drop(&mut self) {
        self.handle.close();
    }
}

impl AsFd for ShutdownSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}
