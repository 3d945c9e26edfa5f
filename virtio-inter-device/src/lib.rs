//! The virtio-net device: virtqueues, frames, forwarding.
//!
//! Knows nothing of vhost-user, command lines or the segment's files: it is handed guest memory, queues and
//! peers' links, and moves frames between them.
#![forbid(unsafe_code)]

pub mod device;
