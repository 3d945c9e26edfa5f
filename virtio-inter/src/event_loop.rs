//! The control thread: signals, the frontend, the segment and the device's events, one after another.
//!
//! No frame passes here; the device's workers have threads of their own. What the segment finds goes to the
//! device, what the device finds wrong with a peer goes to the segment.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use log::Level;
use thiserror::Error;
use virtio_inter_common::{ErrorChain, LogLimit, log_limited};
use virtio_inter_device::{Port, PortEvent};
use virtio_inter_segment::{PeerInfo, PeerKey, Segment, SegmentEvent};

use crate::cli::PortArgs;
use crate::diagnostics::Diagnostics;
use crate::door::Door;
use crate::signals::Signals;
use crate::socket::{Listener, SocketError};
use crate::status::Status;
use crate::status_socket::StatusSocket;
use crate::stray_signals::StraySignals;
use crate::timer::Timer;
use crate::upkeep::{Upkeep, watch};
use virtio_inter_common::{Epoll, Timeout};

const SIGNALS: u64 = 0;
const DOOR: u64 = 1;
const SEGMENT: u64 = 2;
const DEVICE: u64 = 3;
const STATUS: u64 = 4;
const STRAYS: u64 = 6;
const LOOK: u64 = 5;
const UPKEEP: u64 = 7;

/// Time from the first dropped frame to a look at why: ports that start together link in between.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// Time between looks while more is dropped.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What goes wrong with peers, who can make it go wrong again and again.
static PEERS: LogLimit = LogLimit::new(Duration::from_secs(1), 20);

/// Why a port ends that was not asked to.
#[derive(Debug, Error)]
pub enum RunError {
    /// The kernel cannot watch descriptors any more.
    #[error("Cannot wait for events")]
    Wait(#[from] io::Error),
    /// A signal came that nobody should send to a port.
    #[error("{0}")]
    Signal(String),
}

/// All that the control thread owns.
#[derive(Debug)]
pub struct EventLoop {
    poll: Epoll,
    door: Door,
    segment: Segment,
    device: Port,
    /// Those between which and the device frames flow.
    peers: BTreeMap<PeerKey, PeerInfo>,
    status: Option<StatusSocket>,
    diagnostics: Diagnostics,
    /// When to look at what workers dropped. Set only after they did.
    look: Timer,
    upkeep: Upkeep,
    arguments: PortArgs,
    strays: StraySignals,
    /// Last, since it is dropped last: a second signal helps where the others' end does not come.
    _signals: Signals,
}

impl EventLoop {
    /// Brings the parts together.
    ///
    /// # Errors
    ///
    /// When the kernel cannot watch them.
    pub fn new(
        arguments: &PortArgs,
        signals: Signals,
        strays: StraySignals,
        door: Door,
        segment: Segment,
        device: Port,
        status: Option<StatusSocket>,
    ) -> io::Result<Self> {
        let poll = Epoll::new()?;
        poll.add(&signals, SIGNALS)?;
        poll.add(&strays, STRAYS)?;
        poll.add(&door, DOOR)?;
        poll.add(segment.fd(), SEGMENT)?;
        poll.add(device.events_fd(), DEVICE)?;
        let look = Timer::new()?;
        poll.add(&look, LOOK)?;
        let upkeep = Upkeep::new()?;
        poll.add(&upkeep, UPKEEP)?;
        if let Some(status) = &status {
            poll.add(status, STATUS)?;
        }
        Ok(Self {
            poll,
            door,
            segment,
            device,
            peers: BTreeMap::new(),
            status,
            diagnostics: Diagnostics::new(&arguments.local_port()),
            look,
            upkeep,
            arguments: arguments.clone(),
            strays,
            _signals: signals,
        })
    }

    /// Runs until a signal asks for the end, then stops the device, leaves the segment and closes the door.
    ///
    /// # Errors
    ///
    /// When the kernel cannot watch descriptors any more, or a signal ends the port that nobody
    /// should send to one.
    pub fn run(mut self) -> Result<(), RunError> {
        let result = self.serve();
        let (segment, status) = (self.segment, self.status);
        // A successor waits for a port that holds its lock and listens no more (see `predecessor`).
        let _lock = self
            .door
            .close(&mut self.device, || drop((segment, status)));
        log_counters(&self.device);
        result
    }

    fn serve(&mut self) -> Result<(), RunError> {
        self.keep_files()?;
        loop {
            for token in self.poll.wait::<16>(Timeout::Never)? {
                match token {
                    SIGNALS => return Ok(()),
                    STRAYS => {
                        if let Some(reason) = self.strays.process() {
                            return Err(RunError::Signal(reason));
                        }
                    }
                    DOOR => {
                        self.door.process(&mut self.device)?;
                        self.diagnostics.memory(self.door.unshared_memory());
                    }
                    SEGMENT => self.heed_segment()?,
                    STATUS => self.tell_status()?,
                    LOOK => self.look_at_drops()?,
                    UPKEEP => self.keep_files()?,
                    _ => self.heed_device()?,
                }
            }
        }
    }

    fn tell_status(&mut self) -> io::Result<()> {
        let Some(status) = &mut self.status else {
            return Ok(());
        };
        self.diagnostics.drops(&self.device, &self.peers);
        status.process(|| {
            let peers = self.peers.values();
            let now = Status::new(
                &self.arguments,
                &self.door,
                peers,
                &self.device,
                &self.diagnostics,
                self.segment.refused(),
            );
            // Nothing in it can fail to be written as JSON.
            let mut document = serde_json::to_vec(&now).unwrap_or_default();
            document.push(b'\n');
            document
        })
    }

    fn heed_segment(&mut self) -> io::Result<()> {
        let mut files_changed = false;
        for event in self.segment.process() {
            match event {
                SegmentEvent::Up(link) => {
                    let peer = link.peer.clone();
                    match self.device.add_peer(link) {
                        Ok(()) => {
                            self.diagnostics.linked(&peer);
                            self.peers.insert(peer.key, peer);
                            self.diagnostics.mtus(self.peers.values());
                        }
                        // Our own trouble, which the peer is not to be shunned for.
                        Err(error) => self
                            .segment
                            .drop_peer(peer.key, &ErrorChain(&error).to_string()),
                    }
                }
                SegmentEvent::Down(key, _) => self.remove_peer(key),
                SegmentEvent::FilesChanged => files_changed = true,
            }
        }
        self.diagnostics.refused(self.segment.refused());
        if files_changed {
            self.keep_files()?;
        }
        Ok(())
    }

    /// Looks after the files by which others find this port. The segment's own it looks after
    /// itself.
    fn keep_files(&mut self) -> io::Result<()> {
        let segment = &self.arguments.segment;
        self.diagnostics.lost_file(segment, self.segment.lost());
        if !self.upkeep.begin()? {
            return Ok(());
        }
        let mut complete = true;
        let mut settle = |listener: &Listener, result: Result<(), SocketError>| {
            let why = result.err().map(|error| ErrorChain(&error).to_string());
            self.diagnostics.lost_file(listener.path(), why.as_deref());
            complete &= why.is_none() && watch(&self.segment, listener);
        };
        let mut result = Ok(());
        if !self.door.listener().is_in_place() {
            self.upkeep.restored();
            result = self.door.restore(&mut self.device);
        }
        settle(self.door.listener(), result);
        if let Some(status) = &mut self.status {
            let mut result = Ok(());
            if !status.listener().is_in_place() {
                self.upkeep.restored();
                result = status.restore();
            }
            settle(status.listener(), result);
        }
        self.upkeep.end(complete)
    }

    /// Looks at what workers dropped, and again after a while if that was anything. If not, the
    /// next that is dropped is an event: an idle port does not wake up.
    fn look_at_drops(&mut self) -> io::Result<()> {
        self.look.clear();
        self.device.watch_drops();
        if self.diagnostics.drops(&self.device, &self.peers) {
            self.look.set(LOOK_AGAIN)?;
        }
        Ok(())
    }

    fn heed_device(&mut self) -> io::Result<()> {
        for event in self.device.events() {
            match event {
                PortEvent::Dropped => self.look.set(LOOK_AFTER)?,
                PortEvent::BlankRing { queue } => {
                    self.door.suspect_memory(queue);
                    self.diagnostics.memory(self.door.unshared_memory());
                }
                PortEvent::LinkViolation { peer, reason } => {
                    self.remove_peer(peer);
                    self.segment.close_peer(peer, &reason);
                }
            }
        }
        Ok(())
    }

    fn remove_peer(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.remove(&key) {
            self.diagnostics.left(&peer);
            self.diagnostics.mtus(self.peers.values());
        }
        if let Err(error) = self.device.remove_peer(key) {
            log_limited!(
                PEERS,
                Level::Error,
                "Cannot forget peer {key}: {}",
                ErrorChain(&error)
            );
        }
    }
}

/// Logs what the port did in its life, for whoever wonders why a frame did not arrive.
fn log_counters(device: &Port) {
    for (pair, counters) in device.counters().enumerate() {
        log::info!("Queue pair {pair}: {}", describe(&counters.values()));
    }
}

/// The counters that are not 0.
fn describe(counters: &[(&str, u64)]) -> String {
    let counted: Vec<String> = counters
        .iter()
        .filter(|(_, value)| *value != 0)
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    if counted.is_empty() {
        return "all counters 0".to_owned();
    }
    counted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_of_counters_is_never_blank() {
        assert_eq!(describe(&[("a", 0), ("b", 0)]), "all counters 0");
        assert_eq!(describe(&[("a", 1), ("b", 0), ("c", 2)]), "a 1, c 2");
    }
}
