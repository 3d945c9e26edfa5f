//! QEMU's monitor, by which the host stops and continues a guest's machine (QMP: one JSON object a
//! line).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::Result;

/// How long QEMU may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A conversation with one QEMU.
pub(crate) struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects to the monitor at `socket` and enters command mode.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("Connecting to {}", socket.display()))?;
        stream
            .set_read_timeout(Some(ANSWER_LIMIT))
            .context("Limiting the wait for QEMU's monitor")?;
        let mut monitor = Self {
            stream: BufReader::new(stream),
        };
        // The greeting contains versions only.
        monitor.line()?;
        monitor.execute("qmp_capabilities")?;
        Ok(monitor)
    }

    /// Runs a command to its end.
    pub(crate) fn execute(&mut self, command: &str) -> Result<()> {
        self.execute_with(command, &json!({})).map(drop)
    }

    /// Runs a command with arguments to its end, and returns its answer.
    pub(crate) fn execute_with(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.stream.get_mut(), "{request}").context("Writing to QEMU's monitor")?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU's monitor refuses {command}: {error}");
            }
            // Anything else is an event.
            if let Some(answer) = answer.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        let len = self
            .stream
            .read_line(&mut line)
            .context("Reading from QEMU's monitor")?;
        if len == 0 {
            bail!("QEMU's monitor closed");
        }
        serde_json::from_str(&line).context("Reading from QEMU's monitor")
    }
}
