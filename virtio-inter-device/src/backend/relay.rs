//! The uplink that ports of a segment share: carries frames between their links and its device.
//!
//! It has no guest, so its work is done where a guest's receive queue would be served. It never
//! carries frames between two links, and has no link with another uplink. Decision 0071.

use std::convert::Infallible;
use std::io;

use virtio_inter_common::MacAddr;
use virtio_inter_link::Sender;
use vm_memory::VolatileSlice;

use super::interface::{
    Backend, BackendSetup, Generation, LinkFault, LinkRequest, RxBackend, RxProgress, RxRecord,
    RxSink, RxStatus, TxBackend, TxFrame, TxStatus, UplinkBackend, UplinkDevice, UplinkQueue,
};
use super::link::{Destination, LinkAnswer, LinkCommand, Links, RxLink};
use super::uplink::Uplink;
use crate::announce::announcement;
use crate::batch::{BATCH, Sleep};
use crate::counters::Counters;
use crate::device::DeviceError;
use crate::features::Offloads;
use crate::frame::{FRAME_HEADER, FrameHeader, Invalid, MAX_RECORD, NET_HEADER};
use crate::guard;
use crate::poller::Poller;

/// Links and the device of an uplink.
pub struct Relay<D: UplinkDevice> {
    links: Links,
    uplink: Option<Uplink<D>>,
    setup: BackendSetup,
    /// The device's switch takes no offloads.
    plain: bool,
    /// Another uplink is active.
    standby: bool,
    /// A record of the device, on its way to links.
    buffer: Box<[u8]>,
    /// Length in bytes of the one that waits there for room in a link; 0: none.
    waiting: usize,
    /// A record of a link that a guard examines.
    whole: Vec<u8>,
    /// A record of a link waits for room in the device.
    waits_for_room: bool,
}

/// A change to a relay.
pub enum RelayCommand<D: UplinkDevice> {
    /// To its links.
    Link(LinkCommand),
    /// Use this queue of a device, in place of the one before.
    SetUplink(UplinkQueue<D>, Generation),
}

impl<D: UplinkDevice> From<LinkCommand> for RelayCommand<D> {
    fn from(command: LinkCommand) -> Self {
        RelayCommand::Link(command)
    }
}

impl<D: UplinkDevice> Relay<D> {
    /// Without links and device. `plain`: as [`Network::with_plain_uplink`](super::Network).
    pub(crate) fn new(setup: BackendSetup, plain: bool) -> Self {
        let mut links = Links::new(setup.clone());
        links.set_has_uplink(true);
        Relay {
            links,
            uplink: None,
            setup,
            plain,
            standby: true,
            buffer: vec![0; MAX_RECORD].into(),
            waiting: 0,
            whole: Vec::new(),
            waits_for_room: false,
        }
    }

    /// As [`Links::set_flood`].
    pub(crate) fn set_flood(&mut self, sender: Sender, receiver: Option<RxLink>) {
        self.links.set_flood(sender, receiver);
    }

    fn set_uplink(
        &mut self,
        queue: UplinkQueue<D>,
        generation: Generation,
        poller: &Poller,
    ) -> io::Result<()> {
        let mut uplink = Uplink::new(queue, generation, &self.setup);
        uplink.set_offloads(Offloads::ALL);
        if self.plain {
            uplink.set_plain();
        }
        uplink.replace(&mut self.uplink, poller)?;
        self.announce_ports(|_| true);
        Ok(())
    }

    /// Announces addresses of ports that it serves: the network learns that they are here.
    fn announce_ports(&mut self, which: impl Fn(MacAddr) -> bool) {
        if self.standby || self.setup.index != 0 {
            return;
        }
        if let Some(uplink) = &mut self.uplink {
            for address in self.links.multicast_addresses().filter(|mac| which(*mac)) {
                uplink.announce(&announcement(address));
            }
        }
    }

    /// Carries frames of the device to links.
    fn read_uplink(&mut self) {
        for _ in 0..BATCH {
            if self.waiting == 0 {
                let Some(uplink) = &mut self.uplink else {
                    return;
                };
                let Some(len) = uplink.read(&mut self.buffer) else {
                    return;
                };
                self.waiting = len.min(MAX_RECORD);
            }
            if self.forward() == TxStatus::Held {
                return;
            }
            self.waiting = 0;
        }
    }

    /// Offers the record in the buffer to the links that it is for.
    fn forward(&mut self) -> TxStatus {
        let counters = &*self.setup.counters;
        let record = &mut self.buffer[..self.waiting];
        let mut header = FrameHeader::default();
        let len = record.len();
        let read = header
            .read(&VolatileSlice::from(&mut record[..]), len)
            .and_then(|()| header.check(Offloads::ALL));
        if let Err(invalid) = read {
            counters.of_bad_record(invalid).add(1);
            return TxStatus::Dropped;
        }
        header.sanitize();
        if let Some(position) = self.links.hear_network(header.source())
            && self.links.takes_multicast(position)
        {
            // The network returns what a port without an uplink of its own has sent.
            counters.uplink_rx_own.add(1);
            return TxStatus::Dropped;
        }
        let frame = RecordFrame {
            header: &header,
            rest: VolatileSlice::from(&mut record[FRAME_HEADER..]),
        };
        let offered = match self.links.destination(header.destination()) {
            _ if self.standby => Ok(TxStatus::Dropped),
            Destination::Peer(position) if self.links.takes_multicast(position) => {
                self.links.offer(&frame)
            }
            // A port with an uplink of its own gets it there.
            Destination::Peer(_) | Destination::Nobody => {
                counters.uplink_rx_other.add(1);
                Ok(TxStatus::Dropped)
            }
            Destination::All => self
                .links
                .offer_multicast(&frame, |_| Ok(TxStatus::Dropped)),
        };
        let status = offered.unwrap_or_else(|never| match never {});
        if status == TxStatus::Sent {
            counters.uplink_rx_frames.add(1);
            counters.uplink_rx_bytes.add((len - NET_HEADER) as u64);
        }
        status
    }
}

/// A record of a link or of the device, with its header validated. The rest of a link's may change
/// while it is read.
struct RecordFrame<'a> {
    header: &'a FrameHeader,
    rest: VolatileSlice<'a>,
}

impl TxFrame for RecordFrame<'_> {
    type Error = Infallible;

    fn header(&self) -> &FrameHeader {
        self.header
    }

    fn record_len(&self) -> usize {
        self.header.len()
    }

    fn write_to(&self, record: &VolatileSlice<'_>) -> Result<(), Infallible> {
        if let Ok(rest) = record.offset(FRAME_HEADER) {
            self.rest.copy_to_volatile_slice(rest);
        }
        let written = self.header.write(record);
        debug_assert!(written, "a record is never shorter than its header");
        Ok(())
    }

    fn with_slices<R>(
        &self,
        write: impl FnOnce(&[VolatileSlice<'_>]) -> R,
    ) -> Result<R, Infallible> {
        let mut header = self.header.bytes();
        Ok(write(&[VolatileSlice::from(&mut header[..]), self.rest]))
    }
}

/// Writes records of links to the device.
struct ToUplink<'a, D: UplinkDevice> {
    /// The relay's own address, of which the network is to see nothing.
    mac: MacAddr,
    uplink: Option<&'a mut Uplink<D>>,
    /// Copies of records that a guard examines.
    whole: &'a mut Vec<u8>,
    counters: &'a Counters,
    standby: bool,
    left: usize,
}

impl<D: UplinkDevice> ToUplink<'_, D> {
    fn write(&mut self, record: &RxRecord<'_>) -> Result<TxStatus, Invalid> {
        let mut header = FrameHeader::default();
        let guard = record.source.guard();
        let mut bytes = record.bytes;
        if let Some(guard) = guard {
            // What is checked is what is sent, whatever the peer does meanwhile.
            self.whole.resize(record.bytes.len(), 0);
            record.bytes.copy_to(&mut self.whole[..]);
            let source = self.whole.get(NET_HEADER + 6..);
            let source = source.and_then(|source| source.first_chunk());
            let source = MacAddr::new(*source.ok_or(Invalid::Short)?);
            guard::check_record(guard, source, self.whole).map_err(Invalid::Guard)?;
            bytes = VolatileSlice::from(&mut self.whole[..]);
        }
        header.read(&bytes, bytes.len())?;
        header.check(Offloads::ALL)?;
        if !record.source.admits(header.source()) {
            return Err(Invalid::Source);
        }
        if header.destination() == self.mac {
            return Err(Invalid::Destination);
        }
        header.sanitize();
        let rest = bytes.offset(FRAME_HEADER).map_err(|_| Invalid::Short)?;
        let frame = RecordFrame {
            header: &header,
            rest,
        };
        match &mut self.uplink {
            Some(uplink) if !self.standby => match uplink.send(&frame) {
                Ok(status) => Ok(status),
                Err(never) => match never {},
            },
            _ => {
                self.counters.uplink_tx_down.add(1);
                Ok(TxStatus::Dropped)
            }
        }
    }
}

impl<D: UplinkDevice> RxSink for ToUplink<'_, D> {
    fn deliver(&mut self, record: &RxRecord<'_>, _progress: &mut RxProgress) -> RxStatus {
        if self.left == 0 {
            return RxStatus::BatchFull;
        }
        match self.write(record) {
            Ok(TxStatus::Held) => return RxStatus::OutOfBuffers,
            Ok(_) => {}
            Err(invalid) => self.counters.of_bad_record(invalid).add(1),
        }
        self.left -= 1;
        RxStatus::Taken
    }

    fn fill(
        &mut self,
        _max_len: usize,
        _read: impl FnOnce(&[VolatileSlice<'_>]) -> Option<usize>,
    ) -> RxStatus {
        RxStatus::BatchFull
    }
}

impl<D: UplinkDevice> TxBackend for Relay<D> {
    fn offer<F: TxFrame>(&mut self, _frame: &F) -> Result<TxStatus, F::Error> {
        // There is no guest.
        Ok(TxStatus::Dropped)
    }

    fn flush(&mut self) {
        self.links.flush();
    }

    fn enable_tx_notification(&mut self, _held: bool) -> Sleep {
        let mut sleep = self.links.enable_tx_notification(self.waiting != 0);
        if self.waits_for_room
            && let Some(uplink) = &self.uplink
        {
            uplink.wait_for_room(&mut sleep);
        }
        sleep
    }
}

impl<D: UplinkDevice> RxBackend for Relay<D> {
    fn receive<S: RxSink>(&mut self, _sink: &mut S) {
        let mut to_uplink = ToUplink {
            mac: self.setup.mac,
            uplink: self.uplink.as_mut(),
            whole: &mut self.whole,
            counters: &self.setup.counters,
            standby: self.standby,
            left: BATCH,
        };
        self.links.receive(&mut to_uplink);
        self.waits_for_room = self.links.is_out_of_buffers();
        if self.waiting != 0 || self.uplink.as_mut().is_some_and(Uplink::is_due) {
            self.read_uplink();
            self.links.flush();
        }
    }

    fn release(&mut self) {
        self.links.release();
    }

    fn enable_rx_notification(&mut self) -> bool {
        // What waits is woken for by its own notification.
        let links = self.waits_for_room || self.links.enable_rx_notification();
        links && (self.waiting != 0 || self.uplink.as_ref().is_none_or(Uplink::is_idle))
    }
}

impl<D: UplinkDevice> Backend for Relay<D> {
    type Command = RelayCommand<D>;
    type Answer = LinkAnswer;

    fn attach(&mut self, poller: &Poller) -> Result<(), DeviceError> {
        self.links.attach(poller)
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
        command: RelayCommand<D>,
        poller: &Poller,
    ) -> Result<LinkAnswer, DeviceError> {
        let command = match command {
            RelayCommand::SetUplink(queue, generation) => {
                let set = self.set_uplink(queue, generation, poller);
                set.map_err(|source| DeviceError::Io {
                    action: "watch the uplink",
                    source,
                })?;
                return Ok(LinkAnswer::Done);
            }
            RelayCommand::Link(command) => command,
        };
        let (mut takes_over, mut added) = (false, Vec::new());
        match &command {
            LinkCommand::SetPaths(paths) => {
                takes_over = self.standby && !paths.standby;
                self.standby = paths.standby;
            }
            LinkCommand::AddPeers(peers) => {
                added.extend(peers.iter().map(|(_, addresses, _)| addresses.clone()));
            }
            _ => {}
        }
        let answer = self.links.handle_command(command, poller)?;
        if takes_over || !added.is_empty() {
            let is_added = |mac| {
                let mut added = added.iter();
                added.any(|peer| peer.mac == mac || peer.allowed.contains(mac))
            };
            self.announce_ports(|mac| takes_over || is_added(mac));
        }
        Ok(answer)
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

impl<D: UplinkDevice> UplinkBackend for Relay<D> {
    type Device = D;

    fn set_uplink(queue: UplinkQueue<D>, generation: Generation) -> RelayCommand<D> {
        RelayCommand::SetUplink(queue, generation)
    }
}
