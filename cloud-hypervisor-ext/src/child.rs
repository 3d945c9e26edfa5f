//! A child process that does not outlive this one, and whose end can be waited for by its descriptor.
#![allow(unsafe_code)] // One function runs code between fork and exec.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};

use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal,
};

/// The first number after standard input, output and error.
const FIRST_PASSED: RawFd = 3;

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Child {
    child: std::process::Child,
    pidfd: OwnedFd,
}

/// What a child gets of this process's descriptors.
#[derive(Clone, Debug)]
pub enum Descriptors<'a> {
    /// Those that this process was started with too: the user may have named them in arguments (`fd=3`).
    Inherited,
    /// Standard input, output and error, and these from number 3 on. Their own numbers are above
    /// all of those.
    Standard(Vec<BorrowedFd<'a>>),
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
        descriptors: Descriptors<'_>,
    ) -> io::Result<Self> {
        let parent = getpid();
        let passed: Option<Vec<RawFd>> = match &descriptors {
            Descriptors::Inherited => None,
            Descriptors::Standard(fds) => Some(fds.iter().map(AsRawFd::as_raw_fd).collect()),
        };
        let end = FIRST_PASSED + passed.as_ref().map_or(0, Vec::len) as RawFd;
        // So that no number up to there is free for the pipe by which std tells that exec failed.
        let _taken = take_numbers_below(end)?;
        let prepare = move || {
            set_parent_process_death_signal(Some(at_our_death))?;
            if getppid() != Some(parent) {
                // Dead already, so that no signal will come.
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            if let Some(passed) = &passed {
                for (number, fd) in (FIRST_PASSED..).zip(passed) {
                    // SAFETY: `fd` is open as long as `descriptors` is borrowed. What is replaced
                    // is nobody's here: a placeholder, or something that is not for this child.
                    if unsafe { libc::dup2(*fd, number) } < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                // SAFETY: only marks descriptors, which exec then closes; none is used from here on but the one by
                // which std tells that exec failed, and that is marked already. An old kernel refuses: no harm.
                unsafe {
                    libc::syscall(
                        libc::SYS_close_range,
                        end,
                        libc::c_uint::MAX,
                        libc::CLOSE_RANGE_CLOEXEC,
                    );
                }
            }
            // The VMM gets what this process was started with; a port ignores them itself.
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
