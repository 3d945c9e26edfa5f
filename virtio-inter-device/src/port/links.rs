//! The control thread's part in links: brings rings to the workers when they want them and takes
//! them back, and carries multicast frames for peers without a ring.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use virtio_inter_common::{MacAddr, MacSets};
use virtio_inter_link::{Receiver, ReceiverPage, Sender};
use virtio_inter_segment::{PeerInfo, PeerKey};

use super::Port;
use super::link_book::LinkEvent;
use crate::backend::{
    Backend, Holder, LinkAnswer, LinkCommand, LinkRequest, LinkTraffic, Paths, RxLink, RxLinkId,
    RxRing,
};
use crate::device::DeviceError;
use crate::worker::Command;

/// A backend with links to peers.
pub trait LinkBackend: Backend<Command: From<LinkCommand>, Answer: Into<LinkAnswer>> {}

impl<B: Backend<Command: From<LinkCommand>, Answer: Into<LinkAnswer>>> LinkBackend for B {}

impl<B: LinkBackend> Port<B> {
    fn ask_links(&self, queue: u16, command: LinkCommand) -> Result<LinkAnswer, DeviceError> {
        let Some(worker) = self.workers.get(usize::from(queue)) else {
            return Ok(LinkAnswer::Done);
        };
        let answer = worker.ask_backend(command.into())?;
        Ok(answer.map_or(LinkAnswer::Done, Into::into))
    }

    /// Starts to exchange frames with a peer. Rings come later.
    ///
    /// # Errors
    ///
    /// When a worker does not answer. No worker exchanges frames with the peer then.
    pub fn add_peer(&mut self, peer: &PeerInfo) -> Result<(), DeviceError> {
        self.add_peers(std::slice::from_ref(peer))
    }

    /// The same with several peers, at the price of one: workers stop for it once.
    ///
    /// # Errors
    ///
    /// As [`Port::add_peer`], for all of them.
    pub fn add_peers(&mut self, peers: &[PeerInfo]) -> Result<(), DeviceError> {
        let new = self.book.add(peers);
        let added = self.ask_all(|| Command::Backend(LinkCommand::AddPeers(new.clone()).into()));
        if added.is_err() {
            // What went wrong is known already.
            let _ = self.remove_peers(peers.iter().map(|peer| peer.key).collect());
        }
        added
    }

    /// Ends the exchange of frames with a peer and closes its links.
    ///
    /// # Errors
    ///
    /// When a worker does not answer.
    pub fn remove_peer(&mut self, peer: PeerKey) -> Result<(), DeviceError> {
        self.remove_peers(vec![peer])
    }

    /// The same with several: a worker that does not answer is waited for once.
    fn remove_peers(&mut self, peers: Vec<PeerKey>) -> Result<(), DeviceError> {
        let command = || LinkCommand::RemovePeers(peers.clone());
        let removed = self.ask_all(|| Command::Backend(command().into()));
        // Now no worker learns of them any more. One that has not answered does so before it serves
        // its queues again.
        self.book.remove(&peers);
        removed
    }

    /// The guest of a peer that is a trunk uses these addresses from now on, in place of the former
    /// ones.
    ///
    /// # Errors
    ///
    /// When a worker does not answer.
    pub fn set_used_by(&mut self, peer: PeerKey, used: &[MacAddr]) -> Result<(), DeviceError> {
        let Some(addresses) = self.book.set_used_by(peer, used.into()) else {
            return Ok(());
        };
        let command = || LinkCommand::SetAddresses(peer, addresses.clone());
        self.ask_all(|| Command::Backend(command().into()))
    }

    /// Addresses that the guest of this port may not use, if it is a trunk, beside those that other
    /// ports have or list. To be called before there is a guest.
    ///
    /// # Errors
    ///
    /// When a worker does not answer.
    pub fn set_barred(&mut self, barred: &MacSets) -> Result<(), DeviceError> {
        self.book.set_barred(barred.clone());
        self.ask_all(|| Command::Backend(LinkCommand::SetBarred(barred.clone()).into()))
    }

    /// The guest of this port, if it is a trunk, uses these addresses from now on.
    ///
    /// # Errors
    ///
    /// When a worker does not answer.
    pub fn set_used(&mut self, used: &BTreeSet<MacAddr>) -> Result<(), DeviceError> {
        let used: Arc<[MacAddr]> = used.iter().copied().collect();
        self.book.set_used(Arc::clone(&used));
        self.ask_all(|| Command::Backend(LinkCommand::SetUsed(Arc::clone(&used)).into()))
    }

    /// Time since the guest of this trunk sent from an address. None: it is at another port now.
    pub fn silent_for(&self, address: MacAddr) -> Option<Duration> {
        let silent = self.book.learned().silent_for(Holder::OWN, address);
        silent.map(|ms| Duration::from_millis(ms.into()))
    }

    /// Chooses the links of multicast frames and of frames for nobody, also for peers that are
    /// added later.
    ///
    /// # Errors
    ///
    /// When a worker does not answer.
    pub fn set_paths(&mut self, paths: &Paths) -> Result<(), DeviceError> {
        for queue in 0..self.workers.len() as u16 {
            let command = LinkCommand::SetPaths(paths.clone());
            if let LinkAnswer::Flooded(flooded) = self.ask_links(queue, command)? {
                // What was sent by the former paths.
                self.book.drain(queue, Some(flooded));
            }
        }
        self.book.elsewhere.clone_from(&paths.elsewhere);
        self.wake_for_events();
        Ok(())
    }

    /// Queue pair `queue` sends to a peer on this ring from now on. The former one, if there is
    /// one, is closed.
    ///
    /// # Errors
    ///
    /// When the ring cannot be watched (out of memory).
    pub fn set_ring(
        &mut self,
        peer: PeerKey,
        queue: u16,
        number: u64,
        sender: Sender,
    ) -> Result<(), DeviceError> {
        let gauge = sender.gauge();
        let command = LinkCommand::SetRing(peer, number, Box::new(sender));
        let changed = self.change_ring(queue, peer, command);
        match changed {
            Ok(()) => self.book.set_gauge(peer, queue, number, gauge),
            Err(_) => self.book.remove_gauge(peer, queue, None),
        }
        changed
    }

    /// No ring can be made now for queue pair `queue` to a peer.
    ///
    /// # Errors
    ///
    /// When the worker does not answer.
    pub fn set_no_ring(&mut self, peer: PeerKey, queue: u16) -> Result<(), DeviceError> {
        self.change_ring(queue, peer, LinkCommand::SetNoRing(peer))
    }

    /// A peer does not take a ring of queue pair `queue`.
    ///
    /// # Errors
    ///
    /// When the worker does not answer.
    pub fn set_declined(
        &mut self,
        peer: PeerKey,
        queue: u16,
        number: u64,
    ) -> Result<(), DeviceError> {
        self.change_ring(queue, peer, LinkCommand::SetDeclined(peer, number))?;
        self.book.remove_gauge(peer, queue, Some(number));
        Ok(())
    }

    fn change_ring(
        &mut self,
        queue: u16,
        peer: PeerKey,
        command: LinkCommand,
    ) -> Result<(), DeviceError> {
        if let LinkAnswer::Placed(_former, flooded, with_ring) = self.ask_links(queue, command)? {
            self.book.place(peer, queue, flooded, with_ring);
            self.wake_for_events();
        }
        Ok(())
    }

    /// A peer reads the ring of queue pair `queue` of this port, and writes to this page.
    ///
    /// # Errors
    ///
    /// When the worker does not answer.
    pub fn attach(
        &mut self,
        peer: PeerKey,
        queue: u16,
        number: u64,
        page: ReceiverPage,
    ) -> Result<(), DeviceError> {
        self.book.attach_gauge(peer, queue, number, &page);
        self.ask_links(queue, LinkCommand::Attach(peer, number, page))?;
        Ok(())
    }

    /// Receives from queue pair `queue` of a peer on this ring, when what it sent on before is
    /// closed.
    ///
    /// # Errors
    ///
    /// When the ring cannot be watched (out of memory).
    pub fn add_receiver(
        &mut self,
        peer: PeerKey,
        queue: u16,
        number: u64,
        receiver: Receiver,
    ) -> Result<(), DeviceError> {
        let (Some(source), Some(traffic)) = (self.book.addresses(peer), self.book.traffic(peer))
        else {
            return Ok(());
        };
        // The peer's queue i feeds our queue i mod n, or one in use in its place.
        let preferred = queue % self.workers.len() as u16;
        let ring = RxRing { number, receiver };
        let (id, source) = (RxLinkId { peer, queue }, Some(source.clone()));
        let link = RxLink::new(id, source, ring, traffic.rx(queue), preferred);
        let worker = link.serving(self.active);
        self.ask_links(worker, LinkCommand::AddRxLinks(vec![link]))?;
        Ok(())
    }

    /// The frames that were exchanged with a peer by links since it was added, and how full the
    /// rings to it are. None: it was not added. No worker is asked.
    pub fn traffic(&self, peer: PeerKey) -> Option<LinkTraffic> {
        self.book.exchanged(peer)
    }

    /// Delivers a record that a peer sent without a ring, or drops it.
    pub fn deliver(&mut self, peer: PeerKey, record: &[u8]) {
        if self.book.admits(peer, record)
            && let Some(inbound) = &mut self.book.inbound
            && let Ok(Some(slot)) = inbound.reserve(record.len())
        {
            slot.slice().copy_from(record);
            slot.commit();
            let _ = inbound.publish();
        } else if let Some(worker) = self.workers.first() {
            worker.counters.rx_flood_lost.add(1);
        }
    }

    /// A peer did not get a frame of [`LinkEvent::Flood`].
    pub fn flood_lost(&self, queue: u16) {
        if let Some(worker) = self.workers.get(usize::from(queue)) {
            worker.counters.tx_flood_peer_full.add(1);
        }
    }

    /// Gives back rings on which nothing was sent since the call before the last one. True: there
    /// are other rings.
    ///
    /// # Errors
    ///
    /// When a worker does not answer.
    pub fn close_quiet(&mut self) -> Result<bool, DeviceError> {
        let mut others = false;
        for queue in 0..self.workers.len() as u16 {
            let answer = self.ask_links(queue, LinkCommand::CloseQuiet)?;
            if let LinkAnswer::Closed(closed, flooded, has_rings) = answer {
                self.book.drain(queue, Some(flooded));
                for (peer, _sender) in closed {
                    self.book.set_ring(peer, queue, false);
                    self.book.remove_gauge(peer, queue, None);
                }
                others |= has_rings;
            }
        }
        self.wake_for_events();
        Ok(others)
    }

    /// What links want, in order. To be called after [`Port::events`].
    ///
    /// # Errors
    ///
    /// When a worker does not answer.
    pub fn link_events(&mut self) -> Result<Vec<LinkEvent>, DeviceError> {
        for (index, request) in std::mem::take(&mut self.requests) {
            match request {
                LinkRequest::Ring(placed) => {
                    let peer = placed.ring.peer;
                    self.book.place(peer, index, placed.flooded, true);
                    self.book.events.push(LinkEvent::Wanted {
                        peer,
                        queue: index,
                        capacity: placed.ring.capacity,
                    });
                }
                LinkRequest::Learn(address) => self.book.events.push(LinkEvent::Learn(address)),
                LinkRequest::TakeFinished => {
                    let answer = self.ask_links(index, LinkCommand::TakeFinished)?;
                    if let LinkAnswer::Finished(finished) = answer {
                        let events = finished.iter().map(|finished| LinkEvent::Finished {
                            peer: finished.peer,
                            number: finished.ring.number,
                        });
                        self.book.events.extend(events);
                    }
                }
            }
        }
        let mut more = false;
        for queue in 0..self.book.floods.len() {
            more |= !self.book.drain(queue as u16, None);
            // Also without more frames: one may have come just now.
            more |= !self.book.floods[queue].arm_data_doorbell().unwrap_or(true);
        }
        if more {
            self.wake();
        }
        Ok(std::mem::take(&mut self.book.events))
    }

    /// The same, if there are some.
    fn wake_for_events(&self) {
        if !self.book.events.is_empty() {
            self.wake();
        }
    }

    /// Has the events be asked for.
    fn wake(&self) {
        let _ = rustix::io::write(&*self.event_fd, &1u64.to_ne_bytes());
    }
}
