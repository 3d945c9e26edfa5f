//! The cases of a run: which ones, with which sizes, and what cannot be run on this machine.

use crate::case::{Case, Environment, Group, Test, Way, is_asked_for};
use crate::options::Options;
use crate::placement::Placement;
use crate::results::NotRun;

/// What the plan must know of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// CPUs that may be used.
    pub cpus: usize,
    /// Whether testpmd is there.
    pub has_testpmd: bool,
    /// Whether a `cloud-hypervisor` program is there.
    pub has_cloud_hypervisor: bool,
    /// Whether KVM runs stock kernels, as Cloud Hypervisor needs.
    pub has_kvm: bool,
}

/// What to run and what not.
#[derive(Debug, Default)]
pub struct Plan {
    /// What to run, in order.
    pub cases: Vec<Case>,
    /// What not, and why.
    pub not_run: Vec<NotRun>,
}

const GUEST_WAYS: [Way; 3] = [Way::Loopback, Way::Inter, Way::Tap];
/// Bytes of a frame in the comparison of switches.
const FRAMES: [u32; 3] = [64, 1500, 16384];

/// Plans what the options ask for. What the machine cannot do is named whatever they ask for.
pub fn plan(options: &Options, facts: Facts) -> Plan {
    let mut plan = Plan::default();
    let quick = options.quick;
    guests(&mut plan, quick, facts);
    peers(&mut plan, quick, facts);
    scale(&mut plan, quick);
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

/// Message sizes, 64 B to 64 KiB.
fn stream_sizes(quick: bool) -> Vec<u32> {
    if quick {
        return vec![64, 512, 4096, 65536];
    }
    (6..=16).map(|power| 1 << power).collect()
}

fn guests(plan: &mut Plan, quick: bool, facts: Facts) {
    let rounds = if quick { 3 } else { 5 };
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
        guests_in(plan, Environment::Uml, placement, quick, rounds);
    }
    // QEMU's own threads would wait for each other on one CPU.
    let rounds = if quick { 1 } else { 3 };
    guests_in(plan, Environment::Qemu, Placement::Free, quick, rounds);
    let why = match (facts.has_cloud_hypervisor, facts.has_kvm) {
        (true, true) => {
            let rounds = if quick { 3 } else { 5 };
            let environment = Environment::CloudHypervisor;
            return guests_in(plan, environment, Placement::Free, quick, rounds);
        }
        (false, _) => "no cloud-hypervisor program on this machine",
        (true, false) => "KVM does not run stock kernels on this machine",
    };
    for group in [Group::Paper, Group::Latency, Group::Udp] {
        plan.skip(&format!("{}/cloud-hypervisor", group.id()), why);
    }
}

fn guests_in(
    plan: &mut Plan,
    environment: Environment,
    placement: Placement,
    quick: bool,
    rounds: u32,
) {
    let is_short = quick && environment == Environment::Qemu;
    let paper = (Group::Paper, environment, placement);
    let streams = if is_short {
        vec![64, 1024, 65536]
    } else {
        stream_sizes(quick)
    };
    let transactions: &[u32] = if quick {
        &[1, 16384]
    } else {
        &[1, 4, 16, 64, 256, 1024, 4096, 16384]
    };
    plan.add(paper, Test::TcpStream, &GUEST_WAYS, &streams, rounds);
    plan.add(paper, Test::TcpRr, &GUEST_WAYS, transactions, rounds);
    let latency = (Group::Latency, environment, placement);
    for tcp in [true, false] {
        for loaded in [false, true] {
            if loaded && !tcp && quick {
                continue;
            }
            if loaded && is_short {
                continue;
            }
            plan.add(
                latency,
                Test::PingPong { tcp, loaded },
                &GUEST_WAYS,
                &[64],
                rounds,
            );
        }
    }
    if !is_short {
        plan.add(latency, Test::AfterIdle, &GUEST_WAYS, &[64], rounds);
        plan.add(latency, Test::Burst, &GUEST_WAYS, &[64], rounds);
    }
    let udp = (Group::Udp, environment, placement);
    plan.add(udp, Test::Datagrams, &GUEST_WAYS, &[64, 1400], rounds);
}

fn peers(plan: &mut Plan, quick: bool, facts: Facts) {
    let rounds = if quick { 3 } else { 5 };
    if facts.cpus < 2 {
        for group in [Group::Peers, Group::Link] {
            plan.skip(group.id(), "needs 2 CPUs, this machine has 1");
        }
        return;
    }
    let place = |group| (group, Environment::Host, Placement::PerGuest);
    let ways = [Way::Inter, Way::NetVhost, Way::Memif];
    if facts.has_testpmd {
        plan.add(place(Group::Peers), Test::Forward, &ways, &FRAMES, rounds);
    } else {
        plan.skip(
            "peers/host/per-guest/forward",
            "no dpdk-testpmd on this machine",
        );
    }
    plan.skip(
        "peers/host/ovs-dpdk",
        "not measured: a switch that polls as testpmd does, which stands for it here",
    );
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
    plan.add(place(Group::Peers), usual, &between, sizes, rounds);
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
        plan.add(place(Group::Link), test, &ways, sizes, rounds);
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
        rounds.max(5),
    );
}

fn scale(plan: &mut Plan, quick: bool) {
    let rounds = if quick { 2 } else { 5 };
    let place = (Group::Scale, Environment::Uml, Placement::Free);
    let ways = [Way::Inter, Way::Tap];
    let ports: &[u32] = if quick { &[2, 8] } else { &[2, 4, 8, 16] };
    plan.add(place, Test::Pairs, &ways, ports, rounds);
    let ports: &[u32] = if quick { &[4] } else { &[2, 4, 8, 16] };
    plan.add(place, Test::AllToOne, &ways, ports, rounds);
    let place = (Group::Scale, Environment::Host, Placement::Free);
    let rounds = if quick { 1 } else { 3 };
    plan.add(place, Test::Idle, &[Way::Inter], &[64], rounds);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::tests::parse;

    const TWO_CPUS: Facts = Facts {
        cpus: 2,
        has_testpmd: true,
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
