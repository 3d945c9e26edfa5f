//! The virtio-net device: virtqueues, frames, forwarding.
