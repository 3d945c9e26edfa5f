//! SIGTERM, SIGINT and SIGHUP as an event, and a way out if the port cannot end in good order.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals as Caught};
use signal_hook::low_level::emulate_default_handler;

/// From the first signal until the same one again kills. timeout(1), terminals and supervisors signal a process
/// and then its group: the two come together and mean one.
const INSIST_AFTER: Duration = Duration::from_secs(1);

/// Readable once a signal asked this process to end. The same signal again, 1 s later or more, kills it at once,
/// whatever it waits for. Another one does not: a supervisor's SIGTERM often follows a terminal's SIGINT.
#[derive(Debug)]
pub struct Signals {
    reader: UnixStream,
    handle: Handle,
}

impl Signals {
    /// Begins to catch the signals.
    ///
    /// # Errors
    ///
    /// When there is no descriptor or thread for it.
    pub fn catch() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        let mut caught = Caught::new([SIGTERM, SIGINT, SIGHUP])?;
        let handle = caught.handle();
        // A thread of its own: it is there when all others are stuck.
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || heed(&mut caught, writer))?;
        Ok(Self { reader, handle })
    }
}

fn heed(caught: &mut Caught, mut writer: UnixStream) {
    let mut first: BTreeMap<i32, Instant> = BTreeMap::new();
    for signal in caught.forever() {
        match first.get(&signal) {
            None => {
                first.insert(signal, Instant::now());
                // The reader is gone if the port is at its end already.
                let _ = writer.write_all(&[0]);
            }
            Some(at) if at.elapsed() >= INSIST_AFTER => {
                // Fails for unknown signals only.
                let _ = emulate_default_handler(signal);
            }
            Some(_) => {}
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.handle.close();
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}
