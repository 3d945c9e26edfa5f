//! Uplinks that ports share: nobody hears anything twice, and one takes over from another.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, ensure};
use virtio_inter_tests::{
    Bridge, Frontend, Group, Job, Result, SharedUplink, Testbed, Vm, guest_test, note, tools, until,
};

use crate::host::{LIMIT, Remote, may_make_networks, reach, wait_for_answer};

/// Time between two broadcasts of a guest.
const INTERVAL: Duration = Duration::from_millis(40);
/// Seconds for which the guests send broadcasts, where the environment names no other number.
const STORM_SECONDS: &str = "VIRTIO_INTER_STORM_SECONDS";
const SHORT_STORM: u64 = 15;
const TO_ALL: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 255);
/// Where a guest writes what it hears.
const HEARD: &str = "/tmp/heard";

/// Guests with uplinks of their own and without, and two shared uplinks, all on one bridge without
/// a spanning tree: each broadcast is heard once by each guest, and no address moves at the bridge.
#[test]
fn uplink_storm_does_not_come_of_uplinks_plugged_in_twice_of_uml_guests() {
    if !may_make_networks() {
        return;
    }
    guest_test(storm);
}

/// Number of broadcasts of each guest.
fn broadcasts() -> Result<usize> {
    let seconds = match env::var(STORM_SECONDS) {
        Ok(text) => text.parse().context("Reading the time of a storm")?,
        Err(_) => SHORT_STORM,
    };
    let count = Duration::from_secs(seconds).as_millis() / INTERVAL.as_millis();
    Ok(count.try_into()?)
}

fn storm(bed: &Testbed) -> Result<()> {
    let count = broadcasts()?;
    let mut bridge = Bridge::new(1500)?;
    let monitor = bridge.start(&["bridge", "monitor", "fdb"], &bed.path("fdb.log"))?;
    let mut group = Group::new(bed, "test")?;
    for _ in 0..3 {
        let tap = bridge.tap()?;
        group.start(
            bed,
            Frontend::Uml,
            |config| config.uplink(&tap),
            |config| config,
        )?;
    }
    for _ in 0..2 {
        group.start(bed, Frontend::Uml, |config| config, |config| config)?;
    }
    let (tap, standby_tap) = (bridge.tap()?, bridge.tap()?);
    let active = SharedUplink::start(bed, &group.segment, "up-a", &tap, 200)?;
    let standby = SharedUplink::start(bed, &group.segment, "up-b", &standby_tap, 100)?;
    group.ready()?;
    active.wait_until_active()?;
    group.all_reach_all(&group.members())?;

    let listeners: Vec<Job> = group.vms.iter().map(listen).collect::<Result<_>>()?;
    let senders: Vec<Job> = {
        let send = |vm| broadcast(vm, count);
        group.vms.iter().map(send).collect::<Result<_>>()?
    };
    for mut sender in senders {
        // Nobody answers, which ping calls a failure.
        sender.wait(INTERVAL * count as u32 + LIMIT)?;
    }
    let expected = (group.vms.len() - 1) * count;
    for vm in &group.vms {
        // `check_heard` names the broadcasts that are missing then.
        let _ = until("the last broadcasts", Duration::from_secs(20), || {
            let lines = vm.shell(&format!("wc -l < {HEARD}"))?;
            Ok((lines.trim().parse::<usize>()? >= expected).then_some(()))
        });
        check_heard(vm, &group.vms, count)?;
    }
    drop(listeners);
    ensure!(standby.status()?["active"] == false, "both are active");
    ensure!(
        standby.counters()?.get("uplink_tx_frames") == 0,
        "The one that stands by has sent frames"
    );
    check_addresses(&monitor.log(), &group.vms)?;
    note(&format!(
        "{count} broadcasts of each of {} guests were heard once by each other one",
        group.vms.len()
    ));
    Ok(())
}

/// Writes down the broadcasts of others.
fn listen(vm: &Vm) -> Result<Job> {
    let (interface, own) = (vm.interface(0)?, vm.nic(0).ipv4());
    let filter = format!("icmp and dst host {TO_ALL} and not src host {own}");
    // As its own user, which the guest does not have, it would not start.
    let line =
        format!("exec tcpdump -Z root -i {interface} -t -n -l '{filter}' > {HEARD} 2> {HEARD}.log");
    let job = vm.spawn(&["sh", "-c", &line])?;
    let log = || -> Result<String> {
        let text = vm.get(&format!("{HEARD}.log")).unwrap_or_default();
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    until("listening guest", LIMIT, || {
        let text = log()?;
        ensure!(job.is_running(), "tcpdump ended: {text}");
        Ok(text.contains("listening on").then_some(()))
    })
    .with_context(|| format!("tcpdump wrote: {:?}", log()))?;
    Ok(job)
}

fn broadcast(vm: &Vm, count: usize) -> Result<Job> {
    let (count, interval) = (count.to_string(), INTERVAL.as_secs_f64().to_string());
    let to = TO_ALL.to_string();
    vm.spawn(&[
        "ping", "-q", "-n", "-b", "-c", &count, "-i", &interval, "-W", "1", &to,
    ])
}

/// Each broadcast of each other guest was heard once.
fn check_heard(vm: &Vm, all: &[Vm], broadcasts: usize) -> Result<()> {
    let text = String::from_utf8(vm.get(HEARD)?).context("Reading what a guest heard")?;
    let mut counts: BTreeMap<(String, usize), usize> = BTreeMap::new();
    for line in text.lines() {
        // "IP 10.0.0.1 > 10.0.0.255: ICMP echo request, id 7, seq 1, length 64"
        let source = line.split_whitespace().nth(1).unwrap_or_default();
        let number = line
            .split("seq ")
            .nth(1)
            .and_then(|rest| rest.split(',').next());
        let number = number.with_context(|| format!("Not a broadcast: {line}"))?;
        *counts
            .entry((source.to_owned(), number.parse()?))
            .or_default() += 1;
    }
    for other in all {
        let source = other.nic(0).ipv4().to_string();
        if source == vm.nic(0).ipv4().to_string() {
            continue;
        }
        let mut wrong = Vec::new();
        for number in 1..=broadcasts {
            let count = counts.get(&(source.clone(), number)).copied().unwrap_or(0);
            if count != 1 {
                wrong.push((number, count));
            }
        }
        ensure!(
            wrong.is_empty(),
            "{} heard {} broadcasts of {source} not once: {:?}",
            vm.config().name,
            wrong.len(),
            &wrong[..wrong.len().min(10)]
        );
    }
    Ok(())
}

/// The bridge has seen each guest's address on one of its ports only.
fn check_addresses(log: &str, vms: &[Vm]) -> Result<()> {
    for vm in vms {
        let mac = vm.nic(0).mac.to_string();
        let lines = log.lines().filter(|line| line.contains(&mac));
        let devices: BTreeSet<&str> = lines
            .filter_map(|line| line.split(" dev ").nth(1)?.split_whitespace().next())
            .collect();
        ensure!(
            devices.len() == 1,
            "{mac} was at {devices:?} of the bridge:\n{log}"
        );
    }
    Ok(())
}

/// The active uplink is killed under load: with a standby the connection lives; without one, peers
/// reach each other, and everybody else when an uplink is there again.
#[test]
fn uplink_that_is_shared_and_killed_is_replaced_under_load_of_uml_guests() {
    if !may_make_networks() {
        return;
    }
    guest_test(|bed| {
        let mut bridge = Bridge::new(1500)?;
        let mut group = Group::new(bed, "test")?;
        for _ in 0..2 {
            group.start(bed, Frontend::Uml, |config| config, |config| config)?;
        }
        let remote = Remote::start(bed, Frontend::Uml, &bridge.tap()?, 3)?;
        let taps = [bridge.tap()?, bridge.tap()?];
        let segment = &group.segment;
        let mut first = SharedUplink::start(bed, segment, "up-a", &taps[0], 200)?;
        let mut second = SharedUplink::start(bed, segment, "up-b", &taps[1], 100)?;
        group.ready()?;
        remote.vm.ready()?;
        first.wait_until_active()?;
        let [a, b] = [&group.vms[0], &group.vms[1]];
        let there = remote.vm.nic(0).ipv4();
        wait_for_answer(a, there)?;

        let plan = tools::TransferPlan::until_finished();
        let mut transfer = tools::Transfer::start(a, &remote.vm, there, plan)?;
        transfer.wait_for_progress(50_000_000, LIMIT)?;
        let kill = || first.process().kill();
        let ((), gap) = transfer.stall_during(50_000_000, LIMIT, kill)?;
        note(&format!(
            "Longest stall of a TCP connection whose uplink was killed, with a standby: {} ms",
            gap.as_millis()
        ));
        transfer.finish(Duration::from_secs(120))?;
        second.wait_until_active()?;

        // Nobody stands by now.
        second.process().kill()?;
        tools::exchange(a, b, b.nic(0).ipv4(), 20_000_000, LIMIT)?;
        let second = SharedUplink::start(bed, segment, "up-b", &taps[1], 100)?;
        second.wait_until_active()?;
        wait_for_answer(b, there)?;
        reach(&remote.vm, a.nic(0).ipv4())
    });
}
