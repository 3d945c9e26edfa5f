//! `virtio-inter uplink`, run where its tap device is.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::port::read_status;
use crate::{Counters, Process, Result, Segment, Tap, Testbed, images, process, wait};

const ACTIVE_LIMIT: Duration = Duration::from_secs(20);
/// The line that an uplink logs once it has joined.
const READY: &str = "Serving segment";

/// A running uplink of a segment's ports, killed when dropped.
pub struct SharedUplink {
    id: String,
    status: PathBuf,
    process: Process,
}

impl SharedUplink {
    /// Starts an uplink and waits until it has joined the segment.
    ///
    /// # Errors
    ///
    /// No program, or one that does not get ready; its log is in the message.
    pub fn start(
        bed: &Testbed,
        segment: &Segment,
        id: &str,
        tap: &Tap,
        priority: u16,
    ) -> Result<Self> {
        let status = bed.path(&format!("{id}.status"));
        let mut command = Command::new(images::port_program()?);
        command
            .arg("uplink")
            .arg("--segment")
            .arg(segment.path())
            .arg("--status-socket")
            .arg(&status)
            .args(["--id", id, "--tap", tap.name()])
            .args(["--mtu", &tap.mtu().to_string()])
            .args(["--priority", &priority.to_string()])
            .env("VIRTIO_INTER_ALLOW_DUMPS", "1");
        let mut command = tap.enter(&command);
        command.stdin(process::no_input().context("Opening an empty input")?);
        let log = bed.path(&format!("uplink-{id}.log"));
        let before = log.metadata().map_or(0, |log| log.len() as usize);
        let mut process = Process::start(&format!("uplink {id}"), command, &log, &[])?;
        process.wait_for_log(READY, before, ACTIVE_LIMIT)?;
        Ok(Self {
            id: id.to_owned(),
            status,
            process,
        })
    }

    /// Waits until it is the active one.
    ///
    /// # Errors
    ///
    /// One that stands by for longer than 20 s, or does not answer.
    pub fn wait_until_active(&self) -> Result<()> {
        wait::until(&format!("activity of {}", self.id), ACTIVE_LIMIT, || {
            Ok((self.status()?["active"] == true).then_some(()))
        })
    }

    /// What it says of itself: the document of docs/port-status.md.
    ///
    /// # Errors
    ///
    /// An uplink that does not answer.
    pub fn status(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.status_text()?).context("Reading its status")
    }

    /// Its counters since it started.
    ///
    /// # Errors
    ///
    /// An uplink that does not answer.
    pub fn counters(&self) -> Result<Counters> {
        Counters::parse(&self.status_text()?)
    }

    fn status_text(&self) -> Result<String> {
        read_status(&self.status)
            .with_context(|| format!("Asking uplink {} for its status", self.id))
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
