//! Bytes through a stream socket, through a pipe, and by memcpy.

use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use anyhow::{Context, Result};

use super::measure::{Receiver, cpu_time, next, phases, say_done, timed};
use super::task::{Outcome, Task};

pub(super) fn send_by_socket(task: &Task) -> Result<Outcome> {
    let (near, far) = UnixStream::pair().context("Making a socket pair")?;
    send(task, near, OwnedFd::from(far))
}

pub(super) fn send_by_pipe(task: &Task) -> Result<Outcome> {
    let (read, write) = std::io::pipe().context("Making a pipe")?;
    send(task, write, OwnedFd::from(read))
}

fn send(task: &Task, mut to: impl Write, input: OwnedFd) -> Result<Outcome> {
    let mut receiver = Receiver::start(task, input)?;
    let len = task.size as usize;
    let (memory, mut place) = (vec![1u8; task.memory()], 0);
    let outcome = timed(task, &mut receiver, |records| {
        for _ in 0..records {
            let at = next(&mut place, len, memory.len());
            to.write_all(&memory[at..at + len]).context("Writing")?;
        }
        Ok(())
    })?;
    receiver.finish()?;
    Ok(outcome)
}

/// Reads from standard input.
pub(super) fn receive(task: &Task, mut out: impl Write) -> Result<()> {
    let mut from = std::io::stdin().lock();
    let len = task.size as usize;
    let (mut memory, mut place) = (vec![0u8; task.memory()], 0);
    for records in phases(task) {
        let mut left = records * u64::from(task.size);
        while left > 0 {
            let at = next(&mut place, len, memory.len());
            // Not past the phase's end: the sender waits there.
            let len = len.min(usize::try_from(left).unwrap_or(len));
            let count = from.read(&mut memory[at..at + len]).context("Reading")?;
            anyhow::ensure!(count > 0, "The sender ended early");
            left -= count as u64;
        }
        black_box(&mut memory);
        say_done(&mut out)?;
    }
    Ok(())
}

/// Copies the same bytes once, in this process.
pub(super) fn copy(task: &Task) -> Result<Outcome> {
    let len = task.size as usize;
    let (from, mut to) = (vec![1u8; task.memory()], vec![0u8; task.memory()]);
    let (mut source, mut target) = (0, 0);
    let mut copy = |records: u64| {
        for _ in 0..records {
            let at = next(&mut source, len, from.len());
            let there = next(&mut target, len, from.len());
            to[there..there + len].copy_from_slice(black_box(&from[at..at + len]));
            black_box(&mut to);
        }
    };
    let [warm_up, records] = phases(task);
    copy(warm_up);
    let (cpu, start) = (cpu_time(), Instant::now());
    copy(records);
    Ok(Outcome {
        seconds: start.elapsed().as_secs_f64(),
        cpu_seconds: cpu_time().saturating_sub(cpu).as_secs_f64(),
    })
}
