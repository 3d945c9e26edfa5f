//! The host's side: a bridge with a DHCP server and an outside, and what guests do with it.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use virtio_inter_tests::{
    Bridge, Frontend, Group, Nic, Port, PortConfig, Process, Result, Segment, Tap, Testbed, Vm,
    VmConfig, is_root, skip, tools, until,
};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// The bridge's own address, and what is behind it.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Whether a program can be run; if not, the test is skipped.
pub(crate) fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        skip(&format!("{program} is not installed"));
    }
    there
}

/// Whether bridges and tap devices can be made; if not, the test is skipped.
pub(crate) fn may_make_networks() -> bool {
    if !is_root() {
        skip("bridges and tap devices need root");
    }
    is_root()
}

/// Gives a bridge an address, a DHCP server and an outside.
pub(crate) fn serve(bed: &Testbed, bridge: &mut Bridge) -> Result<Process> {
    bridge.shell(&format!(
        "ip addr add {HOST}/24 dev bridge; ip link set lo up"
    ))?;
    bridge.attach_outside()?;
    let leases = format!("--dhcp-leasefile={}", bed.path("leases").display());
    let range = "--dhcp-range=10.0.0.100,10.0.0.199,255.255.255.0,1h";
    start_dnsmasq(bed, bridge, &[range, "--log-dhcp", &leases])
}

/// Runs dnsmasq on a bridge, without a server for names.
pub(crate) fn start_dnsmasq(bed: &Testbed, bridge: &Bridge, options: &[&str]) -> Result<Process> {
    let common = [
        "dnsmasq",
        "--no-daemon",
        "--conf-file=/dev/null",
        "--user=root",
        "--port=0",
        "--interface=bridge",
        "--bind-interfaces",
    ];
    bridge.start(&[&common[..], options].concat(), &bed.path("dnsmasq.log"))
}

/// Starts a guest of this kind for each of these tap devices, which is its port's uplink.
pub(crate) fn start_by_taps(
    group: &mut Group,
    bed: &Testbed,
    kind: Frontend,
    taps: &[Tap],
) -> Result<()> {
    taps.iter()
        .try_for_each(|tap| group.start(bed, kind, |config| config.uplink(tap), |config| config))
}

/// Gets an address by DHCP, uses it alone, and the bridge's for everything else.
pub(crate) fn dhcp(vm: &Vm) -> Result<Ipv4Addr> {
    let address = lease(vm)?;
    let route = ["ip", "route", "add", "default", "via"];
    vm.run(&[&route[..], &[&HOST.to_string()]].concat())?;
    Ok(address)
}

/// Gets an address by DHCP, and uses it alone.
pub(crate) fn lease(vm: &Vm) -> Result<Ipv4Addr> {
    let interface = vm.interface(0)?;
    vm.run(&["ip", "-4", "addr", "flush", "dev", &interface])?;
    let client = [
        "busybox",
        "udhcpc",
        "-n",
        "-q",
        "-t",
        "10",
        "-s",
        "/bin/true",
    ];
    let output = vm.run_within(LIMIT, &[&client[..], &["-i", &interface]].concat())?;
    let text = format!("{}{}", output.stdout, output.stderr);
    let lease = text
        .split("lease of ")
        .nth(1)
        .and_then(|rest| rest.split([' ', ',']).next())
        .with_context(|| format!("No lease: {text}"))?;
    let address: Ipv4Addr = lease.parse().context("Reading the lease")?;
    let with_mask = format!("{address}/24");
    vm.run(&["ip", "addr", "add", &with_mask, "dev", &interface])?;
    Ok(address)
}

/// Pings, each of which is answered once.
pub(crate) fn reach(vm: &Vm, address: Ipv4Addr) -> Result<()> {
    let how = tools::Ping::default();
    let report = tools::ping(vm, address, how)?;
    ensure!(
        (report.received, report.sent) == (how.count, how.count),
        "{address}: {report:?}"
    );
    Ok(())
}

/// What passes a bridge, as tcpdump shows it, from the beginning to its end.
pub(crate) struct Capture(Process);

impl Capture {
    /// Begins one of what passes the bridge itself: it hears all that it forwards then.
    pub(crate) fn start(bed: &Testbed, bridge: &Bridge) -> Result<Self> {
        let command = [
            "tcpdump", "-Z", "root", "-i", "bridge", "-e", "-n", "-t", "-l",
        ];
        let mut tcpdump = bridge.start(&command, &bed.path("tcpdump.log"))?;
        tcpdump.wait_for_log("listening on", 0, LIMIT)?;
        Ok(Self(tcpdump))
    }

    /// The frames of a guest: a line each, without its own address, that of the receiver first.
    pub(crate) fn frames_of(&self, vm: &Vm) -> Vec<String> {
        // "02:76:69:00:00:01 > ff:ff:ff:ff:ff:ff, ethertype IPv4 (0x0800), length 98: …"
        let source = format!("{} > ", vm.nic(0).mac);
        let log = self.0.log();
        let frames = log.lines().filter_map(|line| line.strip_prefix(&source));
        frames.map(str::to_owned).collect()
    }
}

/// Sum of the packets that the devices have carried.
pub(crate) fn packets(taps: &[Tap]) -> Result<u64> {
    let count = |tap: &Tap| tap.packets().map(|(rx, tx)| rx + tx);
    taps.iter().map(count).sum()
}

/// A guest on another segment, whose port has an uplink.
pub(crate) struct Remote {
    pub(crate) vm: Vm,
    pub(crate) port: Port,
}

impl Remote {
    /// Starts it as host `host`; [`Vm::ready`] must come before any command.
    pub(crate) fn start(bed: &Testbed, kind: Frontend, tap: &Tap, host: u8) -> Result<Self> {
        Self::start_with(bed, kind, tap, host, |config| config)
    }

    /// The same with the port's flags changed.
    pub(crate) fn start_with(
        bed: &Testbed,
        kind: Frontend,
        tap: &Tap,
        host: u8,
        change: impl FnOnce(PortConfig) -> PortConfig,
    ) -> Result<Self> {
        let segment = Segment::new(bed, "remote")?;
        let port = PortConfig::new(&segment, "remote", host)
            .mtu(tap.mtu())
            .uplink(tap);
        let port = Port::start(bed, change(port))?;
        let nic = Nic::on_port(&port, host);
        let vm = Vm::start(bed, VmConfig::new("remote", kind).nic(nic))?;
        Ok(Self { vm, port })
    }
}

/// Pings until an answer comes.
pub(crate) fn wait_for_answer(vm: &Vm, address: Ipv4Addr) -> Result<()> {
    let how = tools::Ping {
        count: 1,
        ..Default::default()
    };
    until(&format!("answer of {address}"), LIMIT, || {
        Ok((tools::ping(vm, address, how)?.received != 0).then_some(()))
    })
}
