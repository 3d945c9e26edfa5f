//! A TCP transfer both ways at once, every byte of which is checked at its receiver.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use virtio_inter_agent::UNTIL_TOLD;

use super::limits::LISTEN_LIMIT;
use super::stall::{self, Progress, Watch};
use crate::{Job, Result, Vm, wait};

/// Bytes that a transfer which is to be finished moves before it ends, in both directions together.
const LAST_BYTES: u64 = 8_000_000;

/// The bytes to move.
#[derive(Clone, Copy, Debug)]
pub struct TransferPlan {
    /// Bytes from client to server; [`UNTIL_TOLD`]: until the transfer is finished.
    pub send: u64,
    /// Bytes from server to client; the same goes for it, if it does for both.
    pub receive: u64,
    /// Fixes the content.
    pub seed: u64,
    /// TCP port of the server.
    pub port: u16,
}

impl TransferPlan {
    /// `bytes` each way.
    pub fn both_ways(bytes: u64) -> Self {
        Self {
            send: bytes,
            receive: bytes,
            seed: 1,
            port: 7000,
        }
    }

    /// Both ways until [`Transfer::finish`], for what is done to a connection meanwhile: however
    /// fast the machine is, it is not over before.
    pub fn until_finished() -> Self {
        Self::both_ways(UNTIL_TOLD)
    }
}

/// Counts of both ends, as the client tells them. It has checked the bytes, and that the server's
/// checksum is its own.
#[derive(Debug, Deserialize)]
struct Report {
    sent: u64,
    peer_received: u64,
    received: u64,
}

/// A transfer on its way.
pub struct Transfer {
    plan: TransferPlan,
    client: Job,
    _server: Job,
}

impl Transfer {
    /// Starts a server, and a client that connects to it at `address`.
    ///
    /// # Errors
    ///
    /// A server that does not listen, a plan that is none.
    pub fn start(
        client: &Vm,
        server: &Vm,
        address: impl Into<IpAddr>,
        plan: TransferPlan,
    ) -> Result<Self> {
        ensure!(
            plan.receive != UNTIL_TOLD || plan.send == UNTIL_TOLD,
            "The server would not know when to end"
        );
        let (address, port) = (address.into().to_string(), plan.port.to_string());
        let mut listening = server.spawn(&["agent", "tcp-serve", &port])?;
        listening.wait_for_output("listening", LISTEN_LIMIT)?;
        let numbers = [plan.send, plan.receive, plan.seed].map(|number| number.to_string());
        let [send, receive, seed] = &numbers;
        let arguments = [
            "agent",
            "tcp-transfer",
            &address,
            &port,
            send,
            receive,
            seed,
        ];
        Ok(Self {
            plan,
            client: client.spawn(&arguments)?,
            _server: listening,
        })
    }

    /// Bytes transferred so far, counted at the client in both directions, in steps of 1 MiB each
    /// way.
    pub fn progress(&self) -> u64 {
        let text = self.client.stdout();
        let last = |key: &str| -> u64 {
            let line = text.lines().rev().find_map(|line| line.strip_prefix(key));
            line.and_then(|rest| rest.trim_end_matches('}').parse().ok())
                .unwrap_or(0)
        };
        last("{\"sent_so_far\":") + last("{\"received_so_far\":")
    }

    /// Waits until at least `bytes` went by at the client, in both directions together.
    ///
    /// # Errors
    ///
    /// A transfer that is not that far within `limit`, or that fails.
    pub fn wait_for_progress(&mut self, bytes: u64, limit: Duration) -> Result<()> {
        let what = format!("progress of a transfer to {bytes} bytes");
        wait::until(&what, limit, || {
            if self.progress() >= bytes {
                return Ok(Some(()));
            }
            match self.client.end() {
                Some(end) => bail!("The transfer {end}"),
                None => Ok(None),
            }
        })
        .with_context(|| format!("The transfer is at {} bytes", self.progress()))
    }

    /// Waits until `bytes` more went by. The longest time in which none did, from `since` on.
    ///
    /// # Errors
    ///
    /// A transfer that is not that far within `limit`, or has ended.
    pub fn longest_stall(&self, since: Instant, bytes: u64, limit: Duration) -> Result<Duration> {
        Watch::new(|| self.look(), since).until_moved(bytes, limit)
    }

    /// Runs `action`, then waits until `bytes` more went by, at most for `limit`. What the action
    /// did, and the longest time in which none did from its beginning on.
    ///
    /// # Errors
    ///
    /// What the action fails with: that is told at once, and nothing is waited for any more. As for
    /// [`Transfer::longest_stall`].
    pub fn stall_during<T>(
        &self,
        bytes: u64,
        limit: Duration,
        action: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Duration)> {
        stall::during(|| self.look(), bytes, limit, action)
    }

    fn look(&self) -> Progress {
        // Asked for first: what has ended has told all.
        let ended = self.client.end();
        Progress {
            bytes: self.progress(),
            ended,
        }
    }

    /// Waits for the end of the transfer. One that lasts until then goes on for some more bytes: it
    /// is no use if it only stood still from the last event on.
    ///
    /// # Errors
    ///
    /// A byte that arrived wrong or did not arrive, a connection that broke, a transfer that takes
    /// longer than `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<()> {
        if self.plan.send == UNTIL_TOLD {
            self.wait_for_progress(self.progress() + LAST_BYTES, limit)?;
            self.client.close_stdin()?;
        }
        let output = self.client.wait(limit)?;
        ensure!(output.success(), "The transfer failed: {}", output.stderr);
        let line = output
            .stdout
            .lines()
            .last()
            .context("A transfer without a report")?;
        let report: Report = serde_json::from_str(line).context("Reading a transfer's report")?;
        let is_planned = |planned: u64, bytes: u64| [bytes, UNTIL_TOLD].contains(&planned);
        ensure!(
            is_planned(self.plan.send, report.sent)
                && is_planned(self.plan.receive, report.received)
                && report.peer_received == report.sent,
            "The transfer was planned as {:?} and became {report:?}",
            self.plan
        );
        Ok(())
    }
}

/// Moves `bytes` each way at once between two guests, to the server's `address`, and waits for up
/// to `limit`.
///
/// # Errors
///
/// As for [`Transfer::start`] and [`Transfer::finish`].
pub fn exchange(
    client: &Vm,
    server: &Vm,
    address: impl Into<IpAddr>,
    bytes: u64,
    limit: Duration,
) -> Result<()> {
    let address = address.into();
    let plan = TransferPlan::both_ways(bytes);
    Transfer::start(client, server, address, plan)
        .and_then(|transfer| transfer.finish(limit))
        .with_context(|| format!("Between {} and {address}", client.config().name))
}
