//! The links to the peers of a segment, as the network side of one queue pair.

mod command;
mod forward;
mod rx;
mod spill;
mod tx;
mod tx_link;

use virtio_inter_common::MacAddr;

pub(crate) use command::{LinkCommand, PeerShare};

use super::interface::{
    Backend, BackendSetup, LinkFault, RxBackend, RxSink, TxBackend, TxFrame, TxStatus,
};
use super::steering::Ready;
use crate::batch::Rest;
use crate::device::DeviceError;
use crate::poller::Poller;
use command::LinkAnswer;
use rx::{RxLink, RxLinks};
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

    /// Whether a peer has this unicast address.
    pub fn has_destination(&mut self, address: MacAddr) -> bool {
        self.tx.has_destination(address)
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
