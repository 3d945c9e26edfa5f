//! `virtio-inter ping`: whether a port answers, whether its guest takes frames, and whether those
//! of the guest get anywhere.

use std::ffi::OsString;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use serde::Serialize;
use virtio_inter_device::Counters;

use crate::args::{PingArgs, Places};
use crate::document::{Document, Warning};
use crate::output;
use crate::place;
use crate::reader::{self, Port};
use crate::show::explain;
use crate::text::safe;
use crate::usage_error::usage;

/// What the guest did with frames since the question before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Guest {
    /// It took some.
    Takes,
    /// Frames wait, or were lost, as it gives no receive buffers for them.
    TakesNone,
    /// There were none for it.
    NoFrames,
    /// Its driver does not run, or there is no VMM.
    Absent,
    /// Nothing is known: it is the first question, or the port did not answer or is an uplink.
    Unknown,
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Takes => "the guest takes frames",
            Self::TakesNone => "THE GUEST TAKES NO FRAMES: it gives no receive buffers",
            Self::NoFrames => "no frames for the guest meanwhile",
            Self::Absent => "NO GUEST takes frames",
            Self::Unknown => "",
        })
    }
}

/// An answer, or that there is none.
#[derive(Debug, Serialize)]
struct Reply {
    segment: String,
    port: String,
    number: u32,
    state: &'static str,
    /// Time until the answer was complete, in ms.
    time_ms: f64,
    guest: Guest,
    frames_to_guest: u64,
    frames_from_guest: u64,
    /// Frames that were lost, in both directions.
    frames_lost: u64,
    /// Why each frame that the guest sent since the question before was lost; at the first
    /// question, each that it ever sent. Empty: at least one was not, or it sent none.
    all_lost: Vec<String>,
    /// The codes of the port's current warnings.
    warnings: Vec<String>,
    /// Whether nothing is known that keeps frames from the guest or from others.
    good: bool,
    #[serde(skip)]
    trouble: Option<String>,
}

impl Reply {
    fn line(&self) -> String {
        let name = format!("{}/{}", safe(&self.segment), self.port);
        if let Some(trouble) = &self.trouble {
            return format!("{name}: {} ({trouble})\n", self.state);
        }
        let guest = match self.guest {
            Guest::Unknown => String::new(),
            guest => format!(", {guest}"),
        };
        let names = |before: &str, names: &[String]| match names {
            [] => String::new(),
            names => format!(", {before} ({})", safe(&names.join(", "))),
        };
        format!(
            "{name}: number={} time={:.1} ms, {}, {} frames to the guest, {} from it, {} \
             lost{guest}{}{}\n",
            self.number,
            self.time_ms,
            self.state,
            self.frames_to_guest,
            self.frames_from_guest,
            self.frames_lost,
            names("ALL FRAMES OF THE GUEST ARE LOST", &self.all_lost),
            names("WARNING", &self.warnings),
        )
    }
}

/// Runs `virtio-inter ping`. Returns whether the last answer was good: the port answers, nothing
/// is known to keep frames from its guest or from others, and no warning is current.
///
/// # Errors
///
/// When there is no such port, or standard output cannot be written.
pub fn run(arguments: &PingArgs) -> Result<bool> {
    let mut before: Option<Port> = None;
    let mut said = Vec::new();
    let mut is_good = false;
    for number in 1..=arguments.count {
        let began = Instant::now();
        let port = ask(&arguments.port)?;
        let reply = reply(number, began.elapsed(), before.as_ref(), &port);
        is_good = reply.good;
        let line = match arguments.json {
            true => serde_json::to_string(&reply)? + "\n",
            false => reply.line() + &warning_lines(&port, &mut said),
        };
        if !output::print(&line)? {
            break;
        }
        before = Some(port);
        if number < arguments.count {
            let interval = Duration::from_secs(arguments.interval.into());
            thread::sleep(interval.saturating_sub(began.elapsed()));
        }
    }
    Ok(is_good)
}

fn ask(name: &OsString) -> Result<Port> {
    let places = place::find(&Places {
        places: vec![name.clone()],
    })?;
    if places.iter().any(|place| place.port.is_none()) {
        let why = format!(
            "{} is a segment: name a port of it, SEGMENT/PORT",
            name.display()
        );
        return Err(usage(why).into());
    }
    place::check_readable(&places)?;
    let mut ports = reader::read(&places);
    ports.pop().context("The port is gone")
}

/// A line for each warning whose text is not among those that were printed already.
fn warning_lines(port: &Port, said: &mut Vec<String>) -> String {
    let now = SystemTime::now();
    let mut lines = String::new();
    for warning in port
        .status()
        .into_iter()
        .flat_map(|status| &status.warnings)
    {
        if said.contains(&warning.text) {
            continue;
        }
        said.push(warning.text.clone());
        lines += &format!("    {}\n", warning.line(now));
    }
    lines
}

fn reply(number: u32, time: Duration, before: Option<&Port>, port: &Port) -> Reply {
    let total = |counter| port.status().map_or(0, |status| status.total(counter));
    let trouble = port.status().is_none().then(|| explain(&port.answer));
    let former = before.and_then(Port::status);
    let guest = port
        .status()
        .map_or(Guest::Unknown, |status| guest(former, status));
    let all_lost = port
        .status()
        .map_or_else(Vec::new, |status| all_lost(former, status));
    let warnings = port
        .status()
        .into_iter()
        .flat_map(|status| &status.warnings);
    let warnings: Vec<String> = warnings
        .filter(|warning| warning.is_current(SystemTime::now()))
        .map(|Warning { code, .. }| code.clone())
        .collect();
    let good = trouble.is_none()
        && !matches!(guest, Guest::TakesNone | Guest::Absent)
        && all_lost.is_empty()
        && warnings.is_empty();
    Reply {
        segment: port.segment.clone(),
        port: port.id.to_string(),
        number,
        state: port.state(),
        time_ms: time.as_secs_f64() * 1e3,
        guest,
        frames_lost: port.status().map_or(0, Document::drops),
        frames_to_guest: total("rx_frames"),
        frames_from_guest: total("tx_frames"),
        all_lost,
        warnings,
        good,
        trouble,
    }
}

/// The counters of lost frames of the guest that increased, if no frame of it was sent meanwhile.
/// None before: since the port started. Frames without a destination do not count: those of the
/// first guest of a segment have none, and for others there is a warning.
fn all_lost(before: Option<&Document>, now: &Document) -> Vec<String> {
    let more = |counter: &str| {
        let former = before.map_or(0, |before| before.total(counter));
        now.total(counter) > former
    };
    if now.is_shared_uplink() || ["tx_frames", "uplink_tx_frames"].into_iter().any(more) {
        return Vec::new();
    }
    let is_lost = |name: &str| {
        let is_of_guest = name.starts_with("tx_") || name == "uplink_tx_refused";
        Counters::is_drop(name) && is_of_guest && name != "tx_no_destination"
    };
    let names = now
        .counters
        .first()
        .into_iter()
        .flat_map(|pair| pair.keys());
    names
        .filter(|name| is_lost(name) && more(name))
        .cloned()
        .collect()
}

fn guest(before: Option<&Document>, now: &Document) -> Guest {
    if now.is_shared_uplink() {
        return Guest::Unknown;
    }
    if now
        .frontend
        .as_ref()
        .is_none_or(|frontend| frontend.queues_running == 0)
    {
        return Guest::Absent;
    }
    let Some(before) = before else {
        return Guest::Unknown;
    };
    let more = |counter| now.total(counter) > before.total(counter);
    if more("rx_frames") {
        Guest::Takes
    } else if ["rx_waits", "rx_small_buffer"].into_iter().any(more) {
        Guest::TakesNone
    } else {
        Guest::NoFrames
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(running: u64, counters: &Value) -> Document {
        serde_json::from_value(json!({
            "frontend": {"pid": 1, "queues_running": running},
            "counters": [counters],
        }))
        .unwrap()
    }

    #[test]
    fn frames_of_the_guest_are_all_lost_if_none_was_sent() {
        let wrong_mac = status(
            2,
            &json!({"tx_frames": 0, "tx_spoofed": 3, "rx_no_guest": 9}),
        );
        assert_eq!(all_lost(None, &wrong_mac), ["tx_spoofed"]);
        // Nothing new.
        assert_eq!(all_lost(Some(&wrong_mac), &wrong_mac), [""; 0]);
        // The first guest of a segment sends multicast frames to nobody.
        let alone = status(2, &json!({"tx_frames": 0, "tx_no_destination": 4}));
        assert_eq!(all_lost(None, &alone), [""; 0]);
        let refused = status(2, &json!({"tx_frames": 0, "uplink_tx_refused": 4}));
        assert_eq!(all_lost(None, &refused), ["uplink_tx_refused"]);
        let by_uplink = json!({"tx_frames": 0, "uplink_tx_frames": 1, "tx_spoofed": 4});
        assert_eq!(all_lost(None, &status(2, &by_uplink)), [""; 0]);
        let some = status(2, &json!({"tx_frames": 1, "tx_spoofed": 4}));
        assert_eq!(all_lost(Some(&wrong_mac), &some), [""; 0]);
        assert_eq!(all_lost(None, &some), [""; 0]);
        let again = status(2, &json!({"tx_frames": 1, "tx_spoofed": 5}));
        assert_eq!(all_lost(Some(&some), &again), ["tx_spoofed"]);
    }

    #[test]
    fn reply_is_good_only_without_a_current_warning() {
        let of = |current: bool| {
            let port = Port::answering(
                "a",
                &json!({
                    "frontend": {"pid": 1, "queues_running": 2},
                    "warnings": [{"code": "peer-stalled", "text": "Stalled", "count": 3,
                                  "since": 5, "last": 5, "current": current}],
                }),
            );
            let reply = reply(1, Duration::ZERO, None, &port);
            let mut said = Vec::new();
            let lines = reply.line() + &warning_lines(&port, &mut said);
            assert_eq!(warning_lines(&port, &mut said), "", "it is said once");
            (reply.good, lines)
        };
        let (good, lines) = of(true);
        assert!(
            !good && lines.contains("0 lost, WARNING (peer-stalled)\n    Stalled"),
            "{lines}"
        );
        let (good, lines) = of(false);
        assert!(
            good && lines.contains("0 lost\n    Stalled (peer-stalled, 3, last"),
            "{lines}"
        );
    }

    #[test]
    fn guest_takes_frames_if_more_were_delivered() {
        let before = status(2, &json!({"rx_frames": 5, "rx_waits": 1}));
        let of = |after: &Document| guest(Some(&before), after);
        assert_eq!(
            of(&status(2, &json!({"rx_frames": 6, "rx_waits": 2}))),
            Guest::Takes
        );
        assert_eq!(
            of(&status(2, &json!({"rx_frames": 5, "rx_waits": 2}))),
            Guest::TakesNone
        );
        assert_eq!(
            of(&status(2, &json!({"rx_frames": 5, "rx_waits": 1}))),
            Guest::NoFrames
        );
        assert_eq!(of(&status(0, &json!({}))), Guest::Absent);
        assert_eq!(guest(None, &before), Guest::Unknown);
    }
}
