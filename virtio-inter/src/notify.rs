//! Tells a service manager that the port serves, or why it does not: sd_notify(3), where `NOTIFY_SOCKET` is set.

use log::warn;
use sd_notify::NotifyState;

/// The port serves its socket and is on its segment.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// The port ends with an error, in one line.
pub fn failed(why: &str) {
    // One line is one assignment of the protocol.
    notify(&[NotifyState::Status(&why.replace('\n', " "))]);
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("Cannot notify the service manager: {error}");
    }
}
