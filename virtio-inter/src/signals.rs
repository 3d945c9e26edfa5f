//! SIGTERM, SIGINT and SIGHUP as something to wait for, and a way out when the way to the end is blocked.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::low_level::{pipe, unregister};

/// Readable once this process is asked to end. The same signal a second time kills it at once, whatever it
/// waits for. Another one does not: a terminal's SIGINT is often followed by a supervisor's SIGTERM.
#[derive(Debug)]
pub struct Signals {
    reader: UnixStream,
    registered: Vec<SigId>,
}

impl Signals {
    /// Begins to catch the signals.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for it.
    pub fn catch() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        let mut signals = Self {
            reader,
            registered: Vec::new(),
        };
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            let asked = Arc::new(AtomicBool::new(false));
            // In this order: the first signal finds the flag not yet set.
            signals.registered.extend([
                flag::register_conditional_default(signal, Arc::clone(&asked))?,
                flag::register(signal, asked)?,
                pipe::register(signal, writer.try_clone()?)?,
            ]);
        }
        Ok(signals)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in &self.registered {
            unregister(*id);
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}
