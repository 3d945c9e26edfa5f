//! `virtio-inter events`: what happens to ports, as one JSON object on each line.
//!
//! It asks all ports again and again and compares their answers: an event that is over by the next
//! time is not seen.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Map, Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::register;

use crate::args::EventsArgs;
use crate::document::{Document, Peer, Refused, Warning};
use crate::lasting_failure::LastingFailure;
use crate::output;
use crate::place::{self, Place};
use crate::reader::{self, Answer, Port};

/// The code of the warning that a peer takes nothing.
const STALLED: &str = "peer-stalled";

/// A port of a segment.
type Name = (String, String);

/// Prints events until SIGINT, SIGTERM or SIGHUP, or until nobody reads them any more.
///
/// # Errors
///
/// When there is no such segment or port at first, or standard output cannot be written to.
pub fn run(arguments: &EventsArgs) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        register(signal, Arc::clone(&stop)).context("Cannot catch signals")?;
    }
    let mut known = BTreeMap::new();
    let places = place::find(&arguments.places)?;
    update(&mut known, &places, reader::read(&places));
    log::info!("Watching {} ports", known.len());
    let failure = LastingFailure::default();
    let interval = Duration::from_millis(arguments.interval.into());
    loop {
        let next = Instant::now() + interval;
        while Instant::now() < next {
            if stop.load(Ordering::Relaxed) || is_reader_gone(next) {
                return Ok(());
            }
        }
        // A segment or port that was named may be gone, and may come back.
        let places = match place::find_again(&arguments.places) {
            Ok(places) => places,
            // Nothing is known of any port.
            Err(error) => {
                failure.log(&format!("{:#}", anyhow::Error::new(error)));
                continue;
            }
        };
        failure.end();
        let mut lines = String::new();
        for event in update(&mut known, &places, reader::read(&places)) {
            lines += &format!("{event}\n");
        }
        if !output::print(&lines)? {
            return Ok(());
        }
    }
}

/// Waits until then, or for a signal. Returns whether nobody reads standard output any more.
fn is_reader_gone(until: Instant) -> bool {
    let output = io::stdout();
    let mut fds = [PollFd::from_borrowed_fd(output.as_fd(), PollFlags::empty())];
    let left = until.saturating_duration_since(Instant::now());
    let ready = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
    ready.is_ok() && !fds[0].revents().is_empty()
}

/// Takes note of answers. Returns what has happened since the last ones.
fn update(known: &mut BTreeMap<Name, Document>, places: &[Place], ports: Vec<Port>) -> Vec<Value> {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let time = time.unwrap_or_default().as_millis() as f64 / 1000.0;
    let mut now = BTreeMap::new();
    for port in ports {
        let name = (port.segment, port.id.to_string());
        match port.answer {
            Answer::Status(document, _) => now.insert(name, *document),
            Answer::Gone | Answer::None => None,
            // It is there, but does not say how it is.
            _ => known
                .get(&name)
                .cloned()
                .and_then(|document| now.insert(name, document)),
        };
    }
    // Nor do those of a segment that cannot be read.
    for place in places.iter().filter(|place| place.unreadable.is_some()) {
        let segment = place.name();
        let of_segment = known.iter().filter(|(name, _)| name.0 == segment);
        now.extend(of_segment.map(|(name, document)| (name.clone(), document.clone())));
    }
    let before = std::mem::replace(known, now);
    let mut names: Vec<&Name> = before.keys().chain(known.keys()).collect();
    names.sort();
    names.dedup();
    let mut events = Vec::new();
    for name in names {
        for (event, fields) in changes(before.get(name), known.get(name)) {
            let mut object = Map::new();
            object.insert("time".to_owned(), json!(time));
            object.insert("event".to_owned(), json!(event));
            object.insert("segment".to_owned(), json!(name.0));
            object.insert("port".to_owned(), json!(name.1));
            if let Value::Object(fields) = fields {
                object.extend(fields);
            }
            events.push(Value::Object(object));
        }
    }
    events
}

/// An event's name, and what it says beside that.
type Event = (&'static str, Value);

/// What has happened to a port. None: it is not there.
fn changes(before: Option<&Document>, now: Option<&Document>) -> Vec<Event> {
    let process = |document: &Document| (document.pid, document.started);
    let none = Document::default();
    let mut events = Vec::new();
    match (before, now) {
        (Some(before), Some(now)) if process(before) == process(now) => {
            compare(before, now, &mut events);
        }
        (before, now) => {
            if let Some(before) = before {
                events.push(("port-down", json!({ "pid": before.pid })));
            }
            if let Some(now) = now {
                events.push(("port-up", json!({ "pid": now.pid, "mac": now.mac })));
                compare(&none, now, &mut events);
            }
        }
    }
    events
}

/// What has happened to a port whose process is the same.
fn compare(before: &Document, now: &Document, events: &mut Vec<Event>) {
    let frontend = |document: &Document| document.frontend.as_ref().map(|it| it.pid);
    if frontend(before) != frontend(now) {
        if let Some(pid) = frontend(before) {
            events.push(("frontend-disconnected", json!({ "pid": pid })));
        }
        if let Some(pid) = frontend(now) {
            events.push(("frontend-connected", json!({ "pid": pid })));
        }
    }
    let has = |all: &[Peer], one: &Peer| {
        all.iter()
            .any(|it| (&it.id, &it.mac) == (&one.id, &one.mac))
    };
    for peer in before.peers.iter().filter(|peer| !has(&now.peers, peer)) {
        events.push(("link-down", json!({ "peer": peer.id, "mac": peer.mac })));
    }
    for peer in now.peers.iter().filter(|peer| !has(&before.peers, peer)) {
        events.push(("link-up", json!({ "peer": peer.id, "mac": peer.mac })));
    }
    let is_same = |a: &Refused, b: &Refused| {
        (&a.peer, a.by_peer, &a.reason, a.count) == (&b.peer, b.by_peer, &b.reason, b.count)
    };
    for one in &now.refused {
        if !before.refused.iter().any(|it| is_same(it, one)) {
            let Refused {
                peer,
                by_peer,
                reason,
                ..
            } = one;
            let fields = json!({ "peer": peer, "by_peer": by_peer, "reason": reason });
            events.push(("refused", fields));
        }
    }
    let find = |all: &'_ [Warning], one: &Warning| {
        let mut all = all.iter();
        all.find(|it| it.code == one.code && it.text == one.text)
            .map(|it| it.count)
    };
    for warning in &now.warnings {
        let Warning {
            code, text, count, ..
        } = warning;
        match find(&before.warnings, warning) {
            Some(former) if code == STALLED && former < *count => {
                events.push(("stalled", json!({ "text": text, "count": count })));
            }
            Some(_) => {}
            None if code == STALLED => {
                events.push(("stalled", json!({ "text": text, "count": count })));
            }
            None => events.push(("warning", json!({ "code": code, "text": text }))),
        }
    }
    for warning in &before.warnings {
        if find(&now.warnings, warning).is_none() {
            let fields = json!({ "code": warning.code, "text": warning.text });
            events.push(("warning-end", fields));
        }
    }
    if before.active != now.active && now.active.is_some() {
        events.push(("uplink-switched", json!({ "active": now.active })));
    }
    let uplink = |document: &Document| document.uplink.as_ref().map(|it| it.state.clone());
    if uplink(before) != uplink(now)
        && let Some(uplink) = &now.uplink
    {
        events.push((
            "uplink",
            json!({ "tap": uplink.tap, "state": uplink.state }),
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn events_of_a_segment_that_cannot_be_read_are_none() {
        let port = || Port::answering("a", &json!({"pid": 1}));
        let events = |known: &mut _, places: &[Place], ports| -> Vec<String> {
            let events = update(known, places, ports).into_iter();
            events.map(|event| event["event"].to_string()).collect()
        };
        let mut known = BTreeMap::new();
        assert_eq!(events(&mut known, &[], vec![port()]), ["\"port-up\""]);
        let denied = [Place::denied(Path::new("/run/virtio-inter/web"))];
        assert_eq!(events(&mut known, &denied, Vec::new()), [""; 0]);
        assert_eq!(events(&mut known, &[], vec![port()]), [""; 0]);
        assert_eq!(events(&mut known, &[], Vec::new()), ["\"port-down\""]);
    }

    fn document(text: &str) -> Document {
        serde_json::from_str(text).unwrap()
    }

    fn names(before: Option<&Document>, now: Option<&Document>) -> Vec<&'static str> {
        let events = changes(before, now).into_iter();
        events.map(|(name, _)| name).collect()
    }

    #[test]
    fn events_are_the_differences_of_two_answers() {
        let quiet = document(r#"{"pid":1,"started":5,"mac":"a"}"#);
        let busy = document(
            r#"{"pid":1,"started":5,"mac":"a","frontend":{"pid":7},
                "peers":[{"id":"vm2","mac":"b"}],
                "refused":[{"peer":"vm3","by_peer":true,"reason":"why","count":1}],
                "warnings":[{"code":"peer-stalled","text":"slow","count":3},
                            {"code":"mtu-mismatch","text":"other","count":1}],
                "uplink":{"tap":"t","state":"down"}}"#,
        );
        assert_eq!(names(Some(&busy), Some(&busy)), [""; 0]);
        assert_eq!(names(None, Some(&quiet)), ["port-up"]);
        assert_eq!(names(Some(&quiet), None), ["port-down"]);
        let began = [
            "frontend-connected",
            "link-up",
            "refused",
            "stalled",
            "warning",
            "uplink",
        ];
        assert_eq!(names(Some(&quiet), Some(&busy)), began);
        let ended = [
            "frontend-disconnected",
            "link-down",
            "warning-end",
            "warning-end",
        ];
        assert_eq!(names(Some(&busy), Some(&quiet)), ended);
        // Another process: it was down in between.
        let again = document(r#"{"pid":2,"started":6,"mac":"a","active":true}"#);
        let names = names(Some(&busy), Some(&again));
        assert_eq!(names, ["port-down", "port-up", "uplink-switched"]);
    }

    #[test]
    fn events_of_a_refusal_or_stall_come_again_with_each() {
        let times = |count: u32| {
            document(&format!(
                r#"{{"refused":[{{"peer":"vm3","reason":"why","count":{count}}}],
                    "warnings":[{{"code":"peer-stalled","text":"slow","count":{count}}},
                                {{"code":"mtu-mismatch","text":"other","count":{count}}}]}}"#
            ))
        };
        assert_eq!(
            names(Some(&times(1)), Some(&times(2))),
            ["refused", "stalled"]
        );
        assert_eq!(names(Some(&times(2)), Some(&times(2))), [""; 0]);
    }
}
