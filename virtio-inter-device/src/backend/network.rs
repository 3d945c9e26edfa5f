//! The network side of a port: links to the peers of its segment, and an uplink if it has one.
//!
//! A unicast frame goes by the link to the peer that has its address, and by the uplink if no peer
//! has it. A multicast frame goes by both: by the uplink, and by the link to each peer. Decision
//! 0070.

use std::io;

use virtio_inter_common::MacAddr;
use virtio_inter_link::Sender;

use super::interface::{
    Backend, BackendSetup, Generation, LinkFault, LinkRequest, RxBackend, RxSink, TxBackend,
    TxFrame, TxStatus, UplinkBackend, UplinkDevice, UplinkQueue,
};
use super::link::{Destination, LinkAnswer, LinkCommand, Links, RxLink};
use super::steering::ActiveQueues;
use super::uplink::{ReadQueue, Uplink};
use crate::batch::Sleep;
use crate::device::DeviceError;
use crate::features::Offloads;
use crate::poller::Poller;

/// Links, and an uplink if the port has one.
pub struct Network<D: UplinkDevice> {
    links: Links,
    uplink: Option<Uplink<D>>,
    /// What the uplink is made with, and made again.
    setup: BackendSetup,
    takes: Offloads,
    /// The uplink's switch takes no offloads.
    plain: bool,
    /// Whose turn it is: the uplink's or the links'.
    uplink_first: bool,
}

/// A change to the network side of a worker.
pub enum NetworkCommand<D: UplinkDevice> {
    /// To its links.
    Link(LinkCommand),
    /// Use this queue of a device as uplink, in place of the one before.
    SetUplink(UplinkQueue<D>, Generation),
    /// Hand out the uplink's queues that another worker is to read.
    TakeMisplaced(ActiveQueues),
    /// Read these.
    AddQueues(Vec<ReadQueue<D>>),
}

impl<D: UplinkDevice> From<LinkCommand> for NetworkCommand<D> {
    fn from(command: LinkCommand) -> Self {
        NetworkCommand::Link(command)
    }
}

impl<D: UplinkDevice> From<NetworkAnswer<D>> for LinkAnswer {
    fn from(answer: NetworkAnswer<D>) -> Self {
        match answer {
            NetworkAnswer::Link(answer) => answer,
            _ => LinkAnswer::Done,
        }
    }
}

/// Answer to a [`NetworkCommand`].
pub enum NetworkAnswer<D: UplinkDevice> {
    /// That of its links.
    Link(LinkAnswer),
    /// The command was carried out.
    Done,
    /// Queues handed out.
    Queues(Vec<ReadQueue<D>>),
}

impl<D: UplinkDevice> Network<D> {
    /// No links yet. `queue`: the worker's queue of the uplink, if the port has one.
    pub(crate) fn new(setup: BackendSetup, queue: Option<UplinkQueue<D>>) -> Self {
        let mut network = Network {
            links: Links::new(setup.clone()),
            uplink: None,
            setup,
            takes: Offloads::ALL,
            plain: false,
            uplink_first: false,
        };
        network.uplink = queue.map(|queue| network.new_uplink(queue, 0));
        network.links.set_has_uplink(network.uplink.is_some());
        network
    }

    /// The same with frames for the uplink's device segmented, and their checksums completed, for a
    /// switch that takes no offloads.
    #[must_use]
    pub fn with_plain_uplink(mut self) -> Self {
        self.plain = true;
        if let Some(uplink) = &mut self.uplink {
            uplink.set_plain();
        }
        self
    }

    /// As [`Links::without_timeouts`], and an uplink that is full is waited for too: for tests.
    #[must_use]
    pub fn without_timeouts(self) -> Self {
        Network {
            links: self.links.without_timeouts(),
            ..self
        }
    }

    /// As [`Links::set_flood`].
    pub(crate) fn set_flood(&mut self, sender: Sender, receiver: Option<RxLink>) {
        self.links.set_flood(sender, receiver);
    }

    fn new_uplink(&self, queue: UplinkQueue<D>, generation: Generation) -> Uplink<D> {
        let mut uplink = Uplink::new(queue, generation, &self.setup);
        uplink.set_listed(self.links.listed().clone());
        if self.plain {
            uplink.set_plain();
        }
        uplink
    }

    fn set_uplink(
        &mut self,
        queue: UplinkQueue<D>,
        generation: Generation,
        poller: &Poller,
    ) -> io::Result<()> {
        let mut uplink = self.new_uplink(queue, generation);
        uplink.set_offloads(self.takes);
        uplink.replace(&mut self.uplink, poller)?;
        self.links.set_has_uplink(true);
        Ok(())
    }
}

impl<D: UplinkDevice> TxBackend for Network<D> {
    #[inline(always)]
    fn offer<F: TxFrame>(&mut self, frame: &F) -> Result<TxStatus, F::Error> {
        if let Some(uplink) = &mut self.uplink {
            let header = frame.header();
            return match self.links.destination(header.destination()) {
                Destination::Peer(_) => self.links.offer(frame),
                // The links drop what is for the guest itself.
                Destination::Nobody if header.destination() == self.setup.mac => {
                    self.links.offer(frame)
                }
                Destination::Nobody => self
                    .links
                    .offer_to_uplink(frame, |frame| uplink.send(frame)),
                Destination::All => self
                    .links
                    .offer_multicast(frame, |frame| uplink.send(frame)),
            };
        }
        self.links.offer(frame)
    }

    fn end_hold(&mut self, queued: impl FnOnce(&dyn Fn(MacAddr) -> bool) -> bool) {
        self.links.end_hold(queued);
    }

    fn flush(&mut self) {
        self.links.flush();
    }

    fn enable_tx_notification(&mut self, held: bool) -> Sleep {
        let mut sleep = self.links.enable_tx_notification(held);
        if self.links.waits_for_uplink()
            && let Some(uplink) = &self.uplink
        {
            uplink.wait_for_room(&mut sleep);
        }
        sleep
    }

    fn claim_source(&mut self, source: MacAddr) -> bool {
        self.links.claim_source(source)
    }

    fn may_announce(&self, address: MacAddr) -> bool {
        self.links.may_announce(address)
    }

    fn announce(&mut self, record: &[u8]) -> usize {
        let uplink = self.uplink.as_mut();
        let sent = uplink.is_some_and(|uplink| uplink.announce(record));
        self.links.announce(record) + usize::from(sent)
    }

    fn announce_arrival(&mut self, record: &[u8]) -> bool {
        match &mut self.uplink {
            Some(uplink) => uplink.announce(record),
            None => self.links.announce_to_uplink(record),
        }
    }
}

impl<D: UplinkDevice> RxBackend for Network<D> {
    fn receive<S: RxSink>(&mut self, sink: &mut S) {
        let Some(uplink) = &mut self.uplink else {
            return self.links.receive(sink);
        };
        if !uplink.is_due() {
            return self.links.receive(sink);
        }
        // Each first in turn. A record that waits for its first buffers stays first, or
        // short ones of the other side would take them away from it.
        if self.uplink_first {
            if uplink.receive(sink) {
                return;
            }
            self.uplink_first = false;
            self.links.receive(sink);
        } else {
            let waited = self.links.is_out_of_buffers();
            self.links.receive(sink);
            if self.links.is_out_of_buffers() {
                self.uplink_first = waited && self.links.has_delivered();
                return;
            }
            self.uplink_first = true;
            uplink.receive(sink);
        }
    }

    fn release(&mut self) {
        self.links.release();
    }

    fn enable_rx_notification(&mut self) -> bool {
        let links = self.links.enable_rx_notification();
        links & self.uplink.as_ref().is_none_or(Uplink::is_idle)
    }
}

impl<D: UplinkDevice> Backend for Network<D> {
    type Command = NetworkCommand<D>;
    type Answer = NetworkAnswer<D>;

    const STEERED: bool = true;

    fn attach(&mut self, poller: &Poller) -> Result<(), DeviceError> {
        self.links.attach(poller)?;
        match &self.uplink {
            Some(uplink) => uplink.attach(poller).map_err(watch),
            None => Ok(()),
        }
    }

    fn set_offloads(&mut self, takes: Offloads) {
        self.takes = takes;
        if let Some(uplink) = &mut self.uplink {
            uplink.set_offloads(takes);
        }
    }

    fn wake(&mut self, is_lost: bool) {
        if let Some(uplink) = &mut self.uplink {
            uplink.wake(is_lost);
        }
    }

    fn wake_links(&mut self, rung: &[u64]) {
        self.links.wake_links(rung);
    }

    fn handle_command(
        &mut self,
        command: NetworkCommand<D>,
        poller: &Poller,
    ) -> Result<NetworkAnswer<D>, DeviceError> {
        match command {
            NetworkCommand::Link(command) => {
                let answer = self.links.handle_command(command, poller)?;
                if let Some(uplink) = &mut self.uplink {
                    uplink.set_listed(self.links.listed().clone());
                }
                return Ok(NetworkAnswer::Link(answer));
            }
            NetworkCommand::SetUplink(queue, generation) => {
                self.set_uplink(queue, generation, poller).map_err(watch)?;
            }
            NetworkCommand::TakeMisplaced(active) => {
                let index = self.setup.index;
                let queues = self.uplink.as_mut().map(|uplink| {
                    uplink.take_queues(poller, |preferred| active.serving(preferred) != index)
                });
                return Ok(NetworkAnswer::Queues(queues.unwrap_or_default()));
            }
            NetworkCommand::AddQueues(queues) => {
                if let Some(uplink) = &mut self.uplink {
                    for queue in queues {
                        uplink.add_queue(queue, poller).map_err(watch)?;
                    }
                }
            }
        }
        Ok(NetworkAnswer::Done)
    }

    fn steer(
        active: ActiveQueues,
        workers: u16,
        ask: &mut dyn FnMut(u16, NetworkCommand<D>) -> Result<NetworkAnswer<D>, DeviceError>,
    ) -> Result<(), DeviceError> {
        let mut moved: Vec<Vec<ReadQueue<D>>> = (0..workers).map(|_| Vec::new()).collect();
        for worker in 0..workers {
            let answer = ask(worker, NetworkCommand::TakeMisplaced(active))?;
            if let NetworkAnswer::Queues(queues) = answer {
                for queue in queues {
                    moved[usize::from(active.serving(queue.preferred()))].push(queue);
                }
            }
        }
        for (worker, queues) in (0..).zip(moved).filter(|(_, moved)| !moved.is_empty()) {
            ask(worker, NetworkCommand::AddQueues(queues))?;
        }
        Links::steer(active, workers, &mut |worker, command| match ask(
            worker,
            NetworkCommand::Link(command),
        )? {
            NetworkAnswer::Link(answer) => Ok(answer),
            _ => Ok(LinkAnswer::Done),
        })
    }

    fn take_fault(&mut self) -> Option<LinkFault> {
        self.links.take_fault()
    }

    fn take_request(&mut self) -> Option<LinkRequest> {
        self.links.take_request()
    }

    fn take_uplink_loss(&mut self) -> Option<Generation> {
        self.uplink.as_mut().and_then(Uplink::take_loss)
    }
}

impl<D: UplinkDevice> UplinkBackend for Network<D> {
    type Device = D;

    fn set_uplink(queue: UplinkQueue<D>, generation: Generation) -> NetworkCommand<D> {
        NetworkCommand::SetUplink(queue, generation)
    }
}

fn watch(source: io::Error) -> DeviceError {
    DeviceError::Io {
        action: "watch the uplink",
        source,
    }
}
