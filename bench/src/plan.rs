//! The cases of a run: which ones, with which sizes, and what cannot be run on this machine.
//!
//! The comparisons are those of decisions 0050 and 0051.

use crate::case::{Case, Environment, Group, Test, Way, is_asked_for};
use crate::goals::GOAL_CPUS;
use crate::open_vswitch::LARGEST_FRAME;
use crate::options::Options;
use crate::placement::Placement;
use crate::results::NotRun;

/// Facts about the machine that the plan needs.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// CPUs that may be used.
    pub cpus: usize,
    /// Whether testpmd is there.
    pub has_testpmd: bool,
    /// Whether Open vSwitch with DPDK is there.
    pub has_open_vswitch: bool,
    /// Whether a `cloud-hypervisor` program is there.
    pub has_cloud_hypervisor: bool,
    /// Whether KVM runs stock kernels, as Cloud Hypervisor needs.
    pub has_kvm: bool,
}

/// The cases to run and those to leave out.
#[derive(Debug, Default)]
pub struct Plan {
    /// The cases to run, in order.
    pub cases: Vec<Case>,
    /// The cases left out, with the reason.
    pub not_run: Vec<NotRun>,
}

const GUEST_WAYS: [Way; 3] = [Way::Loopback, Way::Inter, Way::Tap];
/// Bytes of a frame in the comparison of switches.
const FRAMES: [u32; 3] = [64, 1500, 16384];

/// Plans the cases that the options select. Cases that the machine cannot run are always named.
pub fn plan(options: &Options, facts: Facts) -> Plan {
    let mut plan = Plan::default();
    let quick = options.quick;
    guests(&mut plan, quick, facts);
    peers(&mut plan, quick, facts);
    scale(&mut plan, quick, facts);
    if let Some(rounds) = options.rounds {
        for case in &mut plan.cases {
            case.rounds = rounds;
        }
    }
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

    fn add(
        &mut self,
        place: (Group, Environment, Placement),
        test: Test,
        ways: &[Way],
        sizes: &[u32],
        rounds: u32,
    ) {
        let (group, environment, placement) = place;
        self.cases.push(Case {
            group,
            environment,
            placement,
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

fn guests(plan: &mut Plan, quick: bool, facts: Facts) {
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
            for group in [Group::Paper, Group::Latency, Group::Udp] {
                plan.skip(&format!("{}/uml/{}", group.id(), placement.id()), &why);
            }
            continue;
        }
        guests_in(plan, Environment::Uml, placement, quick);
    }
    // QEMU's own threads would wait for each other on one CPU.
    guests_in(plan, Environment::Qemu, Placement::Free, quick);
    let why = match (facts.has_cloud_hypervisor, facts.has_kvm) {
        (true, true) => {
            return guests_in(plan, Environment::CloudHypervisor, Placement::Free, quick);
        }
        (false, _) => "no cloud-hypervisor program on this machine",
        (true, false) => "KVM does not run stock kernels on this machine",
    };
    for group in [Group::Paper, Group::Latency, Group::Udp] {
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

fn guests_in(plan: &mut Plan, environment: Environment, placement: Placement, quick: bool) {
    let mut rounds = Rounds::new(quick);
    // No goal rests on QEMU alone, and emulation levels all ways.
    let is_short = environment == Environment::Qemu;
    if is_short {
        rounds.goal = rounds.other;
    }
    let paper = (Group::Paper, environment, placement);
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
    let latency = (Group::Latency, environment, placement);
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
    let udp = (Group::Udp, environment, placement);
    let rounds = match environment {
        Environment::CloudHypervisor => rounds.goal,
        _ => rounds.other,
    };
    plan.add(udp, Test::Datagrams, ways, &[64, 1400], rounds);
}

/// On an emulated processor a figure only shows which way is ahead.
fn nested(plan: &mut Plan, quick: bool) {
    let Rounds { goal, .. } = Rounds::new(quick);
    let place = |group| (group, Environment::Nested, Placement::Free);
    let sizes: &[u32] = if quick { &[65536] } else { &[1024, 65536] };
    let (tcp, loaded) = (true, false);
    plan.add(
        place(Group::Paper),
        Test::TcpStream,
        &GUEST_WAYS,
        sizes,
        goal,
    );
    let ping_pong = Test::PingPong { tcp, loaded };
    plan.add(place(Group::Latency), ping_pong, &GUEST_WAYS, &[64], goal);
}

fn peers(plan: &mut Plan, quick: bool, facts: Facts) {
    let rounds = Rounds::new(quick);
    if facts.cpus < 2 {
        for group in [Group::Peers, Group::Link] {
            plan.skip(group.id(), "needs 2 CPUs, this machine has 1");
        }
        return;
    }
    let place = |group| (group, Environment::Host, Placement::PerGuest);
    let mut ways = vec![Way::Inter, Way::NetVhost, Way::Memif];
    if facts.has_open_vswitch {
        ways.push(Way::OvsDpdk);
        let why = format!("it takes no frames above {LARGEST_FRAME} bytes");
        plan.skip("peers/host/per-guest/forward/ovs-dpdk/16384", &why);
    } else {
        let why = "Debian's packages of it could not be had on this machine";
        plan.skip("peers/host/per-guest/forward/ovs-dpdk", why);
    }
    if facts.has_testpmd {
        plan.add(
            place(Group::Peers),
            Test::Forward,
            &ways,
            &FRAMES,
            rounds.goal,
        );
    } else {
        plan.skip(
            "peers/host/per-guest/forward",
            "no dpdk-testpmd on this machine",
        );
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

fn scale(plan: &mut Plan, quick: bool, facts: Facts) {
    let rounds = Rounds::new(quick);
    let place = (Group::Scale, Environment::Uml, Placement::Free);
    let ways = [Way::Inter, Way::Tap];
    let ports: &[u32] = if quick { &[2, 8] } else { &[2, 4, 8, 16] };
    let judged = match facts.cpus >= GOAL_CPUS {
        true => rounds.goal,
        false => rounds.other,
    };
    plan.add(place, Test::Pairs, &ways, ports, judged);
    let ports: &[u32] = if quick { &[4] } else { &[2, 4, 8, 16] };
    plan.add(place, Test::AllToOne, &ways, ports, rounds.other);
    let place = (Group::Scale, Environment::Host, Placement::Free);
    let ports: &[u32] = if quick { &[2, 16] } else { &[2, 4, 8, 16, 32] };
    plan.add(place, Test::Memory, &[Way::Inter], ports, 1);
    let idle = if quick { rounds.other } else { rounds.goal };
    plan.add(place, Test::Idle, &[Way::Inter], &[64], idle);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::tests::parse;

    const TWO_CPUS: Facts = Facts {
        cpus: 2,
        has_testpmd: true,
        has_open_vswitch: true,
        has_cloud_hypervisor: false,
        has_kvm: false,
    };

    fn planned(arguments: &[&str], facts: Facts) -> Plan {
        plan(&parse(arguments).unwrap(), facts)
    }

    #[test]
    fn what_the_machine_cannot_do_is_named() {
        let plan = planned(&[], TWO_CPUS);
        let named = |what: &str| plan.not_run.iter().any(|note| note.what == what);
        assert!(named("paper/uml/per-process") && named("paper/cloud-hypervisor"));
        assert!(
            plan.cases
                .iter()
                .all(|case| case.placement != Placement::PerProcess)
        );
        let large = Facts {
            cpus: 16,
            ..TWO_CPUS
        };
        let ids: Vec<String> = planned(&[], large).cases.iter().map(Case::id).collect();
        assert!(ids.contains(&"paper/uml/per-process/tcp_stream".to_owned()));
        let with_kvm = Facts {
            has_cloud_hypervisor: true,
            has_kvm: true,
            ..TWO_CPUS
        };
        let ids: Vec<String> = planned(&[], with_kvm).cases.iter().map(Case::id).collect();
        assert!(ids.contains(&"udp/cloud-hypervisor/free/datagrams".to_owned()));
        let small = Facts {
            cpus: 1,
            has_testpmd: false,
            has_open_vswitch: false,
            ..TWO_CPUS
        };
        assert!(planned(&["--only", "peers,link"], small).cases.is_empty());
    }

    #[test]
    fn only_what_is_asked_for_is_run() {
        let plan = planned(&["--only", "paper/uml/one-cpu,udp/qemu"], TWO_CPUS);
        let ids: Vec<String> = plan.cases.iter().map(Case::id).collect();
        assert_eq!(
            ids,
            [
                "paper/uml/one-cpu/tcp_stream",
                "paper/uml/one-cpu/tcp_rr",
                "udp/qemu/free/datagrams"
            ]
        );
        let sizes = &plan.cases[0].sizes;
        assert_eq!((sizes.first(), sizes.last()), (Some(&64), Some(&65536)));
        let plan = planned(&["--only", "scale", "--rounds", "9"], TWO_CPUS);
        assert!(plan.cases.iter().all(|case| case.rounds == 9));
    }

    #[test]
    fn names_are_unique() {
        for arguments in [&[][..], &["--quick"]] {
            let mut ids: Vec<String> = planned(arguments, TWO_CPUS)
                .cases
                .iter()
                .map(Case::id)
                .collect();
            let all = ids.len();
            ids.sort();
            ids.dedup();
            assert_eq!(ids.len(), all);
        }
    }
}
