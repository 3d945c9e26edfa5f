//! `virtio-inter list`: one line for each port.

use std::time::SystemTime;

use virtio_inter_device::Counters;

use crate::document::Document;
use crate::place::Place;
use crate::reader::{Port, process_name};
use crate::text::{age, safe, table};

/// All ports, with a header, and the segments that cannot be read.
pub(crate) fn table_of(places: &[Place], ports: &[Port]) -> String {
    let unreadable = places.iter().filter_map(row_of_unreadable);
    let rows: Vec<[String; 10]> = unreadable.chain(ports.iter().map(row)).collect();
    let header = [
        "SEGMENT", "PORT", "MAC", "MTU", "VMM", "STATE", "PEERS", "FRAMES", "DROPS", "WARNINGS",
    ];
    table(header, &rows)
}

fn row_of_unreadable(place: &Place) -> Option<[String; 10]> {
    let state = place.unreadable.as_ref()?.state();
    let mut cells: [String; 10] = std::array::from_fn(|_| "-".to_owned());
    (cells[0], cells[5]) = (safe(&place.name()), state.to_owned());
    Some(cells)
}

fn row(port: &Port) -> [String; 10] {
    let none = || "-".to_owned();
    let of = |value: &dyn Fn(&Document) -> String| port.status().map_or_else(none, value);
    [
        safe(&port.segment),
        port.id.to_string(),
        of(&|status| status.mac.as_deref().map_or_else(none, safe)),
        of(&|status| status.mtu.map_or_else(none, |mtu| mtu.to_string())),
        of(&vmm),
        port.state().to_owned(),
        of(&|status| status.peers.len().to_string()),
        of(&|status| frames(status).to_string()),
        of(&|status| drops(status).to_string()),
        of(&|status| warnings(status, SystemTime::now())),
    ]
}

/// The number of warnings and refusals. If all of them are over, how long ago the last one was.
fn warnings(status: &Document, now: SystemTime) -> String {
    let (warnings, refused) = (&status.warnings, &status.refused);
    let number = warnings.len() + refused.len();
    let last = warnings.iter().filter_map(|warning| warning.last).max();
    match last {
        Some(last)
            if refused.is_empty() && !warnings.iter().any(|warning| warning.is_current(now)) =>
        {
            format!("{number}, last {} ago", age(now, last))
        }
        _ => number.to_string(),
    }
}

/// The frontend's process; for an uplink its tap device.
pub(crate) fn vmm(status: &Document) -> String {
    if status.is_shared_uplink() {
        let tap = status.uplink.as_ref().map(|uplink| safe(&uplink.tap));
        return tap.map_or("-".to_owned(), |tap| format!("tap {tap}"));
    }
    match status.frontend.as_ref().map(|frontend| frontend.pid) {
        None => "-".to_owned(),
        Some(None) => "?".to_owned(),
        Some(Some(pid)) => match process_name(pid) {
            Some(name) => format!("{} {pid}", safe(&name)),
            None => pid.to_string(),
        },
    }
}

/// Frames that the port has carried, in both directions.
fn frames(status: &Document) -> u64 {
    status.total("tx_frames") + status.total("rx_frames")
}

/// Frames that were lost, for whatever reason.
pub(crate) fn drops(status: &Document) -> u64 {
    let each = status.counters.iter().flatten();
    each.filter(|(name, _)| Counters::is_drop(name))
        .fold(0, |sum, (_, value)| sum.saturating_add(*value))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn list_has_a_line_for_a_segment_that_cannot_be_read() {
        let places = [Place::denied(Path::new("/run/virtio-inter/db"))];
        let table = table_of(&places, &[Port::answering("a", &json!({}))]);
        let lines: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let expected = ["db", "-", "-", "-", "-", "denied", "-", "-", "-", "-"];
        assert_eq!(lines[1], expected);
        assert_eq!(lines[2][..2], ["web", "a"]);
    }

    #[test]
    fn warnings_that_are_all_over_say_since_when() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let over = json!({"code": "foreign-source", "last": 9700, "current": false});
        let current = json!({"code": "mtu-mismatch", "last": 9700, "current": true});
        let of = |list: &[&Value]| {
            let status = serde_json::from_value(json!({ "warnings": list })).unwrap();
            warnings(&status, now)
        };
        assert_eq!(of(&[]), "0");
        assert_eq!(of(&[&over, &over]), "2, last 5 min ago");
        assert_eq!(of(&[&over, &current]), "2");
    }
}
