//! Tells a service manager that the port serves, or why it does not: sd_notify(3), if `NOTIFY_SOCKET`
//! is set.
//!
//! Sending a datagram blocks while its receiver's queue is full. A service manager that hangs must
//! not hold the port up, so a thread sends it.

use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use log::warn;
use sd_notify::NotifyState;

/// Longest wait, at the end of the process, for a service manager that does not read.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// The port serves its socket and is on its segment.
pub fn ready() {
    notify(|| sd_notify::notify(&[NotifyState::Ready]));
}

/// Set by a starter that prints the reason when the port ends with an error, as
/// `cloud-hypervisor-ext` does. The port then leaves that to it.
const SUPERVISED: &str = "VIRTIO_INTER_SUPERVISED";

/// The port ends with an error: whether its starter has got the reason and prints it.
pub fn failed(why: &str) -> bool {
    // One line is one assignment of the protocol.
    let why = why.replace('\n', " ");
    let sent = notify(move || sd_notify::notify(&[NotifyState::Status(&why)]));
    // Returns at once if nothing is sent: the channel's other end is gone then.
    sent.recv_timeout(LAST_WORDS).is_ok() && std::env::var_os(SUPERVISED).is_some()
}

/// Has a notification sent. The channel returned gets a message when the receiver has it.
fn notify(send: impl FnOnce() -> io::Result<()> + Send + 'static) -> Receiver<()> {
    let (done, sent) = channel();
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return sent;
    }
    let thread = thread::Builder::new()
        .name("notify".to_owned())
        .spawn(move || match send() {
            // Nobody waits for READY=1.
            Ok(()) => drop(done.send(())),
            Err(error) => warn!("Cannot notify the service manager: {error}"),
        });
    if let Err(error) = thread {
        warn!("Cannot notify the service manager: {error}");
    }
    sent
}
