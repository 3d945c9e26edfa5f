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

/// The port ends with an error.
pub fn failed(why: &str) {
    // One line is one assignment of the protocol.
    let why = why.replace('\n', " ");
    let sent = notify(move || sd_notify::notify(&[NotifyState::Status(&why)]));
    // Returns at once if there is no thread: the channel's other end is gone then.
    let _ = sent.recv_timeout(LAST_WORDS);
}

/// Has a notification sent. The channel returned gets a message when that is done.
fn notify(send: impl FnOnce() -> io::Result<()> + Send + 'static) -> Receiver<()> {
    let (done, sent) = channel();
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return sent;
    }
    let thread = thread::Builder::new()
        .name("notify".to_owned())
        .spawn(move || {
            if let Err(error) = send() {
                warn!("Cannot notify the service manager: {error}");
            }
            // Nobody waits for the first.
            let _ = done.send(());
        });
    if let Err(error) = thread {
        warn!("Cannot notify the service manager: {error}");
    }
    sent
}
