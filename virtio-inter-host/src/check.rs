//! `virtio-inter check`: what an operator should mend, on all segments.

mod code;
mod limits;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

use serde::Serialize;

use crate::document::Document;
use crate::place::{self, Place};
use crate::reader::{Answer, Port};
use crate::show::explain;
use crate::text::{age, safe};
use code::Code;
use limits::Host;

/// Warnings of ports that are one finding of their whole segment here.
const OF_SEGMENTS: [&str; 2] = ["mtu-mismatch", "segment-not-sticky"];

/// Something to mend.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    /// Segment, or segment and port; empty: the host.
    place: String,
    /// Name of the kind; stable.
    code: String,
    text: String,
    /// Of a port's warning: its times, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<u64>,
    /// The same in words.
    #[serde(skip)]
    age: Option<String>,
}

impl Finding {
    fn new(place: &str, code: Code, text: String) -> Self {
        Self::named(place, code.as_str(), text)
    }

    /// One with the code of a port's warning.
    fn named(place: &str, code: &str, text: String) -> Self {
        Self {
            place: place.to_owned(),
            code: code.to_owned(),
            text,
            since: None,
            last: None,
            age: None,
        }
    }
}

/// One line for each finding, and a summary.
pub(crate) fn lines(findings: &[Finding], places: &[Place], ports: &[Port]) -> String {
    let mut text = String::new();
    for finding in findings {
        let Finding {
            place,
            code,
            text: what,
            age,
            ..
        } = finding;
        let place = if place.is_empty() { "host" } else { place };
        let age = age
            .as_ref()
            .map_or_else(String::new, |age| format!(", {age}"));
        text += &format!("{}: {} ({}{age})\n", safe(place), safe(what), safe(code));
    }
    let checked = match place::none_of(places) {
        Some(none) => none,
        None => format!("{} port(s) checked", ports.len()),
    };
    text + &format!("{checked}, {} finding(s)\n", findings.len())
}

/// Looks for what should be mended.
pub(crate) fn findings(places: &[Place], ports: &[Port]) -> Vec<Finding> {
    findings_on(&Host::read(), places, ports)
}

fn findings_on(host: &Host, places: &[Place], ports: &[Port]) -> Vec<Finding> {
    let now = SystemTime::now();
    let mut found = Vec::new();
    for (code, text) in host.findings() {
        found.push(Finding::new("", code, text));
    }
    for place in places {
        if let Some((code, text)) = directory(place) {
            found.push(Finding::new(&place.name(), code, text));
        }
        if let Some(unreadable) = &place.unreadable {
            let (name, text) = (place.name(), unreadable.explain());
            found.push(Finding::new(&name, Code::SegmentUnreadable, text));
        }
    }
    for group in ports.chunk_by(|a, b| a.segment == b.segment) {
        for (code, text) in segment(group) {
            found.push(Finding::new(&group[0].segment, code, text));
        }
        for port in group {
            let name = format!("{}/{}", port.segment, port.id);
            let code = match &port.answer {
                Answer::Status(status, _) => {
                    found.extend(of_port(&name, status, host, now));
                    continue;
                }
                Answer::Gone => Code::PortGone,
                Answer::Denied => Code::PortDenied,
                Answer::Silent => Code::PortSilent,
                Answer::None => Code::NoStatus,
                Answer::Invalid(_) => Code::InvalidStatus,
            };
            found.push(Finding::new(&name, code, explain(&port.answer)));
        }
    }
    found
}

fn of_port(name: &str, status: &Document, host: &Host, now: SystemTime) -> Vec<Finding> {
    let warnings = status.warnings.iter();
    let mut found: Vec<Finding> = warnings
        .filter(|warning| !OF_SEGMENTS.contains(&warning.code.as_str()))
        .map(|warning| Finding {
            since: warning.since,
            last: warning.last,
            age: warning.age(now),
            ..Finding::named(name, &warning.code, warning.text.clone())
        })
        .collect();
    let lost = status.total("rx_no_guest");
    if lost != 0 && status.frontend.is_none() && !status.is_shared_uplink() {
        let text = format!(
            "No VMM is connected, and {lost} frames for its guest were lost: start the VM with \
             this port's socket"
        );
        found.push(Finding::new(name, Code::NoVmm, text));
    }
    for refused in &status.refused {
        if refused.conflict {
            continue;
        }
        let peer = refused.peer.as_deref().unwrap_or("a peer");
        let text = if refused.by_peer {
            format!("Refused by {peer}: {}", refused.reason)
        } else {
            format!("Refuses {peer}: {}", refused.reason)
        };
        found.push(Finding {
            last: refused.when,
            age: refused
                .when
                .map(|when| format!("last {} ago", age(now, when))),
            ..Finding::new(name, Code::Refused, text)
        });
    }
    for (code, text) in limits::of_port(status, host) {
        found.push(Finding::new(name, code, text));
    }
    found
}

/// What only all ports of a segment together show.
fn segment(ports: &[Port]) -> Vec<(Code, String)> {
    let mut found = Vec::new();
    let known = || ports.iter().filter_map(|port| Some((port, port.status()?)));
    let macs = known().filter_map(|(port, status)| Some((status.mac.clone()?, port)));
    for (mac, ports) in grouped(macs)
        .into_iter()
        .filter(|(_, ports)| ports.len() > 1)
    {
        let text = format!(
            "Ports {} have one MAC address, {mac}: give each its own",
            ports.join(", ")
        );
        found.push((Code::DuplicateMac, text));
    }
    let mtus = grouped(known().filter_map(|(port, status)| Some((status.mtu?, port))));
    if mtus.len() > 1 {
        let each: Vec<String> = mtus
            .iter()
            .map(|(mtu, ports)| format!("{mtu} ({})", ports.join(", ")))
            .collect();
        let text = format!(
            "Ports have different MTUs: {}. Longer packets between them are dropped unless they \
             can be segmented, and their sender is not told: start all ports with one --mtu, and \
             their VMs with that MTU",
            each.join(", ")
        );
        found.push((Code::MtuMismatch, text));
    }
    found
}

/// The names of the ports of each value.
fn grouped<'a, K: Ord + Display>(
    values: impl Iterator<Item = (K, &'a Port)>,
) -> BTreeMap<K, Vec<String>> {
    let mut groups: BTreeMap<K, Vec<String>> = BTreeMap::new();
    for (value, port) in values {
        groups.entry(value).or_default().push(port.id.to_string());
    }
    groups
}

/// Users who can do harm in a segment's directory.
fn directory(place: &Place) -> Option<(Code, String)> {
    let mode = fs::metadata(&place.segment).ok()?.permissions().mode() & 0o7777;
    if mode & 0o022 != 0 && mode & 0o1000 == 0 {
        let text = format!(
            "Mode {mode:04o} lets users take the names of each other's ports: chmod +t {}",
            place.segment.display()
        );
        return Some((Code::SegmentNotSticky, text));
    }
    if mode & 0o002 != 0 {
        let text = format!("Mode {mode:04o} lets every user of the host join the segment");
        return Some((Code::SegmentPublic, text));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    fn port(id: &str, status: Value) -> Port {
        Port::answering(id, &status)
    }

    fn codes(ports: &[Port]) -> Vec<(String, String)> {
        findings_on(&Host::default(), &[], ports)
            .into_iter()
            .map(|finding| (finding.place, finding.code))
            .collect()
    }

    fn found(place: &str, code: &str) -> (String, String) {
        (place.to_owned(), code.to_owned())
    }

    #[test]
    fn check_finds_nothing_where_all_is_well() {
        let a = json!({"mac": "02:00:00:00:00:01", "mtu": 1500});
        let b = json!({"mac": "02:00:00:00:00:02", "mtu": 1500});
        assert_eq!(codes(&[port("a", a), port("b", b)]), []);
    }

    #[test]
    fn check_finds_what_only_a_whole_segment_shows() {
        let a = json!({"mac": "02:00:00:00:00:01", "mtu": 1500});
        let b = json!({"mac": "02:00:00:00:00:01", "mtu": 9000});
        assert_eq!(
            codes(&[port("a", a), port("b", b)]),
            [found("web", "duplicate-mac"), found("web", "mtu-mismatch")]
        );
    }

    #[test]
    fn check_finds_the_warnings_and_refusals_of_ports_and_ports_that_are_gone() {
        let a = json!({
            "warnings": [
                {"code": "foreign-source", "text": "The guest …", "count": 3},
                {"code": "mtu-mismatch", "text": "…", "count": 1},
            ],
            "refused": [{"peer": "c", "by_peer": true, "reason": "version"}],
        });
        let gone = Port {
            answer: Answer::Gone,
            ..port("b", json!({}))
        };
        assert_eq!(
            codes(&[port("a", a), gone]),
            [
                found("web/a", "foreign-source"),
                found("web/a", "refused"),
                found("web/b", "port-gone")
            ]
        );
    }

    #[test]
    fn check_finds_what_this_user_may_not_read() {
        let denied = Port {
            answer: Answer::Denied,
            ..port("a", json!({}))
        };
        let places = [Place::denied(Path::new("/run/virtio-inter/db"))];
        let findings = findings_on(&Host::default(), &places, &[denied, port("b", json!({}))]);
        let codes: Vec<(String, String)> = findings
            .into_iter()
            .filter(|finding| !finding.place.is_empty())
            .map(|finding| (finding.place, finding.code))
            .collect();
        let expected = [
            found("db", "segment-unreadable"),
            found("web/a", "port-denied"),
        ];
        assert_eq!(codes, expected);
    }

    #[test]
    fn check_says_that_there_is_nothing_to_check() {
        assert_eq!(
            lines(&[], &[], &[]),
            "There is no segment in /run/virtio-inter, 0 finding(s)\n"
        );
        let temp = tempfile::tempdir().unwrap();
        let directory = temp.path().display().to_string();
        assert_eq!(
            lines(&[], &[place_of(temp.path())], &[]),
            format!("There is no port on segment {directory}, 0 finding(s)\n")
        );
        let denied = Place::denied(temp.path());
        assert_eq!(
            lines(&[], &[denied], &[]),
            "0 port(s) checked, 0 finding(s)\n"
        );
    }

    fn place_of(directory: &Path) -> Place {
        let places = crate::args::Places {
            places: vec![directory.as_os_str().to_owned()],
        };
        place::find(&places).unwrap().remove(0)
    }

    #[test]
    fn check_finds_ports_that_do_not_answer_as_they_should() {
        let not_answering = |id: &str, answer: Answer| Port {
            answer,
            ..port(id, json!({}))
        };
        let ports = [
            not_answering("a", Answer::Denied),
            not_answering("b", Answer::Silent),
            not_answering("c", Answer::None),
            not_answering("d", Answer::Invalid("why".to_owned())),
        ];
        assert_eq!(
            codes(&ports),
            [
                found("web/a", "port-denied"),
                found("web/b", "port-silent"),
                found("web/c", "no-status"),
                found("web/d", "invalid-status"),
            ]
        );
        let text = lines(&findings_on(&Host::default(), &[], &ports), &[], &ports);
        assert!(
            text.starts_with("web/a: not permitted: ask as root"),
            "{text}"
        );
        assert!(
            text.contains("web/b: no answer in time: the port is stopped"),
            "{text}"
        );
    }

    #[test]
    fn check_finds_a_port_without_a_vmm_once_frames_were_lost_for_it() {
        let of = |frontend: Value, lost: u64| {
            let status = json!({"frontend": frontend, "counters": [{"rx_no_guest": lost}]});
            codes(&[port("a", status)])
        };
        assert_eq!(of(Value::Null, 1), [found("web/a", "no-vmm")]);
        // Nobody sent anything, or the VM is only paused.
        assert_eq!(of(Value::Null, 0), []);
        assert_eq!(of(json!({"pid": 1, "queues_running": 0}), 1), []);
        let uplink = json!({"active": true, "counters": [{"rx_no_guest": 1}]});
        assert_eq!(codes(&[port("a", uplink)]), []);
    }

    #[test]
    fn findings_are_the_rows_of_the_document() {
        let document = include_str!("../../docs/operations.md");
        let (_, section) = document.split_once("\n### Findings\n").unwrap();
        let section = section.split("\n## ").next().unwrap();
        let rows: Vec<&str> = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .collect();
        assert_eq!(rows, Code::NAMES);
    }

    #[test]
    fn check_says_how_old_a_finding_is() {
        let ago = |seconds: u64| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            now.unwrap().as_secs() - seconds
        };
        let warning = json!({
            "code": "foreign-source", "text": "Frames", "count": 3,
            "since": ago(100_000), "last": ago(7300), "current": false,
        });
        let status = json!({
            "warnings": [warning],
            "refused": [{"peer": "c", "by_peer": true, "reason": "why", "when": ago(150)}],
        });
        let ports = [port("a", status)];
        let temp = tempfile::tempdir().unwrap();
        for file in ["a.sock", "a.lock"] {
            fs::write(temp.path().join(file), "").unwrap();
        }
        let of_port = place_of(temp.path());
        let found = findings_on(&Host::default(), &[], &ports);
        assert_eq!(
            lines(&found, &[of_port], &ports),
            "web/a: Frames (foreign-source, last 2 h ago)\n\
             web/a: Refused by c: why (refused, last 2 min ago)\n\
             1 port(s) checked, 2 finding(s)\n"
        );
        let found = serde_json::to_value(&found).unwrap();
        assert_eq!(
            found[0]["since"],
            ports[0].status().unwrap().warnings[0].since.unwrap()
        );
    }

    #[test]
    fn check_finds_a_conflict_once() {
        let a = json!({
            "warnings": [{"code": "conflict", "text": "Port b: own MAC address. …", "count": 1}],
            "refused": [
                {"peer": "a", "by_peer": false, "conflict": true, "reason": "own id a"},
                {"peer": "b", "by_peer": true, "conflict": true, "reason": "own MAC address"},
                {"peer": "c", "by_peer": true, "reason": "version"},
            ],
        });
        assert_eq!(
            codes(&[port("a", a)]),
            [found("web/a", "conflict"), found("web/a", "refused")]
        );
    }

    #[test]
    fn check_looks_at_the_modes_of_directories() {
        let temp = tempfile::tempdir().unwrap();
        let code = |mode: u32| {
            fs::set_permissions(temp.path(), PermissionsExt::from_mode(mode)).unwrap();
            directory(&place_of(temp.path())).map(|(code, _)| code.as_str())
        };
        assert_eq!(code(0o700), None);
        assert_eq!(code(0o3770), None);
        assert_eq!(code(0o2770), Some("segment-not-sticky"));
        assert_eq!(code(0o777), Some("segment-not-sticky"));
        assert_eq!(code(0o1777), Some("segment-public"));
    }
}
