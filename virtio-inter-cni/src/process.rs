//! A process that a later process can name, and end, without ending another one.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::Child;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::error::{Error, PORT};

/// Time from SIGTERM to SIGKILL, and from there to giving up.
const EXIT_TIMEOUT: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// A process, of which no other one has both numbers until the host is booted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pid: i32,
    /// When it was started, in the kernel's ticks since the boot.
    started: u64,
}

impl Process {
    /// A child of this process, which nobody has waited for.
    pub(crate) fn of(child: &Child) -> Option<Self> {
        let pid = child.id().cast_signed();
        let started = started(pid)?;
        Some(Self { pid, started })
    }

    /// Its number.
    pub(crate) fn pid(self) -> i32 {
        self.pid
    }

    /// Ends it, if it runs.
    pub(crate) fn end(self) -> Result<(), Error> {
        let failed = |error: Errno| {
            let message = format!("Cannot end the port, process {}: {error}", self.pid);
            Error::new(PORT, message)
        };
        let Some(process) = self.open().map_err(failed)? else {
            return Ok(());
        };
        for signal in [Signal::TERM, Signal::KILL] {
            match pidfd_send_signal(&process, signal) {
                Err(Errno::SRCH) => return Ok(()),
                sent => sent.map_err(failed)?,
            }
            let mut ended = [PollFd::new(&process, PollFlags::IN)];
            if poll(&mut ended, Some(&EXIT_TIMEOUT)).map_err(failed)? > 0 {
                return Ok(());
            }
        }
        let message = format!("The port, process {}, does not end", self.pid);
        Err(Error::new(PORT, message))
    }

    /// A descriptor of it; `None` if it has ended, whatever process has its number now.
    fn open(self) -> Result<Option<OwnedFd>, Errno> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(None),
            process => process?,
        };
        // Only then: the descriptor's process may be a later one, but it stays the same.
        let is_it = started(self.pid) == Some(self.started);
        Ok(is_it.then_some(process))
    }
}

/// When a process was started, by its `stat` (proc(5)).
fn started(pid: i32) -> Option<u64> {
    /// Fields between the name, which may contain anything, and the one that is wanted.
    const BETWEEN: usize = 19;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(BETWEEN)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("1000").spawn().unwrap()
    }

    #[test]
    fn process_is_ended_if_it_is_the_one_that_was_started() {
        let mut child = sleeper();
        Process::of(&child).unwrap().end().unwrap();
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn process_that_has_the_number_of_another_is_left_alone() {
        let mut child = sleeper();
        let mut other = Process::of(&child).unwrap();
        other.started -= 1;
        other.end().unwrap();
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
