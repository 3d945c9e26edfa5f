//! Brings a segment and a device together: passes the segment's events of links to the device, and
//! does at the segment what links want.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use log::Level;
use virtio_inter_common::{ErrorChain, LogLimit, MacAddr, log_limited};
use virtio_inter_device::backend::Paths;
use virtio_inter_device::{DeviceError, LinkBackend, LinkEvent, Port};
use virtio_inter_segment::{PeerInfo, PeerKey, Segment, SegmentEvent};

use crate::timer::Timer;

/// Limits the log lines about errors that peers can cause again and again.
static PEERS: LogLimit = LogLimit::new(Duration::from_secs(1), 20);

/// A peer whose link cannot be served: its connection is to be ended.
pub(crate) type FailedPeer = (PeerKey, DeviceError);

/// The part of a control thread that concerns links. Readable as a descriptor when
/// [`LinkControl::close_quiet`] is to be called.
#[derive(Debug)]
pub(crate) struct LinkControl {
    /// The next time that rings are given back on which nothing was sent.
    quiet: Timer,
    /// Time after which they are.
    idle: Duration,
    /// What the device was given last.
    paths: Option<Paths>,
    /// Addresses that a trunk is to learn.
    new_addresses: Vec<MacAddr>,
}

impl LinkControl {
    /// Gives rings back on which nothing was sent for `idle`.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for a timer.
    pub(crate) fn new(idle: Duration) -> io::Result<Self> {
        Ok(Self {
            quiet: Timer::new()?,
            idle,
            paths: None,
            new_addresses: Vec::new(),
        })
    }

    /// Passes an event of a link from the segment to the device.
    ///
    /// # Errors
    ///
    /// The peer, when the device cannot serve its link.
    pub(crate) fn handle<B: LinkBackend>(
        device: &mut Port<B>,
        event: SegmentEvent,
    ) -> Result<(), FailedPeer> {
        let (peer, result) = match event {
            SegmentEvent::Link {
                peer,
                queue,
                number,
                receiver,
            } => (peer, device.add_receiver(peer, queue, number, receiver)),
            SegmentEvent::Accepted {
                peer,
                queue,
                number,
                page,
            } => (peer, device.attach(peer, queue, number, page)),
            SegmentEvent::LinkDone {
                peer,
                queue,
                number,
                declined: true,
            } => (peer, device.set_declined(peer, queue, number)),
            SegmentEvent::Addresses { peer, addresses } => {
                (peer, device.set_used_by(peer, &addresses))
            }
            SegmentEvent::Frame { peer, record } => {
                device.deliver(peer, &record);
                return Ok(());
            }
            _ => return Ok(()),
        };
        result.map_err(|error| (peer, error))
    }

    /// Makes the rings that workers want, gives back those that are read to their end, and sends
    /// multicast frames to peers without a ring. Returns the peers whose links cannot be served.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub(crate) fn serve<B: LinkBackend>(
        &mut self,
        device: &mut Port<B>,
        segment: &mut Segment,
        peers: &BTreeMap<PeerKey, PeerInfo>,
    ) -> io::Result<Vec<FailedPeer>> {
        let events = device.link_events().unwrap_or_else(|error| {
            log_limited!(PEERS, Level::Error, "Links: {}", ErrorChain(&error));
            Vec::new()
        });
        let mut failed = Vec::new();
        for event in events {
            match event {
                LinkEvent::Wanted {
                    peer,
                    queue,
                    capacity,
                } => {
                    let result = match segment.open_link(peer, queue, capacity) {
                        Ok(link) => {
                            self.quiet.set(self.idle / 2)?;
                            device.set_ring(peer, queue, link.number, link.sender)
                        }
                        Err(error) => {
                            let name = peers.get(&peer).map(|peer| peer.id.as_str());
                            log_limited!(
                                PEERS,
                                Level::Warn,
                                "No ring to {}: {}",
                                name.unwrap_or("a peer"),
                                ErrorChain(&error)
                            );
                            device.set_no_ring(peer, queue)
                        }
                    };
                    failed.extend(result.err().map(|error| (peer, error)));
                }
                LinkEvent::Learn(address) => self.new_addresses.push(address),
                LinkEvent::Finished { peer, number } => segment.finish_link(peer, number),
                LinkEvent::Flood {
                    peers,
                    queue,
                    record,
                } => {
                    for peer in peers {
                        if !segment.send_frame(peer, &record) {
                            device.flood_lost(queue);
                        }
                    }
                }
            }
        }
        Ok(failed)
    }

    /// The addresses that a trunk is to learn.
    pub(crate) fn take_new_addresses(&mut self) -> Vec<MacAddr> {
        std::mem::take(&mut self.new_addresses)
    }

    /// Has the device use these links for frames that are not for one peer, unless it does already.
    pub(crate) fn choose<B: LinkBackend>(&mut self, device: &mut Port<B>, paths: Paths) {
        if self.paths.as_ref() == Some(&paths) {
            return;
        }
        match device.set_paths(&paths) {
            Ok(()) => self.paths = Some(paths),
            Err(error) => {
                log_limited!(
                    PEERS,
                    Level::Error,
                    "Cannot choose links: {}",
                    ErrorChain(&error)
                );
            }
        }
    }

    /// Gives back the rings on which nothing was sent for a while. Without rings, nothing wakes the
    /// process for that.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub(crate) fn close_quiet<B: LinkBackend>(&mut self, device: &mut Port<B>) -> io::Result<()> {
        self.quiet.clear();
        let others = device.close_quiet().unwrap_or_else(|error| {
            log_limited!(PEERS, Level::Error, "Links: {}", ErrorChain(&error));
            true
        });
        if others {
            self.quiet.set(self.idle / 2)?;
        }
        Ok(())
    }
}

impl AsFd for LinkControl {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.quiet.as_fd()
    }
}
