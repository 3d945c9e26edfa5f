//! Notifies a service manager that the port is ready, or why it failed: sd_notify(3), if
//! `NOTIFY_SOCKET` is set.
//!
//! Sending a datagram blocks while its receiver's queue is full. A thread sends it, so that a
//! service manager that hangs does not block the port. The socket is connected before the sandbox
//! is entered, from within which abstract sockets cannot be reached.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use log::{debug, warn};
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect as connect_socket,
    send, socket_with,
};
use sd_notify::NotifyState;
use virtio_inter_common::thread_role::{self, Role};

/// Maximum wait, at the end of the process, for a service manager that does not read.
const FINAL_TIMEOUT: Duration = Duration::from_millis(200);

/// The service manager's socket, or why it cannot be reached; `None` if there is none.
static MANAGER: OnceLock<Option<io::Result<UnixDatagram>>> = OnceLock::new();

/// Connects to the service manager's socket, if there is one and this was not done before.
pub fn connect() -> Option<&'static io::Result<UnixDatagram>> {
    let manager = MANAGER.get_or_init(|| {
        let path = std::env::var_os("NOTIFY_SOCKET")?;
        Some(connect_to(&path))
    });
    manager.as_ref()
}

fn connect_to(path: &OsStr) -> io::Result<UnixDatagram> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
        path => SocketAddrUnix::new(path)?,
    };
    let (kind, flags) = (SocketType::DGRAM, SocketFlags::CLOEXEC);
    let socket = socket_with(AddressFamily::UNIX, kind, flags, None)?;
    connect_socket(&socket, &address)?;
    Ok(socket.into())
}

/// Notifies that the port serves its socket and has joined its segment, or that the exporter
/// serves.
pub fn ready() {
    notify(&NotifyState::Ready);
}

/// Notifies that this process still works. Never blocks, and needs no thread: a service manager
/// that hangs does not count the time.
pub fn alive() {
    notify_now(&NotifyState::Watchdog);
}

/// Notifies of something that is wrong while the port serves, or that nothing is (""). Not a
/// supervisor that takes such a text for the reason why the port ends.
pub(crate) fn trouble(what: &str) {
    if std::env::var_os(SUPERVISED).is_none() {
        let what = what.replace('\n', " ");
        notify_now(&NotifyState::Status(&what));
    }
}

fn notify_now(state: &NotifyState<'_>) {
    if let Some(Ok(manager)) = connect() {
        let text = format!("{state}\n");
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if let Err(error) = send(manager, text.as_bytes(), flags) {
            debug!("Cannot notify the service manager: {error}");
        }
    }
}

/// Environment variable of a supervisor that prints the reason when the port fails, as
/// `cloud-hypervisor-ext` does. The port then does not log it.
const SUPERVISED: &str = "VIRTIO_INTER_SUPERVISED";

/// Notifies that the port failed. Returns whether its supervisor has received the reason and prints
/// it.
pub fn failed(why: &str) -> bool {
    // In this protocol a line is an assignment.
    let why = why.replace('\n', " ");
    let sent = notify(&NotifyState::Status(&why));
    // Returns at once if no datagram is sent: the channel's other end is closed then.
    sent.recv_timeout(FINAL_TIMEOUT).is_ok() && std::env::var_os(SUPERVISED).is_some()
}

/// Sends a notification from a new thread. The returned channel gets a message when it is sent.
fn notify(state: &NotifyState<'_>) -> Receiver<()> {
    let (done, sent) = channel();
    let Some(manager) = connect() else {
        return sent;
    };
    let text = format!("{state}\n");
    let thread = thread::Builder::new()
        .name("notify".to_owned())
        .spawn(move || {
            thread_role::enter(Role::Helper);
            let result = match manager {
                Ok(socket) => socket
                    .send(text.as_bytes())
                    .map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match result {
                // Fails after READY=1: its caller does not wait.
                Ok(_) => drop(done.send(())),
                Err(error) => warn!("Cannot notify the service manager: {error}"),
            }
        });
    if let Err(error) = thread {
        warn!("Cannot notify the service manager: {error}");
    }
    sent
}
