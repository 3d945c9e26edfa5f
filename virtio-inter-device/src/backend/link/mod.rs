//! The links to the peers of a segment, as the network side of one queue pair.

mod command;
mod forward;
mod hold;
mod learned;
mod new_addresses;
mod positions;
mod rx;
mod spill;
mod traffic;
mod tx;
mod tx_link;

use std::io;
use std::os::fd::BorrowedFd;

use virtio_inter_common::{MacAddr, MacSets};
use virtio_inter_link::Sender;
use virtio_inter_segment::PeerKey;

pub use command::Paths;
pub(crate) use command::{LinkAnswer, LinkCommand, NewPeer};
pub(crate) use forward::{Destination, Forwarding, PeerAddresses};
pub(crate) use learned::{Holder, Holders, Learned};

use super::interface::{
    Backend, BackendSetup, LinkFault, LinkRequest, RxBackend, RxSink, TxBackend, TxFrame, TxStatus,
};
use super::steering::ActiveQueues;
use crate::batch::Sleep;
use crate::device::DeviceError;
use crate::poller::Poller;
use rx::RxLinks;
pub(crate) use rx::{RxLink, RxLinkId, RxRing};
pub(crate) use traffic::PeerTraffic;
pub use traffic::{LinkTraffic, RingFill};
use tx::TxLinks;
use tx_link::{TxLink, Unused};

/// The links of one queue pair: to every peer, and from those queue pairs of peers that it serves.
pub struct Links {
    /// The queue pair.
    index: u16,
    tx: TxLinks,
    rx: RxLinks,
    without_timeouts: bool,
}

impl Links {
    /// No links yet.
    pub fn new(setup: BackendSetup) -> Self {
        Links {
            index: setup.index,
            tx: TxLinks::new(setup),
            rx: RxLinks::default(),
            without_timeouts: false,
        }
    }

    /// The same, but a peer that takes nothing, and a guest that has too few buffers, are waited
    /// for as long as that may be: for tests, on machines that may stop a healthy port or guest for
    /// longer than the timeouts.
    #[must_use]
    pub fn without_timeouts(mut self) -> Self {
        self.tx.remove_timeouts();
        self.without_timeouts = true;
        self
    }

    /// The peers that a destination address stands for.
    #[inline]
    pub(super) fn destination(&mut self, address: MacAddr) -> Destination {
        self.tx.destination(address)
    }

    /// Sets whether frames also go by an uplink: they may then wait behind those for the only peer.
    pub(super) fn set_has_uplink(&mut self, has_uplink: bool) {
        self.tx.set_has_uplink(has_uplink);
    }

    /// Offers a unicast frame that is for no peer to `uplink`.
    pub(super) fn offer_to_uplink<F: TxFrame>(
        &mut self,
        frame: &F,
        uplink: impl FnOnce(&F) -> Result<TxStatus, F::Error>,
    ) -> Result<TxStatus, F::Error> {
        self.tx.offer_to_uplink(frame, uplink)
    }

    /// Offers a multicast frame to the peers and to `uplink`.
    pub(super) fn offer_multicast<F: TxFrame>(
        &mut self,
        frame: &F,
        uplink: impl FnOnce(&F) -> Result<TxStatus, F::Error>,
    ) -> Result<TxStatus, F::Error> {
        self.tx.offer_multicast(frame, uplink)
    }

    /// Sends a record of the port's own to the peer that is its uplink. False: there is none.
    pub(super) fn announce_to_uplink(&mut self, record: &[u8]) -> bool {
        self.tx.announce_to_uplink(record)
    }

    /// Whether the peer at this position gets multicast frames by link.
    pub(super) fn takes_multicast(&self, position: usize) -> bool {
        self.tx.takes_multicast(position)
    }

    /// Addresses of the peers that get multicast frames by link, as far as they are known to be
    /// there.
    pub(super) fn multicast_addresses(&self) -> impl Iterator<Item = MacAddr> {
        self.tx.multicast_addresses()
    }

    /// A frame from this address comes from the network. Returns the position of the peer whose own
    /// address it is.
    pub(super) fn hear_network(&self, source: MacAddr) -> Option<usize> {
        self.tx.forwarding().hear_network(source)
    }

    /// The addresses that ports of the segment may use beside their own.
    pub(super) fn listed(&self) -> &MacSets {
        self.tx.forwarding().listed()
    }

    /// Whether the last frame offered waits for room in the port's own uplink.
    pub(super) fn waits_for_uplink(&self) -> bool {
        self.tx.waits_for_uplink()
    }

    /// Whether a record that waits for the guest's buffers is to be delivered first.
    pub(super) fn is_out_of_buffers(&self) -> bool {
        self.rx.keeps_turn()
    }

    /// Whether the last batch had records.
    pub(super) fn has_delivered(&self) -> bool {
        self.rx.has_delivered()
    }

    /// Takes multicast frames for peers without a ring to the control thread, and brings those of
    /// such peers. Only one worker of a port has a `receiver`.
    pub(crate) fn set_flood(&mut self, sender: Sender, receiver: Option<RxLink>) {
        self.tx.set_flood(sender);
        if let Some(receiver) = receiver {
            self.rx.add(receiver);
        }
    }

    /// The answer to a change of a peer's ring.
    fn placed(&mut self, peer: PeerKey, former: Option<Sender>) -> LinkAnswer {
        let link = self.tx.link_mut(peer);
        let with_ring = link.is_some_and(|link| !link.is_without_ring());
        LinkAnswer::Placed(former, self.tx.flooded(), with_ring)
    }

    fn add_rx_link(&mut self, link: RxLink, poller: &Poller) -> Result<(), DeviceError> {
        let token = self.rx.token(link.id);
        for doorbell in link.doorbells() {
            watch_link(poller, doorbell, token)?;
        }
        self.rx.add(link);
        Ok(())
    }

    fn set_ring(
        &mut self,
        peer: PeerKey,
        number: u64,
        sender: Sender,
        poller: &Poller,
    ) -> Result<Option<Sender>, DeviceError> {
        watch(poller, sender.space_doorbell())?;
        let mut sender = Some(sender);
        let former = self.tx.change(peer, |link| {
            link.close_ring()?;
            let sender = sender.take();
            Ok(sender.and_then(|sender| link.set_ring(number, sender)))
        });
        // Or the peer has gone, or has violated the link's rules.
        let unused = former.or(sender);
        if let Some(unused) = &unused {
            poller.remove(unused.space_doorbell());
        }
        Ok(unused)
    }
}

fn remove_doorbells(poller: &Poller, links: &[RxLink]) {
    for doorbell in links.iter().flat_map(RxLink::doorbells) {
        poller.remove(doorbell);
    }
}

fn watch(poller: &Poller, doorbell: BorrowedFd<'_>) -> Result<(), DeviceError> {
    poller.add(&doorbell).map_err(unwatched)
}

/// The same for a link to receive on, which [`RxLinks::wake`] then learns of.
fn watch_link(poller: &Poller, doorbell: BorrowedFd<'_>, token: u64) -> Result<(), DeviceError> {
    poller.add_link(&doorbell, token).map_err(unwatched)
}

fn unwatched(source: io::Error) -> DeviceError {
    DeviceError::Io {
        action: "watch a link's doorbell",
        source,
    }
}

impl TxBackend for Links {
    #[inline(always)]
    fn offer<F: TxFrame>(&mut self, frame: &F) -> Result<TxStatus, F::Error> {
        self.tx.offer(frame)
    }

    fn end_hold(&mut self, queued: impl FnOnce(&dyn Fn(MacAddr) -> bool) -> bool) {
        self.tx.end_hold(queued);
    }

    fn flush(&mut self) {
        self.tx.flush();
    }

    fn enable_tx_notification(&mut self, held: bool) -> Sleep {
        self.tx.enable_tx_notification(held)
    }

    fn claim_source(&mut self, source: MacAddr) -> bool {
        self.tx.claim(source)
    }

    fn may_announce(&self, address: MacAddr) -> bool {
        self.tx.may_announce(address)
    }

    fn announce(&mut self, record: &[u8]) -> usize {
        self.tx.announce(record)
    }
}

impl RxBackend for Links {
    fn receive<S: RxSink>(&mut self, sink: &mut S) {
        self.rx.receive(self.tx.forwarding(), sink);
    }

    fn release(&mut self) {
        self.rx.release();
    }

    fn enable_rx_notification(&mut self) -> bool {
        self.rx.enable_rx_notification()
    }
}

impl Backend for Links {
    type Command = LinkCommand;
    type Answer = LinkAnswer;

    const STEERED: bool = true;

    fn without_timeouts(&self) -> bool {
        self.without_timeouts
    }

    fn attach(&mut self, poller: &Poller) -> Result<(), DeviceError> {
        for (doorbell, token) in self.rx.doorbells() {
            watch_link(poller, doorbell, token)?;
        }
        Ok(())
    }

    fn wake_links(&mut self, rung: &[u64]) {
        self.rx.wake(rung);
    }

    fn handle_command(
        &mut self,
        command: LinkCommand,
        poller: &Poller,
    ) -> Result<LinkAnswer, DeviceError> {
        match command {
            LinkCommand::AddPeers(peers) => self.tx.add(peers, self.index),
            LinkCommand::SetAddresses(key, addresses) => self.tx.set_addresses(key, addresses),
            LinkCommand::SetBarred(barred) => self.tx.set_barred(barred),
            LinkCommand::SetUsed(used) => self.tx.set_used(used),
            LinkCommand::RemovePeers(keys) => {
                let (mut senders, mut receivers) = (Vec::new(), Vec::new());
                for key in keys {
                    let link = self.tx.remove(key);
                    for doorbell in link.iter().flat_map(TxLink::space_doorbells) {
                        poller.remove(doorbell);
                    }
                    let links = self.rx.remove(key);
                    remove_doorbells(poller, &links);
                    senders.extend(link.into_iter().flat_map(TxLink::into_senders));
                    receivers.extend(links);
                }
                return Ok(LinkAnswer::Unused(senders, receivers));
            }
            LinkCommand::TakeMisplaced(active) => {
                let links = self.rx.take_misplaced(self.index, active);
                remove_doorbells(poller, &links);
                return Ok(LinkAnswer::Links(links));
            }
            LinkCommand::AddRxLinks(links) => {
                for link in links {
                    self.add_rx_link(link, poller)?;
                }
            }
            LinkCommand::SetPaths(paths) => {
                self.tx.set_paths(paths);
                return Ok(LinkAnswer::Flooded(self.tx.flooded()));
            }
            LinkCommand::SetRing(key, number, sender) => {
                let former = self.set_ring(key, number, *sender, poller)?;
                return Ok(self.placed(key, former));
            }
            LinkCommand::SetNoRing(key) => {
                self.tx.set_no_ring(key);
                return Ok(self.placed(key, None));
            }
            LinkCommand::Attach(key, number, page) => {
                let mut page = Some(page);
                let unused = self.tx.change(key, |link| match page.take() {
                    Some(page) => link.attach(number, page),
                    None => Ok(None),
                });
                match unused.or(page.map(Unused::Page)) {
                    Some(Unused::Page(page)) => return Ok(LinkAnswer::UnusedPage(page)),
                    Some(Unused::Sender(sender)) => {
                        poller.remove(sender.space_doorbell());
                        return Ok(LinkAnswer::Unused(vec![sender], Vec::new()));
                    }
                    None => {}
                }
            }
            LinkCommand::SetDeclined(key, number) => {
                let former = self.tx.change(key, |link| Ok(link.set_declined(number)));
                let has_ring = self.tx.link_mut(key).is_some_and(|link| link.has_ring());
                if let Some(former) = &former {
                    self.tx.count_without_link(former.unread());
                    poller.remove(former.space_doorbell());
                    if !has_ring {
                        self.tx.drop_waiting(key);
                    }
                }
                return Ok(self.placed(key, former));
            }
            LinkCommand::CloseQuiet => {
                let closed = self.tx.close_quiet();
                for (_, sender) in &closed {
                    poller.remove(sender.space_doorbell());
                }
                let flooded = self.tx.flooded();
                return Ok(LinkAnswer::Closed(closed, flooded, self.tx.has_rings()));
            }
            LinkCommand::TakeFinished => {
                let finished = self.rx.take_finished();
                for finished in &finished {
                    poller.remove(finished.ring.receiver.data_doorbell());
                }
                return Ok(LinkAnswer::Finished(finished));
            }
        }
        Ok(LinkAnswer::Done)
    }

    fn steer(
        active: ActiveQueues,
        workers: u16,
        ask: &mut dyn FnMut(u16, LinkCommand) -> Result<LinkAnswer, DeviceError>,
    ) -> Result<(), DeviceError> {
        let mut moved: Vec<Vec<RxLink>> = (0..workers).map(|_| Vec::new()).collect();
        for worker in 0..workers {
            if let LinkAnswer::Links(links) = ask(worker, LinkCommand::TakeMisplaced(active))? {
                for link in links {
                    moved[usize::from(link.serving(active))].push(link);
                }
            }
        }
        for (worker, links) in (0..).zip(moved).filter(|(_, links)| !links.is_empty()) {
            ask(worker, LinkCommand::AddRxLinks(links))?;
        }
        Ok(())
    }

    fn take_fault(&mut self) -> Option<LinkFault> {
        self.tx.take_fault().or_else(|| self.rx.take_fault())
    }

    fn take_request(&mut self) -> Option<LinkRequest> {
        if let Some(request) = self.tx.take_request() {
            return Some(LinkRequest::Ring(request));
        }
        if let Some(address) = self.tx.take_new_address() {
            return Some(LinkRequest::Learn(address));
        }
        self.rx.has_finished().then_some(LinkRequest::TakeFinished)
    }
}
