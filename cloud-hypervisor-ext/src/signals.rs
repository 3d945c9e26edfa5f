//! Signals that are not for the supervisor but for the VM: caught here, to be sent on.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use signal_hook::{flag, low_level::pipe};

/// All that ask something of a process. Those of a terminal among them reach the VMM by themselves too: it handles
/// them alike the second time.
const FORWARDED: [Signal; 7] = [
    Signal::TERM,
    Signal::INT,
    Signal::HUP,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
    Signal::WINCH,
];

/// Catches signals from its making on.
#[derive(Debug)]
pub struct Signals {
    reader: UnixStream,
    caught: Vec<(Signal, Arc<AtomicBool>)>,
}

impl Signals {
    /// Begins.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for it.
    pub fn catch() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        let mut caught = Vec::new();
        for signal in FORWARDED {
            let came = Arc::new(AtomicBool::new(false));
            // In this order: whoever reads the pipe finds the flag set.
            flag::register(signal.as_raw(), Arc::clone(&came))?;
            pipe::register(signal.as_raw(), writer.try_clone()?)?;
            caught.push((signal, came));
        }
        Ok(Self { reader, caught })
    }

    /// Those that came since the last call.
    pub fn take(&self) -> Vec<Signal> {
        let mut buffer = [0; 64];
        while matches!((&self.reader).read(&mut buffer), Ok(1..)) {}
        self.caught
            .iter()
            .filter(|(_, came)| came.swap(false, Ordering::SeqCst))
            .map(|(signal, _)| *signal)
            .collect()
    }
}

/// Whether the process that gets it is to end.
pub fn asks_for_the_end(signal: Signal) -> bool {
    [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT].contains(&signal)
}

impl AsFd for Signals {
    /// Readable when there are some.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}
