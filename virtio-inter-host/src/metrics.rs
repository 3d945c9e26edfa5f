//! Metrics of all ports, in the text formats of OpenMetrics 1.0 and Prometheus 0.0.4.
//!
//! Names follow Prometheus' rules; transmit and receive are as the guest sees them. The reason of a
//! lost frame is the name that it has in the status document.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use virtio_inter_common::PortId;
use virtio_inter_device::Counters;

use crate::document::Document;
use crate::place::Place;
use crate::reader::Port;

type Labels = Vec<(&'static str, String)>;

/// Before each name.
const PREFIX: &str = "virtio_inter";

/// Maximum number of peers and of warnings of a port that count: no honest one has more. What a
/// port says of itself must not flood Prometheus with series.
const MAX_PEERS: usize = 1024;
const MAX_WARNINGS: usize = 256;
/// Maximum length in characters of what a port says of itself.
const MAX_TEXT: usize = 64;

/// A format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    OpenMetrics,
    Prometheus,
}

/// All metrics of these ports, and of each of their peers if those are wanted.
pub(crate) fn text(places: &[Place], ports: &[Port], with_peers: bool, format: Format) -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    let segments = Family::<Labels, Gauge>::default();
    registry.register(
        "segment_readable",
        "Whether the segment's directory can be read (1), or its ports are not known (0)",
        segments.clone(),
    );
    for place in places {
        let labels = vec![("segment", escaped(&place.name()))];
        let is_readable = place.unreadable.is_none();
        segments.get_or_create(&labels).set(is_readable.into());
    }
    let mut gauges = Gauges::new(&mut registry);
    let mut counters = CounterFamilies::default();
    let mut peers = with_peers.then(|| PeerFamilies::new(&mut registry));
    for port in ports {
        gauges.add(port);
        if let Some(status) = port.status() {
            counters.add(port, status);
            if let Some(peers) = &mut peers {
                peers.add(port, status);
            }
        }
    }
    counters.register(&mut registry);
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = encode(&mut text, &registry);
    match format {
        Format::OpenMetrics => text,
        Format::Prometheus => prometheus(&text),
    }
}

/// The labels of a port.
fn labels(port: &Port) -> Labels {
    vec![
        ("segment", escaped(&port.segment)),
        ("port", port.id.to_string()),
    ]
}

/// A label's value by the rules of both formats: the encoder writes it as it is, and a hostile port
/// or a directory's name may have anything in it.
fn escaped(value: &str) -> String {
    let mut escaped = String::new();
    for char in value.chars() {
        match char {
            '\\' => escaped += r"\\",
            '"' => escaped += r#"\""#,
            '\n' => escaped += r"\n",
            char => escaped.push(char),
        }
    }
    escaped
}

/// What a port says of itself, as a label's value.
fn said(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => escaped(&text[..end]),
        None => escaped(text),
    }
}

/// What is so now.
struct Gauges {
    up: Family<Labels, Gauge>,
    info: Family<Labels, Gauge>,
    start: Family<Labels, Gauge>,
    frontend: Family<Labels, Gauge>,
    queues: Family<Labels, Gauge>,
    peers: Family<Labels, Gauge>,
    refused: Family<Labels, Gauge>,
    warnings: Family<Labels, Gauge>,
    uplink: Family<Labels, Gauge>,
    active: Family<Labels, Gauge>,
}

impl Gauges {
    fn new(registry: &mut Registry) -> Self {
        let mut family = |name: &str, help: &str| {
            let family = Family::<Labels, Gauge>::default();
            registry.register(name, help, family.clone());
            family
        };
        Self {
            up: family("up", "Whether the port or uplink answered (1) or not (0)"),
            info: family(
                "port_info",
                "Always 1; the labels describe the port or uplink",
            ),
            start: family("start_time_seconds", "Start of the process, since 1970"),
            frontend: family("frontend_connected", "Whether a VMM is connected"),
            queues: family("queues_running", "Virtqueues that the guest uses"),
            peers: family("peers", "Ports with which frames can be exchanged"),
            refused: family(
                "refused_peers",
                "Ports without a link, as one side refused it",
            ),
            warnings: family("warnings", "Conditions that an operator can end, by code"),
            uplink: family("uplink_up", "Whether the uplink's tap device is up"),
            active: family(
                "uplink_active",
                "Whether the shared uplink is active (1) or stands by (0)",
            ),
        }
    }

    fn add(&mut self, port: &Port) {
        let set = |family: &Family<Labels, Gauge>, value: i64| {
            family.get_or_create(&labels(port)).set(value);
        };
        let Some(status) = port.status() else {
            return set(&self.up, 0);
        };
        set(&self.up, 1);
        let mut description = labels(port);
        let text = |value: &Option<String>| value.as_deref().map(said).unwrap_or_default();
        description.push(("mac", text(&status.mac)));
        description.push(("version", text(&status.program_version)));
        description.push(("mtu", status.mtu.unwrap_or_default().to_string()));
        self.info.get_or_create(&description).set(1);
        if let Some(started) = status.started {
            set(&self.start, number(started));
        }
        set(&self.peers, number(status.peers.len()));
        set(&self.refused, number(status.refused.len()));
        match status.active {
            Some(active) => set(&self.active, active.into()),
            None => {
                let running = status
                    .frontend
                    .as_ref()
                    .map(|frontend| frontend.queues_running);
                set(&self.frontend, running.is_some().into());
                set(&self.queues, number(running.unwrap_or_default()));
            }
        }
        if let Some(uplink) = &status.uplink {
            set(&self.uplink, (uplink.state == "up").into());
        }
        for warning in status.warnings.iter().take(MAX_WARNINGS) {
            let mut labels = labels(port);
            labels.push(("code", said(&warning.code)));
            self.warnings.get_or_create(&labels).inc();
        }
    }
}

fn number(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

/// Counters of one name, with a description.
type CounterFamily<C> = BTreeMap<String, (String, Family<Labels, C>)>;

/// A counter of seconds.
type Seconds = Counter<f64, AtomicU64>;

/// What has been counted, one family for each name.
#[derive(Default)]
struct CounterFamilies {
    numbers: CounterFamily<Counter>,
    times: CounterFamily<Seconds>,
}

impl CounterFamilies {
    fn add(&mut self, port: &Port, status: &Document) {
        for (queue, counters) in status.counters.iter().enumerate() {
            for (name, value) in counters {
                // Only names that this version knows: a port's answer does not choose families.
                let Some(description) = Counters::description(name) else {
                    continue;
                };
                let mut labels = labels(port);
                labels.push(("queue", queue.to_string()));
                if let Some(name) = name.strip_suffix("_us") {
                    let family = format!("{}_seconds", family_of(name));
                    let help = help_of(&description.replace("Time in microseconds", "Time"));
                    let (_, family) = self
                        .times
                        .entry(family)
                        .or_insert((help, Family::default()));
                    family.get_or_create(&labels).inc_by(*value as f64 / 1e6);
                    continue;
                }
                let (family, help) = if Counters::is_drop(name) {
                    labels.push(("reason", name.clone()));
                    let help = "Frames that were lost. tx is from the guest, rx is for it, as in \
                                the status document; docs/drop-reasons.md has Linux's nearest \
                                reasons";
                    ("drop".to_owned(), help.to_owned())
                } else {
                    (family_of(name), help_of(description))
                };
                let (_, family) = self
                    .numbers
                    .entry(family)
                    .or_insert((help, Family::default()));
                family.get_or_create(&labels).inc_by(*value);
            }
        }
    }

    fn register(self, registry: &mut Registry) {
        for (name, (help, family)) in self.numbers {
            registry.register(name, help, family);
        }
        for (name, (help, family)) in self.times {
            registry.register(name, help, family);
        }
    }
}

/// What ports have exchanged with each peer.
struct PeerFamilies {
    start: Family<Labels, Gauge>,
    ring_used: Family<Labels, Gauge>,
    ring_capacity: Family<Labels, Gauge>,
    tx_packets: Family<Labels, Counter>,
    tx_bytes: Family<Labels, Counter>,
    drops: Family<Labels, Counter>,
    stalls: Family<Labels, Counter>,
    rx_packets: Family<Labels, Counter>,
    rx_bytes: Family<Labels, Counter>,
}

impl PeerFamilies {
    fn new(registry: &mut Registry) -> Self {
        let mut gauge = |name: &str, help: &str| {
            let family = Family::<Labels, Gauge>::default();
            registry.register(name, help, family.clone());
            family
        };
        let start = gauge(
            "peer_link_start_time_seconds",
            "Start of the links with the peer, since 1970. The counters of the peer start then",
        );
        let ring_used = gauge(
            "peer_ring_used_bytes",
            "Bytes of frames of the port's guest in the rings to the peer, which it has not taken",
        );
        let ring_capacity = gauge(
            "peer_ring_capacity_bytes",
            "Bytes that the rings to the peer have room for. There are none if nothing is sent",
        );
        let mut family = |name: &str, help: &str| {
            let family = Family::<Labels, Counter>::default();
            registry.register(name, help, family.clone());
            family
        };
        Self {
            start,
            ring_used,
            ring_capacity,
            tx_packets: family(
                "peer_transmit_packets",
                "Frames of the port's guest that were sent to the peer by links",
            ),
            tx_bytes: family(
                "peer_transmit_bytes",
                "Bytes of frames of the port's guest that were sent to the peer by links",
            ),
            drops: family(
                "peer_drop",
                "Frames of the port's guest for the peer that were lost, as the peer took none",
            ),
            stalls: family(
                "peer_transmit_stalls",
                "Number of times that the ring to the peer became full, so that frames of the \
                 port's guest waited for it or were lost",
            ),
            rx_packets: family(
                "peer_receive_packets",
                "Frames of the peer for the port's guest that came by links",
            ),
            rx_bytes: family(
                "peer_receive_bytes",
                "Bytes of frames of the peer for the port's guest that came by links",
            ),
        }
    }

    fn add(&self, port: &Port, status: &Document) {
        for peer in status.peers.iter().take(MAX_PEERS) {
            // A peer without a link, such as another uplink of an uplink, exchanges nothing. A name
            // that no port can have is one of a hostile port.
            let (Some(since), Some(tx), Some(rx)) = (peer.since, peer.tx, peer.rx) else {
                continue;
            };
            if peer.id.parse::<PortId>().is_err() {
                continue;
            }
            let mut labels = labels(port);
            labels.push(("peer", peer.id.clone()));
            self.start.get_or_create(&labels).set(number(since));
            let count = |family: &Family<Labels, Counter>, value: u64| {
                family.get_or_create(&labels).inc_by(value);
            };
            count(&self.tx_packets, tx.frames);
            count(&self.tx_bytes, tx.bytes);
            count(&self.drops, tx.drops);
            if let Some(stalls) = tx.stalls {
                count(&self.stalls, stalls);
                // A port that says this has no ring if it says none.
                let ring = tx.ring.unwrap_or_default();
                let set = |family: &Family<Labels, Gauge>, value: u64| {
                    family.get_or_create(&labels).set(number(value));
                };
                set(&self.ring_used, ring.used);
                set(&self.ring_capacity, ring.capacity);
            }
            count(&self.rx_packets, rx.frames);
            count(&self.rx_bytes, rx.bytes);
        }
    }
}

/// A counter's name by Prometheus' rules.
fn family_of(counter: &str) -> String {
    let (uplink, counter) = match counter.strip_prefix("uplink_") {
        Some(counter) => ("uplink_", counter),
        None => ("", counter),
    };
    let name = match counter.split_once('_') {
        Some(("tx", what)) => format!("transmit_{what}"),
        Some(("rx", what)) => format!("receive_{what}"),
        _ => counter.to_owned(),
    };
    format!("{uplink}{}", name.replace("_frames", "_packets"))
}

/// A description without its full stop, which the format adds.
fn help_of(description: &str) -> String {
    description.trim().trim_end_matches('.').to_owned()
}

/// OpenMetrics as Prometheus' older format: there, a counter's name has its suffix in the comments,
/// too.
fn prometheus(text: &str) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for index in 0..lines.len() {
        let Some(name) = lines[index]
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.strip_suffix(" counter"))
            .map(str::to_owned)
        else {
            continue;
        };
        lines[index] = format!("# TYPE {name}_total counter");
        // The description stands before it.
        if let Some(help) = index.checked_sub(1).map(|before| &mut lines[before])
            && let Some(rest) = help.strip_prefix(&format!("# HELP {name} "))
        {
            *help = format!("# HELP {name}_total {rest}");
        }
    }
    lines.retain(|line| line != "# EOF");
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::reader::Answer;

    fn ports() -> Vec<Port> {
        let status = json!({
            "mac": "02:00:00:00:00:01", "mtu": 1500, "program_version": "1.2.3",
            "frontend": {"pid": 1, "queues_running": 2},
            "warnings": [{"code": "foreign-source", "text": "", "count": 9}],
            "counters": [
                {"tx_frames": 5, "tx_spoofed": 2, "uplink_tx_bytes": 7, "made_up": 1,
                 "tx_held_us": 2_500_000},
                {"tx_frames": 6, "wakeups": 3},
            ],
            "peers": [
                {"id": "c", "since": 1_767_225_600,
                 "tx": {"frames": 8, "bytes": 800, "drops": 1, "stalls": 2,
                        "ring": {"used": 128, "capacity": 65_536}},
                 "rx": {"frames": 9, "bytes": 900}},
                {"id": "d", "since": 1, "tx": {"frames": 1, "stalls": 0, "ring": null}, "rx": {}},
                {"id": "uplink-without-a-link"},
                {"id": "no \"name", "since": 1, "tx": {"frames": 1}, "rx": {"frames": 1}},
            ],
        });
        let gone = Port {
            answer: Answer::Gone,
            ..Port::answering("b", &json!({}))
        };
        vec![Port::answering("a", &status), gone]
    }

    #[test]
    fn metrics_have_the_segments_that_cannot_be_read() {
        let places = [Place::denied(Path::new("/run/virtio-inter/d\"b"))];
        let text = text(&places, &ports(), false, Format::Prometheus);
        let line = r#"virtio_inter_segment_readable{segment="d\"b"} 0"#;
        assert!(text.lines().any(|it| it == line), "{text}");
        let up = r#"virtio_inter_up{segment="web",port="a"} 1"#;
        assert!(text.lines().any(|it| it == up), "{text}");
    }

    #[test]
    fn metrics_have_the_names_of_the_rules_and_the_reasons_of_the_status() {
        let text = text(&[], &ports(), false, Format::OpenMetrics);
        for line in [
            r#"virtio_inter_transmit_packets_total{segment="web",port="a",queue="0"} 5"#,
            r#"virtio_inter_transmit_packets_total{segment="web",port="a",queue="1"} 6"#,
            r#"virtio_inter_drop_total{segment="web",port="a",queue="0",reason="tx_spoofed"} 2"#,
            r#"virtio_inter_uplink_transmit_bytes_total{segment="web",port="a",queue="0"} 7"#,
            r#"virtio_inter_wakeups_total{segment="web",port="a",queue="1"} 3"#,
            r#"virtio_inter_transmit_held_seconds_total{segment="web",port="a",queue="0"} 2.5"#,
            r#"virtio_inter_up{segment="web",port="a"} 1"#,
            r#"virtio_inter_up{segment="web",port="b"} 0"#,
            r#"virtio_inter_queues_running{segment="web",port="a"} 2"#,
            r#"virtio_inter_warnings{segment="web",port="a",code="foreign-source"} 1"#,
            "# EOF",
        ] {
            assert!(
                text.lines().any(|one| one == line),
                "{line} is not in\n{text}"
            );
        }
        assert!(!text.contains("made_up"), "{text}");
    }

    #[test]
    fn metrics_of_a_hostile_port_are_its_own_and_not_many() {
        let code = "x\"} 1\nvirtio_inter_up{port=\"victim\"} 0\n\\".to_owned();
        let warnings: Vec<_> = (0..1000)
            .map(|number| json!({"code": format!("{number} {code}"), "text": "", "count": 1}))
            .collect();
        let peer = |number| {
            json!({"id": format!("peer{number}"), "since": 1,
                   "tx": {"frames": 1, "bytes": 1}, "rx": {"frames": 1, "bytes": 1}})
        };
        let peers: Vec<_> = (0..2000).map(peer).collect();
        let status = json!({
            "program_version": "1".repeat(1000), "warnings": warnings, "peers": peers,
        });
        let mut port = Port::answering("a", &status);
        port.segment = "we\"b".to_owned();
        let text = text(&[], &[port], true, Format::OpenMetrics);
        let count = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(count("virtio_inter_up{"), 1);
        assert_eq!(count("virtio_inter_warnings{"), MAX_WARNINGS);
        assert_eq!(
            count("virtio_inter_peer_transmit_packets_total{"),
            MAX_PEERS
        );
        let line = [
            r#"{segment="we\"b",port="a",code="0 x\"} 1\n"#,
            r#"virtio_inter_up{port=\"victim\"} 0\n\\"} 1"#,
        ];
        assert!(text.contains(&line.concat()), "{text}");
        assert!(text.lines().all(|line| line.len() < 300), "{text}");
    }

    #[test]
    fn metrics_of_peers_are_those_of_links_that_are_up_and_only_if_wanted() {
        let without = text(&[], &ports(), false, Format::OpenMetrics);
        assert!(!without.contains("_inter_peer_"), "{without}");
        let text = text(&[], &ports(), true, Format::OpenMetrics);
        let labels = r#"{segment="web",port="a",peer="c"}"#;
        let mut lines: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("virtio_inter_peer_") && line.contains(labels))
            .collect();
        lines.sort_unstable();
        let expected = [
            ("drop_total", 1),
            ("link_start_time_seconds", 1_767_225_600),
            ("receive_bytes_total", 900),
            ("receive_packets_total", 9),
            ("ring_capacity_bytes", 65_536),
            ("ring_used_bytes", 128),
            ("transmit_bytes_total", 800),
            ("transmit_packets_total", 8),
            ("transmit_stalls_total", 2),
        ];
        let expected =
            expected.map(|(name, value)| format!("virtio_inter_peer_{name}{labels} {value}"));
        assert_eq!(lines, expected);
        // One to which nothing is sent now.
        let labels = r#"{segment="web",port="a",peer="d"}"#;
        let line = format!("virtio_inter_peer_ring_capacity_bytes{labels} 0");
        assert!(text.lines().any(|one| one == line), "{text}");
        // And none that has no link, or cannot be one.
        assert!(
            !text.contains("without-a-link") && !text.contains("no \\\"name"),
            "{text}"
        );
    }

    #[test]
    fn dashboard_in_the_documentation_has_metrics_that_exist() {
        let counters: BTreeMap<_, _> = Counters::default().values().into_iter().collect();
        let warning = json!({"code": "foreign-source", "text": "", "count": 1});
        let status = json!({"warnings": [warning], "counters": [counters]});
        let port = Port::answering("a", &status);
        let metrics = text(&[], &[port], false, Format::Prometheus);
        let dashboard = include_str!("../../docs/grafana-dashboard.json");
        let names: Vec<&str> = dashboard
            .split("virtio_inter_")
            .skip(1)
            .map(|rest| {
                &rest[..rest
                    .find(|c: char| !c.is_alphanumeric() && c != '_')
                    .unwrap()]
            })
            .collect();
        assert!(names.len() > 8, "{names:?}");
        for name in names {
            let type_of = format!("# TYPE virtio_inter_{name} ");
            assert!(metrics.contains(&type_of), "{name} is not in\n{metrics}");
        }
    }

    #[test]
    fn metrics_of_the_older_format_name_counters_with_their_suffix() {
        let text = text(&[], &ports(), false, Format::Prometheus);
        assert!(
            text.contains("# HELP virtio_inter_wakeups_total Number of wake-ups"),
            "{text}"
        );
        assert!(
            text.contains("# TYPE virtio_inter_wakeups_total counter\n"),
            "{text}"
        );
        assert!(text.contains("# TYPE virtio_inter_up gauge\n"), "{text}");
        assert!(!text.contains("EOF"), "{text}");
    }
}
