//! State of a guest and its commands: the guest's frames fill it, and callers wait for it.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use virtio_inter_agent::{Frame, HEADER_LEN, Kind, WINDOW, write_frame};

use crate::Result;

/// How long a guest may take no frame before it counts as hung.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// How a command ended.
#[derive(Clone, Debug)]
pub(super) enum End {
    Exited { code: i32, signal: i32 },
    Failed(String),
}

#[derive(Default)]
pub(super) struct JobState {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) end: Option<End>,
}

#[derive(Default)]
pub(super) struct State {
    /// Times that the guest said that it is ready.
    pub(super) boots: u32,
    pub(super) release: String,
    pub(super) is_closed: bool,
    /// The stream to read from when the present stream ends.
    pub(super) successor: Option<File>,
    /// Nobody has the agent any more.
    pub(super) is_given_up: bool,
    pub(super) last_job: u32,
    /// Bytes sent that the guest has not said to have taken.
    pub(super) untaken: usize,
    pub(super) jobs: HashMap<u32, JobState>,
}

impl State {
    /// Ends all commands: whoever ran them is no more.
    pub(super) fn end_all(&mut self, why: &str) {
        for job in self.jobs.values_mut().filter(|job| job.end.is_none()) {
            job.end = Some(End::Failed(why.to_owned()));
        }
    }

    pub(super) fn take(&mut self, frame: Frame) {
        let Frame { kind, job, payload } = frame;
        if kind == Kind::Ready {
            self.end_all("The guest booted again");
            self.boots += 1;
            self.untaken = 0;
            self.release = String::from_utf8_lossy(&payload).into_owned();
            return;
        }
        let word = |at: usize| {
            let bytes = payload
                .get(at..at + 4)
                .and_then(|word| word.try_into().ok());
            bytes.map_or(-1, i32::from_le_bytes)
        };
        if kind == Kind::Taken {
            self.untaken = self
                .untaken
                .saturating_sub(usize::try_from(word(0)).unwrap_or(0));
            return;
        }
        // A job that its owner gave up is unknown.
        let Some(job) = self.jobs.get_mut(&job) else {
            return;
        };
        match kind {
            Kind::Stdout => job.stdout.extend(payload),
            Kind::Stderr => job.stderr.extend(payload),
            Kind::Exit => {
                job.end = Some(End::Exited {
                    code: word(0),
                    signal: word(4),
                });
            }
            Kind::SpawnFailed => {
                job.end = Some(End::Failed(String::from_utf8_lossy(&payload).into_owned()));
            }
            Kind::Ready | Kind::Spawn | Kind::Stdin | Kind::Signal | Kind::Taken => {}
        }
    }
}

pub(super) struct Shared {
    pub(super) writer: Mutex<File>,
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a frame, as soon as the guest has room for it.
    pub(super) fn send(&self, kind: Kind, job: u32, payload: &[u8]) -> Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let len = HEADER_LEN + payload.len();
        self.wait(WRITE_LIMIT, |state| {
            if state.untaken + len <= WINDOW {
                state.untaken += len;
                return Some(true);
            }
            state.is_closed.then_some(false)
        })
        .filter(|open| *open)
        .context("The guest takes nothing")?;
        Ok(write_frame(&mut *writer, kind, job, payload)?)
    }

    /// Waits until `look` finds something, at most for `limit`.
    pub(super) fn wait<T>(
        &self,
        limit: Duration,
        mut look: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let start = Instant::now();
        let mut state = self.state();
        loop {
            if let Some(found) = look(&mut state) {
                return Some(found);
            }
            let left = limit.checked_sub(start.elapsed())?;
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
