//! What the control thread asks a worker to do. Rare: each is answered once it is done.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use virtio_inter_link::{Receiver, Sender};
use virtio_inter_segment::{MacAddr, PeerKey};

use crate::device::{DeviceError, GuestMemory, QueueSetup};
use crate::features::Negotiated;

use super::receive::Source;
use super::steering::Ready;

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
    /// Each with the worker that serves it when its receive queue is ready.
    pub(crate) receivers: Vec<(Receiver, u16)>,
}

/// A change to what a worker works on.
pub(crate) enum Command {
    SetFeatures(Negotiated),
    SetMemory(Option<Arc<GuestMemory>>),
    Start(Direction, QueueSetup),
    Enable(Direction, bool),
    SetCall(Direction, Option<OwnedFd>),
    SetKick(Direction, OwnedFd),
    /// Answered with [`Answer::Index`].
    Stop(Direction),
    AddPeer(Box<PeerPart>),
    RemovePeer(PeerKey),
    /// Hand out the links that are another worker's to serve now. Answered with [`Answer::Sources`].
    GiveSources(Ready),
    /// Serve these links from now on.
    TakeSources(Vec<Source>),
    /// Tell all peers where the port's address is. Answered with [`Answer::Peers`].
    Announce,
}

/// What a worker says to a command.
pub(crate) enum Answer {
    /// Done.
    Done,
    /// The next available index.
    Index(u16),
    /// Links handed out.
    Sources(Vec<Source>),
    /// How many peers.
    Peers(usize),
}

/// A command and where its answer goes.
pub(crate) struct Request {
    pub(crate) command: Command,
    pub(crate) reply: SyncSender<Result<Answer, DeviceError>>,
}
