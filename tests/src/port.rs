//! `virtio-inter port`, the program under test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use rustix::process::Signal;

use crate::{Mac, Process, Result, Segment, Testbed, images, process};

const READY_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// What a port logs once its socket takes a frontend.
const READY: &str = "Serving";

/// The flags of a port.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// `--id`
    pub id: String,
    /// `--segment`
    pub segment: PathBuf,
    /// `--mac`
    pub mac: Mac,
    /// `--mtu`
    pub mtu: u16,
    /// `--queues`
    pub queues: u16,
    /// `--queue-size`
    pub queue_size: u16,
    /// CPUs to which the process is bound; all if empty.
    pub cpus: Vec<usize>,
    /// The program: if none, what `VIRTIO_INTER_BIN` names, else the later of the workspace's builds.
    pub program: Option<PathBuf>,
}

impl PortConfig {
    /// A port with one queue pair and an MTU of 1500, whose address ends in `number`.
    pub fn new(segment: &Segment, id: &str, number: u8) -> Self {
        Self {
            id: id.to_owned(),
            segment: segment.path().to_path_buf(),
            mac: Mac::local(number),
            mtu: 1500,
            queues: 1,
            queue_size: 256,
            cpus: Vec::new(),
            program: None,
        }
    }

    /// The same with another MTU.
    #[must_use]
    pub fn mtu(self, mtu: u16) -> Self {
        Self { mtu, ..self }
    }

    /// The same with more queue pairs.
    #[must_use]
    pub fn queues(self, queues: u16) -> Self {
        Self { queues, ..self }
    }

    /// The same with another limit on the size of queues.
    #[must_use]
    pub fn queue_size(self, queue_size: u16) -> Self {
        Self { queue_size, ..self }
    }

    /// The same bound to CPUs.
    #[must_use]
    pub fn cpus(self, cpus: &[usize]) -> Self {
        Self {
            cpus: cpus.to_vec(),
            ..self
        }
    }
}

/// A running port, killed when dropped.
pub struct Port {
    config: PortConfig,
    socket: PathBuf,
    log: PathBuf,
    process: Process,
}

impl Port {
    /// Starts a port and waits until a frontend can connect.
    ///
    /// # Errors
    ///
    /// No program, or one that does not get ready within 20 s; its log is in the message.
    pub fn start(bed: &Testbed, config: PortConfig) -> Result<Self> {
        let socket = Self::future_socket(bed, &config);
        let log = bed.path(&format!("port-{}.log", config.id));
        let process = launch(&config, &socket, &log)?;
        Ok(Self {
            config,
            socket,
            log,
            process,
        })
    }

    /// The socket on which a port with these flags will wait for a frontend.
    pub fn future_socket(bed: &Testbed, config: &PortConfig) -> PathBuf {
        bed.path(&format!("{}.vhost", config.id))
    }

    /// Kills the port with SIGKILL and starts it anew with the same flags.
    ///
    /// # Errors
    ///
    /// As for [`Port::start`].
    pub fn crash_and_restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.restart()
    }

    /// Starts the port, which must have ended, anew with the same flags.
    ///
    /// # Errors
    ///
    /// As for [`Port::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.process = launch(&self.config, &self.socket, &self.log)?;
        Ok(())
    }

    /// Asks the port to leave, with SIGTERM, and waits for its end.
    ///
    /// # Errors
    ///
    /// A port that is still there after 10 s, or that did not exit with 0.
    pub fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        let status = self.process.wait(STOP_LIMIT)?;
        anyhow::ensure!(
            status.success(),
            "Port {} ended with {status}",
            self.config.id
        );
        Ok(())
    }

    /// Asks the port to leave, as [`Port::stop`] does, and returns what it counted in its life.
    ///
    /// # Errors
    ///
    /// As for [`Port::stop`], and a log that does not tell.
    pub fn stop_and_count(&mut self) -> Result<Counters> {
        self.stop()?;
        Counters::parse(&self.process.log())
            .with_context(|| format!("Reading the counters of port {}", self.config.id))
    }

    /// The socket on which it waits for a frontend.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its flags.
    pub fn config(&self) -> &PortConfig {
        &self.config
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// What a port counted, over all of its queue pairs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// A counter's value: 0 for one that never moved.
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Those for frames that went nowhere, and moved.
    pub fn drops(&self) -> Vec<(&str, u64)> {
        /// Counters of things that happen to frames on their way.
        const HARMLESS: [&str; 9] = [
            "tx_frames",
            "tx_bytes",
            "tx_waits",
            "tx_spilled",
            "rx_frames",
            "rx_bytes",
            "rx_waits",
            "wakeups",
            "interrupts",
        ];
        let moved = self.0.iter().map(|(name, value)| (name.as_str(), *value));
        moved
            .filter(|(name, value)| *value != 0 && !HARMLESS.contains(name))
            .collect()
    }

    /// Adds up the lines at the end of a port's log.
    fn parse(log: &str) -> Result<Self> {
        let mut sum = Self::default();
        let mut lines = 0;
        for line in log.lines() {
            let Some((_, counters)) = line
                .split_once("Queue pair ")
                .and_then(|(_, rest)| rest.split_once(": "))
            else {
                continue;
            };
            lines += 1;
            for counter in counters.split(", ").filter(|text| !text.is_empty()) {
                let (name, value) = counter.split_once(' ').context("A counter has no value")?;
                let value: u64 = value.parse().context("A counter is no number")?;
                *sum.0.entry(name.to_owned()).or_default() += value;
            }
        }
        anyhow::ensure!(lines != 0, "There are none");
        Ok(sum)
    }
}

/// The command that runs a port with these flags.
fn command(config: &PortConfig, socket: &Path) -> Result<Command> {
    let program = match &config.program {
        Some(program) => program.clone(),
        None => images::port_program()?,
    };
    let mut command = Command::new(program);
    command
        .arg("port")
        .arg("--socket")
        .arg(socket)
        .arg("--segment")
        .arg(&config.segment)
        .args(["--id", &config.id])
        .args(["--mac", &config.mac.to_string()])
        .args(["--mtu", &config.mtu.to_string()])
        .args(["--queues", &config.queues.to_string()])
        .args(["--queue-size", &config.queue_size.to_string()])
        .stdin(process::no_input().context("Opening an empty input")?);
    if std::env::var_os("RUST_LOG").is_none() {
        // The line that says "ready" is at this level.
        command.env("RUST_LOG", "info");
    }
    Ok(command)
}

fn launch(config: &PortConfig, socket: &Path, log: &Path) -> Result<Process> {
    let before = log.metadata().map_or(0, |log| log.len() as usize);
    let name = format!("port {}", config.id);
    let mut process = Process::start(&name, command(config, socket)?, log, &config.cpus)?;
    process.wait_for_log(READY, before, READY_LIMIT)?;
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::Counters;

    #[test]
    fn counters_of_all_queue_pairs_are_added_up() {
        let log = "INFO Serving x\nINFO Queue pair 0: tx_frames 3, rx_too_long 1\nINFO Queue pair 1: tx_frames 4\n";
        let counters = Counters::parse(log).unwrap();
        assert_eq!(counters.get("tx_frames"), 7);
        assert_eq!(counters.drops(), [("rx_too_long", 1)]);
        assert!(Counters::parse("INFO Serving x").is_err());
    }
}
