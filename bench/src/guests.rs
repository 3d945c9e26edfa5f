//! Two guests that reach each other by virtio-inter and by tap + bridge, and the measurements
//! between them.
//!
//! Both ways are interfaces of the same guests, in subnets of their own: only the way differs.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use virtio_inter_tests::{
    Bridge, ControlGroup, Frontend, Job, Kernel, Mac, Nic, Port, PortConfig, Process, Segment,
    Testbed, Vm, VmConfig, is_inside, tools,
};

use crate::case::{Environment, Test, Way};
use crate::measured::Measured;
use crate::placement::Seat;

/// Ethernet's usual: the same on both ways.
pub const MTU: u16 = 1500;
/// Index of the interfaces in each guest.
const INTER: usize = 0;
const TAP: usize = 1;
/// The taps have addresses of their own.
const TAP_MAC_BASE: u8 = 0x80;
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

/// Two guests, their ports and their bridge. Fields are dropped before the fields that they depend
/// on.
pub struct Pair {
    /// Programs that wait for the tools' clients, in the first guest and in the second.
    servers: Vec<Job>,
    guests: [Vm; 2],
    ports: [Port; 2],
    _bridge: Bridge,
    /// Of guests and ports; empty: they are in the session of this process.
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
        let segment = Segment::new(bed, "pair")?;
        let mut bridge = Bridge::new(MTU)?;
        let mut start = |id: &str, host: u8| -> Result<(Vm, Port)> {
            let mut config = PortConfig::new(&segment, id, host).mtu(MTU);
            config.program = program.map(Path::to_path_buf);
            let port = Port::start(bed, config)?;
            let mut tap = Nic::on_tap(&bridge.tap()?, host).in_subnet(1);
            tap.mac = Mac::local(TAP_MAC_BASE + host);
            let config = VmConfig::new(id, kind)
                .nic(Nic::on_port(&port, host))
                .nic(tap);
            Ok((Vm::start(bed, config)?, port))
        };
        let ((a, port_a), (b, port_b)) = (start("a", 1)?, start("b", 2)?);
        let guests = [a, b];
        for guest in &guests {
            guest.ready()?;
        }
        Ok(Self {
            servers: Vec::new(),
            guests,
            ports: [port_a, port_b],
            _bridge: bridge,
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
            other => bail!("No guest is reached by {}", other.name()),
        })
    }

    /// Binds guests and ports to CPUs of the host, and to groups of their own or none.
    ///
    /// # Errors
    ///
    /// A process that is gone.
    pub fn place(&mut self, seat: &Seat) -> Result<()> {
        let Seat { cpus, groups } = seat;
        self.groups.clear();
        let guests = self.guests.iter_mut().map(Vm::process);
        let ports = self.ports.iter_mut().map(Port::process);
        let guests = guests.zip(&cpus.guests).map(|party| ("guest", party));
        let ports = ports.zip(&cpus.ports).map(|party| ("port", party));
        for (kind, (process, cpus)) in guests.chain(ports) {
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

    /// Whether both ports are still there.
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
        let guests = self.guests.iter_mut().map(Vm::process);
        let ports = self.ports.iter_mut().map(Port::process);
        guests.chain(ports).map(|process| &*process).collect()
    }

    /// Processor time that guests, ports and the kernel's own network threads spent so far.
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
        let before = self.cpu_time()?;
        let mut measured = self.run_tool(test, way, size)?;
        let spent = self.cpu_time()?.saturating_sub(before);
        measured.set_cpu(spent);
        measured.check()?;
        Ok(measured)
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
    use super::describe;

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
