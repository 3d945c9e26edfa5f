//! Why a port could not join a segment.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use virtio_inter_common::PortId;

use crate::pins_error::PinsError;
use crate::port::PortError;

/// Longest path of a Unix socket, in bytes: `sun_path` less its final zero.
pub const MAX_SOCKET_PATH: usize = 107;

/// Why [`Segment::join`](crate::Segment::join) failed. Nothing is left behind in the directory.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The description of the port is not valid.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The directory's path is so long that no socket can be bound or reached in it.
    #[error(
        "Socket path {} has {length} bytes, at most {MAX_SOCKET_PATH} are allowed",
        path.display()
    )]
    PathTooLong {
        /// Of the port's socket.
        path: PathBuf,
        /// Of the path, in bytes.
        length: usize,
    },
    /// There is no such directory; joining does not create it, since its owner and mode say who
    /// may.
    #[error("Segment directory {} does not exist", .0.display())]
    NoDirectory(PathBuf),
    /// The path leads to something else.
    #[error("Segment path {} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// The directory cannot be opened or listed.
    #[error("Failed to read segment directory {}", path.display())]
    Unreadable {
        /// Of the directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The port may not make files in the directory.
    #[error("Segment directory {} is not writable", path.display())]
    NotWritable {
        /// Of the directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file that says what ports there may be does not let this one in, or cannot be used.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// A port of this id is on the segment already.
    #[error(
        "Port id {id} is taken by {}: give each port of a segment a name (--id) and an address of \
         its own",
        holder(*.pid, *.stays)
    )]
    IdTaken {
        /// The id.
        id: PortId,
        /// Process of the port that has it, if it could be told.
        pid: Option<u32>,
        /// Whether that process is there to stay: false if it was killed or leaves, or is not there
        /// yet.
        stays: bool,
    },
    /// The lock file cannot be used.
    #[error("Failed to lock {}", path.display())]
    Lock {
        /// Of the lock file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("Failed to listen on {}", path.display())]
    Listen {
        /// Of the socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No epoll instance, timer or random number to be had.
    #[error("Failed to set up the event loop of the segment")]
    EventLoop(#[source] io::Error),
}

fn holder(pid: Option<u32>, stays: bool) -> String {
    let port = if stays {
        "a live port"
    } else {
        "a port that ends or begins"
    };
    match pid {
        Some(pid) => format!("{port} (process {pid})"),
        None => port.to_owned(),
    }
}
