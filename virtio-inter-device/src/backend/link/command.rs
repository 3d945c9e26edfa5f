//! Commands of the control thread to the links of a worker.

use virtio_inter_common::MacAddr;
use virtio_inter_link::{Receiver, ReceiverPage, Sender};
use virtio_inter_segment::PeerKey;

use super::rx::RxLink;
use crate::backend::steering::Ready;

/// One worker's share of the links with a peer.
pub struct PeerShare {
    pub(crate) key: PeerKey,
    pub(crate) mac: MacAddr,
    pub(crate) sender: Sender,
    /// Each with the worker that serves it if that worker's receive queue is in use.
    pub(crate) receivers: Vec<(Receiver, u16)>,
}

/// A change to the links of a worker.
pub enum LinkCommand {
    /// Exchange frames with a peer.
    AddPeer(Box<PeerShare>),
    /// Close all links with a peer.
    RemovePeer(PeerKey),
    /// Hand out the links that another worker is to serve. Answered with [`LinkAnswer::Links`].
    TakeMisplaced(Ready),
    /// Serve these links.
    AddRxLinks(Vec<RxLink>),
    /// Read the words of the peer that receives from this page.
    Attach(PeerKey, ReceiverPage),
}

/// Answer to a [`LinkCommand`].
pub enum LinkAnswer {
    /// The command was carried out.
    Done,
    /// Links handed out.
    Links(Vec<RxLink>),
}
