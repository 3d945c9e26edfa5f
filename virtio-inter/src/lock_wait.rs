//! Waits for a lock or socket whose holder is exiting.
//!
//! A supervisor may start a port right after the former one was killed, while the kernel still
//! tears that process down. The new port then waits until the former one is gone, instead of
//! failing and being started again and again. A holder that keeps running is reported at once.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use log::info;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_inter_segment::JoinError;

use crate::shutdown_signals::{EarlySignals, ShutdownSignals};
use crate::socket::SocketError;

/// Maximum time for the holder to exit. A process with much memory takes some seconds on a busy
/// machine.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// Attempts in a row that must find a running holder: a process that was just killed may look
/// alive for a moment.
const CONFIRMATIONS: usize = 3;

/// An error that may name a process as the holder of a resource.
pub(crate) trait HeldBy {
    /// Whether that process keeps running; `None` if the error is a different one.
    fn holder_stays(&self) -> Option<bool>;
}

impl HeldBy for SocketError {
    fn holder_stays(&self) -> Option<bool> {
        match self {
            SocketError::InUse { stays, .. } | SocketError::Foreign { stays, .. } => Some(*stays),
            _ => None,
        }
    }
}

impl HeldBy for JoinError {
    fn holder_stays(&self) -> Option<bool> {
        match self {
            JoinError::IdTaken { stays, .. } => Some(*stays),
            _ => None,
        }
    }
}

/// One waiting period, shared by all resources that a port acquires at its start.
#[derive(Debug)]
pub(crate) struct LockWait<'a> {
    signals: Signals<'a>,
    started: Instant,
}

/// What ends the waiting period.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Signals<'a> {
    /// A signal that the thread for signals has caught.
    Caught(&'a ShutdownSignals),
    /// One that came before there is that thread.
    Early(&'a EarlySignals),
}

impl<'a> LockWait<'a> {
    /// Starts the waiting period. A shutdown signal ends it.
    pub(crate) fn new(signals: Signals<'a>) -> Self {
        Self {
            signals,
            started: Instant::now(),
        }
    }

    /// Repeats `attempt` while the holder of the resource is exiting. Returns `None` if a signal
    /// came first.
    ///
    /// # Errors
    /// The errors of the attempt.
    pub(crate) fn acquire<T, E>(
        &self,
        mut attempt: impl FnMut() -> Result<T, E>,
    ) -> anyhow::Result<Option<T>>
    where
        E: HeldBy + std::error::Error + Send + Sync + 'static,
    {
        let (mut confirmations, mut logged) = (0, false);
        loop {
            let error = match attempt() {
                Ok(taken) => return Ok(Some(taken)),
                Err(error) => error,
            };
            match error.holder_stays() {
                None => return Err(error.into()),
                Some(true) => {
                    confirmations += 1;
                    if confirmations == CONFIRMATIONS {
                        return Err(error.into());
                    }
                }
                Some(false) if self.started.elapsed() < TIMEOUT => {
                    confirmations = 0;
                    if !logged {
                        info!("{error}; waiting for its end");
                        logged = true;
                    }
                }
                Some(false) => {
                    return Err(anyhow!(error)).with_context(|| {
                        format!("Waited {} s for a process to end", TIMEOUT.as_secs())
                    });
                }
            }
            if self.signalled()? {
                return Ok(None);
            }
        }
    }

    /// Waits for the retry interval. Returns true if a signal came.
    fn signalled(&self) -> anyhow::Result<bool> {
        let interval = Timespec {
            tv_sec: 0,
            tv_nsec: RETRY_INTERVAL.subsec_nanos().into(),
        };
        let mut fds = match self.signals {
            Signals::Caught(signals) => vec![PollFd::new(signals, PollFlags::IN)],
            Signals::Early(_) => Vec::new(),
        };
        let caught = match poll(&mut fds, Some(&interval)) {
            Ok(count) => count > 0,
            Err(rustix::io::Errno::INTR) => false,
            Err(error) => return Err(error).context("Cannot wait for a process to end"),
        };
        Ok(caught || matches!(self.signals, Signals::Early(signals) if signals.came()))
    }
}
