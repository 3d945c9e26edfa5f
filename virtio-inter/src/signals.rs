//! SIGTERM and SIGINT as something to wait for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::SigId;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::{pipe, unregister};

/// Readable once this process is asked to end.
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
        let registered = [SIGTERM, SIGINT]
            .into_iter()
            .map(|signal| pipe::register(signal, writer.try_clone()?))
            .collect::<io::Result<_>>()?;
        Ok(Self { reader, registered })
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
