//! Signals that are not for the supervisor but for the VM: caught here, to be sent on. And one that
//! the kernel sends when files are removed.
#![allow(unsafe_code)] // One function asks the kernel what is ignored, one for that signal.

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

/// Signals that ask something of a process, and those that would end this one, and with it the VM, without a word.
/// Those of a terminal among them reach the VMM by themselves too: it handles them alike the second time.
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

/// Those of them that end a process by default and are sent for that. Others mean something to certain programs only.
const ENDING: [Signal; 8] = [
    Signal::TERM,
    Signal::INT,
    Signal::HUP,
    Signal::QUIT,
    Signal::ALARM,
    Signal::VTALARM,
    Signal::PROF,
    Signal::XCPU,
];

/// Real-time signals: caught and not forwarded, as they mean nothing to a program that does not know
/// them. The C library has some for itself, which it lets nobody catch: how many is its own affair
/// (glibc two, musl three).
fn real_time() -> RangeInclusive<i32> {
    libc::SIGRTMIN()..=libc::SIGRTMAX()
}

/// Of these, what the kernel sends when a file of a watched directory is removed or renamed:
/// fcntl(2), F_NOTIFY. A user has few inotify instances, and each port needs one.
fn files() -> i32 {
    libc::SIGRTMIN() + 6
}

/// From linux/fcntl.h and asm-generic/fcntl.h, which the `libc` crate lacks.
const F_SETSIG: i32 = 10;
const DN_DELETE: i32 = 0x8;
const DN_RENAME: i32 = 0x10;
const DN_MULTISHOT: i32 = 1 << 31;

/// Those that Cloud Hypervisor catches, whether they were ignored or not.
const CAUGHT_BY_THE_VMM: [Signal; 3] = [Signal::TERM, Signal::INT, Signal::WINCH];

/// Catches signals from its making on.
#[derive(Debug)]
pub struct Signals {
    reader: UnixStream,
    caught: Vec<(Signal, Arc<AtomicBool>)>,
    files: Arc<AtomicBool>,
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
            // As after nohup(1): the VMM is to ignore it too, and does as long as it is not caught here.
            if is_ignored(signal) && !CAUGHT_BY_THE_VMM.contains(&signal) {
                continue;
            }
            let came = Arc::new(AtomicBool::new(false));
            // In this order: whoever reads the pipe finds the flag set.
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

    /// Has the removal and renaming of files in a directory be an event:
    /// [`Signals::files_changed`].
    ///
    /// # Errors
    ///
    /// When the kernel does not support that.
    pub fn watch(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        let number = directory.as_raw_fd();
        let events = DN_DELETE | DN_RENAME | DN_MULTISHOT;
        // SAFETY: both only set what the kernel does with an open descriptor; the signal has a
        // handler, which `catch` has installed.
        let failed = unsafe {
            libc::fcntl(number, F_SETSIG, files()) == -1
                || libc::fcntl(number, libc::F_NOTIFY, events) == -1
        };
        if failed {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Whether that happened since the last call.
    pub fn files_changed(&self) -> bool {
        self.files.swap(false, Ordering::SeqCst)
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

/// Whether this process was told to ignore a signal, by whoever started it.
fn is_ignored(signal: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action sigaction(2) only writes the present one, to memory of that type; it is read if
    // the call says that it was written.
    unsafe {
        libc::sigaction(signal.as_raw(), ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Whether the process that gets it is to end.
pub fn asks_for_the_end(signal: Signal) -> bool {
    ENDING.contains(&signal)
}

impl AsFd for Signals {
    /// Readable when there are some.
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
