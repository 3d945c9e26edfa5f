//! Removed and renamed files of watched directories, reported by a signal: fcntl(2), `F_NOTIFY`.
//!
//! inotify would report which file it was, but a user has few instances of it (often 128), and each
//! port would need one. A signal is enough: whoever gets it looks at the few files that matter to
//! it.

#![allow(
    unsafe_code,
    reason = "no safe wrapper exists for F_NOTIFY, F_SETOWN_EX and signalfd"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::fs::{Mode, OFlags, openat};

/// The signal. Not a real-time signal: the kernel keeps at most one of it pending, and needs no
/// memory of the user's `RLIMIT_SIGPENDING` for it.
const SIGNAL: i32 = libc::SIGIO;

/// From linux/fcntl.h and asm-generic/fcntl.h, which the `libc` crate lacks for some targets.
const F_SETOWN_EX: i32 = 15;
const F_OWNER_TID: i32 = 0;
const DN_DELETE: i32 = 0x8;
const DN_RENAME: i32 = 0x10;
const DN_MULTISHOT: i32 = 1 << 31;

/// struct f_owner_ex.
#[repr(C)]
struct OwnerEx {
    kind: i32,
    pid: libc::pid_t,
}

/// Readable, for the thread that created it, after a file of a watched directory was removed or
/// renamed, and until [`DirNotify::clear`].
///
/// While nobody clears it, further changes cost the kernel next to nothing and this process
/// nothing.
#[derive(Debug)]
pub struct DirNotify {
    signals: OwnedFd,
}

impl DirNotify {
    /// Blocks SIGIO in the calling thread, and in those that it starts from now on: the signal is
    /// read, not delivered.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for it.
    pub fn new() -> io::Result<DirNotify> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initializes the set, to which sigaddset adds a valid signal;
        // pthread_sigmask and signalfd read it only. Blocking a signal breaks no invariant of safe
        // code. signalfd returns a new descriptor, which nothing else owns.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), SIGNAL);
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd == -1 {
                return Err(io::Error::last_os_error());
            }
            Ok(DirNotify {
                signals: OwnedFd::from_raw_fd(fd),
            })
        }
    }

    /// Watches a directory for as long as the descriptor that it returns is open. Call it in the
    /// thread that called [`DirNotify::new`]: only this thread is notified.
    ///
    /// The descriptor is an open file of its own. The kernel ends a watch when the process closes
    /// any duplicate of the watched one, as it does with locks of fcntl(2): do not duplicate it.
    ///
    /// # Errors
    ///
    /// `EPERM` in a thread that does not block SIGIO, whose default action is to end the process;
    /// `EINVAL` where the kernel lacks `F_NOTIFY` or the sysctl `fs.dir-notify-enable` is 0.
    pub fn watch(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        if !is_blocked() {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let watched = openat(directory, ".", flags, Mode::empty())?;
        let number = watched.as_raw_fd();
        let owner = OwnerEx {
            kind: F_OWNER_TID,
            pid: rustix::thread::gettid().as_raw_nonzero().get(),
        };
        let events = DN_DELETE | DN_RENAME | DN_MULTISHOT;
        // The owner first: F_NOTIFY keeps one that is set, and sets the process otherwise, of which
        // another thread may not block the signal. SAFETY: `watched` is open until it is returned.
        // F_SETOWN_EX reads a struct f_owner_ex, as which `owner` is laid out. Both only set whom
        // the kernel sends which signal, and the thread named blocks it.
        let failed = unsafe {
            libc::fcntl(number, F_SETOWN_EX, &raw const owner) == -1
                || libc::fcntl(number, libc::F_NOTIFY, events) == -1
        };
        if failed {
            return Err(io::Error::last_os_error());
        }
        Ok(watched)
    }

    /// Forgets the changes so far.
    pub fn clear(&self) {
        // One struct signalfd_siginfo, of 128 bytes; one of each signal is pending at most, for
        // this thread and for the process.
        let mut info = [0; 128];
        while matches!(rustix::io::read(&self.signals, &mut info), Ok(1..)) {}
    }
}

/// Whether the calling thread blocks the signal.
fn is_blocked() -> bool {
    let mut set = MaybeUninit::uninit();
    // SAFETY: without a new set, pthread_sigmask only writes the present one, to memory of that
    // type, and sigismember reads it if it was written.
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), set.as_mut_ptr()) == 0
            && libc::sigismember(set.as_ptr(), SIGNAL) == 1
    }
}

impl AsFd for DirNotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::thread;

    use tempfile::{TempDir, tempdir};

    use super::*;
    use crate::{Epoll, Timeout};

    /// A watched directory with a file.
    fn watched() -> (DirNotify, TempDir, OwnedFd) {
        let (notify, temp) = (DirNotify::new().unwrap(), tempdir().unwrap());
        let directory = File::open(temp.path()).unwrap();
        let watch = DirNotify::watch(directory.as_fd()).unwrap();
        fs::write(temp.path().join("a"), "").unwrap();
        (notify, temp, watch)
    }

    fn is_readable(notify: &DirNotify) -> bool {
        let epoll = Epoll::new().unwrap();
        epoll.add(notify, 1).unwrap();
        epoll.wait::<1>(Timeout::Now).unwrap().count() == 1
    }

    #[test]
    fn dir_notify_reports_removed_and_renamed_files_until_cleared() {
        let (notify, temp, watch) = watched();
        assert!(!is_readable(&notify), "a new file is no reason");
        let (a, b) = (temp.path().join("a"), temp.path().join("b"));
        for _ in 0..1000 {
            fs::rename(&a, &b).unwrap();
            fs::rename(&b, &a).unwrap();
        }
        assert!(is_readable(&notify));
        notify.clear();
        assert!(!is_readable(&notify));
        fs::remove_file(&a).unwrap();
        assert!(is_readable(&notify));
        notify.clear();
        drop(watch);
        fs::write(&a, "").unwrap();
        fs::remove_file(&a).unwrap();
        assert!(!is_readable(&notify), "the watch outlives its descriptor");
    }

    /// The kernel ends a watch with any duplicate of its descriptor.
    #[test]
    fn dir_notify_outlives_duplicates_of_the_directorys_descriptor() {
        let (notify, temp) = (DirNotify::new().unwrap(), tempdir().unwrap());
        let directory = File::open(temp.path()).unwrap();
        let _watch = DirNotify::watch(directory.as_fd()).unwrap();
        drop(directory.try_clone().unwrap());
        fs::write(temp.path().join("a"), "").unwrap();
        fs::remove_file(temp.path().join("a")).unwrap();
        assert!(is_readable(&notify));
    }

    /// A thread that was there before, and does not block the signal, would end the process.
    #[test]
    fn dir_notify_goes_to_the_thread_that_watches() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let bystander = thread::spawn(move || stopped.recv());
        let (notify, temp, _watch) = watched();
        fs::remove_file(temp.path().join("a")).unwrap();
        assert!(is_readable(&notify));
        drop(stop);
        bystander.join().unwrap().unwrap_err();
    }

    #[test]
    fn dir_notify_refuses_threads_that_do_not_block_the_signal() {
        let temp = tempdir().unwrap();
        let directory = File::open(temp.path()).unwrap();
        let result = thread::spawn(move || DirNotify::watch(directory.as_fd())).join();
        let error = result.unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
}
