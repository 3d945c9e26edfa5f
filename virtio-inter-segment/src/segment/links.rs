//! Rings of links: made when they are asked for, within the limits, and answered.

use std::os::fd::AsFd;
use std::time::Instant;

use log::Level;
use virtio_inter_common::log_limited;
use virtio_inter_link::{Doorbell, Region, Sender};

use super::Segment;
use crate::connection::{Connection, OfferedLink};
use crate::handshake::Refusal;
use crate::port::{LinkError, OpenedLink, PeerKey, SegmentEvent};

impl Segment {
    /// Makes a ring for a queue pair of this port to send to a peer on, and hands it to the peer.
    /// It can be sent on at once; [`SegmentEvent::Accepted`] follows, or [`SegmentEvent::LinkDone`]
    /// if the peer does not take it. When its sender has closed it, [`SegmentEvent::LinkDone`] says
    /// that the peer has read it to the end.
    ///
    /// `capacity` is an upper bound: the ring is no larger than both sides allow.
    ///
    /// # Errors
    ///
    /// See [`LinkError`].
    pub fn open_link(
        &mut self,
        peer: PeerKey,
        queue: u16,
        capacity: u32,
    ) -> Result<OpenedLink, LinkError> {
        let connection = self.connections.get(&peer.get());
        let theirs = connection.and_then(Connection::peer);
        let largest = theirs.ok_or(LinkError::NoPeer)?.ring_capacity;
        let capacity = capacity.min(largest).min(self.local.port.ring_capacity);
        let connection = connection.ok_or(LinkError::NoPeer)?;
        self.check_room_to_send(connection, capacity.into())?;
        let region = Region::create(capacity)?;
        let (data_doorbell, space_doorbell) = (Doorbell::new()?, Doorbell::new()?);
        let fds = [
            region.fd().try_clone_to_owned()?,
            data_doorbell.as_fd().try_clone_to_owned()?,
            space_doorbell.as_fd().try_clone_to_owned()?,
        ];
        let connection = self.connections.get_mut(&peer.get());
        let connection = connection.ok_or(LinkError::NoPeer)?;
        let cost = connection.ring_cost();
        let number = connection
            .open_link(queue, capacity, fds)
            .ok_or(LinkError::Busy)?;
        self.flush_later(peer);
        let sender = Sender::new(region, data_doorbell.for_peer(&cost), space_doorbell);
        Ok(OpenedLink { number, sender })
    }

    /// Tells a peer that a ring of it is not read any more: it was closed, and all records were
    /// read. To be called when the receiver is dropped. A ring or peer that is gone is ignored.
    pub fn finish_link(&mut self, peer: PeerKey, number: u64) {
        if let Some(connection) = self.connections.get_mut(&peer.get()) {
            connection.finish_link(number);
            self.flush_later(peer);
        }
    }

    /// Sends a record to a peer without a ring, if there is room: at most
    /// [`MAX_FRAME`](crate::MAX_FRAME) bytes.
    pub fn send_frame(&mut self, peer: PeerKey, record: &[u8]) -> bool {
        let connection = self.connections.get_mut(&peer.get());
        connection.is_some_and(|connection| connection.send_frame(record))
    }

    /// The peer opens a ring.
    pub(super) fn offered(
        &mut self,
        connection: &mut Connection,
        link: OfferedLink,
    ) -> Result<(), Refusal> {
        let (number, queue) = (link.number, link.queue);
        let result = match self.check_room_to_receive(connection) {
            Ok(()) => connection.accept_link(link),
            Err(error) => Err(Refusal::resources(error)),
        };
        match result {
            Ok(receiver) => self.events.push(SegmentEvent::Link {
                peer: connection.key,
                queue,
                number,
                receiver,
            }),
            Err(refusal @ (Refusal::Full(_) | Refusal::Resources(_))) => {
                log_limited!(
                    self.refusals,
                    Level::Warn,
                    "Port {}: no ring from {}: {refusal}",
                    self.local.port.id,
                    connection.name()
                );
                connection.decline_link(number);
            }
            Err(refusal) => return Err(refusal),
        }
        self.flush(connection)
    }

    /// Sends what a connection has to send. If that fails, the connection ends with an event soon.
    pub(super) fn flush_later(&mut self, peer: PeerKey) {
        let Some(mut connection) = self.connections.remove(&peer.get()) else {
            return;
        };
        let failed = self.flush(&mut connection).is_err();
        self.connections.insert(peer.get(), connection);
        if failed {
            let now = Instant::now();
            self.paused.push_front((now, peer.get()));
            self.arm(now);
        }
    }
}
