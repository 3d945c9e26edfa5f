//! A client of the control socket of a VM's supervisor (docs/control-protocol.md).

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use cloud_hypervisor_ext::control_protocol::{PortInfo, Reply, Request};
use cloud_hypervisor_ext::vm_directory::control_socket;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::geteuid;
use virtio_inter_args::absolute;

/// Timeout: a supervisor answers at once, except for a port's start (at most 10 s) and end (at most
/// 5 s).
const TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to a supervisor.
#[derive(Debug)]
pub(crate) struct ControlClient {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl ControlClient {
    /// The supervisor of the VM with this API socket.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub(crate) fn connect(api_socket: &Path) -> anyhow::Result<Self> {
        let path = control_socket(api_socket);
        let stream = open(&path).with_context(|| {
            format!(
                "No supervisor at {}: was the VM started by cloud-hypervisor-ext? If not, start a \
                 `virtio-inter port` by hand, and plug it in by add-net vhost_user=on,socket=…",
                absolute(&path).display()
            )
        })?;
        Self::of(stream, path, api_socket)
    }

    /// The supervisor of the VM with this API socket, if it has one.
    ///
    /// # Errors
    /// When the socket cannot be used, or belongs to another user's process.
    pub(crate) fn find(api_socket: &Path) -> anyhow::Result<Option<Self>> {
        let path = control_socket(api_socket);
        // Checked first: a path that is too long for a socket's address is an error even if no file
        // exists.
        if let Err(error) = fs::symlink_metadata(&path)
            && matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            )
        {
            return Ok(None);
        }
        match open(&path) {
            Ok(stream) => Self::of(stream, path, api_socket).map(Some),
            // The supervisor was killed, and its ports with it.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error)
                .with_context(|| format!("Cannot ask supervisor at {}", absolute(&path).display())),
        }
    }

    fn of(stream: UnixStream, path: PathBuf, api_socket: &Path) -> anyhow::Result<Self> {
        let owner = fs::metadata(api_socket).ok().map(|socket| socket.uid());
        let uid = socket_peercred(&stream)
            .with_context(|| format!("Cannot tell whose {} is", absolute(&path).display()))?
            .uid
            .as_raw();
        if !may_supervise(uid, geteuid().as_raw(), owner) {
            bail!(
                "Process at {} is of user {uid}, who is neither the VM's nor root nor you: not \
                 asked for anything",
                absolute(&path).display()
            );
        }
        Ok(Self {
            path,
            stream: BufReader::new(stream),
        })
    }

    fn ask(&mut self, request: &Request) -> anyhow::Result<Reply> {
        let reply = self.exchange(request).with_context(|| {
            format!(
                "Supervisor at {} does not answer",
                absolute(&self.path).display()
            )
        })?;
        match reply {
            Reply::Error(why) => Err(why
                .into_iter()
                .rev()
                .fold(None, |error: Option<anyhow::Error>, line| {
                    Some(match error {
                        None => anyhow!(line),
                        Some(error) => error.context(line),
                    })
                })
                .unwrap_or_else(|| anyhow!("Supervisor gives no reason"))),
            reply => Ok(reply),
        }
    }

    fn exchange(&mut self, request: &Request) -> io::Result<Reply> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes())?;
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    pub(crate) fn list(&mut self) -> anyhow::Result<Vec<PortInfo>> {
        match self.ask(&Request::List)? {
            Reply::List { ports, .. } => Ok(ports),
            other => bail!("Supervisor answers {other:?}"),
        }
    }

    pub(crate) fn add(&mut self, device: String) -> anyhow::Result<PortInfo> {
        match self.ask(&Request::Add(device))? {
            Reply::Added(port) => Ok(*port),
            other => bail!("Supervisor answers {other:?}"),
        }
    }

    /// Has requests of the VMM to a port that is not ready fail at once. A supervisor of an older
    /// version does not know that, and what else is wrong shows with the next request.
    pub(crate) fn release(&mut self, id: &str) {
        let _ = self.ask(&Request::Release(id.to_owned()));
    }

    pub(crate) fn remove(&mut self, id: &str) -> anyhow::Result<()> {
        match self.ask(&Request::Remove(id.to_owned()))? {
            Reply::Removed => Ok(()),
            other => bail!("Supervisor answers {other:?}"),
        }
    }
}

/// Connects with timeouts, also for connect(2): the queue of a listener that hangs may be full.
fn open(path: &Path) -> io::Result<UnixStream> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    for timeout in [Timeout::Send, Timeout::Recv] {
        set_socket_timeout(&socket, timeout, Some(TIMEOUT))?;
    }
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// Whether to trust a supervisor of user `uid`. In a directory such as `/tmp` anyone can listen
/// where a supervisor would, and name sockets to which the VMM would hand the guest's memory.
fn may_supervise(uid: u32, ours: u32, api_socket_owner: Option<u32>) -> bool {
    uid == 0 || uid == ours || Some(uid) == api_socket_owner
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supervisor_of_another_user_is_not_trusted() {
        for (uid, ours, owner, expected) in [
            (0, 1000, None, true),
            (1000, 1000, None, true),
            (1000, 0, Some(1000), true),
            (1000, 0, Some(1001), false),
            (1000, 0, Some(0), false),
            (1000, 0, None, false),
        ] {
            assert_eq!(may_supervise(uid, ours, owner), expected);
        }
    }
}
