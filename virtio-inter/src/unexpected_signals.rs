//! Signals that have no meaning to a port but kill a process by default. The port logs them, and
//! continues or shuts down in good order.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use log::Level;
use rustix::process::Signal;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use signal_hook::low_level::signal_name;
use virtio_inter_common::{LogLimit, log_limited};

/// These end the port. Their senders want the process to end, at once or at some time: Ctrl-\,
/// alarm(2) and setitimer(2) before the port was executed, RLIMIT_CPU.
const FATAL: [Signal; 5] = [
    Signal::QUIT,
    Signal::ALARM,
    Signal::VTALARM,
    Signal::PROF,
    Signal::XCPU,
];

/// These are ignored. Their senders mistake the port for another program, for which the guest must
/// not lose its network.
const IGNORED: [Signal; 5] = [
    Signal::USR1,
    Signal::USR2,
    Signal::IO,
    Signal::POWER,
    Signal::STKFLT,
];

/// Ignored like [`IGNORED`]. The C library keeps some for itself (glibc two, musl three), which
/// nobody can catch.
fn real_time() -> RangeInclusive<i32> {
    libc::SIGRTMIN()..=libc::SIGRTMAX()
}

static LOGGED: LogLimit = LogLimit::new(Duration::from_secs(10), 5);

/// Readable when such a signal came.
#[derive(Debug)]
pub struct UnexpectedSignals(SignalDelivery<UnixStream, SignalOnly>);

impl UnexpectedSignals {
    /// Begins to catch the signals, except those that this process was started to ignore.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for it.
    pub fn catch() -> io::Result<Self> {
        let ignored = ignored_signals().unwrap_or(0);
        let named = FATAL.iter().chain(&IGNORED).map(|signal| signal.as_raw());
        let caught = named
            .chain(real_time())
            .filter(|signal| ignored & 1 << (signal - 1) == 0);
        let (reader, writer) = UnixStream::pair()?;
        SignalDelivery::with_pipe(reader, writer, SignalOnly, caught).map(Self)
    }

    /// Logs the signals that came. Returns the reason for the port to end, if one of them is fatal.
    pub fn process(&mut self) -> Option<String> {
        let mut reason = None;
        for number in self.0.pending() {
            let name = name(number);
            if number == Signal::XCPU.as_raw() {
                reason = Some(format!(
                    "{name}: all CPU time that RLIMIT_CPU or RLIMIT_RTTIME allows is used"
                ));
            } else if FATAL.iter().any(|signal| signal.as_raw() == number) {
                reason = Some(format!("{name} was sent to this port"));
            } else {
                log_limited!(
                    LOGGED,
                    Level::Warn,
                    "{name} is ignored: it means nothing to a port"
                );
            }
        }
        reason
    }
}

impl AsFd for UnexpectedSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }
}

fn name(number: i32) -> String {
    match Signal::from_named_raw(number) {
        Some(Signal::POWER) => "SIGPWR".to_owned(),
        Some(Signal::STKFLT) => "SIGSTKFLT".to_owned(),
        _ => signal_name(number).map_or_else(|| format!("Signal {number}"), str::to_owned),
    }
}

/// The signals that this process ignores, a bit each from signal 1 on (proc_pid_status(5)).
fn ignored_signals() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_of_the_c_library_are_left_to_it() {
        let range = real_time();
        let bounds = (*range.start(), *range.end());
        assert_eq!(bounds, (libc::SIGRTMIN(), libc::SIGRTMAX()));
        assert!(UnexpectedSignals::catch().is_ok());
    }
}
