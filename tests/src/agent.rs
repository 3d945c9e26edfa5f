//! The host's end of the agent: the line over which commands run in a guest.

use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use virtio_inter_agent::{FrameReader, Kind, MAX_PAYLOAD_TO_GUEST};

use crate::{Result, deadline};

mod channel;
mod job;
mod shared;

pub(crate) use channel::Channel;
use channel::Incoming;
pub use job::{Job, Output};
use shared::{JobState, Shared};

/// The line to a guest's agent.
pub(crate) struct Agent {
    shared: Arc<Shared>,
}

impl Agent {
    /// Takes over the near end of the guest's channel.
    pub(crate) fn new(channel: Channel) -> Self {
        let shared = Arc::new(Shared {
            writer: Mutex::new(channel.to_guest),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let reading = Arc::clone(&shared);
        let mut reader = FrameReader::new(Incoming {
            current: channel.from_guest,
            shared: Arc::clone(&shared),
        });
        thread::spawn(move || {
            while let Ok(Some(frame)) = reader.next_frame() {
                reading.state().take(frame);
                reading.changed.notify_all();
            }
        });
        Self { shared }
    }

    /// Reads from `successor` once the present stream ends, so that its end is not taken for the
    /// guest's. None: there is no successor after all.
    pub(crate) fn expect(&self, successor: Option<File>) {
        self.shared.state().successor = successor;
        self.shared.changed.notify_all();
    }

    /// From now on the guest is talked to over another stream: it is in another process.
    pub(crate) fn switch(&self, to_guest: File) {
        let mut writer = self
            .shared
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *writer = to_guest;
        // Waits for no frame that the former stream may have lost.
        self.shared.state().untaken = 0;
        self.shared.changed.notify_all();
    }

    /// Times that the guest booted.
    pub(crate) fn boots(&self) -> u32 {
        self.shared.state().boots
    }

    /// The kernel's release, once the guest is ready.
    pub(crate) fn release(&self) -> String {
        self.shared.state().release.clone()
    }

    /// Waits until the guest has booted `count` times.
    pub(crate) fn wait_for_boot(&self, count: u32, limit: Duration) -> Result<()> {
        let within = deadline::cut(limit);
        self.shared
            .wait(within, |state| {
                if state.boots >= count {
                    Some(Ok(()))
                } else {
                    state
                        .is_closed
                        .then(|| Err(anyhow!("The machine ended before it was ready")))
                }
            })
            .ok_or_else(|| {
                let within = deadline::describe(limit, within);
                anyhow!("The guest was not ready within {within}")
            })?
    }

    /// Starts a command in the guest.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Result<Job> {
        let name = arguments.join(" ");
        ensure!(
            !arguments.is_empty() && !name.contains('\0'),
            "Not a command: {name:?}"
        );
        let mut payload = Vec::new();
        for argument in arguments {
            payload.extend_from_slice(argument.as_bytes());
            payload.push(0);
        }
        ensure!(
            payload.len() <= MAX_PAYLOAD_TO_GUEST,
            "Too long for a command: {name}"
        );
        let number = {
            let mut state = self.shared.state();
            ensure!(!state.is_closed, "The guest's machine ended");
            state.last_job += 1;
            let number = state.last_job;
            state.jobs.insert(number, JobState::default());
            number
        };
        let job = Job {
            shared: Arc::clone(&self.shared),
            number,
            name,
        };
        self.shared
            .send(Kind::Spawn, number, &payload)
            .with_context(|| format!("Starting `{}`", job.name))?;
        Ok(job)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shared.state().is_given_up = true;
        self.shared.changed.notify_all();
    }
}
