//! `virtio-inter port`, the program under test.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use rustix::process::Signal;
use serde::Deserialize;

use crate::{Mac, Process, Result, Segment, Tap, Testbed, images, process};

const READY_LIMIT: Duration = Duration::from_secs(20);
const STATUS_LIMIT: Duration = Duration::from_secs(10);
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// The line that a port logs once its socket accepts a frontend.
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
    /// `--uplink`: the port runs where the device is.
    pub uplink: Option<Tap>,
    /// `--uplink-offload`
    pub uplink_offload: bool,
    /// `--allow-mac`; not given if empty.
    pub allow_mac: String,
    /// `--client`: the VMM listens on the port's socket.
    pub client: bool,
    /// Further arguments.
    pub more: Vec<String>,
    /// Words of a command that runs the port; none if empty.
    pub run_by: Vec<String>,
    /// CPUs to which the process is bound; all if empty.
    pub cpus: Vec<usize>,
    /// The program: if none, the one that `VIRTIO_INTER_BIN` names, else the later of the
    /// workspace's builds.
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
            uplink: None,
            uplink_offload: true,
            allow_mac: String::new(),
            client: false,
            more: Vec::new(),
            run_by: Vec::new(),
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

    /// The same with an uplink.
    #[must_use]
    pub fn uplink(self, tap: &Tap) -> Self {
        Self {
            uplink: Some(tap.clone()),
            ..self
        }
    }

    /// The same with an uplink whose switch takes no offloads.
    #[must_use]
    pub fn without_uplink_offload(self) -> Self {
        Self {
            uplink_offload: false,
            ..self
        }
    }

    /// The same with addresses beside its own.
    #[must_use]
    pub fn allow_mac(self, list: &str) -> Self {
        Self {
            allow_mac: list.to_owned(),
            ..self
        }
    }

    /// The same with further arguments.
    #[must_use]
    pub fn more(self, arguments: &[&str]) -> Self {
        Self {
            more: arguments.iter().map(ToString::to_string).collect(),
            ..self
        }
    }

    /// The same that connects to its VMM.
    #[must_use]
    pub fn client(self) -> Self {
        Self {
            client: true,
            ..self
        }
    }

    /// The same run by a command, to whose words its own are added.
    #[must_use]
    pub fn run_by(self, words: Vec<String>) -> Self {
        Self {
            run_by: words,
            ..self
        }
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
    status: PathBuf,
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
        // An earlier port of this name may have left a log, with the same line in it.
        let before = log_len(&Self::log_path(bed, &config));
        let mut port = Self::spawn(bed, config)?;
        port.process.wait_for_log(READY, before, READY_LIMIT)?;
        Ok(port)
    }

    /// Starts a port, and does not wait for it.
    ///
    /// # Errors
    ///
    /// No program, or one that cannot be started.
    pub fn spawn(bed: &Testbed, config: PortConfig) -> Result<Self> {
        let socket = Self::future_socket(bed, &config);
        let status = bed.path(&format!("{}.status", config.id));
        let log = Self::log_path(bed, &config);
        let process = spawn(&config, [&socket, &status], &log)?;
        Ok(Self {
            config,
            socket,
            status,
            log,
            process,
        })
    }

    /// The socket on which a port with these flags will wait for a frontend.
    pub fn future_socket(bed: &Testbed, config: &PortConfig) -> PathBuf {
        bed.path(&format!("{}.vhost", config.id))
    }

    fn log_path(bed: &Testbed, config: &PortConfig) -> PathBuf {
        bed.path(&format!("port-{}.log", config.id))
    }

    /// Kills the port with SIGKILL and restarts it with the same flags.
    ///
    /// # Errors
    ///
    /// As for [`Port::start`].
    pub fn crash_and_restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.restart()
    }

    /// Restarts the port, which must have ended, with the same flags.
    ///
    /// # Errors
    ///
    /// As for [`Port::start`].
    pub fn restart(&mut self) -> Result<()> {
        let sockets = [self.socket.as_path(), &self.status];
        self.process = launch(&self.config, sockets, &self.log)?;
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

    /// Its counters since it started.
    ///
    /// # Errors
    ///
    /// A port that does not answer within 10 s.
    pub fn counters(&self) -> Result<Counters> {
        Counters::parse(&self.status_text()?)
    }

    /// Number of peers with which it can exchange frames.
    ///
    /// # Errors
    ///
    /// As for [`Port::status`].
    pub fn peers(&self) -> Result<usize> {
        let status = self.status()?;
        let peers = status.get("peers").and_then(serde_json::Value::as_array);
        Ok(peers.context("A status without peers")?.len())
    }

    /// What it says of itself: the document of docs/port-status.md.
    ///
    /// # Errors
    ///
    /// A port that does not tell within 10 s.
    pub fn status(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.status_text()?).context("Reading its status")
    }

    fn status_text(&self) -> Result<String> {
        read_status(&self.status)
            .with_context(|| format!("Asking port {} for its status", self.config.id))
    }

    /// Number of rings that it has now, those of its peers included.
    ///
    /// # Errors
    ///
    /// As for [`Port::status`].
    pub fn rings(&self) -> Result<u64> {
        let status = self.status()?;
        let rings = status["limits"]["rings"]["used"].as_u64();
        rings.context("No number of rings in the status")
    }

    /// The socket on which it waits for a frontend.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its flags.
    pub fn config(&self) -> &PortConfig {
        &self.config
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// Counters of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Of each queue pair, by name; those that never moved may be missing.
    pairs: Vec<BTreeMap<String, u64>>,
}

impl Counters {
    /// A counter, over all queue pairs.
    pub fn get(&self, name: &str) -> u64 {
        self.pairs.iter().filter_map(|pair| pair.get(name)).sum()
    }

    /// A counter of each queue pair.
    pub fn of_pairs(&self, name: &str) -> Vec<u64> {
        let of_pair = |pair: &BTreeMap<String, u64>| pair.get(name).copied().unwrap_or(0);
        self.pairs.iter().map(of_pair).collect()
    }

    /// The difference to `before`, an earlier reading of the same port.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut pairs = self.pairs.clone();
        for (pair, before) in pairs.iter_mut().zip(&before.pairs) {
            for (name, value) in pair.iter_mut() {
                *value -= before.get(name).copied().unwrap_or(0);
            }
            pair.retain(|_, value| *value != 0);
        }
        Self { pairs }
    }

    /// Frames that went nowhere, by reason.
    pub fn drops(&self) -> BTreeMap<&str, u64> {
        let mut drops = BTreeMap::new();
        for (name, value) in self.pairs.iter().flatten() {
            if *value != 0 && virtio_inter_device::Counters::is_drop(name) {
                *drops.entry(name.as_str()).or_default() += *value;
            }
        }
        drops
    }

    /// Reads a port's status.
    ///
    /// # Errors
    ///
    /// Text that is no status.
    pub fn parse(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Status {
            counters: Vec<BTreeMap<String, u64>>,
        }
        let status: Status = serde_json::from_str(text).context("Reading its status")?;
        Ok(Self {
            pairs: status.counters,
        })
    }
}

/// What a status socket says.
pub(crate) fn read_status(socket: &Path) -> Result<String> {
    let mut stream = UnixStream::connect(socket).context("Connecting")?;
    stream.set_read_timeout(Some(STATUS_LIMIT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("Reading")?;
    Ok(text)
}

/// The command that runs a port with these flags.
fn command(config: &PortConfig, [socket, status]: [&Path; 2]) -> Result<Command> {
    let program = match &config.program {
        Some(program) => program.clone(),
        None => images::port_program()?,
    };
    let mut command = Command::new(program);
    command
        .arg("port")
        .arg("--socket")
        .arg(socket)
        .arg("--status-socket")
        .arg(status)
        .arg("--segment")
        .arg(&config.segment)
        .args(["--id", &config.id])
        .args(["--mac", &config.mac.to_string()])
        .args(["--mtu", &config.mtu.to_string()])
        .args(["--queues", &config.queues.to_string()])
        .args(["--queue-size", &config.queue_size.to_string()])
        // So that an ordinary user can look into its files in /proc.
        .env("VIRTIO_INTER_ALLOW_DUMPS", "1");
    if config.client {
        command.arg("--client");
    }
    if !config.allow_mac.is_empty() {
        command.args(["--allow-mac", &config.allow_mac]);
    }
    command.args(&config.more);
    if !config.uplink_offload {
        command.args(["--uplink-offload", "off"]);
    }
    if let Some(tap) = &config.uplink {
        command.arg("--uplink").arg(format!("tap={}", tap.name()));
        command = tap.enter(&command);
    }
    let mut command = process::run_by(&config.run_by, command);
    command.stdin(process::no_input().context("Opening an empty input")?);
    if std::env::var_os("RUST_LOG").is_none() {
        // The line that says "ready" is at this level.
        command.env("RUST_LOG", "info");
    }
    Ok(command)
}

fn spawn(config: &PortConfig, sockets: [&Path; 2], log: &Path) -> Result<Process> {
    let name = format!("port {}", config.id);
    Process::start(&name, command(config, sockets)?, log, &config.cpus)
}

fn launch(config: &PortConfig, sockets: [&Path; 2], log: &Path) -> Result<Process> {
    let before = log_len(log);
    let mut process = spawn(config, sockets, log)?;
    process.wait_for_log(READY, before, READY_LIMIT)?;
    Ok(process)
}

fn log_len(log: &Path) -> usize {
    log.metadata().map_or(0, |log| log.len() as usize)
}

#[cfg(test)]
mod tests {
    use super::Counters;

    #[test]
    fn counters_of_queue_pairs_are_added_up_and_told_apart() {
        let parse = |first, second| {
            let text = format!(
                r#"{{"id":"a","counters":[
                    {{"tx_frames":{first}}},
                    {{"tx_frames":4,"rx_too_long":{second}}}
                ]}}"#
            );
            Counters::parse(&text).unwrap()
        };
        let (before, after) = (parse(3, 0), parse(5, 1));
        assert_eq!(after.get("tx_frames"), 9);
        let change = after.since(&before);
        assert_eq!(change.of_pairs("tx_frames"), [2, 0]);
        assert_eq!(
            change.drops().into_iter().collect::<Vec<_>>(),
            [("rx_too_long", 1)]
        );
        assert!(Counters::parse("{}").is_err());
    }
}
