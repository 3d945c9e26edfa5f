//! Value syntax that the command lines of `virtio-inter`, `cloud-hypervisor-ext` and
//! `ch-remote-ext`, and the configuration of `virtio-inter-cni`, share.
//!
//! A value that one of them accepts means the same to the others: sizes with a suffix
//! ([`parse_size`]), segments by name or directory ([`segment_directory`]), paths of Unix sockets
//! ([`check_socket_path`]), rate limits ([`RateLimitArg`]), names of interfaces
//! ([`check_interface_name`]). Paths in logs, errors and status
//! documents are [`absolute`], because their readers have another working directory.
//!
//! The crate knows strings and paths, and looks up users and groups. It opens no other file and
//! depends on no other crate of the workspace.
#![forbid(unsafe_code)]

mod group;
mod interface;
mod name_or_number;
mod nearest;
mod owner;
mod path;
mod rate_limit;
mod segment;
mod size;
mod socket;
mod user;

pub use group::Group;
pub use interface::{InterfaceNameError, check_interface_name};
pub use nearest::{is_typing_error, nearest};
pub use owner::Owner;
pub use path::absolute;
pub use rate_limit::{ByDirection, Direction, RateLimitArg, RateLimitError, TokenBucket};
pub use segment::{SEGMENTS, SegmentArgError, segment_directory};
pub use size::{SizeError, format_size, parse_size};
pub use socket::{MAX_SOCKET_PATH, SocketPathError, check_socket_path};
pub use user::User;
