//! Two processes of the host that move bytes, each bound to a CPU, or one that copies them.
//!
//! The sender measures: it starts the receiver, warms up, and takes the time until the receiver
//! reports that it has all bytes. Both sleep when they cannot continue.

mod link;
mod plain;

use std::fs;
use std::io::Write;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::{Deserialize, Serialize};

use crate::case::Way;

/// Bytes of memory that payloads come from and go to: what a guest's buffers take …
const WARM: usize = 1 << 20;
/// … or more than the caches of one core hold.
const COLD: usize = 64 << 20;
/// Records of the warm-up, as a part of all.
const WARM_UP: u64 = 10;

/// The bytes to move, and the way.
#[derive(Clone, Debug)]
pub struct Task {
    /// The way that carries them.
    pub way: Way,
    /// Bytes of one record or call.
    pub size: u32,
    /// Records published at once on a link.
    pub batch: u32,
    /// Whether payloads come from and go to more memory than caches hold.
    pub cold: bool,
    /// Number of records.
    pub records: u64,
    /// The sender's CPU.
    pub near: usize,
    /// The receiver's.
    pub far: usize,
}

/// The result of a task.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// From the first record to the receiver's word that it has all.
    pub seconds: f64,
    /// Time that both processes spent on CPUs meanwhile.
    pub cpu_seconds: f64,
}

/// The arguments of `virtio-inter-bench bytes`.
#[derive(Args)]
pub struct Line {
    /// link, unix-stream, pipe or memcpy
    #[arg(long)]
    way: String,
    #[arg(long)]
    size: u32,
    #[arg(long)]
    batch: u32,
    #[arg(long)]
    cold: bool,
    #[arg(long)]
    records: u64,
    #[arg(long)]
    near: usize,
    #[arg(long)]
    far: usize,
    /// Receive, on standard input, instead of sending.
    #[arg(long)]
    receive: bool,
}

impl Task {
    /// The arguments that say this to `virtio-inter-bench`, its subcommand first.
    pub fn arguments(&self) -> Vec<String> {
        let way = match self.way {
            Way::Link => "link",
            Way::UnixStream => "unix-stream",
            Way::Pipe => "pipe",
            _ => "memcpy",
        };
        let mut arguments = vec![
            "bytes".to_owned(),
            format!("--way={way}"),
            format!("--size={}", self.size),
            format!("--batch={}", self.batch),
            format!("--records={}", self.records),
            format!("--near={}", self.near),
            format!("--far={}", self.far),
        ];
        if self.cold {
            arguments.push("--cold".to_owned());
        }
        arguments
    }

    fn memory(&self) -> usize {
        let least = if self.cold { COLD } else { WARM };
        least.max(2 * self.size as usize)
    }
}

impl Line {
    fn task(&self) -> Result<Task> {
        ensure!(
            self.size > 0 && self.batch > 0 && self.records > 0,
            "Nothing to move"
        );
        Ok(Task {
            way: match self.way.as_str() {
                "link" => Way::Link,
                "unix-stream" => Way::UnixStream,
                "pipe" => Way::Pipe,
                "memcpy" => Way::Memcpy,
                other => bail!("No way {other}: link, unix-stream, pipe or memcpy"),
            },
            size: self.size,
            batch: self.batch,
            cold: self.cold,
            records: self.records,
            near: self.near,
            far: self.far,
        })
    }
}

/// Does what the command line says; the outcome goes to `out` as JSON.
///
/// # Errors
///
/// Anything that keeps the bytes from being moved.
pub fn run(line: &Line, mut out: impl Write) -> Result<()> {
    let task = line.task()?;
    if line.receive {
        bind(task.far)?;
        return receive(&task, out);
    }
    bind(task.near)?;
    let outcome = match task.way {
        Way::Link => link::send(&task)?,
        Way::UnixStream => plain::send_by_socket(&task)?,
        Way::Pipe => plain::send_by_pipe(&task)?,
        _ => plain::copy(&task)?,
    };
    serde_json::to_writer(&mut out, &outcome)?;
    writeln!(out)?;
    Ok(())
}

fn receive(task: &Task, out: impl Write) -> Result<()> {
    match task.way {
        Way::Link => link::receive(task, out),
        Way::UnixStream | Way::Pipe => plain::receive(task, out),
        other => bail!("{} has no receiver", other.name()),
    }
}

/// How many records come first, untimed, and how many are timed.
fn phases(task: &Task) -> [u64; 2] {
    [(task.records / WARM_UP).max(1), task.records]
}

fn bind(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).with_context(|| format!("Binding to CPU {cpu}"))
}

/// Time that this process, of one thread, spent on CPUs so far.
fn cpu_time() -> Duration {
    let text = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let nanoseconds = text
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or_default())
}

/// The receiver's process, and its end of the line on which it says that it has all.
struct Receiver {
    child: Child,
    words: ChildStdout,
}

impl Receiver {
    /// Starts the receiver with `input` as its standard input.
    fn start(task: &Task, input: impl Into<Stdio>) -> Result<Self> {
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
    fn wait(&mut self) -> Result<Duration> {
        use std::io::Read;
        let mut word = [0; 8];
        self.words
            .read_exact(&mut word)
            .context("The receiver ended early")?;
        Ok(Duration::from_nanos(u64::from_le_bytes(word)))
    }

    fn finish(mut self) -> Result<()> {
        let status = self.child.wait().context("Waiting for the receiver")?;
        ensure!(status.success(), "The receiver ended with {status}");
        Ok(())
    }
}

/// Says that all records of a phase are there.
fn say_done(out: &mut impl Write) -> Result<()> {
    let spent = u64::try_from(cpu_time().as_nanos()).unwrap_or(u64::MAX);
    out.write_all(&spent.to_le_bytes())?;
    Ok(out.flush()?)
}

/// Takes the time of the second phase.
fn timed(
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
fn next(place: &mut usize, len: usize, memory: usize) -> usize {
    let at = if *place + len > memory { 0 } else { *place };
    *place = at + len;
    at
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    enum Program {
        Bytes(Line),
    }

    #[test]
    fn arguments_say_the_task() {
        let task = Task {
            way: Way::UnixStream,
            size: 1500,
            batch: 8,
            cold: true,
            records: 10,
            near: 0,
            far: 1,
        };
        let mut words = vec!["virtio-inter-bench".to_owned()];
        words.extend(task.arguments());
        let Program::Bytes(line) = Program::try_parse_from(words).unwrap();
        let read = line.task().unwrap();
        assert_eq!(format!("{read:?}"), format!("{task:?}"));
        assert!(!line.receive);
    }

    #[test]
    fn memory_is_used_from_the_start_when_its_end_is_reached() {
        let mut place = 0;
        let places: Vec<usize> = (0..4).map(|_| next(&mut place, 40, 100)).collect();
        assert_eq!(places, [0, 40, 0, 40]);
    }
}
