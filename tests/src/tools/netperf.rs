//! netperf: transactions and streams over TCP, with messages of any size.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::limits::{LISTEN_LIMIT, MARGIN};
use crate::{Job, Result, Vm, wait};

/// TCP port of the server.
const PORT: &str = "12865";

/// How many transactions there were.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TransactionRate {
    /// Transactions per second.
    pub per_second: f64,
    /// Mean time of one in microseconds.
    pub mean_us: f64,
}

/// Result of a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StreamRate {
    /// Payload that arrived, in bytes.
    pub bytes: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// A test of netperf over one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    /// A message there and one back, as often as possible.
    Transactions,
    /// Messages one way, as many as possible.
    Stream,
}

/// Runs netserver until the job is dropped.
///
/// # Errors
///
/// A server that does not listen.
pub fn netserver(server: &Vm, is_ipv6: bool) -> Result<Job> {
    let family = if is_ipv6 { "-6" } else { "-4" };
    let listening = server.spawn(&["netserver", "-D", family, "-p", PORT])?;
    // netserver says that it starts before it listens.
    wait::until("listening netserver", LISTEN_LIMIT, || {
        let sockets = server.run(&["ss", "-Hltn", &format!("sport = :{PORT}")])?;
        Ok(sockets.contains(PORT).then_some(()))
    })?;
    Ok(listening)
}

/// Runs netserver, and netperf against it at `address` for `seconds`, one byte each way. The client
/// must have an address other than the loopback's of the same family, else netperf resolves none.
///
/// # Errors
///
/// A client that fails; its message is in the error.
pub fn tcp_rr(
    client: &Vm,
    server: &Vm,
    address: impl Into<IpAddr>,
    seconds: u32,
) -> Result<TransactionRate> {
    let address = address.into();
    let _listening = netserver(server, address.is_ipv6())?;
    tcp_rr_of(client, address, seconds, 1)
}

/// Transactions of `size` bytes each way for `seconds` with the netserver at `address`.
///
/// # Errors
///
/// A client that fails; its message is in the error.
pub fn tcp_rr_of(client: &Vm, address: IpAddr, seconds: u32, size: u32) -> Result<TransactionRate> {
    let (per_second, mean_us) = run(client, address, seconds, size, Test::Transactions)?;
    Ok(TransactionRate {
        per_second,
        mean_us,
    })
}

/// A stream to the netserver at `address` for `seconds`, `size` bytes in each call of the sender.
///
/// # Errors
///
/// A client that fails; its message is in the error.
pub fn tcp_stream(client: &Vm, address: IpAddr, seconds: u32, size: u32) -> Result<StreamRate> {
    let (bytes, seconds) = run(client, address, seconds, size, Test::Stream)?;
    Ok(StreamRate { bytes, seconds })
}

/// A stream on its way, for several at once.
pub struct TcpStream {
    job: Job,
    limit: Duration,
}

impl TcpStream {
    /// Starts what [`tcp_stream`] does.
    ///
    /// # Errors
    ///
    /// A guest that is gone.
    pub fn start(client: &Vm, address: IpAddr, seconds: u32, size: u32) -> Result<Self> {
        let (job, limit) = start(client, address, seconds, size, Test::Stream)?;
        Ok(Self { job, limit })
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// A client that fails; its message is in the error.
    pub fn finish(mut self) -> Result<StreamRate> {
        let (bytes, seconds) = finish(&mut self.job, self.limit)?;
        Ok(StreamRate { bytes, seconds })
    }
}

/// Runs netperf and returns the two numbers that it is asked for.
fn run(client: &Vm, address: IpAddr, seconds: u32, size: u32, test: Test) -> Result<(f64, f64)> {
    let (mut job, limit) = start(client, address, seconds, size, test)?;
    finish(&mut job, limit)
}

/// Starts netperf; it ends before the limit.
fn start(
    client: &Vm,
    address: IpAddr,
    seconds: u32,
    size: u32,
    test: Test,
) -> Result<(Job, Duration)> {
    let family = if address.is_ipv6() { "-6" } else { "-4" };
    let (address, time) = (address.to_string(), seconds.to_string());
    let (name, option, sizes, numbers) = match test {
        Test::Transactions => (
            "TCP_RR",
            "-r",
            format!("{size},{size}"),
            "transaction_rate,mean_latency",
        ),
        Test::Stream => (
            "TCP_STREAM",
            "-m",
            size.to_string(),
            "remote_bytes_recvd,elapsed_time",
        ),
    };
    let arguments = [
        "netperf", family, "-H", &address, "-p", PORT, "-t", name, "-l", &time, "-P", "0", "--",
        option, &sizes, "-o", numbers,
    ];
    let limit = Duration::from_secs(seconds.into()) + MARGIN;
    let job = client.spawn(&arguments)?;
    job.close_stdin()?;
    Ok((job, limit))
}

fn finish(job: &mut Job, limit: Duration) -> Result<(f64, f64)> {
    let output = job.wait(limit)?;
    let story = || format!("netperf wrote: {}{}", output.stdout, output.stderr);
    ensure!(output.success(), story());
    parse(&output.stdout).with_context(story)
}

/// Reads the line with two numbers.
fn parse(text: &str) -> Option<(f64, f64)> {
    let (first, second) = text.lines().find_map(|line| line.split_once(','))?;
    Some((first.trim().parse().ok()?, second.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn netperf_numbers_are_read() {
        assert_eq!(parse("15432.10,64.32\n"), Some((15432.10, 64.32)));
        assert_eq!(parse("3897344,1.00\n"), Some((3_897_344.0, 1.0)));
        assert!(parse("establish control: are you sure").is_none());
    }
}
