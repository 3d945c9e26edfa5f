//! Guests on one segment, with a port each: what most tests start from.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::ensure;

use crate::{Frontend, Nic, Port, PortConfig, Result, Segment, Testbed, Vm, VmConfig, tools, wait};

/// How long guests may need to reach each other after a change: a frontend looks for its port every 100 ms, and a
/// neighbour that did not answer is asked again after a second.
const REACH_LIMIT: Duration = Duration::from_secs(30);

/// Guests 1, 2, 3… of a segment, with ports `vm1`, `vm2`, `vm3`…
pub struct Group {
    /// The guests.
    pub vms: Vec<Vm>,
    /// Their ports, in the same order.
    pub ports: Vec<Port>,
    /// Where the ports meet.
    pub segment: Segment,
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

    /// The same on a segment with a name, with the ports' flags changed by `change`. The guests of groups with other
    /// names have the same addresses.
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
        let segment = Segment::new(bed, name)?;
        let mut group = Self {
            vms: Vec::new(),
            ports: Vec::new(),
            segment,
        };
        for (kind, host) in kinds.iter().zip(1..) {
            let id = if name == "test" {
                format!("vm{host}")
            } else {
                format!("{name}-vm{host}")
            };
            let port = Port::start(bed, change(PortConfig::new(&group.segment, &id, host)))?;
            let config = VmConfig::new(&id, *kind)
                .vcpus(port.config().queues.into())
                .nic(Nic::on_port(&port, host));
            group.ports.push(port);
            group.vms.push(Vm::start(bed, config)?);
        }
        for vm in &group.vms {
            vm.ready()?;
        }
        Ok(group)
    }

    /// Pings from each of these guests to each other of them, over IPv4 and IPv6, until all answers come.
    ///
    /// # Errors
    ///
    /// A guest that another does not reach within 30 s.
    pub fn all_reach_all(&self, members: &[usize]) -> Result<()> {
        for from in members {
            for to in members.iter().filter(|to| *to != from) {
                let nic = self.vms[*to].nic(0);
                for address in [IpAddr::from(nic.ipv4()), nic.ipv6().into()] {
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
