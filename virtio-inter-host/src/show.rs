//! `virtio-inter show`: a tree of segments, ports and their peers, warnings on top.

use std::fmt::Write;
use std::time::SystemTime;

use virtio_inter_device::Counters;

use crate::document::{Document, Limit, Limits, Peer, RateLimits, Sandbox, TokenBucket};
use crate::list::vmm;
use crate::place::{self, Place};
use crate::reader::{Answer, Port};
use crate::text::{age, bytes, safe, si};

/// The tree.
pub(crate) fn tree(places: &[Place], ports: &[Port]) -> String {
    if let Some(none) = place::none_of(places) {
        return none + "\n";
    }
    let now = SystemTime::now();
    let mut text = String::new();
    let unreadable = || {
        let why = |place: &'_ Place| Some((place.name(), place.unreadable.as_ref()?.explain()));
        places.iter().filter_map(why)
    };
    let mut warnings = unreadable().count() != 0;
    for (segment, why) in unreadable() {
        let _ = writeln!(text, "! {}: {}", safe(&segment), safe(&why));
    }
    for port in ports {
        for warning in warnings_of(port, now) {
            warnings = true;
            let _ = writeln!(text, "! {}/{}: {warning}", safe(&port.segment), port.id);
        }
    }
    if warnings {
        text.push('\n');
    }
    for group in ports.chunk_by(|a, b| a.segment == b.segment) {
        let _ = writeln!(text, "Segment {}", segment(&group[0]));
        for port in group {
            show_port(&mut text, port, now);
        }
    }
    text
}

/// The name of a port's segment, and its directory if that is another text.
fn segment(port: &Port) -> String {
    let (name, directory) = (&port.segment, port.directory.display().to_string());
    match *name == directory {
        true => safe(name),
        false => format!("{} ({})", safe(name), safe(&directory)),
    }
}

/// Everything about a port that needs an operator.
fn warnings_of(port: &Port, now: SystemTime) -> Vec<String> {
    let Some(status) = port.status() else {
        return vec![explain(&port.answer)];
    };
    let warnings = status.warnings.iter().map(|warning| warning.line(now));
    let refused = status.refused.iter().map(|refused| {
        let peer = refused.peer.as_deref().map_or("a peer".to_owned(), safe);
        let mut reason = safe(&refused.reason);
        if let Some(when) = refused.when {
            let _ = write!(reason, " (last {} ago)", age(now, when));
        }
        if refused.by_peer {
            format!("refused by {peer}: {reason}")
        } else {
            format!("refuses {peer}: {reason}")
        }
    });
    warnings.chain(refused).collect()
}

/// Why there is no status, and what to do.
pub(crate) fn explain(answer: &Answer) -> String {
    match answer {
        Answer::Status(..) => "",
        Answer::Gone => "nobody listens: the port was killed; start it again, or remove its files",
        Answer::Denied => {
            "not permitted: ask as root, as the port's user, or as the segment's group"
        }
        Answer::Silent => "no answer in time: the port is stopped or overloaded",
        Answer::None => "no status socket in the segment: a port of an older version, or starting",
        Answer::Invalid(why) => return format!("the answer is no status document: {}", safe(why)),
    }
    .to_owned()
}

fn show_port(text: &mut String, port: &Port, now: SystemTime) {
    let kind = match port.status().is_some_and(Document::is_shared_uplink) {
        true => "Uplink",
        false => "Port",
    };
    let _ = writeln!(text, "    {kind} {} ({})", port.id, port.state());
    let Some(status) = port.status() else {
        return;
    };
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "        {name}: {value}");
    };
    if let Some(mac) = &status.mac {
        line("mac", safe(mac));
    }
    if !status.allow_mac.is_empty() {
        line("allowed", safe(&status.allow_mac.join(" ")));
    }
    if let Some(trunk) = &status.trunk {
        line("trunk", safe(&trunk.join(" ")));
    }
    if let Some(guard) = guard(status) {
        line("guard", guard);
    }
    if let Some(limits) = status.rate_limits.as_ref().and_then(rate_limits) {
        line("rate limits", limits);
    }
    if let Some(mtu) = status.mtu {
        line("mtu", mtu.to_string());
    }
    if let Some(pairs) = status.queue_pairs {
        line("queue pairs", pairs.to_string());
    }
    if let Some(pid) = status.pid {
        let version = status.program_version.as_deref().map(safe);
        let version = version.map_or_else(String::new, |version| format!(", version {version}"));
        let started = status.started.map(|started| age(now, started));
        let started = started.map_or_else(String::new, |age| format!(", started {age} ago"));
        line("process", format!("{pid}{version}{started}"));
    }
    if let Some(sandbox) = &status.sandbox {
        line("sandbox", walls(sandbox));
    }
    if let Some(limits) = &status.limits {
        line("limits", used(limits));
    }
    if let Some(socket) = &status.socket {
        line("socket", safe(socket));
    }
    if let Some(client) = &status.client {
        let error = client.error.as_deref().map(safe);
        let error = error.map_or_else(String::new, |error| format!(": {error}"));
        line("client", format!("{}{error}", safe(&client.state)));
    }
    if let Some(frontend) = &status.frontend {
        let running = frontend.queues_running;
        line("vmm", format!("{}, {running} queues running", vmm(status)));
        if let Some(features) = &frontend.features {
            line("features", safe(&features.join(" ")));
        }
    }
    if let Some(capture) = &status.capture {
        let pid = capture.pid.map_or("?".to_owned(), |pid| pid.to_string());
        line("captured", format!("by process {pid}"));
    }
    if let Some(uplink) = &status.uplink {
        let priority = status
            .priority
            .map_or_else(String::new, |priority| format!(", priority {priority}"));
        let mtu = uplink
            .mtu
            .map_or_else(String::new, |mtu| format!(", MTU {mtu}"));
        line(
            "uplink",
            format!(
                "tap {} {}{mtu}{priority}",
                safe(&uplink.tap),
                safe(&uplink.state)
            ),
        );
    }
    let names: std::collections::BTreeSet<&String> = status
        .counters
        .iter()
        .flat_map(|pair| pair.keys())
        .collect();
    let totals: Vec<String> = names
        .into_iter()
        .map(|name| (name, status.total(name)))
        .filter(|(_, total)| *total != 0)
        .map(|(name, total)| {
            let mark = if Counters::is_drop(name) { "!" } else { "" };
            format!("{}{mark} {total}", safe(name))
        })
        .collect();
    if !totals.is_empty() {
        line("counters", totals.join(", "));
    }
    for peer in &status.peers {
        let role = peer.uplink_priority.map_or_else(String::new, |priority| {
            format!(", uplink of priority {priority}")
        });
        line(
            "peer",
            format!(
                "{} {}, MTU {}{role}{}{}{}",
                safe(&peer.id),
                safe(&peer.mac),
                peer.mtu,
                if peer.away { ", without a guest" } else { "" },
                exchanged(peer),
                peer.since.map_or_else(String::new, |since| format!(
                    ", linked for {}",
                    age(now, since)
                ))
            ),
        );
    }
}

/// What the port's guest must not send. None: there is nothing.
fn guard(status: &Document) -> Option<String> {
    let ips = (!status.ip.is_empty()).then(|| format!("IP {}", safe(&status.ip.join(" "))));
    let server = status.no_dhcp_server.then(|| "no DHCP server".to_owned());
    let parts: Vec<String> = ips.into_iter().chain(server).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// What confines the process, and what does not, with the reason.
fn walls(sandbox: &Sandbox) -> String {
    let mut text = safe(&sandbox.mode);
    if !sandbox.walls.is_empty() {
        let _ = write!(text, ", {}", safe(&sandbox.walls.join(" ")));
    }
    for missing in &sandbox.missing {
        let (wall, reason) = (safe(&missing.wall), safe(&missing.reason));
        let _ = write!(text, ", without {wall} ({reason})");
    }
    text
}

/// What peers and links take of the port's limits.
fn used(limits: &Limits) -> String {
    let of = |limit: Limit| format!("{} of {}", limit.used, limit.max);
    let memory = limits.link_memory;
    format!(
        "peers {}, link memory {} of {}, rings {}; {} % of each for one user",
        of(limits.peers),
        bytes(memory.used),
        bytes(memory.max),
        of(limits.rings),
        limits.max_user_share
    )
}

/// The port's rate limits, by second. None: there are none.
fn rate_limits(limits: &RateLimits) -> Option<String> {
    let text = |name: &str, bucket: Option<TokenBucket>, scale: f64, unit: &str| {
        let bucket = bucket.filter(|bucket| bucket.refill_time != 0)?;
        let rate = bucket.size as f64 * scale * 1000.0 / bucket.refill_time as f64;
        Some(format!("{name} {}{unit}", si(rate)))
    };
    let (bandwidth, packets) = (&limits.bandwidth, &limits.packets);
    let all = [
        text("sends", bandwidth.tx, 8.0, "bit/s"),
        text("sends", packets.tx, 1.0, " frames/s"),
        text("receives", bandwidth.rx, 8.0, "bit/s"),
        text("receives", packets.rx, 1.0, " frames/s"),
    ];
    let parts: Vec<String> = all.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// What was exchanged with a peer. Nothing for a peer whose port does not say so.
fn exchanged(peer: &Peer) -> String {
    let (Some(tx), Some(rx)) = (peer.tx, peer.rx) else {
        return String::new();
    };
    let drops = match tx.drops {
        0 => String::new(),
        drops => format!(", {drops} dropped!"),
    };
    let stalls = match tx.stalls.unwrap_or_default() {
        0 => String::new(),
        1 => ", 1 stall".to_owned(),
        stalls => format!(", {stalls} stalls"),
    };
    let ring = tx.ring.map_or_else(String::new, |ring| {
        format!(", ring {} of {}", bytes(ring.used), bytes(ring.capacity))
    });
    format!(
        ", sent {} frames ({}){drops}{stalls}{ring}, received {} ({})",
        tx.frames,
        bytes(tx.bytes),
        rx.frames,
        bytes(rx.bytes)
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    #[test]
    fn show_says_that_there_is_nothing_to_show() {
        assert_eq!(tree(&[], &[]), "There is no segment in /run/virtio-inter\n");
    }

    #[test]
    fn show_says_why_a_segment_or_port_cannot_be_read() {
        let places = [Place::denied(Path::new("/run/virtio-inter/db"))];
        let denied = Port {
            answer: Answer::Denied,
            ..Port::answering("a", &json!({}))
        };
        let text = tree(&places, &[denied, Port::answering("b", &json!({}))]);
        assert_eq!(
            text,
            "! db: the segment's ports cannot be listed, as its directory is not this user's to \
             read: ask as root, as its owner, or as a member of its group\n\
             ! web/a: not permitted: ask as root, as the port's user, or as the segment's group\n\
             \nSegment web (/run/virtio-inter/web)\n    Port a (denied)\n    Port b (no VMM)\n"
        );
    }

    #[test]
    fn port_has_its_age_its_walls_and_what_it_takes_of_its_limits() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap().as_secs();
        let ago = |seconds: u64| now - seconds;
        let port = Port::answering(
            "a",
            &json!({
                "pid": 4711, "program_version": "1.2.3", "started": ago(7300),
                "sandbox": {
                    "mode": "on", "walls": ["files", "system_calls"],
                    "missing": [{"wall": "tcp", "reason": "Landlock has ABI 2"}],
                },
                "limits": {
                    "peers": {"used": 1, "max": 1024},
                    "link_memory": {"used": 524_288, "max": 1_073_741_824},
                    "rings": {"used": 2, "max": 8192},
                    "max_user_share": 98,
                },
                "peers": [
                    {"id": "b", "mac": "02:00:00:00:00:02", "mtu": 1500, "since": ago(130)},
                    {"id": "c", "mac": "02:00:00:00:00:03", "mtu": 1500},
                ],
            }),
        );
        let expected = "\
Segment web (/run/virtio-inter/web)
    Port a (no VMM)
        process: 4711, version 1.2.3, started 2 h ago
        sandbox: on, files system_calls, without tcp (Landlock has ABI 2)
        limits: peers 1 of 1024, link memory 524kB of 1.07GB, rings 2 of 8192; 98 % of each for \
one user
        peer: b 02:00:00:00:00:02, MTU 1500, linked for 2 min
        peer: c 02:00:00:00:00:03, MTU 1500
";
        let place = Place::with_port(Path::new("/run/virtio-inter/web"), "a");
        assert_eq!(tree(&[place], &[port]), expected);
    }

    #[test]
    fn peer_has_its_ring_and_its_stalls() {
        let text = |tx: serde_json::Value| {
            let rx = json!({"frames": 3, "bytes": 300});
            exchanged(&serde_json::from_value(json!({"tx": tx, "rx": rx})).unwrap())
        };
        let ring = json!({"used": 48_000, "capacity": 65_536});
        let tx = json!({"frames": 9, "bytes": 900, "drops": 2, "stalls": 4, "ring": ring});
        assert_eq!(
            text(tx),
            ", sent 9 frames (900B), 2 dropped!, 4 stalls, ring 48.0kB of 65.5kB, received 3 (300B)"
        );
        let tx = json!({"frames": 9, "bytes": 900, "drops": 0, "stalls": 0, "ring": null});
        assert_eq!(text(tx), ", sent 9 frames (900B), received 3 (300B)");
    }

    #[test]
    fn segment_that_was_given_as_a_directory_is_named_once() {
        let port = Port {
            segment: "/srv/web".to_owned(),
            directory: "/srv/web".into(),
            ..Port::answering("a", &json!({}))
        };
        let place = Place::with_port(Path::new("/srv/web"), "a");
        assert!(tree(&[place], &[port]).starts_with("Segment /srv/web\n"));
    }

    #[test]
    fn warnings_say_since_when_they_are_or_how_long_they_are_over() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let port = Port::answering(
            "a",
            &json!({
                "warnings": [
                    {"code": "uplink-down", "text": "Down", "count": 3, "since": 2800,
                     "last": 2800, "current": true},
                    {"code": "foreign-source", "text": "Other", "count": 7, "since": 2800,
                     "last": 9700, "current": false},
                    {"code": "of-an-older-port", "text": "Old", "count": 1},
                    {"code": "foreign-source", "text": "Older", "count": 2, "since": 100,
                     "last": 2800},
                    {"code": "foreign-source", "text": "Never", "count": 1, "since": u64::MAX,
                     "last": u64::MAX},
                    {"code": "mtu-mismatch", "text": "Oldest", "count": 2, "since": 2800,
                     "last": 2800},
                ],
                "refused": [{"peer": "b", "by_peer": true, "reason": "version", "when": 9990}],
            }),
        );
        let expected = [
            "Down (uplink-down, 3, since 2 h)",
            "Other (foreign-source, 7, last 5 min ago)",
            "Old (of-an-older-port, 1)",
            "Older (foreign-source, 2, last 2 h ago)",
            "Never (foreign-source, 1, since 0 s)",
            "Oldest (mtu-mismatch, 2, since 2 h)",
            "refused by b: version (last 10 s ago)",
        ];
        assert_eq!(warnings_of(&port, now), expected);
    }
}
