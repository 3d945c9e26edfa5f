//! `virtio-inter ping`: whether a port answers, and whether its guest takes frames.

use std::ffi::OsString;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::args::{PingArgs, Places};
use crate::document::Document;
use crate::list::drops;
use crate::output;
use crate::place;
use crate::reader::{self, Port};
use crate::show::explain;
use crate::text::safe;

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
        format!(
            "{name}: number={} time={:.1} ms, {}, {} frames to the guest, {} from it, {} \
             lost{guest}\n",
            self.number,
            self.time_ms,
            self.state,
            self.frames_to_guest,
            self.frames_from_guest,
            self.frames_lost
        )
    }

    /// Whether the guest can be reached as far as the port knows.
    fn is_good(&self) -> bool {
        self.trouble.is_none() && !matches!(self.guest, Guest::TakesNone | Guest::Absent)
    }
}

/// Runs `virtio-inter ping`. Returns whether the last answer was good.
///
/// # Errors
///
/// When there is no such port, or standard output cannot be written.
pub fn run(arguments: &PingArgs) -> Result<bool> {
    let mut before: Option<Port> = None;
    let mut is_good = false;
    for number in 1..=arguments.count {
        let began = Instant::now();
        let port = ask(&arguments.port)?;
        let reply = reply(number, began.elapsed(), before.as_ref(), &port);
        is_good = reply.is_good();
        let line = match arguments.json {
            true => serde_json::to_string(&reply)? + "\n",
            false => reply.line(),
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
        bail!(
            "{} is a segment: name a port of it, SEGMENT/PORT",
            name.display()
        );
    }
    let mut ports = reader::read(&places);
    ports.pop().context("The port is gone")
}

fn reply(number: u32, time: Duration, before: Option<&Port>, port: &Port) -> Reply {
    let total = |counter| port.status().map_or(0, |status| status.total(counter));
    let trouble = port.status().is_none().then(|| explain(&port.answer));
    Reply {
        segment: port.segment.clone(),
        port: port.id.to_string(),
        number,
        state: port.state(),
        time_ms: time.as_secs_f64() * 1e3,
        guest: port.status().map_or(Guest::Unknown, |status| {
            guest(before.and_then(Port::status), status)
        }),
        frames_lost: port.status().map_or(0, drops),
        frames_to_guest: total("rx_frames"),
        frames_from_guest: total("tx_frames"),
        trouble,
    }
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
