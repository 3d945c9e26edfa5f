//! Which cases are planned, where, and what is named as not run.

use super::*;
use crate::options::tests::parse;

impl Facts {
    /// A machine that has everything but KVM and Cloud Hypervisor.
    pub(crate) const TWO_CPUS: Facts = Facts {
        cpus: 2,
        has_testpmd: true,
        has_open_vswitch: true,
        has_host_tools: true,
        has_cloud_hypervisor: false,
        has_kvm: false,
        no_groups: None,
    };
}

const TWO_CPUS: Facts = Facts::TWO_CPUS;

fn planned(arguments: &[&str], facts: Facts) -> Plan {
    plan(&parse(arguments).unwrap(), &facts)
}

#[test]
fn plan_names_what_the_machine_cannot_do() {
    let plan = planned(&[], TWO_CPUS);
    let named = |what: &str| plan.not_run.iter().any(|note| note.what == what);
    assert!(named("paper/uml/per-process") && named("paper/cloud-hypervisor"));
    assert!(
        plan.cases
            .iter()
            .all(|case| case.place.placement != Placement::PerProcess)
    );
    let large = Facts {
        cpus: 16,
        ..TWO_CPUS
    };
    let ids: Vec<String> = planned(&[], large).cases.iter().map(Case::id).collect();
    assert!(ids.contains(&"paper/uml/per-process/groups/tcp_stream".to_owned()));
    let with_kvm = Facts {
        has_cloud_hypervisor: true,
        has_kvm: true,
        ..TWO_CPUS
    };
    let ids: Vec<String> = planned(&[], with_kvm).cases.iter().map(Case::id).collect();
    assert!(ids.contains(&"udp/cloud-hypervisor/free/groups/datagrams".to_owned()));
    let small = Facts {
        cpus: 1,
        has_testpmd: false,
        has_open_vswitch: false,
        ..TWO_CPUS
    };
    assert!(planned(&["--only", "peers,link"], small).cases.is_empty());
}

#[test]
fn plan_runs_only_requested_cases() {
    let plan = planned(&["--only", "paper/uml/one-cpu/groups,udp/qemu"], TWO_CPUS);
    let ids: Vec<String> = plan.cases.iter().map(Case::id).collect();
    assert_eq!(
        ids,
        [
            "paper/uml/one-cpu/groups/tcp_stream",
            "paper/uml/one-cpu/groups/tcp_rr",
            "udp/qemu/free/groups/datagrams"
        ]
    );
    let sizes = &plan.cases[0].sizes;
    assert_eq!((sizes.first(), sizes.last()), (Some(&64), Some(&65536)));
    let plan = planned(&["--only", "scale", "--rounds", "9"], TWO_CPUS);
    assert!(plan.cases.iter().all(|case| case.rounds == 9));
}

#[test]
fn plan_has_both_groupings_with_and_without_a_busy_neighbour() {
    let ids: Vec<String> = planned(&[], TWO_CPUS).cases.iter().map(Case::id).collect();
    for place in [
        "paper/uml/one-cpu",
        "busy/uml/one-cpu",
        "busy/uml/per-guest",
    ] {
        for grouping in ["groups", "session"] {
            assert!(
                ids.contains(&format!("{place}/{grouping}/tcp_stream")),
                "{ids:?}"
            );
        }
    }
    assert!(ids.contains(&"busy/uml/one-cpu/groups/tcp".to_owned()));
    assert!(ids.contains(&"peers/host/per-guest/groups/forward".to_owned()));
    assert!(ids.contains(&"scale/uml/free/groups/pairs".to_owned()));
    assert!(!ids.iter().any(|id| id.starts_with("busy/qemu")));
}

#[test]
fn plan_of_uplinks_has_the_host_where_its_tools_are() {
    let arguments = ["--only", "uplink/uml/one-cpu"];
    let tests = |facts| -> Vec<String> {
        let cases = planned(&arguments, facts).cases;
        cases.iter().map(|case| case.test.id()).collect()
    };
    let all = ["to_host", "from_host", "host_tcp", "tcp_stream", "tcp"];
    assert_eq!(tests(TWO_CPUS), all);
    let without = Facts {
        has_host_tools: false,
        ..TWO_CPUS
    };
    assert_eq!(tests(without.clone()), all[3..]);
    let plan = planned(&arguments, without);
    let named = |note: &NotRun| note.what == "uplink/uml/one-cpu/groups/to_host";
    assert!(plan.not_run.iter().any(named));
}

#[test]
fn plan_without_control_groups_names_them_and_measures_the_rest() {
    let facts = Facts {
        no_groups: Some("no hierarchy".to_owned()),
        ..TWO_CPUS
    };
    let plan = planned(&[], facts);
    let mut named: Vec<&str> = plan
        .not_run
        .iter()
        .filter(|note| note.why == "no hierarchy")
        .map(|note| note.what.as_str())
        .collect();
    named.sort_unstable();
    assert_eq!(
        named,
        [
            "busy/uml/one-cpu/groups",
            "busy/uml/per-guest/groups",
            "latency/qemu/free/groups",
            "latency/uml/one-cpu/groups",
            "latency/uml/per-guest/groups",
            "paper/qemu/free/groups",
            "paper/uml/one-cpu/groups",
            "paper/uml/per-guest/groups",
            "peers/host/per-guest/groups",
            "scale/uml/free/groups",
            "udp/qemu/free/groups",
            "udp/uml/one-cpu/groups",
            "udp/uml/per-guest/groups",
            "uplink/qemu/free/groups",
            "uplink/uml/one-cpu/groups",
            "uplink/uml/per-guest/groups"
        ]
    );
    let session = |case: &Case| case.place.grouping == Grouping::Session;
    assert!(plan.cases.iter().all(session));
    let all = planned(&[], TWO_CPUS).cases;
    let usual = all
        .iter()
        .filter(|case| case.place.grouping == Grouping::Groups);
    assert!(plan.cases.len() >= usual.count());
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
