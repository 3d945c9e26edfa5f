//! Two guests that reach each other by virtio-inter and by tap + bridge, and the measurements
//! between them.
//!
//! All ways are interfaces of the same guests, in subnets of their own: only the way differs.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use virtio_inter_tests::{
    ControlGroup, Frontend, Job, Kernel, Mac, Nic, Port, PortConfig, Process, Segment, Testbed, Vm,
    VmConfig, is_inside, tools,
};

use crate::case::{Environment, Test, Way};
use crate::host_side::{self, HostSide};
use crate::measured::Measured;
use crate::placement::Seat;

/// Ethernet's usual: the same on all ways.
pub const MTU: u16 = 1500;
/// Index of the interfaces in each guest, which is the number of their subnets too.
const INTER: usize = 0;
const TAP: usize = 1;
const UPLINK: usize = 2;
/// The taps have addresses of their own, and so have the ports with uplinks.
const TAP_MAC_BASE: u8 = 0x80;
const UPLINK_MAC_BASE: u8 = 0x40;
/// Seconds of one measurement …
const SECONDS: u32 = 1;
/// … and of one on an emulated processor, which translates what it has not run yet.
const EMULATED_SECONDS: u32 = 2;
/// How long a guest may take to do nothing, before it is taken for one that hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Messages, or bursts of them, in a second when parties are to sleep in between.
const IDLE_RATE: u32 = 100;
/// Messages of a burst.
const BURST: u32 = 16;

/// The interfaces of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// To a link and to a bridge.
    Usual,
    /// The same, and one more to a link whose ports have uplinks to a bridge of their own. The host
    /// is a party on both bridges.
    Uplinks,
}

/// Two guests, their ports and their bridges. Fields are dropped before the fields that they depend
/// on.
pub struct Pair {
    /// Programs that wait for the tools' clients, in the first guest and in the second.
    servers: Vec<Job>,
    guests: [Vm; 2],
    /// Of the first guest and of the second, without uplinks, then those with.
    ports: Vec<Port>,
    /// The bridge of the taps, and that of the uplinks.
    hosts: Vec<HostSide>,
    /// Of guests, ports and the host's servers; empty: they are in the session of this process.
    groups: Vec<ControlGroup>,
    /// Seconds of one measurement.
    seconds: u32,
}

impl Pair {
    /// Boots both guests. If `program` is `None`, the environment names the port's program.
    ///
    /// # Errors
    ///
    /// Names the missing programs, or a guest that does not boot, with the ends of its logs.
    pub fn boot(bed: &Testbed, kind: Frontend, program: Option<&Path>) -> Result<Self> {
        Self::boot_attached(bed, kind, Attached::Usual, program)
    }

    /// The same with these interfaces.
    ///
    /// # Errors
    ///
    /// As [`Pair::boot`].
    pub fn boot_attached(
        bed: &Testbed,
        kind: Frontend,
        attached: Attached,
        program: Option<&Path>,
    ) -> Result<Self> {
        let has_uplinks = attached == Attached::Uplinks;
        let segment = Segment::new(bed, "pair")?;
        let uplinked = Segment::new(bed, "uplinked")?;
        let mut hosts = vec![HostSide::new(MTU, TAP as u8)?];
        if has_uplinks {
            hosts.push(HostSide::new(MTU, UPLINK as u8)?);
        }
        let start_port = |mut config: PortConfig| {
            config.mtu = MTU;
            config.program = program.map(Path::to_path_buf);
            Port::start(bed, config)
        };
        let (mut ports, mut with_uplinks) = (Vec::new(), Vec::new());
        let mut start = |id: &str, host: u8| -> Result<Vm> {
            let port = start_port(PortConfig::new(&segment, id, host))?;
            let mut tap = Nic::on_tap(&hosts[0].tap()?, host).in_subnet(TAP as u8);
            tap.mac = Mac::local(TAP_MAC_BASE + host);
            let mut config = VmConfig::new(id, kind)
                .nic(Nic::on_port(&port, host))
                .nic(tap);
            ports.push(port);
            if let Some(side) = hosts.get_mut(1) {
                let name = format!("{id}-uplink");
                let port = PortConfig::new(&uplinked, &name, UPLINK_MAC_BASE + host);
                let port = start_port(port.uplink(&side.tap()?))?;
                config = config.nic(Nic::on_port(&port, host).in_subnet(UPLINK as u8));
                with_uplinks.push(port);
            }
            Vm::start(bed, config)
        };
        let guests = [start("a", 1)?, start("b", 2)?];
        ports.append(&mut with_uplinks);
        for guest in &guests {
            guest.ready()?;
        }
        if has_uplinks && host_side::has_tools() {
            for side in &mut hosts {
                side.serve(bed)?;
            }
        }
        Ok(Self {
            servers: Vec::new(),
            guests,
            ports,
            hosts,
            groups: Vec::new(),
            seconds: if is_inside() {
                EMULATED_SECONDS
            } else {
                SECONDS
            },
        })
    }

    /// Both guests.
    pub fn guests(&self) -> &[Vm; 2] {
        &self.guests
    }

    /// The release of the guests' kernel.
    pub fn kernel_release(&self) -> String {
        self.guests[0].kernel_release()
    }

    /// The guest that serves, and its address, for a client in the first guest.
    pub fn server(&self, way: Way) -> Result<(&Vm, IpAddr)> {
        let [a, b] = &self.guests;
        Ok(match way {
            Way::Loopback => (a, Ipv4Addr::LOCALHOST.into()),
            Way::Inter => (b, b.nic(INTER).ipv4().into()),
            Way::Tap => (b, b.nic(TAP).ipv4().into()),
            Way::Uplink => (b, b.nic(UPLINK).ipv4().into()),
            other => bail!("No guest is reached by {}", other.name()),
        })
    }

    /// The host's address, for a client in the first guest.
    fn host(&self, way: Way) -> Result<IpAddr> {
        let side = match way {
            Way::Tap => self.hosts.first(),
            Way::Uplink => self.hosts.get(1),
            other => bail!("No host is reached by {}", other.name()),
        };
        Ok(side.context("No uplinks are attached")?.ipv4().into())
    }

    /// Binds guests, ports and the host's servers to CPUs of the host, and to groups of their own
    /// or none. The host's side is where the second guest is.
    ///
    /// # Errors
    ///
    /// A process that is gone.
    pub fn place(&mut self, seat: &Seat) -> Result<()> {
        let Seat { cpus, groups } = seat;
        self.groups.clear();
        let servers = self.hosts.iter().flat_map(HostSide::servers);
        let servers = servers.map(|server| ("server", (server, &cpus.guests[1])));
        let guests = self.guests.iter_mut().map(|guest| &*guest.process());
        let ports = self.ports.iter_mut().map(|port| &*port.process());
        let guests = guests.zip(&cpus.guests).map(|party| ("guest", party));
        let ports = ports.zip(cpus.ports.iter().cycle());
        let ports = ports.map(|party| ("port", party));
        for (kind, (process, cpus)) in guests.chain(ports).chain(servers) {
            process.pin(cpus)?;
            if let Some(groups) = groups {
                let group = groups.make(kind)?;
                group.add(process)?;
                self.groups.push(group);
            }
        }
        Ok(())
    }

    /// Whether both guests still run commands.
    pub fn answers(&self) -> bool {
        let mut guests = self.guests.iter();
        guests.all(|guest| guest.run_within(ANSWER_LIMIT, &["true"]).is_ok())
    }

    /// Whether all ports are still there.
    pub fn has_ports(&mut self) -> bool {
        self.ports
            .iter_mut()
            .all(|port| port.process().is_running())
    }

    /// The offloads that the guests' network stack leaves to each way, in words.
    ///
    /// # Errors
    ///
    /// A guest that does not answer.
    pub fn offloads(&self, way: Way) -> Result<String> {
        let guest = &self.guests[0];
        let name = match way {
            Way::Loopback => "lo".to_owned(),
            Way::Inter => guest.interface(INTER)?,
            Way::Tap => guest.interface(TAP)?,
            Way::Uplink => guest.interface(UPLINK)?,
            other => bail!("No guest is reached by {}", other.name()),
        };
        let mtu = guest.run(&["cat", &format!("/sys/class/net/{name}/mtu")])?;
        let features = guest.run(&["ethtool", "-k", &name])?;
        Ok(format!("MTU {}, {}", mtu.trim(), describe(&features)?))
    }

    /// Starts the programs that wait for clients, where they are not running yet: they serve all
    /// measurements.
    fn serve(&mut self) -> Result<()> {
        if !self.servers.is_empty() {
            return Ok(());
        }
        for guest in &self.guests {
            self.servers.push(tools::netserver(guest, false)?);
            for transport in [tools::Transport::Tcp, tools::Transport::Udp] {
                self.servers
                    .push(tools::sockperf_server(guest, transport, false)?);
            }
        }
        Ok(())
    }

    fn processes(&mut self) -> Vec<&Process> {
        let servers = self.hosts.iter().flat_map(HostSide::servers);
        let guests = self.guests.iter_mut().map(|guest| &*guest.process());
        let ports = self.ports.iter_mut().map(|port| &*port.process());
        guests.chain(ports).chain(servers).collect()
    }

    /// Processor time that guests, ports, the host's servers and the kernel's own network threads
    /// spent so far.
    fn cpu_time(&mut self) -> Result<Duration> {
        cpu_time_of(&self.processes())
    }

    /// Takes one measurement.
    ///
    /// # Errors
    ///
    /// A tool that fails or measures nothing.
    pub fn measure(&mut self, test: Test, way: Way, size: u32) -> Result<Measured> {
        self.serve()?;
        let frames = self.frames(way)?;
        let before = self.cpu_time()?;
        let mut measured = if test.is_with_host() {
            self.run_tool_with_host(test, way, size)?
        } else {
            self.run_tool(test, way, size)?
        };
        let spent = self.cpu_time()?.saturating_sub(before);
        measured.set_cpu(spent);
        measured.check()?;
        if let (Some(before), Some(after)) = (frames, self.frames(way)?) {
            after.since(before).check(test)?;
        }
        Ok(measured)
    }

    /// Frames that the first guest's port with an uplink has sent so far, if it is about that one.
    fn frames(&self, way: Way) -> Result<Option<Frames>> {
        let Some(port) = self.ports.get(2).filter(|_| way == Way::Uplink) else {
            return Ok(None);
        };
        let counters = port.counters()?;
        Ok(Some(Frames {
            all: counters.get("tx_frames"),
            by_uplink: counters.get("uplink_tx_frames"),
        }))
    }

    /// What is measured between the first guest and the host.
    fn run_tool_with_host(&self, test: Test, way: Way, size: u32) -> Result<Measured> {
        let (client, address) = (&self.guests[0], self.host(way)?);
        let (name, seconds) = (test.id(), self.seconds);
        let reverse = match test {
            Test::ToHost => false,
            Test::FromHost => true,
            _ => {
                let (tcp, pace) = (tools::Transport::Tcp, tools::Pace::PingPong);
                return latency(&name, client, address, tcp, pace, seconds);
            }
        };
        let stream = tools::iperf3_stream(client, address, seconds, size, reverse)?;
        ensure!(stream.seconds > 0.0, "iperf3 took no time");
        let rate = stream.bytes * 8.0 / stream.seconds / 1e9;
        Ok(Measured::one(&name, "Gbit/s", rate).moved(stream.bytes))
    }

    fn run_tool(&self, test: Test, way: Way, size: u32) -> Result<Measured> {
        let (server, address) = self.server(way)?;
        let client = &self.guests[0];
        let name = test.id();
        let seconds = self.seconds;
        Ok(match test {
            Test::TcpStream => {
                let stream = tools::tcp_stream(client, address, seconds, size)?;
                ensure!(stream.seconds > 0.0, "netperf took no time");
                let rate = stream.bytes * 8.0 / stream.seconds / 1e9;
                Measured::one(&name, "Gbit/s", rate).moved(stream.bytes)
            }
            Test::TcpRr => {
                let rate = tools::tcp_rr_of(client, address, seconds, size)?;
                Measured::one(&name, "µs", rate.mean_us)
            }
            Test::PingPong { tcp, loaded } => {
                let transport = if tcp {
                    tools::Transport::Tcp
                } else {
                    tools::Transport::Udp
                };
                let _load = loaded
                    .then(|| tools::BulkStream::start(client, server, address, seconds + 30))
                    .transpose()?;
                let pace = tools::Pace::PingPong;
                latency(&name, client, address, transport, pace, seconds)?
            }
            Test::AfterIdle => {
                let pace = tools::Pace::Each {
                    per_second: IDLE_RATE,
                };
                latency(&name, client, address, tools::Transport::Tcp, pace, seconds)?
            }
            Test::Burst => {
                let pace = tools::Pace::Bursts {
                    per_second: IDLE_RATE,
                    messages: BURST,
                };
                latency(&name, client, address, tools::Transport::Tcp, pace, seconds)?
            }
            Test::Datagrams => {
                let datagrams = tools::iperf3_udp(client, server, address, seconds, size)?;
                Measured::one(&name, "1/s", datagrams.per_second)
                    .and(&format!("{name}_loss"), "%", datagrams.loss * 100.0)
                    .moved(datagrams.received * f64::from(size))
            }
            other => bail!("No measurement between two guests: {}", other.id()),
        })
    }
}

/// Frames of a guest whose port has an uplink.
#[derive(Clone, Copy, Debug)]
struct Frames {
    all: u64,
    by_uplink: u64,
}

impl Frames {
    fn since(self, before: Self) -> Self {
        Self {
            all: self.all - before.all,
            by_uplink: self.by_uplink - before.by_uplink,
        }
    }

    /// Checks that most frames went the way that was to be measured.
    fn check(self, test: Test) -> Result<()> {
        let (uplink, link) = (self.by_uplink, self.all.saturating_sub(self.by_uplink));
        let (most, least) = match test.is_with_host() {
            true => (uplink, link),
            false => (link, uplink),
        };
        ensure!(
            least * 10 <= most,
            "{uplink} frames went by the uplink and {link} by links"
        );
        Ok(())
    }
}

fn latency(
    name: &str,
    client: &Vm,
    address: IpAddr,
    transport: tools::Transport,
    pace: tools::Pace,
    seconds: u32,
) -> Result<Measured> {
    let times = tools::half_round_trip(client, address, transport, pace, seconds)?;
    Ok(Measured::one(name, "µs", times.median_us)
        .and(&format!("{name}_p99"), "µs", times.p99_us)
        .and(&format!("{name}_p99_9"), "µs", times.p99_9_us))
}

/// Processor time that these processes, all that they started, and the kernel's own network threads
/// spent so far. Kernel time within a process's system calls is the process's time.
///
/// # Errors
///
/// A process that is gone.
pub fn cpu_time_of(processes: &[&Process]) -> Result<Duration> {
    let mut sum = Process::softirq_threads_cpu_time();
    for process in processes {
        sum += process.family_cpu_time()?;
    }
    Ok(sum)
}

/// The frontend of an environment with guests.
///
/// # Errors
///
/// An environment that has none here.
pub fn frontend(environment: Environment) -> Result<Frontend> {
    Ok(match environment {
        Environment::Uml => Frontend::Uml,
        Environment::Qemu => Frontend::Qemu(Kernel::Debian13),
        Environment::CloudHypervisor | Environment::Nested => {
            Frontend::CloudHypervisor(Kernel::Debian13)
        }
        other => bail!("No guests are booted by {}", other.name()),
    })
}

/// The offloads that matter, read from `ethtool -k`.
fn describe(features: &str) -> Result<String> {
    let on = |name: &str| -> Result<&str> {
        let state = features
            .lines()
            .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "))
            .with_context(|| format!("No {name} in what ethtool tells"))?;
        Ok(if state.starts_with("on") { "on" } else { "off" })
    };
    Ok(format!(
        "TSO {}, checksum offload {}, GRO {}",
        on("tcp-segmentation-offload")?,
        on("tx-checksumming")?,
        on("generic-receive-offload")?
    ))
}

#[cfg(test)]
mod tests {
    use super::{Frames, describe};
    use crate::case::Test;

    #[test]
    fn frames_are_to_go_the_way_that_is_measured() {
        let frames = |all, by_uplink| Frames { all, by_uplink };
        let done = frames(1010, 1005).since(frames(10, 5));
        assert!(done.check(Test::ToHost).is_ok() && done.check(Test::TcpStream).is_err());
        let done = frames(1000, 20);
        assert!(done.check(Test::ToHost).is_err() && done.check(Test::TcpStream).is_ok());
    }

    #[test]
    fn offloads_are_read_from_what_ethtool_tells() {
        let text = "Features for eth0:\nrx-checksumming: on [fixed]\ntx-checksumming: on\n\
                    \ttx-checksum-ipv4: off [fixed]\ntcp-segmentation-offload: off\n\
                    \ttx-tcp-segmentation: off [requested on]\ngeneric-receive-offload: on\n";
        assert_eq!(
            describe(text).unwrap(),
            "TSO off, checksum offload on, GRO on"
        );
        assert!(describe("Cannot get device features").is_err());
    }
}
