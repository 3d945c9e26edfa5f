//! Guests with every mix of offloads behind uplinks: whoever is between them completes checksums
//! and segments, and nobody does it where both can leave it.

use std::net::IpAddr;

use anyhow::ensure;
use virtio_inter_tests::{
    Bridge, Frontend, Kernel, Nic, Offloads, Parts, Port, PortConfig, Result, Segment, Tap,
    Testbed, Vm, VmConfig, guest_test, tools,
};

use crate::host::{LIMIT, may_make_networks};

/// Bytes of one connection, and most bytes of a TCP segment.
const BYTES: u64 = 4_000_000;
const SEGMENT: u64 = 1448;

/// A guest, alone on its segment, and what its device may leave to others.
struct Member {
    vm: Vm,
    _port: Port,
    tap: Tap,
    offloads: Offloads,
    /// Whether the tap device takes offloads from the port.
    uplink_offload: bool,
}

impl Member {
    fn start(bed: &Testbed, bridge: &mut Bridge, host: u8, kind: (Offloads, bool)) -> Result<Self> {
        let (offloads, uplink_offload) = kind;
        let tap = bridge.tap()?;
        let name = format!("vm{host}");
        let segment = Segment::new(bed, &name)?;
        let mut port = PortConfig::new(&segment, &name, host).uplink(&tap);
        port.uplink_offload = uplink_offload;
        let port = Port::start(bed, port)?;
        let mut nic = Nic::on_port(&port, host);
        nic.offloads = offloads;
        let kind = Frontend::Qemu(Kernel::Debian13);
        Ok(Self {
            vm: Vm::start(bed, VmConfig::new(&name, kind).nic(nic))?,
            _port: port,
            tap,
            offloads,
            uplink_offload,
        })
    }

    fn name(&self) -> String {
        match self.uplink_offload {
            true => self.offloads.to_string(),
            false => format!("{}, uplink without", self.offloads),
        }
    }

    /// Whether its TCP comes to its tap device in pieces of up to 64 KiB.
    fn sends_large(&self) -> bool {
        self.uplink_offload && self.takes_large()
    }

    /// Whether it takes such pieces from there.
    fn takes_large(&self) -> bool {
        self.offloads == Offloads::Segmentation
    }
}

/// Moves checked data, and checks in which pieces it passed the two tap devices.
fn move_data(from: &Member, to: &Member, address: IpAddr) -> Result<()> {
    let before = (from.tap.packets()?.0, to.tap.packets()?.1);
    let plan = tools::TransferPlan {
        receive: 0,
        ..tools::TransferPlan::both_ways(BYTES)
    };
    tools::Transfer::start(&from.vm, &to.vm, address, plan)?.finish(LIMIT)?;
    let taken = from.tap.packets()?.0 - before.0;
    let given = to.tap.packets()?.1 - before.1;
    // Nothing is put together on the way; what the second device cannot pass, the kernel segments.
    for (frames, is_large) in [
        (taken, from.sends_large()),
        (given, from.sends_large() && to.takes_large()),
    ] {
        let segments = BYTES / SEGMENT;
        ensure!(
            if is_large {
                frames < segments / 2
            } else {
                frames >= segments
            },
            "{taken} packets came from the sender, {given} went to the receiver, for {segments} \
             segments"
        );
    }
    // One that fits and one that comes in fragments.
    for size in [1000, 4000] {
        let report = tools::udp_check(&from.vm, &to.vm, address, 3, size)?;
        ensure!((report.returned, report.wrong) == (3, 0), "{report:?}");
    }
    Ok(())
}

#[test]
fn uplink_carries_offloads_in_every_mix_of_qemu_guests() {
    if !may_make_networks() {
        return;
    }
    guest_test(|bed| {
        let mut bridge = Bridge::new(1500)?;
        let kinds = Offloads::ALL.map(|offloads| (offloads, true));
        let kinds = kinds.into_iter().chain([(Offloads::Segmentation, false)]);
        let mut members = Vec::new();
        for (host, kind) in (1..).zip(kinds) {
            members.push(Member::start(bed, &mut bridge, host, kind)?);
        }
        members.iter().try_for_each(|member| member.vm.ready())?;
        let mut parts = Parts::default();
        for (index, from) in members.iter().enumerate() {
            for (other, to) in members
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != index)
            {
                // Another one for the way back.
                let address = to.vm.nic(0).addresses()[usize::from(index < other)];
                let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                let name = format!("{} to {}, {family}", from.name(), to.name());
                parts.run(&name, || move_data(from, to, address));
            }
        }
        parts.finish()
    });
}
