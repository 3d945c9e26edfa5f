//! Types and helpers that several crates of virtio-inter share, and that belong to none of them.

mod backoff;
mod dir_notify;
mod epoll;
mod error_chain;
mod guard;
mod ip_sets;
pub mod liveness;
pub mod log_limit;
mod mac;
mod mac_sets;
mod peer_credentials;
mod port_id;
mod set_list;
pub mod thread_role;

pub use backoff::Backoff;
pub use dir_notify::DirNotify;
pub use epoll::{Epoll, Events, Timeout};
pub use error_chain::ErrorChain;
pub use guard::Guard;
pub use ip_sets::{IpSet, IpSetError, IpSets, MAX_IP_SETS};
pub use log_limit::LogLimit;
pub use mac::{MacAddr, MacError};
pub use mac_sets::{MAX_MAC_SETS, MacSet, MacSetError, MacSets};
pub use peer_credentials::{PeerCredentials, peer_pid, peer_pid_and_uid, peer_uid};
pub use port_id::{MAX_ID_LEN, MAX_QUEUE_PAIRS, PortId, PortIdError};
