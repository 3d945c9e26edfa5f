//! What the control thread asks a worker to do. Rare: each is answered once it is done.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use virtio_inter_link::{Receiver, Sender};
use virtio_inter_segment::{MacAddr, PeerKey};

use crate::device::{DeviceError, GuestMemory, QueueSetup};
use crate::features::Negotiated;

/// Which queue of the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Even indices: frames to the guest.
    Receive,
    /// Odd indices: frames from the guest.
    Transmit,
}

/// One worker's share of the links with a peer.
pub(crate) struct PeerPart {
    pub(crate) key: PeerKey,
    pub(crate) mac: MacAddr,
    pub(crate) sender: Sender,
    pub(crate) receivers: Vec<Receiver>,
}

/// A change to what a worker works on.
pub(crate) enum Command {
    SetFeatures(Negotiated),
    SetMemory(Option<Arc<GuestMemory>>),
    Start(Direction, QueueSetup),
    Enable(Direction, bool),
    SetCall(Direction, Option<OwnedFd>),
    SetKick(Direction, OwnedFd),
    /// Answered with the next available index.
    Stop(Direction),
    AddPeer(Box<PeerPart>),
    RemovePeer(PeerKey),
}

/// A command and where its answer goes.
pub(crate) struct Request {
    pub(crate) command: Command,
    pub(crate) reply: SyncSender<Result<u16, DeviceError>>,
}
