//! The sandbox of a port or uplink: the files and system calls that it needs. The walls are built
//! by `virtio-inter-sandbox`; see decision 0090.

mod access;
pub mod calls;

pub use virtio_inter_sandbox::{Access, MissingWalls, Mode, Report, SandboxArgs, Wall};

pub use self::access::{of_port, of_uplink};
use self::calls::PORT;
use crate::notify;

/// Enters the sandbox. To be called before any other thread exists: before the first log line, too,
/// for which there is one.
///
/// # Errors
///
/// A wall is missing, and the mode is [`Mode::Strict`].
pub fn enter_process(mode: Mode, access: Access) -> Result<Report, MissingWalls> {
    // From within, it cannot be reached if it is an abstract socket.
    notify::connect();
    let report = virtio_inter_sandbox::enter_process(mode, access, &PORT);
    // The thread that writes the log is within the walls now.
    virtio_inter_log::release();
    report
}
