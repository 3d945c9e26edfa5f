//! Measurements between processes of the host: frames through switches, and bytes through links,
//! sockets, pipes and memcpy.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use virtio_inter_tests::{ControlGroups, Port, PortConfig, Process, Segment, Testbed};

use crate::case::{Test, Way};
use crate::guests::cpu_time_of;
use crate::measured::Measured;
use crate::open_vswitch::OpenVswitch;
use crate::parties::{Outcome, Task};
use crate::programs::Programs;
use crate::testpmd::{GENERATOR_MACS, Interface, Testpmd};

/// How long frames circle while they are counted.
const WINDOW: Duration = Duration::from_secs(1);
/// Entries of the virtqueues: as many as DPDK's defaults come near to on either side.
const QUEUE_SIZE: u16 = 1024;
/// Bytes that are moved once each way of moving them runs, at least.
const BYTES: u64 = 2 << 30;
/// Records, or calls, of one measurement at most: small ones take long.
const RECORDS: u64 = 4_000_000;

/// Two CPUs of this host and the programs that run on them.
pub struct Host {
    programs: Programs,
    /// CPU of the frames' source, or of the sender.
    near: usize,
    /// CPU of the measured way, or of the receiver.
    far: usize,
}

impl Host {
    /// Uses these CPUs.
    pub fn new(programs: Programs, near: usize, far: usize) -> Self {
        Self {
            programs,
            near,
            far,
        }
    }

    /// Takes one measurement. Each port is in a group of its own, if there are `groups`.
    ///
    /// # Errors
    ///
    /// A program that fails or moves nothing.
    pub fn measure(
        &self,
        test: Test,
        way: Way,
        size: u32,
        groups: Option<&ControlGroups>,
    ) -> Result<Measured> {
        let measured = match test {
            Test::Forward => self.forward(way, size, groups)?,
            Test::Bytes { batch, cold } => self.bytes(&test.id(), way, size, batch, cold)?,
            other => bail!("No measurement on the host: {}", other.id()),
        };
        measured.check()?;
        Ok(measured)
    }

    /// Lets frames circle between two ports of one testpmd that are joined by `way`.
    fn forward(&self, way: Way, size: u32, groups: Option<&ControlGroups>) -> Result<Measured> {
        let mut own = Vec::new();
        let bed = Testbed::new("the bench")?;
        let (mut ports, mut switch, mut vswitch) = (Vec::new(), None, None);
        let interfaces = match way {
            Way::Inter => {
                let segment = Segment::new(&bed, "forward")?;
                let mut interfaces = Vec::new();
                for (number, mac) in (1..).zip(GENERATOR_MACS) {
                    let id = format!("port{number}");
                    let mut config = PortConfig::new(&segment, &id, number).cpus(&[self.far]);
                    config.mac = mac;
                    config.mtu = u16::try_from(size.max(1500)).context("Too large a frame")?;
                    config.queue_size = QUEUE_SIZE;
                    config.program.clone_from(&self.programs.port);
                    let mut port = Port::start(&bed, config)?;
                    if let Some(groups) = groups {
                        let group = groups.make("port")?;
                        group.add(port.process())?;
                        own.push(group);
                    }
                    interfaces.push(Interface::VirtioUser(port.socket().to_path_buf()));
                    ports.push(port);
                }
                interfaces
            }
            Way::NetVhost => {
                let sockets = [bed.path("vhost0.sock"), bed.path("vhost1.sock")];
                let behind = sockets.clone().map(Interface::NetVhost);
                switch = Some(Testpmd::forwarder(&bed, "switch", &behind, self.far, size)?);
                sockets.map(Interface::VirtioUser).to_vec()
            }
            Way::Memif => {
                let sockets = [bed.path("memif0.sock"), bed.path("memif1.sock")];
                let behind = sockets.clone().map(Interface::MemifServer);
                switch = Some(Testpmd::forwarder(&bed, "switch", &behind, self.far, size)?);
                sockets.map(Interface::MemifClient).to_vec()
            }
            Way::OvsDpdk => {
                let packages = self.programs.open_vswitch.as_deref();
                let packages = packages.context("No Open vSwitch with DPDK")?;
                let started = OpenVswitch::start(&bed, packages, self.far)?;
                let sockets = started.sockets();
                vswitch = Some(started);
                sockets.map(Interface::VirtioUser).to_vec()
            }
            other => bail!("testpmd is not joined by {}", other.name()),
        };
        let mut generator =
            Testpmd::generator(&bed, "generator", &interfaces, [self.near, self.far], size)?;
        if let Some(vswitch) = &vswitch {
            vswitch.wait_for_drivers()?;
        }
        generator.start_circling()?;
        let mut spent = || {
            let mut all: Vec<&Process> = ports.iter_mut().map(|port| &*port.process()).collect();
            all.extend(switch.as_ref().map(Testpmd::process));
            all.extend(vswitch.as_ref().map(OpenVswitch::process));
            cpu_time_of(&all)
        };
        let cpu = spent()?;
        let (start, first) = generator.received()?;
        let (end, last) = generator.received_after(start + WINDOW)?;
        let cpu = spent()?.saturating_sub(cpu);
        generator.quit()?;
        let frames = (last - first) as f64;
        let seconds = (end - start).as_secs_f64();
        let mut measured = Measured::one(&Test::Forward.id(), "Mframes/s", frames / seconds / 1e6)
            .moved(frames * f64::from(size));
        measured.set_cpu(cpu);
        Ok(measured)
    }

    /// Moves bytes between two processes, or copies them in one.
    fn bytes(&self, name: &str, way: Way, size: u32, batch: u32, cold: bool) -> Result<Measured> {
        let records = (BYTES / u64::from(size)).clamp(1000, RECORDS);
        let task = Task {
            way,
            size,
            batch,
            cold,
            records,
            near: self.near,
            far: self.far,
        };
        let bed = Testbed::new("the bench")?;
        let mut command = Command::new(&self.programs.bench);
        command.args(task.arguments()).stdin(Stdio::null());
        let log = bed.path("parties.log");
        let mut process = Process::start("virtio-inter-bench", command, &log, &[])?;
        let limit = Duration::from_secs(60);
        let start = Instant::now();
        let status = process.wait(limit)?;
        let told = process.log();
        ensure!(
            status.success(),
            "virtio-inter-bench ended with {status} after {:?}: {told}",
            start.elapsed()
        );
        let outcome: Outcome =
            serde_json::from_str(told.trim()).with_context(|| format!("It wrote: {told}"))?;
        let bytes = records as f64 * f64::from(size);
        let mut measured = Measured::one(name, "GB/s", bytes / outcome.seconds / 1e9)
            .and(
                &format!("{name}_each"),
                "ns",
                outcome.seconds * 1e9 / records as f64,
            )
            .moved(bytes);
        measured.set_cpu(Duration::from_secs_f64(outcome.cpu_seconds.max(0.0)));
        Ok(measured)
    }
}
