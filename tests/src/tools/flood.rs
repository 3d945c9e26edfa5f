//! Small datagrams as fast as a guest can send them, with iperf3, to a reader that can be stopped.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::ensure;
use rustix::process::Signal;

use super::{LISTEN_LIMIT, MARGIN};
use crate::{Job, Result, Vm};

/// TCP port by which reader and sender agree, UDP port of the datagrams.
const PORT: &str = "5300";
/// Payload of a datagram in bytes: the more of them go by.
const SIZE: &str = "64";

/// A flood on its way. Dropped, both ends are killed.
pub struct Flood {
    sender: Job,
    reader: Job,
    seconds: u32,
}

impl Flood {
    /// Sends from one guest to another, which reads, at `address` for `seconds`.
    ///
    /// # Errors
    ///
    /// A reader that does not listen, a guest that is gone.
    pub fn start(from: &Vm, to: &Vm, address: impl Into<IpAddr>, seconds: u32) -> Result<Self> {
        let (address, time) = (address.into().to_string(), seconds.to_string());
        let mut reader = to.spawn(&["iperf3", "-s", "-1", "--forceflush", "-p", PORT])?;
        reader.wait_for_output("Server listening", LISTEN_LIMIT)?;
        // A bandwidth of 0 is as much as possible.
        let arguments = [
            "iperf3", "-c", &address, "-p", PORT, "-u", "-b", "0", "-l", SIZE, "-t", &time,
        ];
        Ok(Self {
            sender: from.spawn(&arguments)?,
            reader,
            seconds,
        })
    }

    /// Stops the reader: what comes fills its socket, then the guest drops it.
    ///
    /// # Errors
    ///
    /// A guest that is gone.
    pub fn stop_reader(&self) -> Result<()> {
        self.reader.signal(Signal::STOP)
    }

    /// Lets a stopped reader go on.
    ///
    /// # Errors
    ///
    /// A guest that is gone.
    pub fn continue_reader(&self) -> Result<()> {
        self.reader.signal(Signal::CONT)
    }

    /// Whether the sender still sends.
    pub fn is_running(&self) -> bool {
        self.sender.is_running()
    }

    /// Waits until the time is over and both ends agreed on what went by.
    ///
    /// # Errors
    ///
    /// An end that fails or takes a minute longer than it should.
    pub fn finish(mut self) -> Result<()> {
        let limit = Duration::from_secs(self.seconds.into()) + MARGIN;
        let output = self.sender.wait(limit)?;
        ensure!(
            output.success(),
            "The flood failed: {}{}",
            output.stdout,
            output.stderr
        );
        Ok(())
    }
}
