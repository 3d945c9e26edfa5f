//! ping, of iputils.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;

use super::limits::MARGIN;
use crate::{Result, Vm};

/// How to ping.
#[derive(Clone, Copy, Debug)]
pub struct Ping {
    /// Requests.
    pub count: u32,
    /// Bytes of payload; 8 bytes of ICMP and the IP header come on top.
    pub size: u32,
    /// Time between requests.
    pub interval: Duration,
    /// Whether packets may be fragmented on their way.
    pub may_fragment: bool,
}

impl Default for Ping {
    fn default() -> Self {
        Self {
            count: 5,
            size: 56,
            interval: Duration::from_millis(20),
            may_fragment: true,
        }
    }
}

/// Answers and times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u32,
    /// Answers received.
    pub received: u32,
    /// Mean round trip in microseconds, 0 without an answer. Ping reports no median.
    pub mean_us: f64,
    /// Shortest round trip in microseconds, 0 without an answer.
    pub min_us: f64,
    /// Longest round trip in microseconds, 0 without an answer.
    pub max_us: f64,
}

/// Pings `to` from a guest. No answer is a result, not an error.
///
/// # Errors
///
/// A ping that cannot run.
pub fn ping(from: &Vm, to: impl Into<IpAddr>, how: Ping) -> Result<PingReport> {
    let (to, count, size) = (
        to.into().to_string(),
        how.count.to_string(),
        how.size.to_string(),
    );
    let interval = how.interval.as_secs_f64().to_string();
    let fragment = if how.may_fragment { "dont" } else { "do" };
    let limit = how.interval * how.count + MARGIN;
    let arguments = [
        "ping", "-n", "-c", &count, "-s", &size, "-i", &interval, "-W", "2", "-M", fragment, &to,
    ];
    let output = from.run_within(limit, &arguments)?;
    parse(&output.stdout)
        .with_context(|| format!("ping {to} wrote: {}{}", output.stdout, output.stderr))
}

/// Reads the two lines at the end of ping's output.
fn parse(text: &str) -> Option<PingReport> {
    let counts = text
        .lines()
        .find(|line| line.contains("packets transmitted"))?;
    let mut parts = counts.split(", ");
    let sent = parts.next()?.split_whitespace().next()?.parse().ok()?;
    let received = parts.next()?.split_whitespace().next()?.parse().ok()?;
    // rtt min/avg/max/mdev = 0.079/0.091/0.108/0.012 ms
    let times = text
        .lines()
        .find_map(|line| line.strip_prefix("rtt ")?.split(" = ").nth(1));
    let mut times = times
        .unwrap_or("0/0/0")
        .split('/')
        .map(|time| time.parse::<f64>().ok());
    let (min, mean, max) = (times.next()??, times.next()??, times.next()??);
    Some(PingReport {
        sent,
        received,
        mean_us: mean * 1000.0,
        min_us: min * 1000.0,
        max_us: max * 1000.0,
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn ping_counts_and_times_are_read() {
        let text = "--- 10.0.0.2 ping statistics ---\n\
                    3 packets transmitted, 2 received, +1 errors, 33% packet loss, time 41ms\n\
                    rtt min/avg/max/mdev = 0.079/0.091/0.108/0.012 ms\n";
        let report = parse(text).unwrap();
        assert_eq!((report.sent, report.received), (3, 2));
        let times = [report.min_us, report.mean_us, report.max_us];
        assert_eq!(times.map(f64::round), [79.0, 91.0, 108.0]);
    }

    #[test]
    fn ping_without_an_answer_is_a_report() {
        let report = parse("3 packets transmitted, 0 received, 100% packet loss, time 41ms\n");
        assert_eq!(report.unwrap().received, 0);
        assert!(parse("ping: socket: Operation not permitted").is_none());
    }
}
