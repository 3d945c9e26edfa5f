//! One port's process: takes what it needs, runs until it is told to end, and leaves nothing behind.

use anyhow::{Context, anyhow};
use log::{info, warn};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use virtio_inter_args::{SEGMENTS, absolute};
use virtio_inter_device::Port;
use virtio_inter_segment::{JoinError, Segment};

use crate::cli::PortArgs;
use crate::door::Door;
use crate::event_loop::EventLoop;
use crate::kept::{self, Keeper};
use crate::predecessor::Predecessor;
use crate::signals::Signals;
use crate::socket::SocketLock;
use crate::status_socket::StatusSocket;
use crate::stray_signals::StraySignals;
use crate::vhost_user::session::Limits;
use crate::{limits, notify};

/// Runs a port until SIGTERM, SIGINT or SIGHUP.
///
/// # Errors
///
/// When it cannot run, in words for its user; nothing is left behind then either.
pub fn run_port(arguments: &PortArgs) -> anyhow::Result<()> {
    // Before anything else has descriptors.
    let kept = kept::take_over();
    forbid_dumps();
    let signals = Signals::catch().context("Cannot catch signals")?;
    let strays = StraySignals::catch().context("Cannot catch signals")?;
    limits::prepare(arguments.ring_size);
    let local = arguments.local_port();
    let predecessor = Predecessor::new(&signals);
    let Some(lock) = predecessor.outwait(|| SocketLock::take(&arguments.socket))? else {
        return Ok(());
    };
    let status = match arguments.status_socket.as_deref() {
        None => None,
        Some(path) => match predecessor.outwait(|| StatusSocket::listen(path))? {
            Some(socket) => Some(socket),
            None => return Ok(()),
        },
    };
    let join = || Segment::join(&arguments.segment, local.clone());
    let Some(segment) = predecessor.outwait(join).map_err(suggest_directory)? else {
        return Ok(());
    };
    let mut device = Port::new(&local, arguments.busy_poll())?;
    let limits = Limits {
        queue_size: arguments.queue_size,
        mtu: arguments.mtu,
    };
    let mut door = Door::new(lock.listen()?, limits, Keeper::from_environment())
        .context("Cannot watch the socket")?;
    door.take_over(kept, &mut device)
        .context("Cannot watch the frontend's connection")?;
    let event_loop = EventLoop::new(arguments, signals, strays, door, segment, device, status)
        .context("Cannot wait for events")?;
    info!(
        "Serving {} on segment {} as {}, {}, MTU {}, {} queue pair(s)",
        absolute(&arguments.socket).display(),
        arguments.segment.display(),
        local.id,
        local.mac,
        local.mtu,
        local.queues
    );
    notify::ready();
    event_loop.run()?;
    info!("Leaving {}", arguments.segment.display());
    Ok(())
}

/// A segment's name that is also a directory here was perhaps meant as that.
fn suggest_directory(error: anyhow::Error) -> anyhow::Error {
    if let Some(JoinError::NoDirectory(path)) = error.downcast_ref()
        && let Ok(name) = path.strip_prefix(SEGMENTS)
        && name.is_dir()
    {
        let name = name.display().to_string();
        return anyhow!(
            "{error}; for the directory {name} of the working directory write ./{name}"
        );
    }
    error
}

/// Set for debugging: the port's own user may then trace the port, and it leaves core dumps.
const ALLOW_DUMPS: &str = "VIRTIO_INTER_ALLOW_DUMPS";

/// Frames of the guest and its peers are in this process's memory. The kernel then writes no core
/// dump, and lets only processes with CAP_SYS_PTRACE trace it or read its memory.
fn forbid_dumps() {
    if std::env::var_os(ALLOW_DUMPS).is_some() {
        return;
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        warn!("Cannot forbid core dumps of this process: {error}");
    }
}
