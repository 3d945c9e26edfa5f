//! Guests on one segment, with a port each: what most tests start from.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::ensure;

use crate::{Frontend, Nic, Port, PortConfig, Result, Segment, Testbed, Vm, VmConfig, tools, wait};

/// Time limit for guests to reach each other after a change: a frontend looks for its port every
/// 100 ms, and a neighbour that did not answer is asked again after a second.
const REACH_LIMIT: Duration = Duration::from_secs(30);

/// Guests 1, 2, 3… of a segment, with ports `vm1`, `vm2`, `vm3`…
pub struct Group {
    /// The guests.
    pub vms: Vec<Vm>,
    /// Their ports, in the same order.
    pub ports: Vec<Port>,
    /// The segment of the ports.
    pub segment: Segment,
    /// Of the ports' names, so that two groups of one test differ.
    prefix: String,
}

impl Group {
    /// Boots guests of these kinds, all at once, each on a port of its own with the usual flags.
    ///
    /// # Errors
    ///
    /// As for [`Port::start`] and [`Vm::boot`].
    pub fn boot(bed: &Testbed, kinds: &[Frontend]) -> Result<Self> {
        Self::boot_with(bed, "test", kinds, |config| config)
    }

    /// The same on a segment with a name, with the ports' flags changed by `change`. The guests of
    /// groups with other names have the same addresses.
    ///
    /// # Errors
    ///
    /// As for [`Port::start`] and [`Vm::boot`].
    pub fn boot_with(
        bed: &Testbed,
        name: &str,
        kinds: &[Frontend],
        change: impl Fn(PortConfig) -> PortConfig,
    ) -> Result<Self> {
        let mut group = Self::new(bed, name)?;
        for kind in kinds {
            group.start(bed, *kind, &change, |config| config)?;
        }
        group.ready()?;
        Ok(group)
    }

    /// A segment without guests.
    ///
    /// # Errors
    ///
    /// As for [`Segment::new`].
    pub fn new(bed: &Testbed, name: &str) -> Result<Self> {
        Ok(Self {
            vms: Vec::new(),
            ports: Vec::new(),
            segment: Segment::new(bed, name)?,
            prefix: match name {
                "test" => String::new(),
                other => format!("{other}-"),
            },
        })
    }

    /// A group of what is there already.
    pub fn of(segment: Segment, ports: Vec<Port>, vms: Vec<Vm>) -> Self {
        Self {
            vms,
            ports,
            segment,
            prefix: String::new(),
        }
    }

    /// Starts the next guest on a port of its own, with the port's flags and the guest's
    /// configuration changed. It has as many processors as the port has queue pairs.
    /// [`Group::ready`] must come before any command.
    ///
    /// # Errors
    ///
    /// As for [`Port::start`] and [`Vm::start`].
    pub fn start(
        &mut self,
        bed: &Testbed,
        kind: Frontend,
        port: impl FnOnce(PortConfig) -> PortConfig,
        vm: impl FnOnce(VmConfig) -> VmConfig,
    ) -> Result<()> {
        let host = self.vms.len() as u8 + 1;
        let id = format!("{}vm{host}", self.prefix);
        let port = Port::start(bed, port(PortConfig::new(&self.segment, &id, host)))?;
        let config = VmConfig::new(&id, kind)
            .vcpus(port.config().queues.into())
            .nic(Nic::on_port(&port, host));
        self.ports.push(port);
        self.vms.push(Vm::start(bed, vm(config))?);
        Ok(())
    }

    /// Waits until all guests are ready.
    ///
    /// # Errors
    ///
    /// As for [`Vm::ready`].
    pub fn ready(&self) -> Result<()> {
        self.vms.iter().try_for_each(Vm::ready)
    }

    /// All of its guests.
    pub fn members(&self) -> Vec<usize> {
        (0..self.vms.len()).collect()
    }

    /// Pings from each of these guests to each other of them, over IPv4 and IPv6, until all answers
    /// come.
    ///
    /// # Errors
    ///
    /// A guest that another does not reach within 30 s.
    pub fn all_reach_all(&self, members: &[usize]) -> Result<()> {
        for from in members {
            for to in members.iter().filter(|to| *to != from) {
                let nic = self.vms[*to].nic(0);
                for address in nic.addresses() {
                    reach(&self.vms[*from], address)?;
                }
            }
        }
        Ok(())
    }
}

/// Pings until every answer of one round comes.
fn reach(from: &Vm, to: IpAddr) -> Result<()> {
    let how = tools::Ping {
        count: 3,
        ..Default::default()
    };
    let what = format!("answer from {to} to {}", from.config().name);
    wait::until(&what, REACH_LIMIT, || {
        let report = tools::ping(from, to, how)?;
        ensure!(
            report.received <= report.sent,
            "{to} answers twice: {report:?}"
        );
        Ok((report.received == report.sent).then_some(()))
    })
}
