//! `virtio-inter list`: one line for each port.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::document::Document;
use crate::place::Place;
use crate::rates::{PortRates, rates};
use crate::reader::{self, Port, process_name};
use crate::text::{age, safe, si, table};

/// Time between the two readings of which the rates are.
const PAUSE: Duration = Duration::from_millis(200);

/// Reads all ports twice. Returns the table, with their rates.
pub(crate) fn read_twice(places: &[Place]) -> String {
    let began = Instant::now();
    let ports = reader::read(places);
    thread::sleep(PAUSE);
    let time = began.elapsed();
    let later = reader::read(&answering(places, &ports));
    table_of(places, &ports, &rates(&ports, &later, time))
}

/// The places without the ports that have not answered: they hold up the reader.
fn answering(places: &[Place], ports: &[Port]) -> Vec<Place> {
    let of = |place: &Place| Place {
        segment: place.segment.clone(),
        port: place.port.clone(),
        ports: ports
            .iter()
            .filter(|port| port.directory == place.segment && port.status().is_some())
            .filter_map(|port| Some((port.id.clone(), place.ports.get(&port.id)?.clone())))
            .collect(),
        unreadable: None,
    };
    places.iter().map(of).collect()
}

/// All ports, with a header, and the segments that cannot be read.
fn table_of(places: &[Place], ports: &[Port], rates: &[PortRates]) -> String {
    let unreadable = places.iter().filter_map(row_of_unreadable);
    let row = |port| row(port, rates);
    let rows: Vec<[String; 11]> = unreadable.chain(ports.iter().map(row)).collect();
    let header = [
        "SEGMENT", "PORT", "MAC", "MTU", "VMM", "STATE", "PEERS", "FRAMES", "DROPS", "DROPS/S",
        "WARNINGS",
    ];
    table(header, &rows)
}

fn row_of_unreadable(place: &Place) -> Option<[String; 11]> {
    let state = place.unreadable.as_ref()?.state();
    let mut cells: [String; 11] = std::array::from_fn(|_| "-".to_owned());
    (cells[0], cells[5]) = (safe(&place.name()), state.to_owned());
    Some(cells)
}

fn row(port: &Port, rates: &[PortRates]) -> [String; 11] {
    let none = || "-".to_owned();
    let of = |value: &dyn Fn(&Document) -> String| port.status().map_or_else(none, value);
    let is_it =
        |rates: &&PortRates| rates.segment == port.segment && rates.port == port.id.as_str();
    let rates = rates.iter().find(is_it).and_then(|found| found.rates);
    [
        safe(&port.segment),
        port.id.to_string(),
        of(&|status| status.mac.as_deref().map_or_else(none, safe)),
        of(&|status| status.mtu.map_or_else(none, |mtu| mtu.to_string())),
        of(&vmm),
        port.state().to_owned(),
        of(&|status| status.peers.len().to_string()),
        of(&|status| frames(status).to_string()),
        of(&|status| status.drops().to_string()),
        rates.map_or_else(none, |rates| si(rates.drops)),
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::reader::Answer;

    #[test]
    fn drops_are_totals_and_those_of_each_second_between_the_readings() {
        let port = |id: &str, pid: u32, lost: u64| {
            let counters = json!([{"tx_frames": 7, "tx_spoofed": lost, "rx_no_guest": 1}]);
            Port::answering(id, &json!({"pid": pid, "counters": counters}))
        };
        let gone = || Port {
            answer: Answer::Gone,
            ..port("d", 1, 1)
        };
        let first = [port("a", 1, 10), port("b", 1, 10), port("c", 1, 10), gone()];
        let second = [port("a", 1, 17), port("b", 1, 10), port("c", 2, 40)];
        let rates = rates(&first, &second, Duration::from_millis(200));
        let table = table_of(&[], &first, &rates);
        let drops = |line: &str| -> Vec<String> {
            let cells = line.split("  ").map(str::trim);
            let cells: Vec<&str> = cells.filter(|cell| !cell.is_empty()).collect();
            cells[8..10].iter().map(|cell| cell.to_string()).collect()
        };
        let drops: Vec<Vec<String>> = table.lines().map(drops).collect();
        let expected = [
            ["DROPS", "DROPS/S"],
            ["11", "35"],
            ["11", "0"],
            // Started again.
            ["11", "-"],
            ["-", "-"],
        ];
        assert_eq!(drops, expected);
    }

    #[test]
    fn ports_that_have_not_answered_are_not_asked_again() {
        let temp = tempfile::tempdir().unwrap();
        for file in ["a.lock", "a.status", "b.lock", "b.status"] {
            std::fs::write(temp.path().join(file), "").unwrap();
        }
        let places = crate::args::Places {
            places: vec![temp.path().as_os_str().to_owned()],
        };
        let places = crate::place::find(&places).unwrap();
        let port = |id: &str, answer: Option<Answer>| {
            let port = Port::answering(id, &json!({}));
            Port {
                directory: places[0].segment.clone(),
                answer: answer.unwrap_or(port.answer),
                ..port
            }
        };
        let ports = [port("a", Some(Answer::Silent)), port("b", None)];
        let again = answering(&places, &ports);
        let again: Vec<&str> = again[0].ports.keys().map(|id| id.as_str()).collect();
        assert_eq!(again, ["b"]);
    }

    #[test]
    fn list_has_a_line_for_a_segment_that_cannot_be_read() {
        let places = [Place::denied(Path::new("/run/virtio-inter/db"))];
        let table = table_of(&places, &[Port::answering("a", &json!({}))], &[]);
        let lines: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let expected = ["db", "-", "-", "-", "-", "denied", "-", "-", "-", "-", "-"];
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
