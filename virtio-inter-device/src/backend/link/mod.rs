//! The links to the peers of a segment, as the network side of one queue pair.

mod command;
mod forward;
mod rx;
mod spill;
mod tx;
mod tx_link;

use virtio_inter_common::MacAddr;

pub(crate) use command::{LinkAnswer, LinkCommand, PeerShare};
pub(crate) use forward::Destination;

use super::interface::{
    Backend, BackendSetup, LinkFault, RxBackend, RxSink, TxBackend, TxFrame, TxStatus,
};
use super::steering::Ready;
use crate::batch::Rest;
use crate::device::DeviceError;
use crate::poller::Poller;
pub(crate) use rx::RxLink;
use rx::RxLinks;
use tx::TxLinks;
use tx_link::Timeouts;

/// The links of one queue pair: to every peer, and from those queue pairs of peers that it serves.
pub struct Links {
    /// The queue pair.
    index: u16,
    tx: TxLinks,
    rx: RxLinks,
}

impl Links {
    /// No links yet.
    pub fn new(setup: BackendSetup) -> Self {
        Links {
            index: setup.index,
            tx: TxLinks::new(setup.mac, setup.counters),
            rx: RxLinks::default(),
        }
    }

    /// The same, but a peer that takes nothing is waited for as long as that may be: for tests, on
    /// machines that may stop a healthy port for longer than the stall timeout.
    #[must_use]
    pub fn without_stall_timeout(mut self) -> Self {
        self.tx.set_timeouts(Timeouts::NO_STALL);
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

    /// Offers a multicast frame to the peers and to `uplink`.
    pub(super) fn offer_multicast<F: TxFrame>(
        &mut self,
        frame: &F,
        uplink: impl FnOnce(&F) -> Result<TxStatus, F::Error>,
    ) -> Result<TxStatus, F::Error> {
        self.tx.offer_multicast(frame, uplink)
    }

    /// Whether the last frame offered waits for room in a link.
    pub(super) fn is_waiting(&self) -> bool {
        self.tx.is_waiting()
    }

    /// Whether the last record delivered waits for the guest's buffers.
    pub(super) fn is_out_of_buffers(&self) -> bool {
        self.rx.keeps_turn()
    }

    fn add_peer(&mut self, share: PeerShare, poller: &Poller) -> Result<(), DeviceError> {
        watch(poller, share.sender.space_doorbell())?;
        self.tx.add(share.key, share.mac, share.sender);
        for (receiver, home) in share.receivers {
            self.add_rx_link(RxLink::new(share.key, share.mac, receiver, home), poller)?;
        }
        Ok(())
    }

    fn add_rx_link(&mut self, link: RxLink, poller: &Poller) -> Result<(), DeviceError> {
        watch(poller, link.receiver.data_doorbell())?;
        self.rx.add(link);
        Ok(())
    }
}

fn watch(poller: &Poller, doorbell: std::os::fd::BorrowedFd<'_>) -> Result<(), DeviceError> {
    poller.add(&doorbell).map_err(|source| DeviceError::Io {
        action: "watch a link's doorbell",
        source,
    })
}

impl TxBackend for Links {
    #[inline(always)]
    fn offer<F: TxFrame>(&mut self, frame: &F) -> Result<TxStatus, F::Error> {
        self.tx.offer(frame)
    }

    fn flush(&mut self) {
        self.tx.flush();
    }

    fn enable_tx_notification(&mut self, held: bool) -> Rest {
        self.tx.enable_tx_notification(held)
    }

    fn announce(&mut self, record: &[u8]) -> usize {
        self.tx.announce(record)
    }
}

impl RxBackend for Links {
    fn receive<S: RxSink>(&mut self, sink: &mut S) {
        self.rx.receive(sink);
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

    fn handle_command(
        &mut self,
        command: LinkCommand,
        poller: &Poller,
    ) -> Result<LinkAnswer, DeviceError> {
        match command {
            LinkCommand::AddPeer(share) => self.add_peer(*share, poller)?,
            LinkCommand::RemovePeer(key) => {
                if let Some(link) = self.tx.remove(key) {
                    poller.remove(link.sender.space_doorbell());
                }
                for link in self.rx.remove(key) {
                    poller.remove(link.receiver.data_doorbell());
                }
            }
            LinkCommand::TakeMisplaced(ready) => {
                let links = self.rx.take_misplaced(self.index, ready);
                for link in &links {
                    poller.remove(link.receiver.data_doorbell());
                }
                return Ok(LinkAnswer::Links(links));
            }
            LinkCommand::AddRxLinks(links) => {
                for link in links {
                    self.add_rx_link(link, poller)?;
                }
            }
            LinkCommand::Attach(key, page) => self.tx.attach(key, page),
        }
        Ok(LinkAnswer::Done)
    }

    fn steer(
        ready: Ready,
        workers: u16,
        ask: &mut dyn FnMut(u16, LinkCommand) -> Result<LinkAnswer, DeviceError>,
    ) -> Result<(), DeviceError> {
        let mut moved: Vec<Vec<RxLink>> = (0..workers).map(|_| Vec::new()).collect();
        for worker in 0..workers {
            if let LinkAnswer::Links(links) = ask(worker, LinkCommand::TakeMisplaced(ready))? {
                for link in links {
                    moved[usize::from(link.serving(ready))].push(link);
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
}
