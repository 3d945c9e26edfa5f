//! Commands of the control thread to the links of a worker.
//!
//! What a worker has no use for any more goes back to the control thread with the answer: to unmap
//! memory takes long.

use std::collections::BTreeSet;
use std::sync::Arc;

use virtio_inter_common::{MacAddr, MacSets};
use virtio_inter_link::{ReceiverPage, Sender};
use virtio_inter_segment::PeerKey;

use super::forward::PeerAddresses;
use super::rx::{FinishedRing, RxLink};
use super::traffic::PeerTraffic;
use crate::backend::steering::ActiveQueues;

/// The links that frames take which are not for one peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// The peers that get no multicast frames by link: they hear them elsewhere.
    pub elsewhere: BTreeSet<PeerKey>,
    /// The peer that gets unicast frames to addresses that no peer has.
    pub default: Option<PeerKey>,
    /// The peers that have no guest now: unicast frames to their addresses go the way of those to
    /// addresses that no peer has.
    pub away: BTreeSet<PeerKey>,
    /// For an uplink of other ports: another one is active, and this one carries nothing.
    pub standby: bool,
}

/// A peer, its addresses, and where the frames that are exchanged with it are counted.
pub(crate) type NewPeer = (PeerKey, PeerAddresses, Arc<PeerTraffic>);

/// A change to the links of a worker.
pub enum LinkCommand {
    /// Exchange frames with these peers, and count them.
    AddPeers(Vec<NewPeer>),
    /// A peer has these addresses from now on.
    SetAddresses(PeerKey, PeerAddresses),
    /// The guest of this trunk may not use these.
    SetBarred(MacSets),
    /// The guest of this trunk uses these, in order.
    SetUsed(Arc<[MacAddr]>),
    /// Close all links with these peers. Answered with [`LinkAnswer::Unused`].
    RemovePeers(Vec<PeerKey>),
    /// Hand out the links that another worker is to serve. Answered with [`LinkAnswer::Links`].
    TakeMisplaced(ActiveQueues),
    /// Serve these links.
    AddRxLinks(Vec<RxLink>),
    /// Choose links like this from now on, also to peers that are added later. Answered with
    /// [`LinkAnswer::Flooded`].
    SetPaths(Paths),
    /// Send to a peer on this ring from now on. Answered with [`LinkAnswer::Placed`].
    SetRing(PeerKey, u64, Box<Sender>),
    /// The ring that was asked for cannot be made. Answered with [`LinkAnswer::Placed`].
    SetNoRing(PeerKey),
    /// Read the words of the peer that receives on this ring from this page.
    Attach(PeerKey, u64, ReceiverPage),
    /// The peer does not take this ring. Answered with [`LinkAnswer::Placed`].
    SetDeclined(PeerKey, u64),
    /// Give back the rings that are quiet. Answered with [`LinkAnswer::Closed`].
    CloseQuiet,
    /// Hand out the rings that are read to their end. Answered with [`LinkAnswer::Finished`].
    TakeFinished,
}

/// Answer to a [`LinkCommand`].
pub enum LinkAnswer {
    /// The command was carried out.
    Done,
    /// Links handed out.
    Links(Vec<RxLink>),
    /// To be dropped.
    Unused(Vec<Sender>, Vec<RxLink>),
    /// A page that is of no use.
    UnusedPage(ReceiverPage),
    /// A former ring to be dropped, the position of the flood at which the change was made, and
    /// whether the peer gets multicast frames by a ring behind it.
    Placed(Option<Sender>, u64, bool),
    /// The position of the flood at which the change was made.
    Flooded(u64),
    /// Rings given back, the position of the flood, and whether there are other rings.
    Closed(Vec<(PeerKey, Sender)>, u64, bool),
    /// Rings handed out.
    Finished(Vec<FinishedRing>),
}
