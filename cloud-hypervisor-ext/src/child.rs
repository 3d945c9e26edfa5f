//! A child process that does not outlive this one, with a descriptor to poll for its end.
#![allow(unsafe_code)] // One function runs code between fork and exec, one takes over a descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal,
};

/// The first number after standard input, output and error.
const FIRST_PASSED: RawFd = 3;

/// The first number of descriptors that are kept for ports: above those that a child gets.
const FIRST_CLAIMED: RawFd = 64;

/// Takes over a descriptor with which this process was started, so that children do not inherit it;
/// None if it is not open.
pub fn claim(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: only for this call, which fails for a number that is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let claimed = fcntl_dupfd_cloexec(fd, FIRST_CLAIMED).ok()?;
    fcntl_setfd(fd, FdFlags::CLOEXEC).ok()?;
    Some(claimed)
}

/// The numbers that descriptors of [`Descriptors::Standard`] have in the child.
pub fn passed_numbers() -> impl Iterator<Item = RawFd> {
    FIRST_PASSED..
}

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Child {
    child: std::process::Child,
    pidfd: OwnedFd,
}

/// The descriptors of this process that a child inherits.
#[derive(Clone, Debug)]
pub enum Descriptors<'a> {
    /// Those that this process inherited itself: the user may name them in arguments (`fd=3`).
    Inherited,
    /// Standard input, output and error, and these from number 3 on. Their numbers here are higher.
    Standard(Vec<BorrowedFd<'a>>),
}

impl Child {
    /// Starts a process that gets the signal `at_our_death` when this process dies for any reason.
    /// The kernel sends the signal when the thread that called this ends, so only the main thread
    /// may call it.
    ///
    /// # Errors
    ///
    /// When it cannot be run.
    pub fn spawn(
        mut command: Command,
        at_our_death: Signal,
        descriptors: Descriptors<'_>,
    ) -> io::Result<Self> {
        let parent = getpid();
        let passed: Option<Vec<RawFd>> = match &descriptors {
            Descriptors::Inherited => None,
            Descriptors::Standard(fds) => Some(fds.iter().map(AsRawFd::as_raw_fd).collect()),
        };
        let end = FIRST_PASSED + passed.as_ref().map_or(0, Vec::len) as RawFd;
        // No number below `end` may be free for the pipe through which std reports that exec
        // failed.
        let _taken = take_numbers_below(end)?;
        let prepare = move || {
            set_parent_process_death_signal(Some(at_our_death))?;
            if getppid() != Some(parent) {
                // The parent has died already, so the signal will not come.
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            if let Some(passed) = &passed {
                for (number, fd) in (FIRST_PASSED..).zip(passed) {
                    // SAFETY: `fd` is open as long as `descriptors` is borrowed. The descriptor
                    // that is replaced in this child is a placeholder, or not meant for it.
                    if unsafe { libc::dup2(*fd, number) } < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                // SAFETY: only marks descriptors, which exec then closes. None is used from here on
                // but the one through which std reports that exec failed, and that is marked
                // already. An old kernel returns an error, which is harmless.
                unsafe {
                    libc::syscall(
                        libc::SYS_close_range,
                        end,
                        libc::c_uint::MAX,
                        libc::CLOSE_RANGE_CLOEXEC,
                    );
                }
            }
            // The VMM gets the signal actions that this process inherited; a port ignores signals
            // itself.
            virtio_inter_log::restore_signals();
            Ok(())
        };
        // SAFETY: between fork and exec `prepare` makes system calls only (prctl, getppid, dup2,
        // close_range, sigaction): it neither allocates nor takes a lock.
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
                // It cannot be watched.
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

    /// Its exit status; `None` while it runs.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Sends it a signal, which has no effect if it has just ended.
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(&self.pidfd, signal)
            && error != rustix::io::Errno::SRCH
        {
            log::warn!("Cannot signal process {}: {error}", self.pid());
        }
    }
}

/// Opens placeholders for all free numbers below `end`.
fn take_numbers_below(end: RawFd) -> io::Result<Vec<File>> {
    let mut taken = Vec::new();
    if end == FIRST_PASSED {
        return Ok(taken);
    }
    loop {
        let placeholder = File::open("/dev/null")?;
        if placeholder.as_raw_fd() >= end {
            return Ok(taken);
        }
        taken.push(placeholder);
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
