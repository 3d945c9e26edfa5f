//! sockperf: half of a message's round trip, over TCP or UDP.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::limits::{LISTEN_LIMIT, MARGIN};
use crate::{Job, Result, Vm, wait};

/// Port of the server.
pub const SOCKPERF_PORT: &str = "11111";
/// A server over TCP, on all IPv4 addresses.
pub const SOCKPERF_TCP_SERVER: &[&str] = &[
    "sockperf",
    "server",
    "-i",
    "0.0.0.0",
    "-p",
    SOCKPERF_PORT,
    "--tcp",
];

/// Times of half a round trip, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HalfRoundTrip {
    /// Mean.
    pub mean_us: f64,
    /// Median.
    pub median_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p99_9_us: f64,
}

/// A ping-pong over UDP that stopped at a message or an answer that did not arrive, so early that
/// sockperf reports no times: it does not send the next message before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// Messages sent.
    pub sent: u64,
    /// Answers to them.
    pub received: u64,
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, received } = self;
        write!(
            f,
            "{sent} messages sent, {received} answered: a ping-pong stops at one that is lost"
        )
    }
}

impl std::error::Error for Unanswered {}

/// The protocol of the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One connection.
    Tcp,
    /// Datagrams.
    Udp,
}

/// When messages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// The next one when the answer is there.
    PingPong,
    /// One at a time, so many each second, so that all parties fall asleep in between.
    Each {
        /// Messages in a second.
        per_second: u32,
    },
    /// Several at once, each answered, so many times each second.
    Bursts {
        /// Bursts in a second.
        per_second: u32,
        /// Messages in a burst.
        messages: u32,
    },
}

/// Runs a server until the job is dropped.
///
/// # Errors
///
/// A server that does not listen.
pub fn sockperf_server(server: &Vm, transport: Transport, is_ipv6: bool) -> Result<Job> {
    let any = if is_ipv6 { "::" } else { "0.0.0.0" };
    let mut arguments = vec!["sockperf", "server", "-i", any, "-p", SOCKPERF_PORT];
    let sockets = match transport {
        Transport::Tcp => {
            arguments.push("--tcp");
            "-Hltn"
        }
        Transport::Udp => "-Hlun",
    };
    let listening = server.spawn(&arguments)?;
    wait::until("listening sockperf", LISTEN_LIMIT, || {
        let sockets = server.run(&["ss", sockets, &format!("sport = :{SOCKPERF_PORT}")])?;
        Ok(sockets.contains(SOCKPERF_PORT).then_some(()))
    })?;
    Ok(listening)
}

/// Runs a server, and a client against it at `address` for `seconds`, over TCP.
///
/// # Errors
///
/// A client that fails; its message is in the error.
pub fn tcp_ping_pong(
    client: &Vm,
    server: &Vm,
    address: impl Into<IpAddr>,
    seconds: u32,
) -> Result<HalfRoundTrip> {
    let address = address.into();
    let _listening = sockperf_server(server, Transport::Tcp, address.is_ipv6())?;
    half_round_trip(client, address, Transport::Tcp, Pace::PingPong, seconds)
}

/// Runs a client with messages of 64 bytes against the server at `address` for `seconds`.
///
/// # Errors
///
/// [`Unanswered`]; a client that fails otherwise: its message is in the error.
pub fn half_round_trip(
    client: &Vm,
    address: IpAddr,
    transport: Transport,
    pace: Pace,
    seconds: u32,
) -> Result<HalfRoundTrip> {
    let (address, time) = (address.to_string(), seconds.to_string());
    let (mode, rate, burst) = match pace {
        Pace::PingPong => ("ping-pong", None, None),
        Pace::Each { per_second } => ("ping-pong", Some(per_second), None),
        Pace::Bursts {
            per_second,
            messages,
        } => ("under-load", Some(per_second * messages), Some(messages)),
    };
    let (rate, burst) = (
        rate.map(|rate| rate.to_string()),
        burst.map(|burst| burst.to_string()),
    );
    let mut arguments = vec![
        "sockperf",
        mode,
        "-i",
        &address,
        "-p",
        SOCKPERF_PORT,
        "-t",
        &time,
        "-m",
        "64",
    ];
    if transport == Transport::Tcp {
        arguments.push("--tcp");
    }
    if let Some(rate) = &rate {
        arguments.extend(["--mps", rate]);
    }
    if let Some(burst) = &burst {
        arguments.extend(["--burst", burst, "--reply-every", "1"]);
    }
    let limit = Duration::from_secs(seconds.into()) + MARGIN;
    let output = client.run_within(limit, &arguments)?;
    if (transport, pace) == (Transport::Udp, Pace::PingPong)
        && let Some(unanswered) = stopped(&output.stdout)
    {
        return Err(unanswered.into());
    }
    let story = || {
        format!(
            "sockperf to {address} wrote: {}{}",
            output.stdout, output.stderr
        )
    };
    ensure!(output.success(), story());
    parse(&output.stdout).with_context(story)
}

/// Reads whether the test stopped at a message without an answer, and has no summary for that.
fn stopped(text: &str) -> Option<Unanswered> {
    let count = |mark: &str| -> Option<u64> {
        let rest = text.split(mark).nth(1)?;
        rest.split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()
    };
    let (sent, received) = (count("SentMessages=")?, count("ReceivedMessages=")?);
    (parse(text).is_none() && 0 < received && received < sent)
        .then_some(Unanswered { sent, received })
}

/// Reads the summary, in which terminal colours may stand.
fn parse(text: &str) -> Option<HalfRoundTrip> {
    let after = |mark: &str| -> Option<f64> {
        let rest = text.split(mark).nth(1)?.trim_start();
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        rest[..end].parse().ok()
    };
    Some(HalfRoundTrip {
        mean_us: after("Latency is ").or_else(|| after("messages is "))?,
        median_us: after("percentile 50.000 =")?,
        p99_us: after("percentile 99.000 =")?,
        p99_9_us: after("percentile 99.900 =")?,
    })
}

#[cfg(test)]
mod tests {
    use super::{Unanswered, parse, stopped};

    #[test]
    fn summary_is_read_through_its_colours() {
        let text = "sockperf: \x1b[2;35m====> avg-latency=33.1 (std-dev=2)\x1b[0m\n\
                    sockperf: \x1b[2;35mSummary: Latency is 33.125 usec\x1b[0m\n\
                    sockperf: ---> percentile 99.900 =   70.125\n\
                    sockperf: ---> percentile 99.000 =   41.250\n\
                    sockperf: ---> percentile 50.000 =   32.500\n";
        let times = parse(text).unwrap();
        assert_eq!(
            (times.mean_us, times.median_us, times.p99_us, times.p99_9_us),
            (33.125, 32.5, 41.25, 70.125)
        );
        let bursts = text.replace("Latency is", "Latency of burst of 16 messages is");
        assert_eq!(parse(&bursts).unwrap(), times);
        assert!(parse("sockperf: ERROR: Can't connect socket").is_none());
    }

    #[test]
    fn ping_pong_that_stops_is_told_from_one_that_fails() {
        let text = "sockperf: Test ended\nsockperf: [Total Run] RunTime=1.010 sec; \
                    Warm up time=400 msec; SentMessages=76; \
                    ReceivedMessages=75\nsockperf: No valid observations found.\n";
        let unanswered = Unanswered {
            sent: 76,
            received: 75,
        };
        assert_eq!(stopped(text), Some(unanswered));
        assert_eq!(stopped("sockperf: ERROR: Can't connect socket"), None);
        // That is nobody who answers at all.
        assert_eq!(stopped(&text.replace("Messages=75", "Messages=0")), None);
        // The last message of a test that goes on to its end has no answer either.
        let whole = format!(
            "{text}Latency is 33.125 usec\npercentile 99.900 = 70\n\
             percentile 99.000 = 41\npercentile 50.000 = 32\n"
        );
        assert_eq!(stopped(&whole), None);
    }
}
