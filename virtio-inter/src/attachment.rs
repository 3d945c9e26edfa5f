//! The attachment of a process to a segment: the device exchanges frames with the peers that the
//! segment reports, by the paths that are chosen among them, until they leave or violate the rules
//! of a link. Ports and shared uplinks do the same with their peers; what differs is in [`Role`].

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::Duration;

use log::Level;
use virtio_inter_common::{ErrorChain, LogLimit, log_limited};
use virtio_inter_device::backend::Paths;
use virtio_inter_device::{LinkBackend, Port, PortEvent};
use virtio_inter_segment::{PeerInfo, PeerKey, Segment, SegmentEvent};

use crate::link_control::LinkControl;

/// Limits the log lines about errors that peers can cause again and again.
static PEERS: LogLimit = LogLimit::new(Duration::from_secs(1), 20);

/// What a process is to its peers.
pub(crate) trait Role {
    /// Chooses the links of multicast frames and of frames for nobody, among these peers.
    fn paths<'a>(&mut self, peers: impl Iterator<Item = &'a PeerInfo> + Clone) -> Paths;

    /// Whether frames are exchanged with a peer. One with which none are is known all the same.
    fn has_links_with(&self, peer: &PeerInfo) -> bool {
        let _ = peer;
        true
    }

    /// Notes a peer with which frames are exchanged from now on.
    fn linked(&mut self, peer: &PeerInfo) {
        let _ = peer;
    }

    /// Notes that a peer has left, or is not wanted any more.
    fn left(&mut self, peer: &PeerInfo) {
        let _ = peer;
    }
}

/// A segment, the device of this process, and the peers.
pub(crate) struct Attachment<B: LinkBackend, R> {
    pub(crate) segment: Segment,
    pub(crate) device: Port<B>,
    pub(crate) role: R,
    /// Those that the process knows.
    pub(crate) peers: BTreeMap<PeerKey, PeerInfo>,
    pub(crate) links: LinkControl,
}

impl<B: LinkBackend, R: Role> Attachment<B, R> {
    /// No peer is known yet. Rings on which nothing was sent for `idle` are given back.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for a timer.
    pub(crate) fn new(
        segment: Segment,
        device: Port<B>,
        role: R,
        idle: Duration,
    ) -> io::Result<Self> {
        Ok(Self {
            segment,
            device,
            role,
            peers: BTreeMap::new(),
            links: LinkControl::new(idle)?,
        })
    }

    /// Handles the segment's events. True: its files, or those beside them, have changed.
    pub(crate) fn handle_segment(&mut self) -> bool {
        let mut files_changed = false;
        let mut new = Vec::new();
        for event in self.segment.process() {
            // Others may be about one of them.
            if !matches!(event, SegmentEvent::Up(_)) {
                self.add_peers(std::mem::take(&mut new));
            }
            match event {
                SegmentEvent::Up(peer) => new.push(peer),
                SegmentEvent::Down(key, _) => self.remove_peer(key),
                SegmentEvent::Guest { peer, away } => {
                    if let Some(peer) = self.peers.get_mut(&peer) {
                        peer.away = away;
                    }
                    self.choose_paths();
                }
                SegmentEvent::FilesChanged => files_changed = true,
                // The device takes nothing of a peer without links: it does not know it.
                event => {
                    if let Err((peer, error)) = LinkControl::handle(&mut self.device, event) {
                        self.drop_peer(peer, &ErrorChain(&error).to_string());
                    }
                }
            }
        }
        self.add_peers(new);
        files_changed
    }

    /// Handles the device's events of peers, and returns the others. To be followed by
    /// [`Attachment::serve_links`].
    pub(crate) fn device_events(&mut self) -> Vec<PortEvent> {
        let mut others = Vec::new();
        for event in self.device.events() {
            match event {
                PortEvent::LinkViolation { peer, reason } => {
                    self.remove_peer(peer);
                    self.segment.close_peer(peer, &reason);
                }
                event => others.push(event),
            }
        }
        others
    }

    /// Does what the device's links want.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub(crate) fn serve_links(&mut self) -> io::Result<()> {
        let (device, segment) = (&mut self.device, &mut self.segment);
        for (peer, error) in self.links.serve(device, segment, &self.peers)? {
            self.drop_peer(peer, &ErrorChain(&error).to_string());
        }
        Ok(())
    }

    /// Gives back the rings on which nothing was sent for a while.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub(crate) fn close_quiet(&mut self) -> io::Result<()> {
        self.links.close_quiet(&mut self.device)
    }

    /// Chooses the paths again, for another reason than peers.
    pub(crate) fn choose_paths(&mut self) {
        self.choose_paths_with(&[]);
    }

    fn choose_paths_with(&mut self, new: &[PeerInfo]) {
        let paths = self.role.paths(self.peers.values().chain(new));
        self.links.choose(&mut self.device, paths);
    }

    /// Exchanges frames with peers that are up: with all at the price of one.
    fn add_peers(&mut self, new: Vec<PeerInfo>) {
        if new.is_empty() {
            return;
        }
        self.choose_paths_with(&new);
        let (linked, others): (Vec<_>, Vec<_>) = new
            .into_iter()
            .partition(|peer| self.role.has_links_with(peer));
        let added = match &linked[..] {
            [] => Ok(()),
            linked => self.device.add_peers(linked),
        };
        for peer in linked {
            match &added {
                Ok(()) => {
                    self.role.linked(&peer);
                    self.peers.insert(peer.key, peer);
                }
                // An error of this process, for which the segment must not refuse the peer.
                Err(error) => {
                    let reason = ErrorChain(error).to_string();
                    self.segment.drop_peer(peer.key, &reason);
                }
            }
        }
        self.peers
            .extend(others.into_iter().map(|peer| (peer.key, peer)));
        if added.is_err() {
            // Those that were chosen name the lost peers.
            self.choose_paths();
        }
    }

    /// Ends a connection for a reason of this process; the peer may come back.
    fn drop_peer(&mut self, key: PeerKey, reason: &str) {
        self.remove_peer(key);
        self.segment.drop_peer(key, reason);
    }

    fn remove_peer(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.remove(&key) {
            self.role.left(&peer);
        }
        if let Err(error) = self.device.remove_peer(key) {
            log_limited!(
                PEERS,
                Level::Error,
                "Cannot forget peer {key}: {}",
                ErrorChain(&error)
            );
        }
        self.choose_paths();
    }
}

impl<B: LinkBackend, R: fmt::Debug> fmt::Debug for Attachment<B, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment")
            .field("segment", &self.segment)
            .field("device", &self.device)
            .field("role", &self.role)
            .field("peers", &self.peers)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "attachment_tests.rs"]
mod tests;
