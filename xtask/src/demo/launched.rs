//! Two VMs of a stock Cloud Hypervisor on a segment by `--inter-vm`, one of them with an uplink to
//! a bridge, which get a second segment while they run. Where KVM does not run stock kernels, all
//! of it is in the nested machine.

use std::env;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use virtio_inter_tests::{
    Counters, Frontend, Kernel, Machine, Nic, Segment, Supplies, Testbed, Vm, VmConfig,
    cloud_hypervisor_program, is_inside, port_program, tools,
};

use super::pair::ping;
use super::uplink::{self, HOST};

/// Nested machines tried: an emulated processor hangs now and then.
const TRIES: u32 = 3;
/// How long the two VMs may take in there.
const LIMIT: Duration = Duration::from_secs(300);
const PING: tools::Ping = tools::Ping {
    count: 5,
    size: 56,
    interval: Duration::from_millis(100),
    may_fragment: true,
};

/// What there is to show, as text.
///
/// # Errors
///
/// A stock program that is missing, or a step that failed.
pub(super) fn show(
    bed: &Testbed,
    port: Option<&Path>,
    has_kvm: bool,
    seconds: u32,
) -> Result<String> {
    ensure!(
        cloud_hypervisor_program().is_some(),
        "No cloud-hypervisor: set CLOUD_HYPERVISOR to a stock one, ch-remote beside it"
    );
    if has_kvm || is_inside() {
        return story(bed, seconds);
    }
    let port = match port {
        Some(port) => port.to_owned(),
        None => port_program()?,
    };
    let own = env::current_exe().context("Finding this program")?;
    let supplies = Supplies::new(&own, &port)?;
    for attempt in 1.. {
        match in_machine(bed, &supplies, seconds) {
            Err(error) if attempt < TRIES => {
                eprintln!("Nested machine {attempt} of {TRIES} is given up: {error:#}");
            }
            result => return result,
        }
    }
    bail!("No nested machine was tried")
}

/// The same in a nested machine.
fn in_machine(bed: &Testbed, supplies: &Supplies, seconds: u32) -> Result<String> {
    let machine = Machine::boot(bed, supplies)?;
    let seconds = seconds.to_string();
    let arguments = [
        "demo",
        "--frontend",
        "cloud-hypervisor",
        "--seconds",
        &seconds,
    ];
    let output = machine
        .run(&arguments, LIMIT, false)?
        .with_context(|| format!("The VMs showed nothing within {LIMIT:?}"))?;
    ensure!(
        output.success(),
        "The demo failed in the nested machine: {}",
        output.stderr.trim_end()
    );
    Ok(format!(
        "{}  On an emulated processor: this shows that it works, not how fast.\n",
        output.stdout
    ))
}

/// Boots both VMs, and tells what they do.
fn story(bed: &Testbed, seconds: u32) -> Result<String> {
    let kind = Frontend::CloudHypervisor(Kernel::Debian13);
    let (web, db) = (Segment::new(bed, "web")?, Segment::new(bed, "db")?);
    let mut bridge = uplink::bridge()?;
    let tap = bridge.tap()?;
    let start = |name, nic| Vm::start(bed, VmConfig::new(name, kind).nic(nic));
    let mut a = start("a", Nic::inter_vm(&web, 1).uplink(&tap))?;
    let mut b = start("b", Nic::inter_vm(&web, 2))?;
    a.ready()?;
    b.ready()?;
    let mut text = format!("Cloud Hypervisor, Linux {}\n", a.kernel_release());
    let _ = writeln!(
        text,
        "  cloud-hypervisor-ext … --inter-vm segment=web,tap={}     b without the tap device",
        tap.name()
    );
    text += &exchange(&a, &b, 0, seconds)?;
    text += &reach_host(&a)?;
    a.plug(Nic::inter_vm(&db, 11).in_subnet(1))?;
    b.plug(Nic::inter_vm(&db, 12).in_subnet(1))?;
    text += "  ch-remote-ext … add-device inter-vm,segment=db     in both VMs, while they run\n";
    text += &exchange(&a, &b, 1, seconds)?;
    text += "  ch-remote-ext … inter-vm list\n";
    for line in a.request_ext(&["inter-vm", "list"])?.lines() {
        let _ = writeln!(text, "    {line}");
    }
    Ok(text)
}

/// Round trips to the bridge's network namespace, which take the uplink.
fn reach_host(vm: &Vm) -> Result<String> {
    let ping = ping(vm, HOST, PING)?;
    let ports = vm.inter_vm_ports()?;
    let counters = Counters::parse(&ports[0]["status"].to_string())?;
    uplink::check_carried(&counters, &ping)?;
    Ok(format!(
        "    a → bridge, {HOST}: ping {:.0} µs, by its port's uplink\n",
        ping.mean_us
    ))
}

/// Round trips and throughput over the interface of that number.
fn exchange(a: &Vm, b: &Vm, nic: usize, seconds: u32) -> Result<String> {
    let address = b.nic(nic).ipv4();
    let ping = ping(a, address, PING)?;
    let how = tools::Iperf3 {
        seconds,
        ..Default::default()
    };
    let report = tools::iperf3(a, b, address, how)?;
    Ok(format!(
        "    a → b, {address}: ping {:.0} µs, iperf3 {:.1} Mbit/s\n",
        ping.mean_us,
        report.bits_per_second / 1e6
    ))
}
