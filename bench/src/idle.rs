//! Ports of one segment without guests: what they cost when there is nothing to do.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use virtio_inter_tests::{Port, PortConfig, Segment, Testbed};

use crate::case::Test;
use crate::guests::MTU;
use crate::measured::Measured;

/// How long ports may take to come to rest, at most.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long idle ports are watched.
const IDLE: Duration = Duration::from_secs(10);

/// Starts `count` ports on one segment and watches them once each has met each.
///
/// # Errors
///
/// A port that does not start; a test that is none of idle ports.
pub fn measure(test: Test, count: u32, program: Option<&Path>) -> Result<Measured> {
    let bed = Testbed::new("the bench")?;
    let mut ports = Idlers::start(&bed, count, program)?;
    ports.come_to_rest()?;
    let measured = match test {
        Test::Memory => Measured::one("memory", "KiB of memory a port", ports.memory()?),
        Test::Idle => ports.watch()?,
        other => bail!("No measurement of idle ports: {}", other.id()),
    };
    measured.check()?;
    Ok(measured)
}

struct Idlers(Vec<Port>);

impl Idlers {
    fn start(bed: &Testbed, count: u32, program: Option<&Path>) -> Result<Self> {
        let segment = Segment::new(bed, "idle")?;
        let mut ports = Vec::new();
        for host in 1..=u8::try_from(count).context("Too many ports")? {
            let mut config = PortConfig::new(&segment, &format!("port{host}"), host).mtu(MTU);
            config.program = program.map(Path::to_path_buf);
            ports.push(Port::start(bed, config)?);
        }
        Ok(Self(ports))
    }

    fn sleeps(&mut self) -> Result<u64> {
        let ports = self.0.iter_mut();
        ports.map(|port| port.process().sleeps()).sum()
    }

    fn cpu(&mut self) -> Result<Duration> {
        let ports = self.0.iter_mut();
        ports.map(|port| port.process().cpu_time()).sum()
    }

    /// KiB of resident memory of each, with what two share divided between them.
    fn memory(&mut self) -> Result<f64> {
        let count = self.0.len();
        let ports = self.0.iter_mut();
        let sum: u64 = ports
            .map(|port| port.process().proportional_memory())
            .sum::<Result<u64>>()?;
        Ok(sum as f64 / count as f64 / 1024.0)
    }

    /// All have met all when nothing moves for a second.
    fn come_to_rest(&mut self) -> Result<()> {
        let start = Instant::now();
        let mut before = self.sleeps()?;
        // If they never rest, that is the figure.
        while start.elapsed() < PATIENCE {
            watch(Duration::from_secs(1));
            let now = self.sleeps()?;
            if now == before {
                break;
            }
            before = now;
        }
        Ok(())
    }

    fn watch(&mut self) -> Result<Measured> {
        let (sleeps, cpu) = (self.sleeps()?, self.cpu()?);
        watch(IDLE);
        let wakeups = self.sleeps()? - sleeps;
        let spent = self.cpu()?.saturating_sub(cpu);
        let measured = Measured::one("idle", "KiB of memory a port", self.memory()?)
            .and(
                "idle_wakeups",
                "wake-ups in 10 s, all ports",
                wakeups as f64,
            )
            .and(
                "idle_cpu",
                "ms of CPU in 10 s, all ports",
                spent.as_secs_f64() * 1e3,
            );
        Ok(measured)
    }
}

/// Lets that much time go by: here time itself is what is measured.
fn watch(time: Duration) {
    thread::sleep(time);
}
