//! The port process: serves a VM's vhost-user frontend and joins a segment.
//!
//! This crate is the process around the data path: command line, sockets, signals and the
//! vhost-user protocol. `virtio-inter-device` has queues and frames, `virtio-inter-segment` peers
//! and links.

mod attachment;
pub mod capabilities;
pub mod capture_socket;
pub mod cli;
pub mod connector;
pub mod diagnostics;
mod directory_modes;
pub mod event_loop;
pub mod fd_store;
mod file_watch;
pub mod frontend_server;
pub mod frontend_source;
pub mod inherited;
pub mod limit_args;
mod link_control;
mod lock_wait;
pub mod notify;
mod opened;
pub mod paths;
pub mod process;
pub mod rate_limit_args;
mod restore_backoff;
pub mod rlimits;
pub mod run_error;
pub mod sandbox;
mod service_socket;
pub mod shared_uplink;
pub mod shutdown_signals;
pub mod socket;
pub mod socket_access;
pub mod status;
pub mod status_socket;
mod timer;
mod trunk;
pub mod unexpected_signals;
pub mod uplink;
pub mod vhost_user;
pub mod warnings;
pub mod watchdog;
