//! Datagrams there and back, whose content is checked.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::limits::{LISTEN_LIMIT, MARGIN};
use crate::{Result, Vm};

/// UDP port of the echo.
const PORT: &str = "7001";

/// Result of the datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct UdpReport {
    /// Sent.
    pub sent: u64,
    /// Back, unchanged, within 2 s.
    pub returned: u64,
    /// Not back within 2 s.
    pub lost: u64,
    /// Of these, back later.
    pub late: u64,
    /// Back, but changed.
    pub wrong: u64,
}

/// Sends `count` datagrams of `size` bytes to an echo at `address`, one by one.
///
/// # Errors
///
/// A datagram that came back changed, a network that cannot be reached. Loss is a result, not an
/// error.
pub fn udp_check(
    client: &Vm,
    server: &Vm,
    address: impl Into<IpAddr>,
    count: u32,
    size: u32,
) -> Result<UdpReport> {
    let (address, count_text) = (address.into().to_string(), count.to_string());
    let mut echo = server.spawn(&["agent", "udp-echo", PORT])?;
    echo.wait_for_output("listening", LISTEN_LIMIT)?;
    let size = size.to_string();
    // Each datagram may be waited for.
    let limit = Duration::from_secs(2) * count + MARGIN;
    let arguments = [
        "agent",
        "udp-check",
        &address,
        PORT,
        &count_text,
        &size,
        "1",
    ];
    let output = client.run_within(limit, &arguments)?;
    ensure!(
        output.success(),
        "Checking datagrams to {address}: {}",
        output.stderr
    );
    serde_json::from_str(output.stdout.trim()).context("Reading the report on datagrams")
}
