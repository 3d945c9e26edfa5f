//! Two processes of the host that move bytes, each bound to a CPU, or one that copies them.
//!
//! The sender measures: it starts the receiver, warms up, and takes the time until the receiver
//! reports that it has all bytes. Both sleep when they cannot continue.

mod link;
mod measure;
mod plain;
mod task;

use std::io::Write;

use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::case::Way;
pub use task::{Line, Outcome, Task};

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

fn bind(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).with_context(|| format!("Binding to CPU {cpu}"))
}
