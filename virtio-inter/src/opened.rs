//! What a port or uplink opens of the host before it joins its segment: the paths of its sockets
//! and the tap device. With `--user`, root opens them, and the process becomes that user then.

use std::path::Path;

use anyhow::Context;
use log::warn;
use rustix::fs::{Access, access};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use virtio_inter_args::User;

use crate::cli::{PortArgs, UplinkArgs};
use crate::directory_modes::check_socket_directory;
use crate::lock_wait::{LockWait, Signals};
use crate::shutdown_signals::EarlySignals;
use crate::socket::{BoundSocket, Listener, SocketError, SocketLock};
use crate::socket_access::{SocketAccess, owner};
use crate::status_socket::StatusSocket;
use crate::uplink::{Uplink, UplinkKind};
use crate::{notify, rlimits};

/// The path on which a port listens for the VMM, as soon as it serves.
pub(crate) enum OwnSocket {
    /// Nobody else has it.
    Locked(SocketLock),
    /// The socket is there, and does not listen yet.
    Bound(BoundSocket),
}

impl OwnSocket {
    /// Listens.
    ///
    /// # Errors
    ///
    /// When the socket cannot be made there, or not for these users.
    pub(crate) fn listen(self, access: SocketAccess) -> Result<Listener, SocketError> {
        match self {
            Self::Locked(lock) => lock.listen(access),
            Self::Bound(socket) => socket.listen(),
        }
    }
}

/// All of it.
pub(crate) struct Opened {
    /// Of a port that listens on a path of its own.
    pub(crate) socket: Option<OwnSocket>,
    pub(crate) status: StatusSocket,
    /// What is known of the device, and the device.
    pub(crate) uplink: Option<(Uplink, UplinkKind)>,
}

impl Opened {
    /// For a port. `None`: a signal came.
    pub(crate) fn of_port(
        arguments: &PortArgs,
        wait: &LockWait<'_>,
    ) -> anyhow::Result<Option<Self>> {
        rlimits::prepare(arguments.ring_size);
        if let Some(socket) = &arguments.socket
            && !arguments.allow_public_directory
        {
            check_socket_directory(socket, arguments.client)?;
        }
        let mut own = None;
        if let Some(socket) = arguments.own_socket() {
            let Some(lock) = wait.acquire(|| SocketLock::take(socket))? else {
                return Ok(None);
            };
            own = Some(match owner(arguments.user.as_ref()) {
                None => OwnSocket::Locked(lock),
                Some(owner) => {
                    lock.give_to(owner)?;
                    OwnSocket::Bound(lock.bind(arguments.socket_access())?)
                }
            });
        }
        let path = arguments.status_socket.as_deref();
        let Some(status) = listen_status(path, arguments.user.as_ref(), wait)? else {
            return Ok(None);
        };
        let uplink = arguments.uplink.as_ref();
        let uplink = uplink.map(|uplink| Uplink::open(uplink, arguments.queues, arguments.mtu));
        Ok(Some(Self {
            socket: own,
            status,
            uplink: uplink.transpose()?,
        }))
    }

    /// For an uplink that ports share: its device is there.
    pub(crate) fn of_uplink(
        arguments: &UplinkArgs,
        wait: &LockWait<'_>,
    ) -> anyhow::Result<Option<Self>> {
        rlimits::prepare(arguments.ring_size);
        let path = arguments.status_socket.as_deref();
        let Some(status) = listen_status(path, arguments.user.as_ref(), wait)? else {
            return Ok(None);
        };
        let uplink = Uplink::open(&arguments.device(), arguments.queues, arguments.mtu)?;
        Ok(Some(Self {
            socket: None,
            status,
            uplink: Some(uplink),
        }))
    }
}

fn listen_status(
    path: Option<&Path>,
    user: Option<&User>,
    wait: &LockWait<'_>,
) -> anyhow::Result<Option<StatusSocket>> {
    wait.acquire(|| StatusSocket::listen(path, owner(user)))
}

/// When things are opened: at the beginning, by root, if the process is to become another user, or
/// else at the end.
pub(crate) struct Opening<F> {
    open: F,
    /// What root has opened, and whether a signal came meanwhile.
    as_root: Option<(Opened, EarlySignals)>,
}

impl<F> Opening<F>
where
    F: Fn(&LockWait<'_>) -> anyhow::Result<Option<Opened>>,
{
    /// With a `user`, has `open` open things as root, then becomes that user. To be called before
    /// any other thread exists. The log is then held until [`virtio_inter_log::release`], which is
    /// to be called in the sandbox. `sockets`: those that are opened. `None`: a signal came first,
    /// and what was opened is closed again.
    ///
    /// # Errors
    ///
    /// Those of `open`, or when the process cannot become that user.
    pub(crate) fn begin(
        user: Option<&User>,
        sockets: &[Option<&Path>],
        open: F,
    ) -> anyhow::Result<Option<Self>> {
        let Some(user) = user else {
            let as_root = None;
            return Ok(Some(Self { open, as_root }));
        };
        let as_root = open_as_root(user, sockets, &open)?;
        Ok(as_root.map(|as_root| Self {
            open,
            as_root: Some(as_root),
        }))
    }

    /// Opens what root has not, when signals are caught. `None`: one came, or came before.
    ///
    /// # Errors
    ///
    /// Those of `open`.
    pub(crate) fn finish(self, wait: &LockWait<'_>) -> anyhow::Result<Option<Opened>> {
        match self.as_root {
            Some((opened, early)) => Ok(Some(opened).filter(|_| !early.came())),
            None => (self.open)(wait),
        }
    }
}

fn open_as_root(
    user: &User,
    sockets: &[Option<&Path>],
    open: impl FnOnce(&LockWait<'_>) -> anyhow::Result<Option<Opened>>,
) -> anyhow::Result<Option<(Opened, EarlySignals)>> {
    virtio_inter_log::hold();
    // It may be in a directory of root's.
    notify::connect();
    let signals = EarlySignals::note().context("Cannot catch signals")?;
    let opened = open(&LockWait::new(Signals::Early(&signals)))?;
    // As root, who may remove the files.
    let Some(opened) = opened.filter(|_| !signals.came()) else {
        return Ok(None);
    };
    become_user(user).with_context(|| format!("Cannot become user {user} (--user)"))?;
    warn_of_directories(user, sockets);
    Ok(Some((opened, signals)))
}

/// Names the user that the process has become in an error of what it then could not do.
pub(crate) fn name_user(error: anyhow::Error, user: Option<&User>) -> anyhow::Error {
    match user {
        Some(user) => error.context(format!("As user {user} (--user)")),
        None => error,
    }
}

/// Takes on the rights of a user, for ever: no capability is left, as long as the process was not
/// told to keep them (capabilities(7)), and these the sandbox drops.
fn become_user(user: &User) -> rustix::io::Result<()> {
    let groups: Vec<Gid> = user.groups().iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    // The kernel's calls are about the calling thread. There is no other one.
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

/// Warns of directories in which the user can neither remove nor make files.
fn warn_of_directories(user: &User, sockets: &[Option<&Path>]) {
    let paths = sockets.iter().copied().flatten();
    let mut directories: Vec<&Path> = paths.map(virtio_inter_sandbox::directory_of).collect();
    directories.dedup();
    for directory in directories {
        if access(directory, Access::WRITE_OK | Access::EXEC_OK).is_err() {
            warn!(
                "User {user} (--user) cannot write to {}: sockets there are not removed at the \
                 end, and not restored if something else removes them",
                directory.display()
            );
        }
    }
}
