//! SIGTERM, SIGINT and SIGHUP as events of the control loop; a repeated signal kills the port.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals as SignalIterator};
use signal_hook::low_level::emulate_default_handler;

/// Time after the first signal from which the same signal kills. timeout(1), terminals and
/// supervisors signal a process and then its group: the two come together and mean one.
const KILL_AFTER: Duration = Duration::from_secs(1);

/// Readable once a signal asked this process to end. The same signal again, 1 s later or more,
/// kills the process at once, whatever it waits for. A different signal does not: a supervisor's
/// SIGTERM often follows a terminal's SIGINT.
#[derive(Debug)]
pub struct ShutdownSignals {
    reader: UnixStream,
    handle: Handle,
}

impl ShutdownSignals {
    /// Begins to catch the signals.
    ///
    /// # Errors
    ///
    /// When there is no descriptor or thread for it.
    pub fn catch() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        let mut caught = SignalIterator::new([SIGTERM, SIGINT, SIGHUP])?;
        let handle = caught.handle();
        // In a thread of its own, which still runs when all others are stuck.
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || handle_signals(&mut caught, writer))?;
        Ok(Self { reader, handle })
    }
}

fn handle_signals(caught: &mut SignalIterator, mut writer: UnixStream) {
    let mut first: BTreeMap<i32, Instant> = BTreeMap::new();
    for signal in caught.forever() {
        match first.get(&signal) {
            None => {
                first.insert(signal, Instant::now());
                // Fails if the port is exiting already and has closed the reader.
                let _ = writer.write_all(&[0]);
            }
            Some(at) if at.elapsed() >= KILL_AFTER => {
                // Fails for unknown signals only.
                let _ = emulate_default_handler(signal);
            }
            Some(_) => {}
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
