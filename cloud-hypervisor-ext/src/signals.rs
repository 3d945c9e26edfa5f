//! Catches signals that are meant for the VM, for the supervisor to forward, and the one that the
//! kernel sends when files are removed.
#![allow(unsafe_code)] // One function asks for an ignored signal, one sets up file events.

use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use signal_hook::{flag, low_level::pipe};

/// Signals with a request for a process, and those that would kill this process, and with it the
/// VM, without a log line. A terminal's signals also reach the VMM directly; it handles the second
/// one alike.
const FORWARDED: [Signal; 14] = [
    Signal::TERM,
    Signal::INT,
    Signal::HUP,
    Signal::QUIT,
    Signal::ALARM,
    Signal::VTALARM,
    Signal::PROF,
    Signal::XCPU,
    Signal::USR1,
    Signal::USR2,
    Signal::IO,
    Signal::POWER,
    Signal::STKFLT,
    Signal::WINCH,
];

/// The termination signals among them. The others have a meaning for certain programs only.
const TERMINATION: [Signal; 8] = [
    Signal::TERM,
    Signal::INT,
    Signal::HUP,
    Signal::QUIT,
    Signal::ALARM,
    Signal::VTALARM,
    Signal::PROF,
    Signal::XCPU,
];

/// Real-time signals: caught and not forwarded, since they have no common meaning. The C library
/// keeps some for itself (glibc two, musl three), which nobody can catch.
fn real_time() -> RangeInclusive<i32> {
    libc::SIGRTMIN()..=libc::SIGRTMAX()
}

/// The one that the kernel sends when a file of a watched directory is removed or renamed
/// (fcntl(2), F_NOTIFY). inotify is not used: a user has few instances of it.
fn files() -> i32 {
    libc::SIGRTMIN() + 6
}

/// From linux/fcntl.h and asm-generic/fcntl.h, which the `libc` crate lacks.
const F_SETSIG: i32 = 10;
const DN_DELETE: i32 = 0x8;
const DN_RENAME: i32 = 0x10;
const DN_MULTISHOT: i32 = 1 << 31;

/// The signals that Cloud Hypervisor catches, even if it was started with them ignored.
const CAUGHT_BY_THE_VMM: [Signal; 3] = [Signal::TERM, Signal::INT, Signal::WINCH];

/// The caught signals.
#[derive(Debug)]
pub struct Signals {
    reader: UnixStream,
    caught: Vec<(Signal, Arc<AtomicBool>)>,
    files: Arc<AtomicBool>,
}

impl Signals {
    /// Begins to catch signals.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for it.
    pub fn catch() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        let mut caught = Vec::new();
        for signal in FORWARDED {
            // For example after nohup(1): the VMM inherits that it is ignored, unless it is caught
            // here.
            if is_ignored(signal) && !CAUGHT_BY_THE_VMM.contains(&signal) {
                continue;
            }
            let came = Arc::new(AtomicBool::new(false));
            // In this order, so that the flag is set when the pipe is readable.
            flag::register(signal.as_raw(), Arc::clone(&came))?;
            pipe::register(signal.as_raw(), writer.try_clone()?)?;
            caught.push((signal, came));
        }
        let of_files = Arc::default();
        for signal in real_time() {
            let came = if signal == files() {
                Arc::clone(&of_files)
            } else {
                Arc::default()
            };
            flag::register(signal, came)?;
        }
        pipe::register(files(), writer)?;
        Ok(Self {
            reader,
            caught,
            files: of_files,
        })
    }

    /// Watches a directory: [`Signals::files_changed`] reports removed and renamed files.
    ///
    /// # Errors
    ///
    /// When the kernel does not support that.
    pub fn watch(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        let number = directory.as_raw_fd();
        let events = DN_DELETE | DN_RENAME | DN_MULTISHOT;
        // SAFETY: both calls only set attributes of an open descriptor; `catch` has installed a
        // handler for the signal.
        let failed = unsafe {
            libc::fcntl(number, F_SETSIG, files()) == -1
                || libc::fcntl(number, libc::F_NOTIFY, events) == -1
        };
        if failed {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Whether files of watched directories were removed or renamed since the last call.
    pub fn files_changed(&self) -> bool {
        self.files.swap(false, Ordering::SeqCst)
    }

    /// The signals that came since the last call.
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

/// Whether this process was started with a signal ignored.
fn is_ignored(signal: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action sigaction(2) only writes the current one, to memory of that
    // type, which is read only if the call succeeded.
    unsafe {
        libc::sigaction(signal.as_raw(), ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Whether the signal asks a process to exit.
pub fn is_termination(signal: Signal) -> bool {
    TERMINATION.contains(&signal)
}

impl AsFd for Signals {
    /// Readable when a signal has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_of_the_c_library_are_left_to_it() {
        let range = real_time();
        let bounds = (*range.start(), *range.end());
        assert_eq!(bounds, (libc::SIGRTMIN(), libc::SIGRTMAX()));
        assert!(range.contains(&files()));
    }
}
