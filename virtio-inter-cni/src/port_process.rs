//! A port that is a process of its own, without a supervisor: nobody restarts it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::attachment::Attachment;
use crate::error::{Error, PORT};
use crate::process::Process;
use crate::program;

/// Maximum time until a port is ready.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two looks whether a port has ended before it was ready.
const PAUSE: Duration = Duration::from_millis(50);

/// Maximum size of a notification.
const NOTIFICATION: usize = 4096;

/// Lines of the port's log in an error.
const LINES: usize = 5;

/// Starts a port, and waits until it is ready.
pub(crate) fn start(
    attachment: &mut Attachment,
    program: &Path,
    arguments: &[std::ffi::OsString],
) -> Result<(), Error> {
    let log_path = attachment.directory.join("port.log");
    let notify_path = attachment.directory.join("notify.sock");
    let mut options = OpenOptions::new();
    let log = options
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&log_path);
    let log = log.map_err(Error::of_path("make", &log_path))?;
    let notify = UnixDatagram::bind(&notify_path)
        .and_then(|socket| socket.set_read_timeout(Some(PAUSE)).map(|()| socket))
        .map_err(Error::of_path("listen on", &notify_path))?;
    let output = log.try_clone().map_err(Error::of_path("use", &log_path))?;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", program::path())
        .env("NOTIFY_SOCKET", &notify_path)
        .current_dir("/")
        // Signals to the runtime's process group are not for the port.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(log)
        .spawn()
        .map_err(|error| Error::new(PORT, format!("Cannot run {}: {error}", program.display())))?;
    attachment.record.process = match Process::of(&child) {
        Some(process) => Some(process),
        None => {
            // Nobody could end it later.
            let _ = child.kill();
            return Err(Error::new(PORT, "Cannot read when the port was started"));
        }
    };
    attachment.save()?;
    let ready = wait(&mut child, &notify);
    // The port has its answer; what it sends from now on is for nobody.
    let removed = fs::remove_file(&notify_path).map_err(Error::of_path("remove", &notify_path));
    ready.and(removed).map_err(|error| {
        let log = fs::read_to_string(&log_path).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        error.detail(lines[lines.len().saturating_sub(LINES)..].join("\n"))
    })
}

/// Waits until a port says that it is ready.
fn wait(child: &mut Child, notify: &UnixDatagram) -> Result<(), Error> {
    let deadline = Instant::now() + READY_TIMEOUT;
    let mut reason = None;
    loop {
        // Looked at before the socket is read: the last words of a process come before its end.
        let ended = child.try_wait();
        let ended = ended.map_err(|error| Error::io("Cannot wait for the port", error))?;
        let mut buffer = [0; NOTIFICATION];
        let received = notify.recv(&mut buffer);
        let text = String::from_utf8_lossy(&buffer[..received.unwrap_or_default()]);
        for line in text.lines() {
            if line == "READY=1" {
                return Ok(());
            }
            if let Some(status) = line.strip_prefix("STATUS=") {
                reason = Some(status.to_owned());
            }
        }
        if let Some(status) = ended.filter(|_| text.is_empty()) {
            let reason = reason.unwrap_or_else(|| format!("it ended: {status}"));
            return Err(Error::new(PORT, format!("The port cannot start: {reason}")));
        }
        if Instant::now() >= deadline {
            let message = format!("The port is not ready after {} s", READY_TIMEOUT.as_secs());
            return Err(Error::new(PORT, message));
        }
    }
}
