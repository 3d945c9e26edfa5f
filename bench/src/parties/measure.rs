//! Measures how long the receiver's process takes to get all records.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::task::{Outcome, Task};

/// Records of the warm-up, as a part of all.
const WARM_UP: u64 = 10;

/// How many records come first, untimed, and how many are timed.
pub(super) fn phases(task: &Task) -> [u64; 2] {
    [(task.records / WARM_UP).max(1), task.records]
}

/// Time that this process, of one thread, spent on CPUs so far.
pub(super) fn cpu_time() -> Duration {
    let text = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let nanoseconds = text
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or_default())
}

/// The receiver's process, and its end of the line on which it says that it has all.
pub(super) struct Receiver {
    child: Child,
    words: ChildStdout,
}

impl Receiver {
    /// Starts the receiver with `input` as its standard input.
    pub(super) fn start(task: &Task, input: impl Into<Stdio>) -> Result<Self> {
        let program = std::env::current_exe().context("Finding this program")?;
        let mut child = Command::new(program)
            .args(task.arguments())
            .arg("--receive")
            .stdin(input)
            .stdout(Stdio::piped())
            .spawn()
            .context("Starting the receiver")?;
        let words = child.stdout.take().context("No line to the receiver")?;
        Ok(Self { child, words })
    }

    /// Waits for the receiver's report that all records of a phase have arrived: its processor time
    /// so far.
    pub(super) fn wait(&mut self) -> Result<Duration> {
        let mut word = [0; 8];
        self.words
            .read_exact(&mut word)
            .context("The receiver ended early")?;
        Ok(Duration::from_nanos(u64::from_le_bytes(word)))
    }

    pub(super) fn finish(mut self) -> Result<()> {
        let status = self.child.wait().context("Waiting for the receiver")?;
        ensure!(status.success(), "The receiver ended with {status}");
        Ok(())
    }
}

/// Says that all records of a phase are there.
pub(super) fn say_done(out: &mut impl Write) -> Result<()> {
    let spent = u64::try_from(cpu_time().as_nanos()).unwrap_or(u64::MAX);
    out.write_all(&spent.to_le_bytes())?;
    Ok(out.flush()?)
}

/// Takes the time of the second phase.
pub(super) fn timed(
    task: &Task,
    receiver: &mut Receiver,
    mut send: impl FnMut(u64) -> Result<()>,
) -> Result<Outcome> {
    let [warm_up, records] = phases(task);
    send(warm_up)?;
    let theirs = receiver.wait()?;
    let (mine, start) = (cpu_time(), Instant::now());
    send(records)?;
    let their_end = receiver.wait()?;
    let seconds = start.elapsed().as_secs_f64();
    let spent = cpu_time().saturating_sub(mine) + their_end.saturating_sub(theirs);
    Ok(Outcome {
        seconds,
        cpu_seconds: spent.as_secs_f64(),
    })
}

/// Start of the next piece of `len` bytes in a memory of that many bytes.
pub(super) fn next(place: &mut usize, len: usize, memory: usize) -> usize {
    let at = if *place + len > memory { 0 } else { *place };
    *place = at + len;
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_from_the_start_when_its_end_is_reached() {
        let mut place = 0;
        let places: Vec<usize> = (0..4).map(|_| next(&mut place, 40, 100)).collect();
        assert_eq!(places, [0, 40, 0, 40]);
    }
}
