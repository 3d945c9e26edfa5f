//! DPDK's testpmd with its `virtio_user` driver on a port: an independent virtio driver.
//!
//! Each of its queue pairs sends the frames of one capture file and writes those that it receives
//! into another.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::thread::sched_getaffinity;

use crate::{Port, Process, Result, Testbed, wait};

const PROGRAM: &str = "dpdk-testpmd";
/// How long it may take to start and to end.
const LIMIT: Duration = Duration::from_secs(30);
const PROMPT: &str = "testpmd> ";

/// Configuration of one testpmd.
#[derive(Clone, Debug)]
pub struct TestpmdConfig {
    /// Its name on the testbed.
    pub name: String,
    /// More arguments for the driver, as `mrg_rxbuf=0,vectorized=1`.
    pub driver: String,
    /// Bytes of its buffers.
    pub buffer: u32,
    /// A capture for each queue pair, whose frames it sends.
    pub sends: Vec<PathBuf>,
    /// Whether it sends them over and over.
    pub for_ever: bool,
}

/// A running testpmd, killed when dropped.
pub struct Testpmd {
    config: TestpmdConfig,
    process: Process,
    commands: UnixStream,
    received: Vec<PathBuf>,
}

impl Testpmd {
    /// Why testpmd does not run here; nothing if it does.
    pub fn unavailable(bed: &Testbed) -> Option<String> {
        let mut command = command(bed, "probe", 1);
        command
            .arg("--vdev=net_null0")
            .args(["--", "--total-num-mbufs=2048"]);
        match command.stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => None,
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout).into_owned()
                    + &String::from_utf8_lossy(&output.stderr);
                let cause = text.lines().find(|line| line.contains("Cause"));
                Some(format!(
                    "{PROGRAM} does not start: {}",
                    cause.unwrap_or(&text).trim()
                ))
            }
            Err(error) => Some(format!("{PROGRAM} cannot be run: {error}")),
        }
    }

    /// Starts one on `port` and waits until its driver serves its queues. Nothing moves before
    /// [`Testpmd::go`].
    ///
    /// # Errors
    ///
    /// A program that does not start, or not within 30 s; its log is in the message.
    pub fn start(bed: &Testbed, port: &Port, config: TestpmdConfig) -> Result<Self> {
        let queues = config.sends.len();
        let received: Vec<PathBuf> = (0..queues)
            .map(|queue| bed.path(&format!("{}-{queue}.received", config.name)))
            .collect();
        let mut driver = format!(
            "--vdev=net_virtio_user0,path={},mac={},queues={queues},queue_size={}",
            port.socket().display(),
            port.config().mac,
            port.config().queue_size
        );
        if !config.driver.is_empty() {
            driver += &format!(",{}", config.driver);
        }
        let mut files = "--vdev=net_pcap0".to_owned();
        for (send, receive) in config.sends.iter().zip(&received) {
            files += &format!(",rx_pcap={},tx_pcap={}", send.display(), receive.display());
        }
        if config.for_ever {
            files += ",infinite_rx=1";
        }
        // A process that waits for room to send must not keep another from receiving: the other end
        // may be waiting, too.
        let cores = 2 * queues;
        let mut command = command(bed, &config.name, cores);
        command
            .args([&driver, &files, "--", "--interactive", "--no-mlockall"])
            .arg(format!("--nb-cores={cores}"))
            .args(["--forward-mode=io", "--total-num-mbufs=4096"])
            // Else it throws away, before it starts, what the captures hold.
            .arg("--no-flush-rx")
            .arg(format!("--mbuf-size={}", config.buffer))
            .args([format!("--rxq={queues}"), format!("--txq={queues}")]);
        let (commands, far) = UnixStream::pair().context("Making testpmd's input")?;
        command.stdin(OwnedFd::from(far));
        let log = bed.path(&format!("testpmd-{}.log", config.name));
        let before = log.metadata().map_or(0, |log| log.len() as usize);
        let mut process = Process::start(&format!("testpmd {}", config.name), command, &log, &[])?;
        process.wait_for_log(PROMPT, before, LIMIT)?;
        // It prompts even if its ports failed.
        let log = process.log();
        ensure!(
            !log[before..].contains("failed") && !log[before..].contains("Fail "),
            "testpmd {} did not start its ports: {}",
            config.name,
            &log[before..]
        );
        let mut testpmd = Self {
            config,
            process,
            commands,
            received,
        };
        // A frame for which a queue has no room is tried again, for a second and longer.
        testpmd.command("set fwd io retry")?;
        testpmd.command("set burst tx delay 1 retry 2000000")?;
        Ok(testpmd)
    }

    /// Lets it send and receive.
    ///
    /// # Errors
    ///
    /// A program that is gone.
    pub fn go(&mut self) -> Result<()> {
        self.command("start")
    }

    /// Waits until it has written `count` frames to its captures: frames in a queue when it ends
    /// are lost.
    ///
    /// # Errors
    ///
    /// Frames that do not come within `limit`, a program that is gone.
    pub fn wait_for_frames(&mut self, count: u64, limit: Duration) -> Result<()> {
        // The captures' port is the second.
        let what = format!("{count} frames from testpmd {}", self.config.name);
        let before = self.process.log().len();
        wait::until(&what, limit, || {
            self.command("show port stats 1")?;
            let log = self.process.log();
            let told = log[before..].rsplit("TX-packets:").next();
            let told = told.and_then(|rest| rest.split_whitespace().next());
            Ok((told.and_then(|number| number.parse().ok()) == Some(count)).then_some(()))
        })
    }

    /// Ends it and returns the captures of what it received, one for each queue pair.
    ///
    /// # Errors
    ///
    /// A program that does not end within 30 s, or with a failure.
    pub fn finish(mut self) -> Result<Vec<PathBuf>> {
        self.command("quit")?;
        let status = self.process.wait(LIMIT)?;
        ensure!(
            status.success(),
            "testpmd {} ended with {status}: {}",
            self.config.name,
            self.process.log()
        );
        Ok(std::mem::take(&mut self.received))
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    ///
    /// A process that is still there after 10 s.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()
    }

    fn command(&mut self, line: &str) -> Result<()> {
        writeln!(self.commands, "{line}")
            .with_context(|| format!("Telling testpmd {} to {line}", self.config.name))
    }
}

/// Without huge pages, devices or anything left behind.
fn command(bed: &Testbed, name: &str, cores: usize) -> Command {
    // A thread that waits and `cores` that poll, wherever the scheduler has room for them.
    let cpus: Vec<String> = sched_getaffinity(None).map_or_else(
        |_| vec!["0".to_owned()],
        |set| {
            let all = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu));
            all.map(|cpu| cpu.to_string()).collect()
        },
    );
    // By lines, or nothing of its output is seen before its end.
    let mut command = Command::new("stdbuf");
    command
        .args(["-oL", PROGRAM])
        .arg(format!("--lcores=(0-{cores})@({})", cpus.join(",")))
        .args(["--no-huge", "-m", "256", "--no-pci", "--no-shconf"])
        .args(["--no-telemetry", "--file-prefix", name])
        .env("RUNTIME_DIRECTORY", bed.directory());
    command
}

/// Capture files in the classic format of libpcap (pcap-savefile(5)), of Ethernet frames.
pub mod capture {
    use std::fs;
    use std::path::Path;

    use anyhow::{Context, ensure};

    use crate::Result;

    /// Magic for microseconds, version 2.4, no time zone, no accuracy, longest record, Ethernet;
    /// little-endian.
    const HEADER: [u32; 6] = [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 0x4_0000, 1];

    /// Writes frames.
    ///
    /// # Errors
    ///
    /// A path that cannot be written.
    pub fn write(path: &Path, frames: &[Vec<u8>]) -> Result<()> {
        let words = |words: &[u32]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        };
        let mut bytes = words(&HEADER);
        for frame in frames {
            let len = frame.len() as u32; // A frame is far below 4 GiB.
            bytes.extend(words(&[0, 0, len, len]));
            bytes.extend_from_slice(frame);
        }
        fs::write(path, bytes).with_context(|| format!("Writing {}", path.display()))
    }

    /// Reads frames.
    ///
    /// # Errors
    ///
    /// A file that is no such capture, or ends within a record.
    pub fn read(path: &Path) -> Result<Vec<Vec<u8>>> {
        let bytes = fs::read(path).with_context(|| format!("Reading {}", path.display()))?;
        let mut frames = Vec::new();
        let (_, mut rest) = bytes.split_at_checked(24).context("No header")?;
        while !rest.is_empty() {
            let (record, behind) = rest.split_at_checked(16).context("Half a record")?;
            let word = |at| {
                u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
            };
            ensure!(word(8) == word(12), "A frame was cut");
            let (frame, behind) = behind
                .split_at_checked(word(8) as usize)
                .context("Half a frame")?;
            frames.push(frame.to_vec());
            rest = behind;
        }
        Ok(frames)
    }
}
