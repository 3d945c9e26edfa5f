//! Rates of ports: counters of two readings, and the time between them.

use std::time::Duration;

use serde::Serialize;

use crate::document::{Document, Peer};
use crate::reader::Port;

/// A port at a moment, and its rates since the reading before.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PortRates {
    /// The segment's name, or its directory.
    pub(crate) segment: String,
    /// The port's id.
    pub(crate) port: String,
    /// Its state, in a word.
    pub(crate) state: &'static str,
    /// `None`: there is no reading before this one, or the port was started after it.
    pub(crate) rates: Option<Rates>,
    /// What it sends to each peer by links. Without peers of which there is no reading before.
    pub(crate) pairs: Vec<PairRates>,
}

/// What a port sends to one peer, for each second.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PairRates {
    /// The peer's id.
    pub(crate) peer: String,
    /// Since when they are linked, in seconds since 1970.
    pub(crate) since: Option<u64>,
    /// Frames.
    pub(crate) frames: f64,
    /// Their bits, without the virtio header.
    pub(crate) bits: f64,
    /// Frames that the peer did not get.
    pub(crate) drops: f64,
}

/// Rates for each second.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Rates {
    /// Frames of the guest that were sent.
    pub(crate) tx_frames: f64,
    /// Their bits, without the virtio header.
    pub(crate) tx_bits: f64,
    /// Frames delivered to the guest.
    pub(crate) rx_frames: f64,
    /// Their bits, without the virtio header.
    pub(crate) rx_bits: f64,
    /// Frames that were lost, for whatever reason.
    pub(crate) drops: f64,
}

impl Rates {
    fn between(before: &Document, after: &Document, time: Duration) -> Option<Self> {
        // A port that was started again counts from zero.
        if (before.pid, before.started) != (after.pid, after.started) || time.is_zero() {
            return None;
        }
        let rate = |of: &dyn Fn(&Document) -> u64| {
            let more = of(after).saturating_sub(of(before));
            more as f64 / time.as_secs_f64()
        };
        Some(Self {
            tx_frames: rate(&|status| status.total("tx_frames")),
            tx_bits: 8.0 * rate(&|status| status.total("tx_bytes")),
            rx_frames: rate(&|status| status.total("rx_frames")),
            rx_bits: 8.0 * rate(&|status| status.total("rx_bytes")),
            drops: rate(&Document::drops),
        })
    }

    /// The same for each peer of both readings.
    fn of_pairs(before: &Document, after: &Document, time: Duration) -> Vec<PairRates> {
        let pair = |peer: &Peer| {
            // A peer that left and came back counts from zero.
            let same = |other: &&Peer| (&other.id, other.since) == (&peer.id, peer.since);
            let (now, then) = (peer.tx?, before.peers.iter().find(same)?.tx?);
            let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / time.as_secs_f64();
            Some(PairRates {
                peer: peer.id.clone(),
                since: peer.since,
                frames: rate(now.frames, then.frames),
                bits: 8.0 * rate(now.bytes, then.bytes),
                drops: rate(now.drops, then.drops),
            })
        };
        after.peers.iter().filter_map(pair).collect()
    }

    /// Bits of both directions.
    pub(crate) fn bits(&self) -> f64 {
        self.tx_bits + self.rx_bits
    }
}

/// The rates of all ports of the later reading, in its order.
pub(crate) fn rates(before: &[Port], after: &[Port], time: Duration) -> Vec<PortRates> {
    let earlier = |port: &Port| {
        let same = |other: &&Port| other.segment == port.segment && other.id == port.id;
        before.iter().find(same)?.status()
    };
    let of = |port: &Port| {
        let (before, after) = (earlier(port)?, port.status()?);
        let rates = Rates::between(before, after, time)?;
        Some((rates, Rates::of_pairs(before, after, time)))
    };
    after
        .iter()
        .map(|port| {
            let (rates, pairs) = of(port).unzip();
            PortRates {
                segment: port.segment.clone(),
                port: port.id.to_string(),
                state: port.state(),
                rates,
                pairs: pairs.unwrap_or_default(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A port of segment `web` that sent so many frames of 100 bytes and lost one in ten.
    fn port(id: &str, pid: u32, frames: u64) -> Port {
        let status = json!({
            "pid": pid,
            "frontend": {"pid": 1, "queues_running": 2},
            "counters": [
                {"tx_frames": frames / 2, "tx_bytes": frames * 50, "rx_frames": 1},
                {"tx_frames": frames / 2, "tx_bytes": frames * 50, "tx_no_link": frames / 10},
            ],
        });
        Port::answering(id, &status)
    }

    #[test]
    fn rates_are_those_of_all_queue_pairs_by_the_time_between() {
        let (before, after) = ([port("a", 1, 100)], [port("a", 1, 300)]);
        let found = rates(&before, &after, Duration::from_secs(2));
        let expected = Rates {
            tx_frames: 100.0,
            tx_bits: 80_000.0,
            rx_frames: 0.0,
            rx_bits: 0.0,
            drops: 10.0,
        };
        assert_eq!(found[0].rates, Some(expected));
        assert_eq!((found[0].port.as_str(), found[0].state), ("a", "running"));
    }

    #[test]
    fn rates_of_pairs_are_those_of_peers_that_stayed() {
        let port = |frames: u64, since: u64| {
            let peer = |id: &str, since: u64| {
                let tx = json!({"frames": frames, "bytes": 100 * frames, "drops": frames / 10});
                json!({"id": id, "since": since, "tx": tx})
            };
            let peers = [peer("b", 1), peer("c", since), json!({"id": "old"})];
            Port::answering("a", &json!({"pid": 1, "peers": peers}))
        };
        let found = rates(&[port(100, 1)], &[port(300, 2)], Duration::from_secs(2));
        let expected = PairRates {
            peer: "b".to_owned(),
            since: Some(1),
            frames: 100.0,
            bits: 80_000.0,
            drops: 10.0,
        };
        assert_eq!(found[0].pairs, [expected]);
    }

    #[test]
    fn rates_of_a_port_that_is_new_or_was_started_again_are_not_known() {
        let before = [port("a", 1, 1000)];
        let after = [port("a", 2, 10), port("b", 3, 10)];
        let found = rates(&before, &after, Duration::from_secs(1));
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|port| port.rates.is_none()), "{found:?}");
    }
}
