//! Notifies a service manager that the port is ready, or why it failed: sd_notify(3), if
//! `NOTIFY_SOCKET` is set.
//!
//! Sending a datagram blocks while its receiver's queue is full. A thread sends it, so that a
//! service manager that hangs does not block the port.

use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use log::warn;
use sd_notify::NotifyState;

/// Maximum wait, at the end of the process, for a service manager that does not read.
const FINAL_TIMEOUT: Duration = Duration::from_millis(200);

/// Notifies that the port serves its socket and has joined its segment.
pub fn ready() {
    notify(|| sd_notify::notify(&[NotifyState::Ready]));
}

/// Environment variable of a supervisor that prints the reason when the port fails, as
/// `cloud-hypervisor-ext` does. The port then does not log it.
const SUPERVISED: &str = "VIRTIO_INTER_SUPERVISED";

/// Notifies that the port failed. Returns whether its supervisor has received the reason and prints
/// it.
pub fn failed(why: &str) -> bool {
    // In this protocol a line is an assignment.
    let why = why.replace('\n', " ");
    let sent = notify(move || sd_notify::notify(&[NotifyState::Status(&why)]));
    // Returns at once if no datagram is sent: the channel's other end is closed then.
    sent.recv_timeout(FINAL_TIMEOUT).is_ok() && std::env::var_os(SUPERVISED).is_some()
}

/// Sends a notification from a new thread. The returned channel gets a message when it is sent.
fn notify(send: impl FnOnce() -> io::Result<()> + Send + 'static) -> Receiver<()> {
    let (done, sent) = channel();
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return sent;
    }
    let thread = thread::Builder::new()
        .name("notify".to_owned())
        .spawn(move || match send() {
            // Fails after READY=1: its caller does not wait.
            Ok(()) => drop(done.send(())),
            Err(error) => warn!("Cannot notify the service manager: {error}"),
        });
    if let Err(error) = thread {
        warn!("Cannot notify the service manager: {error}");
    }
    sent
}
