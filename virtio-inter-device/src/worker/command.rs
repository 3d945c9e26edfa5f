//! Commands of the control thread to a worker. They are rare; each is answered when it is done.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use crate::backend::Backend;
use crate::batch::Direction;
use crate::capture::{CaptureCounts, CaptureRing};
use crate::device::{DeviceError, QueueSetup};
use crate::features::Negotiated;
use crate::guest_memory::GuestMemory;

/// A change to the state of a worker.
pub(crate) enum Command<B: Backend> {
    SetFeatures(Negotiated),
    SetMemory(Option<Arc<GuestMemory>>),
    Start(Direction, QueueSetup),
    Enable(Direction, bool),
    SetCall(Direction, Option<OwnedFd>),
    SetKick(Direction, OwnedFd),
    /// Answered with [`Answer::Index`].
    Stop(Direction),
    /// Announce the port's address to all peers. Answered with [`Answer::Peers`].
    Announce,
    /// Copy the heads of a queue's frames from now on.
    Capture(Direction, Box<CaptureRing>),
    /// Copy none any more. Answered with [`Answer::Captured`].
    EndCapture,
    /// Answered with [`Answer::Backend`].
    Backend(B::Command),
}

/// Answer to a command.
pub(crate) enum Answer<B: Backend> {
    /// The command was carried out.
    Done,
    /// The next available index.
    Index(u16),
    /// Number of peers.
    Peers(usize),
    /// What was captured of both queues.
    Captured(CaptureCounts),
    /// The backend's answer.
    Backend(B::Answer),
}

/// A command, and where its answer goes.
pub(crate) struct Request<B: Backend> {
    pub(crate) command: Command<B>,
    pub(crate) reply: SyncSender<Result<Answer<B>, DeviceError>>,
}
