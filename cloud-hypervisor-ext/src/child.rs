//! A child process that does not outlive this one, and whose end can be waited for by its descriptor.
#![allow(unsafe_code)] // One function runs code between fork and exec.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};

use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal,
};

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Child {
    child: std::process::Child,
    pidfd: OwnedFd,
}

/// What a child gets of this process's descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptors {
    /// Those that this process was started with too: the user may have named them in arguments (`fd=3`).
    Inherited,
    /// Standard input, output and error.
    StandardOnly,
}

impl Child {
    /// Starts a process that is sent `at_our_death` when this one dies, however it does.
    ///
    /// The kernel sends it when the thread that starts the process ends, so this is for the main thread.
    ///
    /// # Errors
    ///
    /// When it cannot be run.
    pub fn spawn(
        mut command: Command,
        at_our_death: Signal,
        descriptors: Descriptors,
    ) -> io::Result<Self> {
        let parent = getpid();
        let prepare = move || {
            set_parent_process_death_signal(Some(at_our_death))?;
            if getppid() != Some(parent) {
                // Dead already, so that no signal will come.
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            if descriptors == Descriptors::StandardOnly {
                // SAFETY: only marks descriptors, which exec then closes; none is used from here on but the one by
                // which std tells that exec failed, and that is marked already. An old kernel refuses: no harm. An
                // ignored signal has no handler that could run.
                unsafe {
                    libc::syscall(
                        libc::SYS_close_range,
                        3,
                        libc::c_uint::MAX,
                        libc::CLOSE_RANGE_CLOEXEC,
                    );
                    // In a background process group, it would stop for ever at its first message on a terminal
                    // with `stty tostop`.
                    libc::signal(libc::SIGTTOU, libc::SIG_IGN);
                }
            }
            Ok(())
        };
        // SAFETY: between fork and exec `prepare` makes system calls only (prctl, getppid, close_range, sigaction): it neither
        // allocates nor takes a lock.
        unsafe {
            command.pre_exec(prepare);
        }
        let mut child = command.spawn()?;
        let pidfd = Pid::from_raw(child.id().cast_signed())
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
        match pidfd {
            Ok(pidfd) => Ok(Self { child, pidfd }),
            Err(error) => {
                // Of no use unwatched.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, None while it runs.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Sends it a signal. To one that has just ended, nothing happens.
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(&self.pidfd, signal)
            && error != rustix::io::Errno::SRCH
        {
            log::warn!("Cannot signal process {}: {error}", self.pid());
        }
    }
}

impl AsFd for Child {
    /// Readable once it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::KILL);
            // A killed child ends.
            let _ = self.child.wait();
        }
    }
}
