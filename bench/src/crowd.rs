//! Many guests on one segment and one bridge: how much they move together.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use virtio_inter_tests::{
    Bridge, ControlGroup, ControlGroups, Frontend, Job, Mac, Nic, Port, PortConfig, Process,
    Segment, Testbed, Vm, VmConfig, tools,
};

use crate::case::{Test, Way};
use crate::guests::{MTU, cpu_time_of};
use crate::measured::Measured;

/// Index of the interfaces in each guest.
const INTER: usize = 0;
const TAP: usize = 1;
/// The taps have addresses of their own.
const TAP_MAC_BASE: u8 = 0x80;
/// Seconds of one measurement: all clients must be at it for most of that time.
const SECONDS: u32 = 2;
/// Message size of the streams.
const MESSAGE: u32 = 65536;

/// Guests with a port and a tap each. Fields are dropped before the fields that they depend on.
pub struct Crowd {
    _servers: Vec<Job>,
    guests: Vec<Vm>,
    ports: Vec<Port>,
    _bridge: Bridge,
    /// Of guests and ports; empty: they are in the session of this process.
    groups: Vec<ControlGroup>,
}

impl Crowd {
    /// Boots `count` guests of User Mode Linux, at once.
    ///
    /// # Errors
    ///
    /// Names the missing programs, or a guest that does not boot.
    pub fn boot(bed: &Testbed, count: u32, program: Option<&Path>) -> Result<Self> {
        let count = u8::try_from(count).context("Too many guests")?;
        let segment = Segment::new(bed, "crowd")?;
        let mut bridge = Bridge::new(MTU)?;
        let (mut guests, mut ports) = (Vec::new(), Vec::new());
        for host in 1..=count {
            let id = format!("vm{host}");
            let mut config = PortConfig::new(&segment, &id, host).mtu(MTU);
            config.program = program.map(Path::to_path_buf);
            let port = Port::start(bed, config)?;
            let mut tap = Nic::on_tap(&bridge.tap()?, host).in_subnet(1);
            tap.mac = Mac::local(TAP_MAC_BASE + host);
            let config = VmConfig::new(&id, Frontend::Uml)
                .nic(Nic::on_port(&port, host))
                .nic(tap);
            guests.push(Vm::start(bed, config)?);
            ports.push(port);
        }
        let mut servers = Vec::new();
        for guest in &guests {
            guest.ready()?;
            servers.push(tools::netserver(guest, false)?);
        }
        Ok(Self {
            _servers: servers,
            guests,
            ports,
            _bridge: bridge,
            groups: Vec::new(),
        })
    }

    /// Puts each guest and each port into a group of its own, or back into the session of this
    /// process.
    ///
    /// # Errors
    ///
    /// A process that is gone.
    pub fn group(&mut self, groups: Option<&ControlGroups>) -> Result<()> {
        self.groups.clear();
        let Some(groups) = groups else {
            return Ok(());
        };
        let mut own = Vec::new();
        for process in self.processes() {
            let group = groups.make("party")?;
            group.add(process)?;
            own.push(group);
        }
        self.groups = own;
        Ok(())
    }

    /// Takes one measurement between the first `count` guests.
    ///
    /// # Errors
    ///
    /// A tool that fails or measures nothing.
    pub fn measure(&mut self, test: Test, way: Way, count: u32) -> Result<Measured> {
        let interface = match way {
            Way::Inter => INTER,
            Way::Tap => TAP,
            other => bail!("No crowd is joined by {}", other.name()),
        };
        let count = count as usize;
        ensure!(
            count <= self.guests.len(),
            "{count} guests of {}",
            self.guests.len()
        );
        let pairs: Vec<(usize, usize)> = match test {
            Test::Pairs => (0..count / 2)
                .map(|pair| (2 * pair, 2 * pair + 1))
                .collect(),
            Test::AllToOne => (1..count).map(|client| (client, 0)).collect(),
            other => bail!("No measurement of a crowd: {}", other.id()),
        };
        let before = cpu_time_of(&self.processes())?;
        let mut streams = Vec::new();
        for (client, server) in pairs {
            let address = self.guests[server].nic(interface).ipv4().into();
            let client = &self.guests[client];
            streams.push(tools::TcpStream::start(client, address, SECONDS, MESSAGE)?);
        }
        let (mut rate, mut bytes) = (0.0, 0.0);
        for stream in streams {
            let stream = stream.finish()?;
            ensure!(stream.seconds > 0.0, "netperf took no time");
            rate += stream.bytes * 8.0 / stream.seconds / 1e9;
            bytes += stream.bytes;
        }
        let spent = cpu_time_of(&self.processes())?.saturating_sub(before);
        let mut measured = Measured::one(&test.id(), "Gbit/s", rate).moved(bytes);
        measured.set_cpu(spent);
        measured.check()?;
        Ok(measured)
    }

    fn processes(&mut self) -> Vec<&Process> {
        let guests = self.guests.iter_mut().map(Vm::process);
        let ports = self.ports.iter_mut().map(Port::process);
        guests.chain(ports).map(|process| &*process).collect()
    }
}
