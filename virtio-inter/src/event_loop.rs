//! The control loop: handles signals and the events of frontends, segment and device, one by one.
//!
//! No frame passes here; the device's workers are threads of their own. The loop passes links from
//! the segment to the device, and violations by peers from the device to the segment.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::Level;
use thiserror::Error;
use virtio_inter_common::{DirNotify, Epoll, ErrorChain, Events, LogLimit, Timeout, log_limited};
use virtio_inter_device::PortEvent;
use virtio_inter_segment::{PeerInfo, PeerKey, Segment, SegmentEvent};

use crate::capture_socket::CaptureSocket;
use crate::cli::PortArgs;
use crate::diagnostics::Diagnostics;
use crate::directory_modes::lets_others_remove;
use crate::file_watch::FileWatch;
use crate::frontend_server::FrontendServer;
use crate::link_control::LinkControl;
use crate::paths;
use crate::restore_backoff::RestoreBackoff;
use crate::sandbox::Report;
use crate::shutdown_signals::ShutdownSignals;
use crate::status::Status;
use crate::status_socket::StatusSocket;
use crate::timer::Timer;
use crate::trunk::Trunk;
use crate::unexpected_signals::UnexpectedSignals;
use crate::uplink::{PortDevice, Uplink};
use crate::watchdog::Watchdog;

const SIGNALS: u64 = 0;
const FRONTENDS: u64 = 1;
const SEGMENT: u64 = 2;
const DEVICE: u64 = 3;
const STATUS: u64 = 4;
const DROPS: u64 = 5;
const UNEXPECTED: u64 = 6;
const RESTORE: u64 = 7;
const UPLINK: u64 = 8;
const FILES: u64 = 9;
const IDLE_LINKS: u64 = 10;
const WATCHDOG: u64 = 11;
const CAPTURE: u64 = 12;
const TRUNK: u64 = 14;

/// Time from the first dropped frame to the check of the reasons: ports that start together link
/// meanwhile.
const FIRST_DROP_CHECK: Duration = Duration::from_secs(1);
/// Time between checks while frames are being dropped.
const NEXT_DROP_CHECK: Duration = Duration::from_secs(10);

/// Time between attempts to open an uplink's device again.
const UPLINK_RETRY: Duration = Duration::from_secs(1);

/// Limits the log lines about errors that peers can cause again and again.
static PEERS: LogLimit = LogLimit::new(Duration::from_secs(1), 20);

/// Why a port ends without a shutdown signal.
#[derive(Debug, Error)]
pub enum RunError {
    /// The kernel cannot watch descriptors any more.
    #[error("Cannot wait for events")]
    Wait(#[from] io::Error),
    /// A signal came that should not be sent to a port.
    #[error("{0}")]
    Signal(String),
    /// The sandbox keeps the port from its files, and its supervisor can start it again.
    #[error(
        "Directory {} was replaced, and the sandbox confines this port to the former one: it ends \
         to be started again",
        .0.display()
    )]
    Directory(PathBuf),
}

/// The state of the control thread.
#[derive(Debug)]
pub struct EventLoop {
    poll: Epoll,
    frontends: FrontendServer,
    segment: Segment,
    device: PortDevice,
    uplink: Option<Uplink>,
    /// The next attempt to open the uplink's device, which is gone.
    uplink_retry: Timer,
    /// The peers with links.
    peers: BTreeMap<PeerKey, PeerInfo>,
    /// They have changed since the last call of [`Diagnostics::peers`].
    peers_changed: bool,
    status: StatusSocket,
    capture: CaptureSocket,
    diagnostics: Diagnostics,
    /// The next check of dropped frames. Set only after workers dropped some.
    drop_check: Timer,
    restore_backoff: RestoreBackoff,
    file_watch: FileWatch,
    links: LinkControl,
    watchdog: Watchdog,
    trunk: Trunk,
    arguments: PortArgs,
    sandbox: Report,
    unexpected: UnexpectedSignals,
    /// The last field, so it is dropped last: a second signal still kills the process if dropping
    /// the others blocks.
    _signals: ShutdownSignals,
}

impl EventLoop {
    /// A control loop for these parts.
    ///
    /// # Errors
    ///
    /// When the kernel cannot watch them.
    pub fn new(
        arguments: &PortArgs,
        signals: ShutdownSignals,
        unexpected: UnexpectedSignals,
        frontends: FrontendServer,
        mut segment: Segment,
        device: PortDevice,
        status: StatusSocket,
    ) -> io::Result<Self> {
        let poll = Epoll::new()?;
        poll.add(&signals, SIGNALS)?;
        poll.add(&unexpected, UNEXPECTED)?;
        poll.add(&frontends, FRONTENDS)?;
        poll.add(segment.fd(), SEGMENT)?;
        poll.add(device.events_fd(), DEVICE)?;
        let drop_check = Timer::new()?;
        poll.add(&drop_check, DROPS)?;
        let uplink_retry = Timer::new()?;
        poll.add(&uplink_retry, UPLINK)?;
        let links = LinkControl::new(arguments.link_idle())?;
        poll.add(&links, IDLE_LINKS)?;
        let watchdog = Watchdog::from_environment()?;
        poll.add(&watchdog, WATCHDOG)?;
        let trunk = Trunk::new()?;
        poll.add(&trunk, TRUNK)?;
        segment.set_away(true);
        let restore_backoff = RestoreBackoff::new()?;
        poll.add(&restore_backoff, RESTORE)?;
        let file_watch = FileWatch::new()?;
        poll.add(&file_watch, FILES)?;
        segment.watch_with(DirNotify::watch);
        poll.add(&status, STATUS)?;
        let mut capture = CaptureSocket::new()?;
        // If that fails, the loop tries again and warns.
        let _ = capture.listen(&segment);
        poll.add(&capture, CAPTURE)?;
        Ok(Self {
            poll,
            frontends,
            segment,
            device,
            uplink: None,
            uplink_retry,
            peers: BTreeMap::new(),
            peers_changed: false,
            status,
            capture,
            diagnostics: Diagnostics::new(&arguments.local_port()),
            drop_check,
            restore_backoff,
            file_watch,
            links,
            watchdog,
            trunk,
            arguments: arguments.clone(),
            sandbox: Report::default(),
            unexpected,
            _signals: signals,
        })
    }

    /// The same for a port whose device has an uplink.
    #[must_use]
    pub fn with_uplink(mut self, uplink: Option<Uplink>) -> Self {
        self.uplink = uplink;
        self
    }

    /// The same for a process in a sandbox.
    #[must_use]
    pub fn with_sandbox(mut self, sandbox: Report) -> Self {
        self.sandbox = sandbox;
        self
    }

    /// Runs until a shutdown signal, then removes the socket, leaves the segment and stops the
    /// device.
    ///
    /// # Errors
    ///
    /// When the kernel cannot watch descriptors any more, or an unexpected signal ends the port.
    pub fn run(mut self) -> Result<(), RunError> {
        let result = self.serve();
        // The capturing process gets what there is; it may also be that which ended the loop.
        let _ = self.capture.end(&mut self.device);
        let (status, capture, segment) = (self.status, self.capture, self.segment);
        // The next port waits while this one holds its lock and no longer listens (see
        // `lock_wait`).
        let lock = self
            .frontends
            .close(&mut self.device, || drop((status, capture, segment)));
        log_counters(&self.device);
        // The next port opens the uplink as soon as it has the lock.
        drop(self.device);
        drop(lock);
        result
    }

    fn serve(&mut self) -> Result<(), RunError> {
        self.restore_files()?;
        self.check_uplink();
        loop {
            for token in self.poll.wait::<16>(Timeout::Never)? {
                match token {
                    SIGNALS => return Ok(()),
                    UNEXPECTED => {
                        if let Some(reason) = self.unexpected.process() {
                            return Err(RunError::Signal(reason));
                        }
                    }
                    FRONTENDS => {
                        self.frontends.process(&mut self.device)?;
                        self.check_queues();
                        if self.frontends.is_forbidden_to_connect() {
                            self.check_directories()?;
                        }
                        if self.frontends.is_finished() {
                            return Ok(());
                        }
                    }
                    SEGMENT => self.handle_segment()?,
                    STATUS => self.serve_status()?,
                    CAPTURE => self.capture.process(&mut self.device)?,
                    DROPS => self.check_drops()?,
                    RESTORE => self.restore_files()?,
                    UPLINK => self.reopen_uplink()?,
                    FILES => {
                        // Further notifications wait for the check, however many come.
                        self.poll.modify(&self.file_watch, Events::empty(), FILES)?;
                        self.restore_backoff.check_soon()?;
                    }
                    TRUNK => self.trunk.forget_old(&mut self.device, &mut self.segment)?,
                    IDLE_LINKS => self.links.close_quiet(&mut self.device)?,
                    WATCHDOG => self.watchdog.process()?,
                    _ => self.handle_device()?,
                }
                // Once, however many peers this event added or removed: the check reads all.
                if std::mem::take(&mut self.peers_changed) {
                    self.diagnostics.peers(&self.peers);
                }
            }
        }
    }

    fn serve_status(&mut self) -> io::Result<()> {
        self.diagnostics.drops(self.device.counters(), &self.peers);
        let uplink = self.uplink.as_ref().map(Uplink::status);
        if let Some(uplink) = &uplink {
            self.diagnostics.uplink(uplink);
        }
        self.segment.forget_old_conflicts();
        self.diagnostics.refused(self.segment.refused());
        self.status.process(|| {
            let peers = self.peers.values();
            let peers = peers.map(|peer| (peer, self.device.traffic(peer.key)));
            let now = Status::new(
                &self.arguments,
                &self.frontends,
                peers,
                &self.device,
                uplink,
                &self.diagnostics,
                self.segment.refused(),
            )
            .with_sandbox(&self.sandbox)
            .with_capture(self.capture.active())
            .with_usage(self.segment.usage())
            .with_trunk(self.arguments.trunk.then_some(&self.trunk));
            // The document has no values that JSON cannot represent.
            let mut document = serde_json::to_vec(&now).unwrap_or_default();
            document.push(b'\n');
            document
        })
    }

    fn handle_segment(&mut self) -> Result<(), RunError> {
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
                    self.choose_paths(&[]);
                }
                SegmentEvent::FilesChanged => files_changed = true,
                event => self.handle_link(event),
            }
        }
        self.add_peers(new);
        self.diagnostics.refused(self.segment.refused());
        if files_changed {
            self.restore_files()?;
        }
        Ok(())
    }

    /// Restores the socket and lock files that other programs need to find this port, and has the
    /// segment restore its own.
    fn restore_files(&mut self) -> Result<(), RunError> {
        self.file_watch.clear();
        self.poll.modify(&self.file_watch, Events::EPOLLIN, FILES)?;
        self.segment.check_files();
        let segment = &self.arguments.segment;
        self.diagnostics.lost_file(segment, self.segment.lost());
        let open = lets_others_remove(segment);
        self.diagnostics.segment_mode(segment, open);
        if !self.restore_backoff.begin()? {
            return Ok(());
        }
        let mut complete = true;
        let mut result = Ok(());
        let listener = self.frontends.listener();
        if listener.is_some_and(|listener| !listener.is_in_place()) {
            self.restore_backoff.restored();
            result = self.frontends.restore(&mut self.device);
        }
        let why = result.err().map(|error| ErrorChain(&error).to_string());
        if let Some(listener) = self.frontends.listener() {
            self.diagnostics.lost_file(listener.path(), why.as_deref());
            complete &= why.is_none() && self.file_watch.add_files_of(listener);
        }
        if !self.status.is_in_place() || !self.capture.is_in_place() {
            self.restore_backoff.restored();
        }
        // The warning of a lost segment says it all.
        let is_lost = self.segment.lost().is_some();
        let is_news = |path: &Path| !is_lost || !path.starts_with(segment);
        for (path, why) in self.status.restore(&self.segment) {
            complete &= why.is_none();
            let why = why.filter(|_| is_news(&path));
            self.diagnostics.no_status(&path, why.as_deref());
        }
        let (path, why) = self.capture.restore(&self.segment);
        complete &= why.is_none();
        let why = why.filter(|_| is_news(&path));
        self.diagnostics.no_capture(&path, why.as_deref());
        if let Some(listener) = self.status.listener() {
            complete &= self.file_watch.add_files_of(listener);
        }
        if !complete {
            self.check_directories()?;
        }
        Ok(self.restore_backoff.end(complete)?)
    }

    /// Ends the process if a directory was replaced that it needs, and its supervisor can start it
    /// again: the next one is confined to the new directory, and has the connections.
    fn check_directories(&self) -> Result<(), RunError> {
        if self.frontends.outlive_the_process()
            && let Some(path) = self.sandbox.replaced_directory()
        {
            return Err(RunError::Directory(path.to_owned()));
        }
        Ok(())
    }

    /// Checks which frames workers dropped, and sets the timer for the next check if there were
    /// any. If not, the next dropped frame causes an event: an idle port does not wake up.
    fn check_drops(&mut self) -> io::Result<()> {
        self.drop_check.clear();
        self.device.watch_drops();
        if self.diagnostics.drops(self.device.counters(), &self.peers) {
            self.drop_check.set(NEXT_DROP_CHECK)?;
        }
        self.check_uplink();
        Ok(())
    }

    /// Warns of guest memory that is not shared, and of queues that cannot start for another
    /// reason, and ends the warnings when that is over.
    fn check_queues(&mut self) {
        let waits = self.frontends.queue_waits();
        let (lack, other) = match waits {
            Some(waits) if waits.without_memory => (Some(waits.text.as_str()), None),
            waits => (None, waits.map(|waits| waits.text.as_str())),
        };
        self.diagnostics
            .memory(self.frontends.unshared_memory().or(lack));
        self.diagnostics.queues(other);
    }

    /// Warns of an uplink that is down or gone, and ends the warning when it is not any more.
    fn check_uplink(&mut self) {
        if let Some(uplink) = &self.uplink {
            self.diagnostics.uplink(&uplink.status());
        }
    }

    /// Opens the uplink's device again, which was deleted. It may have been made again already.
    fn reopen_uplink(&mut self) -> io::Result<()> {
        self.uplink_retry.clear();
        let Some(uplink) = &mut self.uplink else {
            return Ok(());
        };
        match uplink.reopen() {
            Ok(device) => {
                log::info!("Tap device {} is there again", uplink.name());
                if let Err(error) = self.device.set_uplink(device) {
                    log::error!("Cannot use the uplink: {}", ErrorChain(&error));
                }
            }
            Err(error) => {
                log::debug!("No uplink: {}", ErrorChain(&error));
                self.uplink_retry.set(UPLINK_RETRY)?;
            }
        }
        self.check_uplink();
        Ok(())
    }

    fn handle_device(&mut self) -> io::Result<()> {
        for event in self.device.events() {
            match event {
                PortEvent::Dropped => self.drop_check.set(FIRST_DROP_CHECK)?,
                PortEvent::UplinkLost => self.reopen_uplink()?,
                PortEvent::BlankRing { queue } => {
                    self.frontends.check_unshared_memory(queue);
                    self.check_queues();
                }
                PortEvent::LinkViolation { peer, reason } => {
                    self.remove_peer(peer);
                    self.segment.close_peer(peer, &reason);
                }
            }
        }
        self.segment.set_away(!self.device.has_guest());
        self.handle_link_events()
    }

    /// Exchanges frames with peers that are up.
    fn add_peers(&mut self, new: Vec<PeerInfo>) {
        if new.is_empty() {
            return;
        }
        self.choose_paths(&new);
        let added = self.device.add_peers(&new);
        for peer in new {
            match &added {
                Ok(()) => {
                    self.diagnostics.linked(&peer);
                    self.peers.insert(peer.key, peer);
                    self.peers_changed = true;
                }
                // An error of this port, for which the segment must not refuse the peer.
                Err(error) => {
                    let reason = ErrorChain(error).to_string();
                    self.segment.drop_peer(peer.key, &reason);
                }
            }
        }
        if added.is_err() {
            // Those that were chosen name the lost peers.
            self.choose_paths(&[]);
        }
    }

    /// Passes an event of a link from the segment to the device.
    fn handle_link(&mut self, event: SegmentEvent) {
        if let Err((peer, error)) = LinkControl::handle(&mut self.device, event) {
            self.drop_peer(peer, &ErrorChain(&error).to_string());
        }
    }

    /// Does what the device's links want.
    fn handle_link_events(&mut self) -> io::Result<()> {
        let (device, segment) = (&mut self.device, &mut self.segment);
        for (peer, error) in self.links.serve(device, segment, &self.peers)? {
            self.drop_peer(peer, &ErrorChain(&error).to_string());
        }
        let new = self.links.take_new_addresses();
        self.trunk.learn(&new, &mut self.device, &mut self.segment)
    }

    /// Chooses the links of multicast frames and of frames for nobody, among the peers and new
    /// ones.
    fn choose_paths(&mut self, new: &[PeerInfo]) {
        let peers = self.peers.values().chain(new);
        let paths = paths::of_port(&self.arguments.local_port().uplinks, peers);
        self.links.choose(&mut self.device, paths);
    }

    /// Ends a connection for a reason of this port; the peer may come back.
    fn drop_peer(&mut self, key: PeerKey, reason: &str) {
        self.remove_peer(key);
        self.segment.drop_peer(key, reason);
    }

    fn remove_peer(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.remove(&key) {
            self.diagnostics.left(&peer);
            self.peers_changed = true;
        }
        if let Err(error) = self.device.remove_peer(key) {
            log_limited!(
                PEERS,
                Level::Error,
                "Cannot forget peer {key}: {}",
                ErrorChain(&error)
            );
        }
        self.choose_paths(&[]);
    }
}

/// Logs the counters, for the diagnosis of lost frames.
fn log_counters(device: &PortDevice) {
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
