//! Waits for a process that holds what this one needs and is on its way out.
//!
//! A supervisor may start a port right after the former one was killed, while the kernel still
//! tears that down. Its successor takes over as soon as it is gone, instead of complaining and
//! being started again and again. A port that is there to stay is reported at once.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use log::info;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_inter_segment::JoinError;

use crate::signals::Signals;
use crate::socket::SocketError;

/// Time for a predecessor to end. One with much memory to give back takes some seconds on a busy
/// machine.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time between two attempts.
const PAUSE: Duration = Duration::from_millis(20);
/// Attempts that have to find a holder that stays: one that was just killed may show it a moment
/// later.
const LOOKS: usize = 3;

/// Why something cannot be had.
pub(crate) trait Occupied {
    /// Whether the process that has it is there to stay; `None` if it is not about that.
    fn holder_stays(&self) -> Option<bool>;
}

impl Occupied for SocketError {
    fn holder_stays(&self) -> Option<bool> {
        match self {
            SocketError::InUse { stays, .. } | SocketError::Foreign { stays, .. } => Some(*stays),
            _ => None,
        }
    }
}

impl Occupied for JoinError {
    fn holder_stays(&self) -> Option<bool> {
        match self {
            JoinError::IdTaken { stays, .. } => Some(*stays),
            _ => None,
        }
    }
}

/// How long a port waits for its predecessor, for all that it needs together.
#[derive(Debug)]
pub(crate) struct Predecessor<'a> {
    signals: &'a Signals,
    started: Instant,
}

impl<'a> Predecessor<'a> {
    /// Waits from here on, but no longer than until a signal asks for the end.
    pub(crate) fn new(signals: &'a Signals) -> Self {
        Self {
            signals,
            started: Instant::now(),
        }
    }

    /// Tries to take something, again and again while its holder is on its way out; None: a signal
    /// came first.
    ///
    /// # Errors
    ///
    /// Those of the attempt.
    pub(crate) fn outwait<T, E>(
        &self,
        mut attempt: impl FnMut() -> Result<T, E>,
    ) -> anyhow::Result<Option<T>>
    where
        E: Occupied + std::error::Error + Send + Sync + 'static,
    {
        let (mut looks, mut told) = (0, false);
        loop {
            let error = match attempt() {
                Ok(taken) => return Ok(Some(taken)),
                Err(error) => error,
            };
            match error.holder_stays() {
                None => return Err(error.into()),
                Some(true) => {
                    looks += 1;
                    if looks == LOOKS {
                        return Err(error.into());
                    }
                }
                Some(false) if self.started.elapsed() < PATIENCE => {
                    looks = 0;
                    if !told {
                        info!("{error}; waiting for its end");
                        told = true;
                    }
                }
                Some(false) => {
                    return Err(anyhow!(error)).with_context(|| {
                        format!("Waited {} s for a process to end", PATIENCE.as_secs())
                    });
                }
            }
            if self.signalled()? {
                return Ok(None);
            }
        }
    }

    /// Pauses; whether a signal came.
    fn signalled(&self) -> anyhow::Result<bool> {
        let pause = Timespec {
            tv_sec: 0,
            tv_nsec: PAUSE.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(self.signals, PollFlags::IN)];
        match poll(&mut fds, Some(&pause)) {
            Ok(count) => Ok(count > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error).context("Cannot wait for a process to end"),
        }
    }
}
