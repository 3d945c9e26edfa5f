//! A port dies: its guest's traffic stalls for a bounded time, and the rings resume where they
//! were, whichever side sends first. The tests do nothing in the guests.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use virtio_inter_tests::{Frontend, Group, Kernel, Result, Vm, guest_test, tools, until};

const LIMIT: Duration = Duration::from_secs(120);
/// Much more than it takes (some tenths of a second), for machines that are slow and busy.
const OUTAGE_LIMIT: Duration = Duration::from_secs(10);
const KINDS: [Frontend; 3] = [
    Frontend::Qemu(Kernel::Debian12),
    Frontend::Qemu(Kernel::Debian13),
    Frontend::Uml,
];
/// Of [`KINDS`]: the one whose port stays alive, as User Mode Linux does not look for a new one.
const PEER: usize = 2;

/// Shown by `--no-capture`.
#[allow(clippy::print_stderr, reason = "figures for whoever runs the test")]
fn tell(what: &str, vm: &Vm, time: Duration) {
    eprintln!("{what}, Linux {}: {time:.3?}", vm.kernel_release());
}

#[test]
fn connection_stands_still_for_a_moment_only() {
    guest_test(|bed| {
        let mut group = Group::boot(bed, &KINDS)?;
        for victim in [0, 1] {
            let [a, b] = [&group.vms[victim], &group.vms[PEER]];
            let plan = tools::TransferPlan::until_finished();
            let mut transfer = tools::Transfer::start(a, b, b.nic(0).ipv4(), plan)?;
            transfer.wait_for_progress(20_000_000, LIMIT)?;
            let killed = Instant::now();
            group.ports[victim].crash_and_restart()?;
            let stall = transfer.longest_stall(killed, 50_000_000, LIMIT)?;
            tell("TCP stood still for", a, stall);
            assert!(stall < OUTAGE_LIMIT, "{stall:?}");
            transfer.finish(LIMIT)?;
        }
        Ok(())
    });
}

/// Keeps a guest's kernel from answering and from sending anything of its own accord.
fn silence(vm: &Vm) -> Result<()> {
    let name = vm.interface(0)?;
    vm.shell(&format!(
        "echo 1 > /proc/sys/net/ipv6/conf/{name}/disable_ipv6 && \
         echo 1 > /proc/sys/net/ipv4/icmp_echo_ignore_all"
    ))
    .map(drop)
}

/// Tells a guest another's address for good: the guest never asks for it.
fn introduce(to: &Vm, of: &Vm) -> Result<()> {
    let (address, mac) = (of.nic(0).ipv4(), of.nic(0).mac);
    let name = to.interface(0)?;
    to.shell(&format!(
        "ip neigh replace {address} lladdr {mac} dev {name} nud permanent"
    ))
    .map(drop)
}

/// A burst of pings that nobody answers.
fn burst(from: &Vm, to: &Vm, count: &str) -> Result<()> {
    let address = to.nic(0).ipv4().to_string();
    let arguments = [
        "ping", "-q", "-f", "-l", count, "-c", count, "-W", "0.1", &address,
    ];
    from.run_within(LIMIT, &arguments).map(drop)
}

#[test]
fn guest_that_only_listens_is_heard_again() {
    /// Several times the ring: buffers must have been given back and filled again.
    const FRAMES: u64 = 2000;
    guest_test(|bed| {
        let mut group = Group::boot(bed, &KINDS)?;
        for (to, of) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
            introduce(&group.vms[to], &group.vms[of])?;
        }
        group.all_reach_all(&[0, 1, 2])?;
        for victim in [0, 1] {
            let listener = &group.vms[victim];
            silence(listener)?;
            let sent = listener.statistic(0, "tx_packets")?;
            let received = listener.statistic(0, "rx_packets")?;
            let killed = Instant::now();
            group.ports[victim].crash_and_restart()?;
            let [listener, sender] = [&group.vms[victim], &group.vms[PEER]];
            until("frame to a guest that only listens", LIMIT, || {
                burst(sender, listener, "3")?;
                Ok((listener.statistic(0, "rx_packets")? > received).then_some(()))
            })?;
            tell("Heard again after", listener, killed.elapsed());
            until("2000 frames to a guest that only listens", LIMIT, || {
                burst(sender, listener, "500")?;
                let now = listener.statistic(0, "rx_packets")?;
                Ok((now >= received + FRAMES).then_some(()))
            })?;
            assert_eq!(
                listener.statistic(0, "tx_packets")?,
                sent,
                "a guest meant to listen only has spoken"
            );
        }
        Ok(())
    });
}

/// A ring's positions count to 65535 and then start at 0.
const POSITIONS: u64 = 65_536;

#[test]
fn rings_resume_after_their_positions_began_anew() {
    guest_test(|bed| {
        let mut group = Group::boot(bed, &KINDS)?;
        for victim in [0, 1] {
            let [a, b] = [&group.vms[victim], &group.vms[PEER]];
            for (from, to, statistic) in [(a, b, "tx_packets"), (b, a, "rx_packets")] {
                let flood = tools::Flood::start(from, to, to.nic(0).ipv4(), 60)?;
                until(statistic, LIMIT, || {
                    Ok((a.statistic(0, statistic)? > POSITIONS + 100).then_some(()))
                })?;
                drop(flood);
            }
            // Another time with frames on their way.
            let _flood = tools::Flood::start(b, a, a.nic(0).ipv4(), 60)?;
            group.ports[victim].crash_and_restart()?;
            let [a, b] = [&group.vms[victim], &group.vms[PEER]];
            let plan = tools::TransferPlan::both_ways(10_000_000);
            tools::Transfer::start(a, b, b.nic(0).ipv4(), plan)?.finish(LIMIT)?;
        }
        group.all_reach_all(&[0, 1, 2])
    });
}
