//! What two processes are to move, as a value and as a command line.

use anyhow::{Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::case::Way;

/// Bytes of memory that payloads come from and go to: what a guest's buffers take …
const WARM: usize = 1 << 20;
/// … or more than the caches of one core hold.
const COLD: usize = 64 << 20;

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
    pub(super) receive: bool,
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

    pub(super) fn memory(&self) -> usize {
        let least = if self.cold { COLD } else { WARM };
        least.max(2 * self.size as usize)
    }
}

impl Line {
    pub(super) fn task(&self) -> Result<Task> {
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
}
