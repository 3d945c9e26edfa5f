//! The host's end of the agent: commands in a guest, their input, output and end.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use rustix::process::Signal;
use virtio_inter_agent::{
    Frame, FrameReader, HEADER_LEN, Kind, MAX_PAYLOAD_TO_GUEST, WINDOW, write_frame,
};

use crate::Result;

/// How long a guest may take no frame before it counts as hung.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// What a finished command left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Output {
    /// Whether it exited with 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}

/// How a command ended.
#[derive(Clone, Debug)]
enum End {
    Exited { code: i32, signal: i32 },
    Failed(String),
}

#[derive(Default)]
struct JobState {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    end: Option<End>,
}

#[derive(Default)]
struct State {
    /// Times that the guest said that it is ready.
    boots: u32,
    release: String,
    is_closed: bool,
    /// What to read from when the present stream ends.
    successor: Option<File>,
    /// Nobody has the agent any more.
    is_given_up: bool,
    last_job: u32,
    /// Bytes sent that the guest has not said to have taken.
    untaken: usize,
    jobs: HashMap<u32, JobState>,
}

impl State {
    /// Ends all commands: whoever ran them is no more.
    fn end_all(&mut self, why: &str) {
        for job in self.jobs.values_mut().filter(|job| job.end.is_none()) {
            job.end = Some(End::Failed(why.to_owned()));
        }
    }

    fn take(&mut self, frame: Frame) {
        let Frame { kind, job, payload } = frame;
        if kind == Kind::Ready {
            self.end_all("The guest booted anew");
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
                let word = |at: usize| {
                    let bytes = payload
                        .get(at..at + 4)
                        .and_then(|word| word.try_into().ok());
                    bytes.map_or(-1, i32::from_le_bytes)
                };
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

struct Shared {
    writer: Mutex<File>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a frame, as soon as the guest has room for it.
    fn send(&self, kind: Kind, job: u32, payload: &[u8]) -> Result<()> {
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
    fn wait<T>(&self, limit: Duration, mut look: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
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

/// The near end of a guest's channel.
pub(crate) struct Channel {
    pub(crate) from_guest: File,
    pub(crate) to_guest: File,
}

impl Channel {
    /// A channel of one socket, and its far end.
    pub(crate) fn on_socket() -> Result<(Self, OwnedFd)> {
        let (near, far) = UnixStream::pair().context("Making the agent's channel")?;
        let twin = near.try_clone().context("Making the agent's channel")?;
        let near = Self {
            from_guest: OwnedFd::from(near).into(),
            to_guest: OwnedFd::from(twin).into(),
        };
        Ok((near, far.into()))
    }
}

/// What the guest sends: over one stream until its end, then over its successor. A frame may begin on one and end on
/// the other, as a guest that moves to another VMM does not notice.
struct Incoming {
    current: File,
    shared: Arc<Shared>,
}

impl Incoming {
    /// Goes on with the successor; waits for it if there is none yet. False: there will be none.
    fn advance(&mut self) -> bool {
        let mut state = self.shared.state();
        loop {
            if let Some(next) = state.successor.take() {
                self.current = next;
                state.is_closed = false;
                return true;
            }
            if state.is_given_up {
                return false;
            }
            if !state.is_closed {
                state.is_closed = true;
                state.end_all("The guest's machine ended");
                self.shared.changed.notify_all();
            }
            let woken = self.shared.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.current.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(len) if len > 0 => return Ok(len),
                // An error is the end as well: the guest's process was killed.
                _ => {
                    if !self.advance() {
                        return Ok(0);
                    }
                }
            }
        }
    }
}

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

    /// Reads from `successor` once the present stream ends, so that its end is not taken for the guest's. None: there is
    /// no successor after all.
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
        // What the former may have lost is not waited for.
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
        self.shared
            .wait(limit, |state| {
                if state.boots >= count {
                    Some(Ok(()))
                } else {
                    state
                        .is_closed
                        .then(|| Err(anyhow!("The machine ended before it was ready")))
                }
            })
            .ok_or_else(|| anyhow!("The guest was not ready within {limit:?}"))?
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

/// A command in a guest, killed when dropped.
pub struct Job {
    shared: Arc<Shared>,
    number: u32,
    name: String,
}

impl Job {
    /// Waits for the command's end.
    ///
    /// # Errors
    ///
    /// A command that cannot be started or runs for longer than `limit`, a guest that is gone.
    pub fn wait(&mut self, limit: Duration) -> Result<Output> {
        let end = self.shared.wait(limit, |state| {
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
            None => bail!(
                "`{}` ran for more than {limit:?}; it wrote:\n{}",
                self.name,
                self.stdout()
            ),
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
        let found = self.shared.wait(limit, |state| {
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
            "did not write"
        } else {
            "ended without"
        };
        bail!(
            "`{}` {why} \"{text}\" ({limit:?}):\n{}{}",
            self.name,
            self.stdout(),
            self.stderr()
        )
    }

    /// What the command has written to standard output so far.
    pub fn stdout(&self) -> String {
        self.text(|job| &job.stdout)
    }

    /// What the command has written to standard error so far.
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
        self.shared
            .state()
            .jobs
            .get(&self.number)
            .is_some_and(|job| job.end.is_none())
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
        if self.is_running() {
            // A guest that is gone runs nothing.
            let _ = self.signal(Signal::KILL);
        }
        self.shared.state().jobs.remove(&self.number);
    }
}
