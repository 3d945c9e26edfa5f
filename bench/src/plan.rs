//! The cases of a run: which ones, with which sizes, and what cannot be run on this machine.
//!
//! The comparisons are those of decisions 0050 and 0051.

use crate::case::{Case, Environment, Group, Place, Test, Way, is_asked_for};
use crate::goals::GOAL_CPUS;
use crate::open_vswitch::LARGEST_FRAME;
use crate::options::Options;
use crate::placement::{Grouping, Placement};
use crate::results::NotRun;

/// Facts about the machine that the plan needs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// CPUs that may be used.
    pub cpus: usize,
    /// Whether testpmd is there.
    pub has_testpmd: bool,
    /// Whether the tools are there with which the host is one of the ends.
    pub has_host_tools: bool,
    /// Whether Open vSwitch with DPDK is there.
    pub has_open_vswitch: bool,
    /// Whether a `cloud-hypervisor` program is there.
    pub has_cloud_hypervisor: bool,
    /// Whether KVM runs stock kernels, as Cloud Hypervisor needs.
    pub has_kvm: bool,
    /// Why there can be no control groups; none where there can.
    pub no_groups: Option<String>,
}

impl Facts {
    /// What most is measured in: groups, where there can be some.
    fn usual(&self) -> Grouping {
        match self.no_groups {
            None => Grouping::Groups,
            Some(_) => Grouping::Session,
        }
    }
}

/// The cases to run and those to leave out.
#[derive(Debug, Default)]
pub struct Plan {
    /// The cases to run, in order.
    pub cases: Vec<Case>,
    /// The cases left out, with the reason.
    pub not_run: Vec<NotRun>,
    /// The names of all places where something can be measured, asked for or not.
    pub places: Vec<String>,
}

/// Groups of the report that are measured between two guests.
const BETWEEN_GUESTS: [Group; 4] = [Group::Paper, Group::Latency, Group::Udp, Group::Busy];
const GUEST_WAYS: [Way; 3] = [Way::Loopback, Way::Inter, Way::Tap];
/// A message there and back, nothing else going on.
const PING_PONG: Test = Test::PingPong {
    tcp: true,
    loaded: false,
};
/// Bytes of a frame in the comparison of switches.
const FRAMES: [u32; 3] = [64, 1500, 16384];

/// Plans the cases that the options select. Cases that the machine cannot run are always named.
pub fn plan(options: &Options, facts: &Facts) -> Plan {
    let mut plan = Plan::default();
    let quick = options.quick;
    guests(&mut plan, quick, facts);
    peers(&mut plan, quick, facts);
    uplinks(&mut plan, quick, facts);
    scale(&mut plan, quick, facts);
    if let Some(rounds) = options.rounds {
        for case in &mut plan.cases {
            case.rounds = rounds;
        }
    }
    plan.places = plan.cases.iter().map(|case| case.place.id()).collect();
    plan.places.dedup();
    plan.cases
        .retain(|case| is_asked_for(&case.id(), &options.only));
    plan
}

impl Plan {
    fn skip(&mut self, what: &str, why: &str) {
        self.not_run.push(NotRun {
            what: what.to_owned(),
            why: why.to_owned(),
        });
    }

    fn add(&mut self, place: Place, test: Test, ways: &[Way], sizes: &[u32], rounds: u32) {
        self.cases.push(Case {
            place,
            test,
            ways: ways.to_vec(),
            sizes: sizes.to_vec(),
            rounds,
        });
    }
}

/// Rounds of what is part of a goal, and of what is not.
struct Rounds {
    goal: u32,
    other: u32,
}

impl Rounds {
    fn new(quick: bool) -> Self {
        if quick {
            return Self { goal: 3, other: 1 };
        }
        Self { goal: 5, other: 3 }
    }
}

/// Message sizes, 64 B to 64 KiB.
fn stream_sizes(quick: bool) -> Vec<u32> {
    let step = if quick { 5 } else { 1 };
    (6..=16).step_by(step).map(|power| 1 << power).collect()
}

fn guests(plan: &mut Plan, quick: bool, facts: &Facts) {
    for placement in [
        Placement::OneCpu,
        Placement::PerGuest,
        Placement::PerProcess,
    ] {
        if facts.cpus < placement.needs() {
            let why = format!(
                "needs {} CPUs, this machine has {}",
                placement.needs(),
                facts.cpus
            );
            for group in BETWEEN_GUESTS {
                plan.skip(&format!("{}/uml/{}", group.id(), placement.id()), &why);
            }
            continue;
        }
        grouped(plan, Environment::Uml, placement, quick, facts);
    }
    // QEMU's own threads would wait for each other on one CPU.
    grouped(plan, Environment::Qemu, Placement::Free, quick, facts);
    let why = match (facts.has_cloud_hypervisor, facts.has_kvm) {
        (true, true) => {
            return grouped(
                plan,
                Environment::CloudHypervisor,
                Placement::Free,
                quick,
                facts,
            );
        }
        (false, _) => "no cloud-hypervisor program on this machine",
        (true, false) => "KVM does not run stock kernels on this machine",
    };
    for group in BETWEEN_GUESTS {
        plan.skip(&format!("{}/cloud-hypervisor", group.id()), why);
    }
    if facts.has_cloud_hypervisor {
        nested(plan, quick);
    } else {
        for group in [Group::Paper, Group::Latency] {
            plan.skip(&format!("{}/nested", group.id()), why);
        }
    }
}

/// All between two guests in groups of their own, and the most important part in one session.
fn grouped(
    plan: &mut Plan,
    environment: Environment,
    placement: Placement,
    quick: bool,
    facts: &Facts,
) {
    // QEMU emulates the processor: what else runs on it tells nothing.
    let has_busy = environment != Environment::Qemu;
    let place = |group, grouping| Place {
        group,
        environment,
        placement,
        grouping,
    };
    if let Some(why) = &facts.no_groups {
        for group in BETWEEN_GUESTS {
            if has_busy || group != Group::Busy {
                plan.skip(&place(group, Grouping::Groups).id(), why);
            }
        }
    }
    let usual = facts.usual();
    guests_in(plan, |group| place(group, usual), quick);
    let rounds = Rounds::new(quick);
    let in_session = environment == Environment::Uml && usual == Grouping::Groups;
    if in_session {
        let sizes: &[u32] = if quick { &[65536] } else { &[64, 2048, 65536] };
        let paper = place(Group::Paper, Grouping::Session);
        plan.add(paper, Test::TcpStream, &GUEST_WAYS, sizes, rounds.other);
        let latency = place(Group::Latency, Grouping::Session);
        plan.add(latency, PING_PONG, &GUEST_WAYS, &[64], rounds.other);
    }
    if has_busy && (!quick || placement == Placement::OneCpu) {
        let groupings = if in_session {
            &[Grouping::Groups, Grouping::Session][..]
        } else {
            &[usual]
        };
        for grouping in groupings {
            let busy = place(Group::Busy, *grouping);
            plan.add(busy, Test::TcpStream, &GUEST_WAYS, &[65536], rounds.other);
            plan.add(busy, PING_PONG, &GUEST_WAYS, &[64], rounds.other);
        }
    }
}

fn guests_in(plan: &mut Plan, place: impl Fn(Group) -> Place, quick: bool) {
    let paper = place(Group::Paper);
    let Place {
        environment,
        placement,
        ..
    } = paper;
    let mut rounds = Rounds::new(quick);
    // No goal rests on QEMU alone, and emulation levels all ways.
    let is_short = environment == Environment::Qemu;
    if is_short {
        rounds.goal = rounds.other;
    }
    let streams = match is_short && !quick {
        true => stream_sizes(false).into_iter().step_by(2).collect(),
        false => stream_sizes(quick),
    };
    let transactions: &[u32] = match (quick, is_short) {
        (true, _) => &[1, 16384],
        (false, true) => &[1, 256, 16384],
        (false, false) => &[1, 4, 16, 64, 256, 1024, 4096, 16384],
    };
    let ways = &GUEST_WAYS;
    plan.add(paper, Test::TcpStream, ways, &streams, rounds.goal);
    plan.add(paper, Test::TcpRr, ways, transactions, rounds.other);
    let latency = place(Group::Latency);
    for (tcp, loaded) in [(true, false), (true, true), (false, false), (false, true)] {
        let rounds = match (tcp, loaded) {
            (true, false) => rounds.goal,
            _ => rounds.other,
        };
        // In a hurry: what else there is to know of latency, once.
        if quick && (loaded || !tcp) && placement != Placement::OneCpu {
            continue;
        }
        if quick && loaded && !tcp {
            continue;
        }
        let test = Test::PingPong { tcp, loaded };
        plan.add(latency, test, ways, &[64], rounds);
    }
    if !quick || placement == Placement::OneCpu {
        plan.add(latency, Test::AfterIdle, ways, &[64], rounds.other);
        plan.add(latency, Test::Burst, ways, &[64], rounds.other);
    }
    let udp = place(Group::Udp);
    let rounds = match environment {
        Environment::CloudHypervisor => rounds.goal,
        _ => rounds.other,
    };
    plan.add(udp, Test::Datagrams, ways, &[64, 1400], rounds);
}

/// On an emulated processor a figure only shows which way is ahead.
fn nested(plan: &mut Plan, quick: bool) {
    let Rounds { goal, .. } = Rounds::new(quick);
    let place = |group| Place {
        group,
        environment: Environment::Nested,
        placement: Placement::Free,
        grouping: Grouping::Session,
    };
    let sizes: &[u32] = if quick { &[65536] } else { &[1024, 65536] };
    plan.add(
        place(Group::Paper),
        Test::TcpStream,
        &GUEST_WAYS,
        sizes,
        goal,
    );
    plan.add(place(Group::Latency), PING_PONG, &GUEST_WAYS, &[64], goal);
}

fn peers(plan: &mut Plan, quick: bool, facts: &Facts) {
    let rounds = Rounds::new(quick);
    if facts.cpus < 2 {
        for group in [Group::Peers, Group::Link] {
            plan.skip(group.id(), "needs 2 CPUs, this machine has 1");
        }
        return;
    }
    let place_in = |group, grouping| Place {
        group,
        environment: Environment::Host,
        placement: Placement::PerGuest,
        grouping,
    };
    // Bytes between two processes that have a CPU each: there is nobody to share it with.
    let place = |group| place_in(group, Grouping::Session);
    let forward = place_in(Group::Peers, facts.usual());
    if let Some(why) = &facts.no_groups {
        plan.skip(&place_in(Group::Peers, Grouping::Groups).id(), why);
    }
    let switched = format!("{}/forward", forward.id());
    let mut ways = vec![Way::Inter, Way::NetVhost, Way::Memif];
    if facts.has_open_vswitch {
        ways.push(Way::OvsDpdk);
        let why = format!("it takes no frames above {LARGEST_FRAME} bytes");
        plan.skip(&format!("{switched}/ovs-dpdk/16384"), &why);
    } else {
        let why = "Debian's packages of it could not be had on this machine";
        plan.skip(&format!("{switched}/ovs-dpdk"), why);
    }
    if facts.has_testpmd {
        plan.add(forward, Test::Forward, &ways, &FRAMES, rounds.goal);
    } else {
        plan.skip(&switched, "no dpdk-testpmd on this machine");
    }
    let between = [Way::Link, Way::UnixStream, Way::Pipe, Way::Memcpy];
    let usual = Test::Bytes {
        batch: 32,
        cold: false,
    };
    let sizes: &[u32] = if quick {
        &[64, 65536]
    } else {
        &[64, 1500, 16384, 65536]
    };
    plan.add(place(Group::Peers), usual, &between, sizes, rounds.other);
    let sizes: &[u32] = if quick {
        &[64, 1500, 65536]
    } else {
        &[64, 256, 1500, 4096, 16384, 65536]
    };
    let ways = [Way::Link, Way::Memcpy];
    let batches: &[u32] = if quick { &[32] } else { &[1, 4, 16, 32, 64] };
    for batch in batches {
        let test = Test::Bytes {
            batch: *batch,
            cold: false,
        };
        plan.add(place(Group::Link), test, &ways, sizes, rounds.other);
    }
    let cold = Test::Bytes {
        batch: 32,
        cold: true,
    };
    plan.add(
        place(Group::Link),
        cold,
        &ways,
        &[1500, 16384, 65536],
        rounds.goal,
    );
}

/// Guests and their host, and what uplinks cost links.
fn uplinks(plan: &mut Plan, quick: bool, facts: &Facts) {
    let group = Group::Uplink.id();
    for placement in [Placement::OneCpu, Placement::PerGuest] {
        if facts.cpus < placement.needs() {
            let why = "needs 2 CPUs, this machine has 1";
            plan.skip(&format!("{group}/uml/{}", placement.id()), why);
        } else {
            uplinks_in(plan, Environment::Uml, placement, quick, facts);
        }
    }
    uplinks_in(plan, Environment::Qemu, Placement::Free, quick, facts);
    if facts.has_cloud_hypervisor && facts.has_kvm {
        let environment = Environment::CloudHypervisor;
        uplinks_in(plan, environment, Placement::Free, quick, facts);
    } else {
        let why = "no cloud-hypervisor program, or no KVM for stock kernels, on this machine";
        plan.skip(&format!("{group}/cloud-hypervisor"), why);
    }
    let why = "QEMU's tap devices are measured without vhost-net";
    plan.skip(&format!("{group}/qemu/free/vhost-net"), why);
}

fn uplinks_in(
    plan: &mut Plan,
    environment: Environment,
    placement: Placement,
    quick: bool,
    facts: &Facts,
) {
    let place_in = |grouping| Place {
        group: Group::Uplink,
        environment,
        placement,
        grouping,
    };
    let place = place_in(facts.usual());
    if let Some(why) = &facts.no_groups {
        plan.skip(&place_in(Grouping::Groups).id(), why);
    }
    let rounds = Rounds::new(quick).goal;
    if facts.has_host_tools {
        let ways = [Way::Uplink, Way::Tap];
        let sizes: &[u32] = if quick { &[65536] } else { &[2048, 65536] };
        plan.add(place, Test::ToHost, &ways, sizes, rounds);
        plan.add(place, Test::FromHost, &ways, sizes, rounds);
        plan.add(place, Test::HostPingPong, &ways, &[64], rounds);
    } else {
        for test in [Test::ToHost, Test::FromHost, Test::HostPingPong] {
            let what = format!("{}/{}", place.id(), test.id());
            plan.skip(&what, "no iperf3 or sockperf on this machine");
        }
    }
    let ways = [Way::Uplink, Way::Inter];
    plan.add(place, Test::TcpStream, &ways, &[65536], rounds);
    plan.add(place, PING_PONG, &ways, &[64], rounds);
}

fn scale(plan: &mut Plan, quick: bool, facts: &Facts) {
    let rounds = Rounds::new(quick);
    let place_in = |environment, grouping| Place {
        group: Group::Scale,
        environment,
        placement: Placement::Free,
        grouping,
    };
    let place = place_in(Environment::Uml, facts.usual());
    if let Some(why) = &facts.no_groups {
        plan.skip(&place_in(Environment::Uml, Grouping::Groups).id(), why);
    }
    let ways = [Way::Inter, Way::Tap];
    let ports: &[u32] = if quick { &[2, 8] } else { &[2, 4, 8, 16] };
    let judged = match facts.cpus >= GOAL_CPUS {
        true => rounds.goal,
        false => rounds.other,
    };
    plan.add(place, Test::Pairs, &ways, ports, judged);
    let ports: &[u32] = if quick { &[4] } else { &[2, 4, 8, 16] };
    plan.add(place, Test::AllToOne, &ways, ports, rounds.other);
    let place = place_in(Environment::Host, Grouping::Session);
    let ports: &[u32] = if quick { &[2, 16] } else { &[2, 4, 8, 16, 32] };
    plan.add(place, Test::Memory, &[Way::Inter], ports, 1);
    let idle = if quick { rounds.other } else { rounds.goal };
    plan.add(place, Test::Idle, &[Way::Inter], &[64], idle);
    let ports: &[u32] = if quick {
        &[2, 16]
    } else {
        &[2, 16, 64, 128, 256]
    };
    plan.add(place, Test::Mesh, &[Way::Inter], ports, 1);
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
