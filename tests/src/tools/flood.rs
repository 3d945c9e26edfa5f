//! Small datagrams as fast as a guest can send them, with iperf3, to a reader that can be stopped.

use std::net::IpAddr;

use rustix::process::Signal;

use super::limits::LISTEN_LIMIT;
use crate::{Job, Result, Vm};

/// TCP port by which reader and sender agree, UDP port of the datagrams.
const PORT: &str = "5300";
/// Payload of a datagram in bytes: the more of them go by.
const SIZE: &str = "64";

/// A flood on its way. Dropped, both ends are killed.
pub struct Flood {
    sender: Job,
    reader: Job,
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
}
