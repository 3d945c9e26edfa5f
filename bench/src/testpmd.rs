//! DPDK's testpmd, driven by its own command line: a source and sink of frames, and a switch
//! between two ports.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use virtio_inter_tests::{Mac, Process, Testbed, until};

/// Addresses of the generator's two ports.
pub const GENERATOR_MACS: [Mac; 2] = [Mac::local(1), Mac::local(2)];

const PROGRAM: &str = "dpdk-testpmd";
const PROMPT: &str = "testpmd> ";
/// How long testpmd may take to start, to answer and to end.
const LIMIT: Duration = Duration::from_secs(20);
/// Bursts of 32 frames that each port sends at first: these circle.
const BURSTS: u32 = 16;
/// Bytes of room in a buffer: 128 before the frame, and the frame.
const HEADROOM: u32 = 128;
/// Entries of a memif ring, as a power of two.
const MEMIF_RING: u32 = 10;

/// The kind of a port of testpmd.
#[derive(Clone, Debug)]
pub enum Interface {
    /// The driver of a vhost-user device behind this socket.
    VirtioUser(PathBuf),
    /// A vhost-user device that listens on this socket.
    NetVhost(PathBuf),
    /// The side of a memif that listens on this socket.
    MemifServer(PathBuf),
    /// The other side of a memif.
    MemifClient(PathBuf),
}

/// A running testpmd, killed when dropped.
pub struct Testpmd {
    process: Process,
    input: File,
    /// Bytes of the log that were looked at.
    seen: usize,
}

impl Testpmd {
    /// Two ports, each of which sends what the other receives, on one CPU; it runs when this
    /// returns.
    ///
    /// # Errors
    ///
    /// A testpmd that does not start; its log is in the message.
    pub fn forwarder(
        bed: &Testbed,
        name: &str,
        interfaces: &[Interface],
        cpu: usize,
        size: u32,
    ) -> Result<Self> {
        let mut pmd = Self::launch(bed, name, interfaces, [cpu, cpu], size)?;
        pmd.command("start")?;
        Ok(pmd)
    }

    /// Two ports as above, with frames of `size` bytes to send first, on the first CPU; its command
    /// line, which sleeps, is on the second.
    ///
    /// # Errors
    ///
    /// A testpmd that does not start; its log is in the message.
    pub fn generator(
        bed: &Testbed,
        name: &str,
        interfaces: &[Interface],
        cpus: [usize; 2],
        size: u32,
    ) -> Result<Self> {
        Self::launch(bed, name, interfaces, cpus, size)
    }

    fn launch(
        bed: &Testbed,
        name: &str,
        interfaces: &[Interface],
        [cpu, idle_cpu]: [usize; 2],
        size: u32,
    ) -> Result<Self> {
        // By lines: else what it answers is written with a later answer, after the prompt.
        let mut command = Command::new("stdbuf");
        command.args(["-oL", PROGRAM]);
        // No huge pages: nothing of the machine is changed for it. No files of its own in /var/run.
        command
            .args(["--no-huge", "-m", "512", "--no-pci", "--no-telemetry"])
            .args(["--no-shconf", "--main-lcore", "0"])
            .args(["--lcores", &format!("0@{idle_cpu},1@{cpu}")]);
        for (index, interface) in interfaces.iter().enumerate() {
            let mac = GENERATOR_MACS.get(index).context("Too many interfaces")?;
            let device = match interface {
                Interface::VirtioUser(path) => format!(
                    "net_virtio_user{index},path={},mac={mac},queue_size=1024",
                    path.display()
                ),
                Interface::NetVhost(path) => {
                    format!("net_vhost{index},iface={},queues=1", path.display())
                }
                Interface::MemifServer(path) | Interface::MemifClient(path) => {
                    let is_server = matches!(interface, Interface::MemifServer(_));
                    let role = if is_server { "server" } else { "client" };
                    format!(
                        "net_memif{index},role={role},id={index},socket={},socket-abstract=no,\
                         bsize={},rsize={MEMIF_RING},mac={mac}",
                        path.display(),
                        buffer(size)
                    )
                }
            };
            command.args(["--vdev", &device]);
        }
        command
            .args(["--", "-i", "--nb-cores=1", "--forward-mode=io"])
            .arg(format!("--mbuf-size={}", buffer(size) + HEADROOM))
            .arg("--total-num-mbufs=8192")
            .arg(format!("--txpkts={size}"));
        for (index, mac) in GENERATOR_MACS.iter().rev().enumerate() {
            command.arg(format!("--eth-peer={index},{mac}"));
        }
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .context("Making a pipe to testpmd")?;
        command.stdin(read);
        let log = bed.path(&format!("testpmd-{name}.log"));
        let mut process = Process::start("testpmd", command, &log, &[])?;
        process.wait_for_log(PROMPT, 0, LIMIT)?;
        let log = process.log();
        ensure!(
            !log.contains("No probed ethernet devices"),
            "testpmd found no port: {log}"
        );
        Ok(Self {
            seen: log.len(),
            process,
            input: File::from(write),
        })
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Types a line and returns all that it wrote until the next prompt.
    fn command(&mut self, line: &str) -> Result<String> {
        self.seen = self.process.log().len();
        writeln!(self.input, "{line}").context("Writing to testpmd")?;
        // It repeats the line after its prompt, then answers and prompts again.
        let seen = self.seen;
        let process = &mut self.process;
        until(&format!("answer of testpmd to \"{line}\""), LIMIT, || {
            ensure!(process.is_running(), "testpmd ended: {}", process.log());
            let log = process.log();
            let new = log.get(seen..).unwrap_or_default();
            Ok(new.contains(PROMPT).then(|| new.to_owned()))
        })
    }

    /// Sends the first frames until each port receives some: the other end may not be there yet, or
    /// only in part.
    ///
    /// # Errors
    ///
    /// Frames that never return.
    pub fn start_circling(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            self.command(&format!("start tx_first {BURSTS}"))?;
            let (asked, first) = self.counts()?;
            wait_until(asked + Duration::from_millis(200));
            let (_, last) = self.counts()?;
            if last.iter().zip(&first).all(|(last, first)| last > first) {
                return Ok(());
            }
            if start.elapsed() > LIMIT {
                bail!("Frames do not come back: {}", end_of(&self.process.log()));
            }
            self.command("stop")?;
        }
    }

    /// Frames that both ports have received so far, and when.
    ///
    /// # Errors
    ///
    /// A testpmd that does not answer.
    pub fn received(&mut self) -> Result<(Instant, u64)> {
        let (now, counts) = self.counts()?;
        Ok((now, counts.iter().sum()))
    }

    fn counts(&mut self) -> Result<(Instant, Vec<u64>)> {
        let answer = self.command("show port stats all")?;
        let now = Instant::now();
        let frames = received_in(&answer)
            .with_context(|| format!("No statistics in what testpmd wrote: {answer}"))?;
        Ok((now, frames))
    }

    /// The same not before `time`.
    ///
    /// # Errors
    ///
    /// As for [`Self::received`].
    pub fn received_after(&mut self, time: Instant) -> Result<(Instant, u64)> {
        wait_until(time);
        self.received()
    }

    /// Ends it in order, so that the other end sees a driver that leaves.
    ///
    /// # Errors
    ///
    /// A testpmd that does not end.
    pub fn quit(&mut self) -> Result<()> {
        writeln!(self.input, "quit").context("Writing to testpmd")?;
        self.process.wait(LIMIT).map(drop)
    }
}

/// Bytes of a buffer for frames of `size` bytes: DPDK's default or, for larger frames, theirs.
fn buffer(size: u32) -> u32 {
    (size + 64).max(2048).next_multiple_of(64)
}

/// Lets time go by in which frames circle: that time is what is measured.
fn wait_until(time: Instant) {
    std::thread::sleep(time.saturating_duration_since(Instant::now()));
}

/// The last lines of a log.
fn end_of(log: &str) -> String {
    const LINES: usize = 12;
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join(" | ")
}

/// The frames that each port received, in the output of `show port stats all`.
fn received_in(answer: &str) -> Option<Vec<u64>> {
    let counts: Vec<u64> = answer
        .split("RX-packets:")
        .skip(1)
        .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
        .collect();
    (!counts.is_empty()).then_some(counts)
}

/// Whether there is a testpmd on this machine.
pub fn is_there() -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(PROGRAM).is_file())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_each_port_are_read() {
        let answer = "show port stats all\n\n  #### NIC statistics for port 0  ####\n\
                      \x20 RX-packets: 303680     RX-missed: 0          RX-bytes:  19435520\n\
                      \x20 TX-packets: 304000     TX-errors: 0\n\
                      \x20 RX-packets: 20     RX-missed: 0\ntestpmd> ";
        assert_eq!(received_in(answer), Some(vec![303_680, 20]));
        assert_eq!(received_in("Command not found\ntestpmd> "), None);
    }

    #[test]
    fn buffers_hold_their_frames() {
        assert_eq!(buffer(64), 2048);
        assert!(buffer(16384) >= 16384);
    }
}
