//! The goals of the project as ratios within a run, and what was measured of them.
//!
//! Goals are ratios within one run: decision 0050.

use serde::Serialize;

use crate::case::{Environment, Group, Place, Way};
use crate::placement::{Grouping, Placement};
use crate::results::{At, Results};
use crate::stats::Spread;

/// A goal and how far it is reached.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Goal {
    /// The two values compared.
    pub name: String,
    /// The ratio or count; none where it was not measured.
    pub value: Option<f64>,
    /// The bound on the ratio.
    pub goal: String,
    /// Whether it is; none where it was not measured.
    pub met: Option<bool>,
    /// Why it was not measured, or what the value stands for.
    pub note: String,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {bound}"),
            Self::AtMost(bound) => format!("≤ {bound}"),
        }
    }
}

/// CPUs for which the goal of several pairs is.
pub const GOAL_CPUS: usize = 16;
const ONE_MESSAGE: u32 = 65536;
const PLACEMENTS: [Placement; 3] = [
    Placement::OneCpu,
    Placement::PerGuest,
    Placement::PerProcess,
];
const NOT_MEASURED: &str = "not measured";

/// All goals, in the order of the project's table.
pub fn goals(results: &Results) -> Vec<Goal> {
    let mut all = Vec::new();
    for (placement, bound) in PLACEMENTS.into_iter().zip([0.7, 1.0, 1.3]) {
        let at = at(Group::Paper, Environment::Uml, placement, "tcp_stream");
        all.push(ratio(
            results,
            format!("UML TCP stream ÷ loopback, {}", placement.name()),
            (&at, Way::Inter, ONE_MESSAGE),
            (&at, Way::Loopback, ONE_MESSAGE),
            Bound::AtLeast(bound),
        ));
    }
    for (placement, bound) in PLACEMENTS.into_iter().zip([1.6, 2.0, 2.0]) {
        let at = at(Group::Latency, Environment::Uml, placement, "tcp");
        all.push(ratio(
            results,
            format!("UML half round trip ÷ loopback, {}", placement.name()),
            (&at, Way::Inter, 64),
            (&at, Way::Loopback, 64),
            Bound::AtMost(bound),
        ));
    }
    all.push(sizes_behind_tap(results));
    all.extend(switches(results));
    let link = at(Group::Link, Environment::Host, Placement::PerGuest, "cold");
    all.push(ratio(
        results,
        "link of 64 KiB records on two CPUs ÷ memcpy of the same cold bytes".to_owned(),
        (&link, Way::Link, ONE_MESSAGE),
        (&link, Way::Memcpy, ONE_MESSAGE),
        Bound::AtLeast(0.8),
    ));
    all.extend(cloud_hypervisor(results));
    all.extend(uplinks(results));
    all.push(pairs(results));
    for placement in PLACEMENTS {
        all.push(cpu_cost(results, placement));
    }
    let idle = at(
        Group::Scale,
        Environment::Host,
        Placement::Free,
        "idle_wakeups",
    );
    let wakeups = results.median(&idle, Way::Inter, 64);
    all.push(goal(
        "idle: wake-ups of 64 ports in ten seconds".to_owned(),
        wakeups,
        Bound::AtMost(0.0),
        reason(results, "scale/host"),
    ));
    all
}

/// Goals rest on parties in groups of their own, where ports move frames under load at all.
fn at(
    group: Group,
    environment: Environment,
    placement: Placement,
    metric: &'static str,
) -> At<'static> {
    let grouping = match (environment, metric) {
        // A link alone, idle ports, and a machine without control groups.
        (Environment::Nested, _) | (_, "cold" | "idle_wakeups") => Grouping::Session,
        _ => Grouping::Groups,
    };
    let place = Place {
        group,
        environment,
        placement,
        grouping,
    };
    At { place, metric }
}

fn goal(name: String, value: Option<f64>, bound: Bound, reason: String) -> Goal {
    Goal {
        name,
        value,
        goal: bound.text(),
        met: value.map(|value| bound.is_met(value)),
        note: value.map_or(reason, |_| String::new()),
    }
}

fn ratio(
    results: &Results,
    name: String,
    (of, way, size): (&At, Way, u32),
    (to, to_way, to_size): (&At, Way, u32),
    bound: Bound,
) -> Goal {
    let value = results
        .median(of, way, size)
        .zip(results.median(to, to_way, to_size))
        .map(|(of, to)| of / to);
    goal(name, value, bound, reason(results, &of.place.id()))
}

/// Why nothing was measured there.
fn reason(results: &Results, place: &str) -> String {
    results
        .not_run
        .iter()
        .find(|note| place.starts_with(&note.what) || note.what.starts_with(&format!("{place}/")))
        .map_or_else(|| NOT_MEASURED.to_owned(), |note| note.why.clone())
}

fn sizes_behind_tap(results: &Results) -> Goal {
    let mut behind = Vec::new();
    let mut compared = 0;
    for row in &results.rows {
        let Place {
            environment,
            placement,
            ..
        } = row.place;
        let judged = at(Group::Paper, environment, placement, "tcp_stream");
        let place = row.place;
        if (At {
            place,
            metric: &row.metric,
        }) != judged
            || row.way != Way::Inter
        {
            continue;
        }
        let Some((inter, tap)) = row.spread().map(|spread| spread.median).zip(results.median(
            &judged,
            Way::Tap,
            row.size,
        )) else {
            continue;
        };
        compared += 1;
        if tap > inter {
            behind.push(format!(
                "{}/{} {} B ({:.2})",
                environment.id(),
                placement.id(),
                row.size,
                inter / tap
            ));
        }
    }
    let value = (compared > 0).then_some(behind.len() as f64);
    let mut goal = goal(
        "message sizes at which tap + bridge is ahead, any frontend that ran".to_owned(),
        value,
        Bound::AtMost(0.0),
        NOT_MEASURED.to_owned(),
    );
    if value.is_some() {
        goal.note = format!("of {compared} compared");
        if !behind.is_empty() {
            goal.note += &format!("; virtio-inter ÷ tap: {}", behind.join(", "));
        }
    }
    goal
}

fn switches(results: &Results) -> Vec<Goal> {
    let at = at(
        Group::Peers,
        Environment::Host,
        Placement::PerGuest,
        "forward",
    );
    [
        (Way::NetVhost, 64, 1.0),
        (Way::NetVhost, 1500, 1.0),
        (Way::NetVhost, 16384, 1.0),
        (Way::Memif, 1500, 0.8),
        (Way::Memif, 16384, 1.2),
    ]
    .map(|(way, size, bound)| {
        ratio(
            results,
            format!("virtio_user through two ports ÷ {}, {size} B", way.name()),
            (&at, Way::Inter, size),
            (&at, way, size),
            Bound::AtLeast(bound),
        )
    })
    .to_vec()
}

/// On real KVM where there is one, else in the nested machine: its goals differ, because emulation
/// levels all ways.
fn cloud_hypervisor(results: &Results) -> Vec<Goal> {
    let against_tap = |environment, words: &str, (group, metric), size, bound| {
        let at = at(group, environment, Placement::Free, metric);
        let where_ = match environment {
            Environment::Nested => "nested machine",
            _ => "real KVM",
        };
        ratio(
            results,
            format!("Cloud Hypervisor, {where_}: {words} ÷ tap + bridge"),
            (&at, Way::Inter, size),
            (&at, Way::Tap, size),
            bound,
        )
    };
    let stream = (Group::Paper, "tcp_stream");
    let latency = (Group::Latency, "tcp");
    let datagrams = (Group::Udp, "datagrams");
    let kvm = Environment::CloudHypervisor;
    let nested = Environment::Nested;
    vec![
        against_tap(kvm, "TCP", stream, ONE_MESSAGE, Bound::AtLeast(2.2)),
        against_tap(kvm, "half round trip", latency, 64, Bound::AtMost(0.4)),
        against_tap(kvm, "UDP 1400 B", datagrams, 1400, Bound::AtLeast(3.0)),
        against_tap(nested, "TCP", stream, ONE_MESSAGE, Bound::AtLeast(1.2)),
        against_tap(nested, "half round trip", latency, 64, Bound::AtMost(0.9)),
    ]
}

/// Against the VMM's own tap device, and what uplinks cost links.
fn uplinks(results: &Results) -> Vec<Goal> {
    let mut all = Vec::new();
    for (environment, placement) in [
        (Environment::Uml, Placement::OneCpu),
        (Environment::Uml, Placement::PerGuest),
        (Environment::Qemu, Placement::Free),
        (Environment::CloudHypervisor, Placement::Free),
    ] {
        for (metric, words, size, to, bound) in [
            (
                "to_host",
                "TCP to the host",
                ONE_MESSAGE,
                Way::Tap,
                Bound::AtLeast(1.0),
            ),
            (
                "from_host",
                "TCP from the host",
                ONE_MESSAGE,
                Way::Tap,
                Bound::AtLeast(1.0),
            ),
            (
                "host_tcp",
                "half round trip with the host",
                64,
                Way::Tap,
                Bound::AtMost(1.0),
            ),
            (
                "tcp_stream",
                "TCP by link",
                ONE_MESSAGE,
                Way::Inter,
                Bound::AtLeast(0.95),
            ),
            (
                "tcp",
                "half round trip by link",
                64,
                Way::Inter,
                Bound::AtMost(1.05),
            ),
        ] {
            let at = at(Group::Uplink, environment, placement, metric);
            let than = match to {
                Way::Tap => "the VMM's own tap",
                _ => "without uplinks",
            };
            all.push(ratio(
                results,
                format!(
                    "{}, {}: with uplinks, {words} ÷ {than}",
                    environment.name(),
                    placement.name()
                ),
                (&at, Way::Uplink, size),
                (&at, to, size),
                bound,
            ));
        }
    }
    all
}

fn pairs(results: &Results) -> Goal {
    let at = at(Group::Scale, Environment::Uml, Placement::Free, "pairs");
    let cpus = results.machine.as_ref().map_or(0, |machine| machine.cpus);
    let value = results
        .median(&at, Way::Inter, 8)
        .zip(results.median(&at, Way::Inter, 2))
        .map(|(four, one)| four / one);
    let name = format!("total throughput of 4 pairs ÷ of one pair, {GOAL_CPUS} CPUs");
    let bound = Bound::AtLeast(3.7);
    if cpus >= GOAL_CPUS {
        return goal(name, value, bound, NOT_MEASURED.to_owned());
    }
    let mut why = format!("needs {GOAL_CPUS} CPUs, this machine has {cpus}");
    if let Some(value) = value {
        why += &format!("; with these: {value:.2}");
    }
    goal(name, None, bound, why)
}

fn cpu_cost(results: &Results, placement: Placement) -> Goal {
    let at = at(Group::Paper, Environment::Uml, placement, "tcp_stream");
    let cost = |way| -> Option<f64> {
        let row = results.row(&at, way, ONE_MESSAGE)?;
        Some(Spread::of(&row.cpu_seconds_per_gb)?.median)
    };
    let value = cost(Way::Inter)
        .zip(cost(Way::Tap))
        .map(|(inter, tap)| inter / tap);
    goal(
        format!(
            "CPU seconds per GB ÷ tap + bridge, UML, {}",
            placement.name()
        ),
        value,
        Bound::AtMost(0.6),
        reason(results, &at.place.id()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::row;

    fn named<'a>(goals: &'a [Goal], part: &str) -> &'a Goal {
        goals.iter().find(|goal| goal.name.contains(part)).unwrap()
    }

    #[test]
    fn goals_are_judged_where_measured_and_have_no_value_elsewhere() {
        let mut results = Results::default();
        results.note_not_run("paper/uml/per-process", "needs 4 CPUs, this machine has 2");
        results.note_not_run("paper/cloud-hypervisor", "no program");
        let empty = goals(&results);
        assert!(
            empty
                .iter()
                .all(|goal| goal.value.is_none() && goal.met.is_none())
        );
        assert!(empty.iter().all(|goal| !goal.note.is_empty()));
        results.add(row(Way::Loopback, 65536, &[10.0, 10.0, 11.0]));
        results.add(row(Way::Inter, 65536, &[7.5, 8.0, 6.0]));
        results.add(row(Way::Tap, 65536, &[9.0]));
        let goals = goals(&results);
        assert_eq!(goals.len(), empty.len());
        let stream = named(&goals, "UML TCP stream ÷ loopback, all on one CPU");
        assert_eq!((stream.value, stream.met), (Some(0.75), Some(true)));
        let behind = named(&goals, "message sizes");
        assert_eq!((behind.value, behind.met), (Some(1.0), Some(false)));
        assert!(behind.note.contains("uml/one-cpu 65536 B (0.83)"));
        let cost = named(&goals, "CPU seconds per GB");
        assert_eq!((cost.value, cost.met), (Some(1.0), Some(false)));
        assert!(
            named(&goals, "each guest and each port")
                .note
                .contains("4 CPUs")
        );
        assert_eq!(named(&goals, "real KVM: TCP").note, "no program");
    }

    #[test]
    fn goals_of_uplinks_compare_with_the_vmms_tap_and_with_links_alone() {
        let mut results = Results::default();
        for (metric, way, value) in [
            ("to_host", Way::Uplink, 9.0),
            ("to_host", Way::Tap, 10.0),
            ("tcp_stream", Way::Uplink, 9.6),
            ("tcp_stream", Way::Inter, 10.0),
        ] {
            let mut row = row(way, 65536, &[value]);
            row.place.group = Group::Uplink;
            row.metric = metric.to_owned();
            results.add(row);
        }
        let goals = goals(&results);
        let to_host = named(&goals, "one CPU: with uplinks, TCP to the host");
        assert_eq!((to_host.value, to_host.met), (Some(0.9), Some(false)));
        let link = named(&goals, "one CPU: with uplinks, TCP by link");
        assert_eq!((link.value, link.met), (Some(0.96), Some(true)));
    }

    #[test]
    fn goals_rest_on_groups_and_say_why_there_are_none() {
        let mut results = Results::default();
        for (way, rate) in [(Way::Loopback, 10.0), (Way::Inter, 8.0)] {
            let mut row = row(way, 65536, &[rate]);
            row.place.grouping = Grouping::Session;
            results.add(row);
        }
        results.note_not_run("paper/uml/one-cpu/groups", "no control groups here");
        let goals = goals(&results);
        let stream = named(&goals, "UML TCP stream ÷ loopback, all on one CPU");
        assert_eq!(
            (stream.value, stream.note.as_str()),
            (None, "no control groups here")
        );
        assert_eq!(named(&goals, "message sizes").value, None);
    }

    #[test]
    fn pairs_are_judged_on_enough_cpus_only() {
        let mut results = Results::default();
        for (ports, rate) in [(2, 10.0), (8, 38.0)] {
            let mut row = row(Way::Inter, ports, &[rate]);
            (row.place.group, row.place.placement) = (Group::Scale, Placement::Free);
            row.metric = "pairs".to_owned();
            results.add(row);
        }
        let small = goals(&results);
        let goal = named(&small, "4 pairs");
        assert_eq!(goal.met, None);
        assert!(goal.note.contains("3.80"), "{}", goal.note);
    }
}
