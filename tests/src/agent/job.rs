//! A command in a guest: its input, output and end.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;
use virtio_inter_agent::{Kind, MAX_PAYLOAD_TO_GUEST};

use super::shared::{End, JobState, Shared};
use crate::{Result, deadline, dump};

/// How long a killed command may take to end. In a guest that is paused it does not.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Result of a finished command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Whether it exited with 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}

/// A command in a guest, killed when dropped, and gone then.
pub struct Job {
    pub(super) shared: Arc<Shared>,
    pub(super) number: u32,
    pub(super) name: String,
}

impl Job {
    /// Waits for the command's end, not beyond the test's own limit.
    ///
    /// # Errors
    ///
    /// A command that cannot be started or runs for longer than `limit`, a guest that is gone.
    pub fn wait(&mut self, limit: Duration) -> Result<Output> {
        let within = deadline::cut(limit);
        let end = self.shared.wait(within, |state| {
            let job = state.jobs.get(&self.number)?;
            let end = job.end.clone()?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Some((end, text(&job.stdout), text(&job.stderr)))
        });
        match end {
            Some((End::Exited { code, signal }, stdout, stderr)) => Ok(Output {
                code: (signal == 0).then_some(code),
                signal: (signal != 0).then_some(signal),
                stdout,
                stderr,
            }),
            Some((End::Failed(why), ..)) => bail!("`{}`: {why}", self.name),
            None => {
                dump::tell_all(&format!("waiting for the end of `{}`", self.name));
                bail!(
                    "`{}` ran for more than {}; it wrote:\n{}",
                    self.name,
                    deadline::describe(limit, within),
                    self.stdout()
                )
            }
        }
    }

    /// Waits for the command's end for up to `limit`; none if it still runs.
    ///
    /// # Errors
    ///
    /// A command that cannot be started, a guest that is gone.
    pub(crate) fn wait_for_end(&mut self, limit: Duration) -> Result<Option<Output>> {
        let ended = self.shared.wait(limit, |state| {
            let job = state.jobs.get(&self.number)?;
            job.end.is_some().then_some(())
        });
        ended.map(|()| self.wait(Duration::ZERO)).transpose()
    }

    /// Waits for `text` on the command's standard output or standard error.
    ///
    /// # Errors
    ///
    /// No such text within `limit`, or a command that ends without it.
    pub fn wait_for_output(&mut self, text: &str, limit: Duration) -> Result<()> {
        let contains = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(text);
        let within = deadline::cut(limit);
        let found = self.shared.wait(within, |state| {
            let job = state.jobs.get(&self.number)?;
            if contains(&job.stdout) || contains(&job.stderr) {
                return Some(true);
            }
            job.end.is_some().then_some(false)
        });
        if found == Some(true) {
            return Ok(());
        }
        let why = if found.is_none() {
            dump::tell_all(&format!("waiting for \"{text}\" from `{}`", self.name));
            "did not write"
        } else {
            "ended without"
        };
        bail!(
            "`{}` {why} \"{text}\" ({}):\n{}{}",
            self.name,
            deadline::describe(limit, within),
            self.stdout(),
            self.stderr()
        )
    }

    /// The command's standard output so far.
    pub fn stdout(&self) -> String {
        self.text(|job| &job.stdout)
    }

    /// The command's standard error so far.
    pub fn stderr(&self) -> String {
        self.text(|job| &job.stderr)
    }

    fn text(&self, part: impl Fn(&JobState) -> &Vec<u8>) -> String {
        let state = self.shared.state();
        let bytes = state.jobs.get(&self.number).map(|job| part(job).as_slice());
        String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
    }

    /// Takes what the command has written to standard output so far, as bytes.
    pub(crate) fn take_stdout(&mut self) -> Vec<u8> {
        let mut state = self.shared.state();
        state
            .jobs
            .get_mut(&self.number)
            .map(|job| std::mem::take(&mut job.stdout))
            .unwrap_or_default()
    }

    /// Whether the command has not ended yet.
    pub fn is_running(&self) -> bool {
        self.end().is_none()
    }

    /// How the command ended, as the rest of a sentence about it; none if it still runs.
    pub fn end(&self) -> Option<String> {
        let state = self.shared.state();
        let Some(job) = state.jobs.get(&self.number) else {
            return Some("is unknown".to_owned());
        };
        Some(match job.end.as_ref()? {
            End::Exited { code, signal: 0 } => format!(
                "ended with exit code {code}: {}",
                String::from_utf8_lossy(&job.stderr)
            ),
            End::Exited { signal, .. } => format!("was ended by signal {signal}"),
            End::Failed(why) => format!("ended: {why}"),
        })
    }

    /// Sends a signal to all processes of the command.
    ///
    /// # Errors
    ///
    /// A guest that is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.shared
            .send(Kind::Signal, self.number, &signal.as_raw().to_le_bytes())
            .with_context(|| format!("Sending {signal:?} to `{}`", self.name))
    }

    /// Gives the command bytes on its standard input.
    ///
    /// # Errors
    ///
    /// A guest that is gone.
    pub fn write_stdin(&self, bytes: &[u8]) -> Result<()> {
        for chunk in bytes.chunks(MAX_PAYLOAD_TO_GUEST) {
            self.shared
                .send(Kind::Stdin, self.number, chunk)
                .with_context(|| format!("Writing to `{}`", self.name))?;
        }
        Ok(())
    }

    /// Ends the command's standard input.
    ///
    /// # Errors
    ///
    /// A guest that is gone.
    pub fn close_stdin(&self) -> Result<()> {
        self.shared
            .send(Kind::Stdin, self.number, &[])
            .with_context(|| format!("Closing the input of `{}`", self.name))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // A guest that is gone runs nothing.
        if self.is_running() && self.signal(Signal::KILL).is_ok() && !thread::panicking() {
            // A resource that it held, a port say, is free for the next command only once it has
            // ended.
            let ended = self.wait_for_end(KILL_LIMIT);
            if matches!(ended, Ok(None)) {
                log::warn!(
                    "`{}` has not ended {KILL_LIMIT:?} after its SIGKILL",
                    self.name
                );
            }
        }
        self.shared.state().jobs.remove(&self.number);
    }
}
