//! Rates of ports: counters of two readings, and the time between them.

use std::time::Duration;

use serde::Serialize;

use crate::document::Document;
use crate::list::drops;
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
            drops: rate(&drops),
        })
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
    let of = |port: &Port| Rates::between(earlier(port)?, port.status()?, time);
    after
        .iter()
        .map(|port| PortRates {
            segment: port.segment.clone(),
            port: port.id.to_string(),
            state: port.state(),
            rates: of(port),
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
    fn rates_of_a_port_that_is_new_or_was_started_again_are_not_known() {
        let before = [port("a", 1, 1000)];
        let after = [port("a", 2, 10), port("b", 3, 10)];
        let found = rates(&before, &after, Duration::from_secs(1));
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|port| port.rates.is_none()), "{found:?}");
    }
}
