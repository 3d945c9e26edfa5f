//! A test double for what stands around a port: a driver with its rings in guest memory, and a
//! network of links.
//!
//! - `arena.rs`: guest memory, and who has which piece of it;
//! - `ring.rs`: a split virtqueue's words, written and read without any rule: what a hostile driver
//!   needs;
//! - `queue.rs`: a driver that keeps to the rules of VIRTIO 1.3, 2.7, and insists that the device
//!   does;
//! - `guest.rs`: a network driver's transmit and receive queues on top of it;
//! - `packet.rs`: frames that know what they must look like when they arrive;
//! - `offload.rs`: what must become of a frame that a guest cannot take as it is, said simply;
//! - `stream.rs`: threads that make all guests talk at once, and check what they hear;
//! - `link.rs` and `network.rs`: ports joined by real links, each with a guest or with a peer
//!   played by the test.
//!
//! Every wait is bounded by [`PATIENCE`], and ends on a descriptor, never on a clock alone.
#![allow(
    dead_code,
    unused_imports,
    reason = "each test binary uses its own part of the double"
)]

pub(crate) mod arena;
pub(crate) mod guest;
pub(crate) mod link;
pub(crate) mod network;
pub(crate) mod offload;
pub(crate) mod packet;
pub(crate) mod queue;
pub(crate) mod ring;
pub(crate) mod stream;
pub(crate) mod wait;

pub(crate) use arena::{Arena, END, SEAM};
pub(crate) use guest::{Guest, Received, RxQueue, TxQueue};
pub(crate) use link::{RawLink, link};
pub(crate) use network::{
    Feature, LEAN, Network, Node, Peer, Spec, boot_in, busy_poll, info, local, mac,
};
pub(crate) use offload::adapted;
pub(crate) use packet::{HEADER, Packet};
pub(crate) use queue::{Piece, Queue, Shape};
pub(crate) use ring::Ring;
pub(crate) use virtio_inter_test_support::Rng;
pub(crate) use wait::{PATIENCE, SetOnDrop, until, wait_readable};
