//! The attachment of a process to a segment: the device exchanges frames with the peers that the
//! segment reports, by the paths that are chosen among them, until they leave or violate the rules
//! of a link, and what is wrong with them becomes a warning. Ports and shared uplinks do the same
//! with their peers; what differs is in [`Role`].

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use log::Level;
use virtio_inter_common::{ErrorChain, LogLimit, log_limited};
use virtio_inter_device::backend::Paths;
use virtio_inter_device::{LinkBackend, Port, PortEvent};
use virtio_inter_segment::{DownReason, LocalPort, PeerInfo, PeerKey, Segment, SegmentEvent};

use crate::diagnostics::Diagnostics;
use crate::directory_modes::lets_others_remove;
use crate::link_control::LinkControl;
use crate::timer::Timer;

/// Time from the first dropped frame to the check of the reasons: ports that start together link
/// meanwhile.
const FIRST_DROP_CHECK: Duration = Duration::from_secs(1);
/// Time between checks while frames are being dropped.
const NEXT_DROP_CHECK: Duration = Duration::from_secs(10);

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
}

/// A segment, the device of this process, and the peers.
pub(crate) struct Attachment<B: LinkBackend, R> {
    pub(crate) segment: Segment,
    pub(crate) device: Port<B>,
    pub(crate) role: R,
    /// Those that the process knows.
    pub(crate) peers: BTreeMap<PeerKey, PeerInfo>,
    pub(crate) links: LinkControl,
    pub(crate) diagnostics: Diagnostics,
    /// The peers may have changed since [`Attachment::report_peers`].
    peers_changed: bool,
    /// The next check of dropped frames: when this timer expires, [`Attachment::check_drops`] is to
    /// be called. Set only after workers dropped some.
    pub(crate) drop_check: Timer,
}

impl<B: LinkBackend, R: Role> Attachment<B, R> {
    /// The attachment of `local`, which knows no peer yet. Rings on which nothing was sent for
    /// `idle` are given back.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for a timer.
    pub(crate) fn new(
        local: &LocalPort,
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
            diagnostics: Diagnostics::new(local),
            peers_changed: false,
            drop_check: Timer::new()?,
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
                SegmentEvent::Down(key, reason) => {
                    if let DownReason::Violation(reason) = &reason {
                        self.warn_of_violation(key, reason);
                    }
                    self.remove_peer(key);
                }
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
        self.diagnostics.refused(self.segment.refused());
        files_changed
    }

    /// Handles the device's events of peers and of dropped frames, and returns the others. To be
    /// followed by [`Attachment::serve_links`].
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub(crate) fn device_events(&mut self) -> io::Result<Vec<PortEvent>> {
        let mut others = Vec::new();
        for event in self.device.events() {
            match event {
                PortEvent::LinkViolation { peer, reason } => {
                    self.warn_of_violation(peer, &reason);
                    self.remove_peer(peer);
                    self.segment.close_peer(peer, &reason);
                }
                PortEvent::Dropped => self.drop_check.set(FIRST_DROP_CHECK)?,
                event => others.push(event),
            }
        }
        Ok(others)
    }

    /// Warns of peers that do not go together, if any came or went. Called once an event, however
    /// many it added or removed: the check reads all. True: some may have changed.
    pub(crate) fn report_peers(&mut self) -> bool {
        let changed = std::mem::take(&mut self.peers_changed);
        if changed {
            self.diagnostics.peers(&self.peers);
        }
        changed
    }

    /// Checks which frames workers dropped, and sets the timer for the next check if there were
    /// any. If not, the next dropped frame causes an event: an idle process does not wake up.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub(crate) fn check_drops(&mut self) -> io::Result<()> {
        self.drop_check.clear();
        self.device.watch_drops();
        let counters = self.device.counters();
        if self.diagnostics.drops(counters, &self.peers) {
            self.drop_check.set(NEXT_DROP_CHECK)?;
        }
        Ok(())
    }

    /// Warns of a segment that was removed, or whose members can take each other's names.
    pub(crate) fn check_directory(&mut self, directory: &Path) {
        self.diagnostics.lost_file(directory, self.segment.lost());
        let open = lets_others_remove(directory);
        self.diagnostics.segment_mode(directory, open);
    }

    fn warn_of_violation(&mut self, key: PeerKey, reason: &str) {
        if let Some(peer) = self.peers.get(&key) {
            self.diagnostics.violation(&peer.id, reason);
        }
    }

    /// Updates the warnings of dropped frames and of refused peers.
    pub(crate) fn refresh_warnings(&mut self) {
        self.diagnostics.drops(self.device.counters(), &self.peers);
        self.segment.forget_old_conflicts();
        self.diagnostics.refused(self.segment.refused());
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
        self.peers_changed = true;
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
                    self.diagnostics.linked(&peer);
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
            self.peers_changed = true;
            self.diagnostics.left(&peer);
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
