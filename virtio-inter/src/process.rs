//! The process of one port: acquires its resources, runs until a signal, and cleans up.

use anyhow::{Context, anyhow, bail};
use log::info;
use virtio_inter_args::{SEGMENTS, absolute};
use virtio_inter_device::backend::Network;
use virtio_inter_segment::{JoinError, Segment};

use crate::cli::PortArgs;
use crate::connector::Connector;
use crate::event_loop::EventLoop;
use crate::fd_store::{self, FdStore};
use crate::frontend_server::FrontendServer;
use crate::frontend_source::FrontendSource;
use crate::inherited::Inherited;
use crate::lock_wait::{LockWait, Signals};
use crate::notify;
use crate::opened::{Opened, Opening, OwnSocket, name_user};
use crate::sandbox;
use crate::shutdown_signals::ShutdownSignals;
use crate::unexpected_signals::UnexpectedSignals;
use crate::uplink::{PortDevice, check_right};
use crate::vhost_user::session::SessionLimits;

/// Runs a port until SIGTERM, SIGINT or SIGHUP.
///
/// # Errors
///
/// When it cannot run, in words for its user. No file is left behind then either, but by `--user`
/// where that user may not remove it.
pub fn run_port(arguments: &PortArgs) -> anyhow::Result<()> {
    // First, while no other descriptor of this process has such a number.
    let inherited = arguments.fd.map(Inherited::take).transpose()?;
    let stored = fd_store::take_stored();
    let sockets = [arguments.own_socket(), arguments.status_socket.as_deref()];
    let open = |wait: &LockWait<'_>| Opened::of_port(arguments, wait);
    let Some(opening) = Opening::begin(arguments.user.as_ref(), &sockets, open)? else {
        return Ok(());
    };
    let sandbox = sandbox::enter_process(arguments.sandbox.mode, sandbox::of_port(arguments))?;
    crate::status::process_start();
    let signals = ShutdownSignals::catch().context("Cannot catch signals")?;
    let unexpected = UnexpectedSignals::catch().context("Cannot catch signals")?;
    let local = arguments.local_port();
    let wait = LockWait::new(Signals::Caught(&signals));
    let Some(mut opened) = opening.finish(&wait)? else {
        return Ok(());
    };
    if arguments.trunk {
        check_right(&arguments.segment, "a trunk")?;
    }
    let join = || {
        let limits = arguments.limits.limits();
        Segment::join_with(&arguments.segment, local.clone(), limits)
    };
    let joined = wait.acquire(join).map_err(suggest_directory);
    let Some(segment) = joined.map_err(|error| name_user(error, arguments.user.as_ref()))? else {
        return Ok(());
    };
    // The event loop tries again and warns.
    let _ = opened.status.listen_in_segment(&segment);
    let (uplink, uplink_device) = opened.uplink.unzip();
    let change = |network: Network<_>| {
        if arguments.uplink_offload {
            network
        } else {
            network.with_plain_uplink()
        }
    };
    let mut device = PortDevice::with_network(&local, arguments.config(), uplink_device, change)?;
    if arguments.trunk {
        let barred = segment.barred().context("Cannot read the segment's pins")?;
        device.set_barred(&barred)?;
    }
    let limits = SessionLimits {
        queue_size: arguments.queue_size,
        mtu: arguments.mtu,
    };
    // Whoever passed the connection on keeps it for the next process, or ends this one with it.
    let is_connection = inherited.as_ref().is_some_and(Inherited::is_connection);
    let fd_store = match is_connection {
        true => FdStore::default(),
        false => FdStore::from_environment(),
    };
    let source = open_source(arguments, inherited, opened.socket)?;
    let described = describe(arguments, &source);
    let mut frontends =
        FrontendServer::new(source, limits, fd_store).context("Cannot watch the socket")?;
    frontends
        .resume(stored, &mut device)
        .context("Cannot watch the frontend's connection")?;
    let event_loop = EventLoop::new(
        arguments,
        signals,
        unexpected,
        frontends,
        segment,
        device,
        opened.status,
    )
    .context("Cannot wait for events")?
    .with_uplink(uplink);
    sandbox.log();
    info!(
        "Serving {described} on segment {} as {}, {}, MTU {}, {} queue pair(s)",
        arguments.segment.display(),
        local.id,
        local.mac,
        local.mtu,
        local.queues
    );
    notify::ready();
    event_loop.with_sandbox(sandbox).run()?;
    info!("Leaving {}", arguments.segment.display());
    Ok(())
}

/// Opens the source of connections.
fn open_source(
    arguments: &PortArgs,
    inherited: Option<Inherited>,
    own: Option<OwnSocket>,
) -> anyhow::Result<FrontendSource> {
    Ok(match (inherited, own, &arguments.socket) {
        (Some(inherited), ..) => FrontendSource::Inherited(inherited),
        (None, Some(own), _) => FrontendSource::Listener(own.listen(arguments.socket_access())?),
        (None, None, Some(socket)) => {
            FrontendSource::Connector(Connector::new(socket).context("Cannot set a timer")?)
        }
        (None, None, None) => bail!("--socket or --fd is needed"),
    })
}

/// The socket, for the log.
fn describe(arguments: &PortArgs, source: &FrontendSource) -> String {
    let path = source
        .path()
        .map(|path| absolute(path).display().to_string());
    match (arguments.fd, path) {
        (Some(number), None) => format!("descriptor {number}"),
        (Some(number), Some(path)) => format!("descriptor {number} ({path})"),
        (None, path) if arguments.client => format!("the VMM at {}", path.unwrap_or_default()),
        (None, path) => path.unwrap_or_default(),
    }
}

/// Suggests `./NAME` for a missing segment whose name is a directory of the working directory.
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
