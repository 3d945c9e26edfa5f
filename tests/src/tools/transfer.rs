//! A TCP transfer both ways at once, every byte of which is checked at its receiver.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::limits::LISTEN_LIMIT;
use super::stall::{self, Progress, Watch};
use crate::{Job, Result, Vm, wait};

/// The bytes to move.
#[derive(Clone, Copy, Debug)]
pub struct TransferPlan {
    /// Bytes from client to server.
    pub send: u64,
    /// Bytes from server to client.
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
}

/// Counts and checksums of both ends.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TransferReport {
    /// Bytes that the client sent.
    pub sent: u64,
    /// Checksum over them, in hexadecimal digits.
    pub sent_checksum: String,
    /// Bytes that the server received.
    pub peer_received: u64,
    /// Checksum over them.
    pub peer_checksum: String,
    /// Bytes that the client received.
    pub received: u64,
    /// Checksum over them.
    pub received_checksum: String,
}

/// A transfer on its way.
pub struct Transfer {
    client: Job,
    _server: Job,
}

impl Transfer {
    /// Starts a server, and a client that connects to it at `address`.
    ///
    /// # Errors
    ///
    /// A server that does not listen.
    pub fn start(
        client: &Vm,
        server: &Vm,
        address: impl Into<IpAddr>,
        plan: TransferPlan,
    ) -> Result<Self> {
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
            ensure!(
                self.client.is_running(),
                "The transfer ended: {}",
                self.client.stderr()
            );
            Ok(None)
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
        let is_running = self.client.is_running();
        Progress {
            bytes: self.progress(),
            ended: (!is_running).then(|| self.client.stderr()),
        }
    }

    /// Waits for the end of the transfer.
    ///
    /// # Errors
    ///
    /// A byte that arrived wrong, a connection that broke, a transfer that takes longer than
    /// `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<TransferReport> {
        let output = self.client.wait(limit)?;
        ensure!(output.success(), "The transfer failed: {}", output.stderr);
        let line = output
            .stdout
            .lines()
            .last()
            .context("A transfer without a report")?;
        serde_json::from_str(line).context("Reading a transfer's report")
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
    let report = Transfer::start(client, server, address, plan)
        .and_then(|transfer| transfer.finish(limit))
        .with_context(|| format!("Between {} and {address}", client.config().name))?;
    // The guests' own results are in their exit codes; this checks that both speak of the same
    // bytes.
    ensure!(
        (report.peer_received, report.received) == (bytes, bytes)
            && report.sent_checksum == report.peer_checksum,
        "{report:?}"
    );
    Ok(())
}
