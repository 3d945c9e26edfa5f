//! The process of an uplink that ports share: a segment on one side, a tap device on the other.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use anyhow::Context;
use log::{Level, info};
use virtio_inter_args::absolute;
use virtio_inter_common::{Epoll, ErrorChain, LogLimit, Timeout, log_limited};
use virtio_inter_device::PortEvent;
use virtio_inter_segment::{PeerInfo, PeerKey, Segment, SegmentEvent};

use crate::cli::UplinkArgs;
use crate::diagnostics::Diagnostics;
use crate::directory_modes::lets_others_remove;
use crate::event_loop::RunError;
use crate::link_control::LinkControl;
use crate::lock_wait::LockWait;
use crate::restore_backoff::RestoreBackoff;
use crate::sandbox::{self, Report};
use crate::shutdown_signals::ShutdownSignals;
use crate::status::SharedUplinkStatus;
use crate::status_socket::StatusSocket;
use crate::timer::Timer;
use crate::unexpected_signals::UnexpectedSignals;
use crate::uplink::{SharedUplinkDevice, Uplink, check_right};
use crate::watchdog::Watchdog;
use crate::{notify, paths, rlimits};

const SIGNALS: u64 = 0;
const UNEXPECTED: u64 = 1;
const SEGMENT: u64 = 2;
const DEVICE: u64 = 3;
const STATUS: u64 = 4;
const RETRY: u64 = 5;
const SETTLED: u64 = 6;
const IDLE_LINKS: u64 = 7;
const STATUS_RETRY: u64 = 8;
const WATCHDOG: u64 = 9;
const DROPS: u64 = 10;

/// Time between attempts to open the device again.
const UPLINK_RETRY: Duration = Duration::from_secs(1);

/// Time from the first dropped frame to the check of the reasons, and between checks while frames
/// are being dropped.
const FIRST_DROP_CHECK: Duration = Duration::from_secs(1);
const NEXT_DROP_CHECK: Duration = Duration::from_secs(10);

/// Time after which rings are given back on which nothing was sent.
const LINK_IDLE: Duration = Duration::from_secs(60);

/// Time after the start in which the uplink stands by in any case: it learns of the others, so that
/// no address is seen at two of them.
const SETTLE: Duration = Duration::from_secs(1);

/// Limits the log lines about errors that peers can cause again and again.
static PEERS: LogLimit = LogLimit::new(Duration::from_secs(1), 20);

/// Runs an uplink until SIGTERM, SIGINT or SIGHUP.
///
/// # Errors
///
/// When it cannot run, in words for its user.
pub fn run(arguments: &UplinkArgs) -> anyhow::Result<()> {
    let sandbox = sandbox::enter_process(arguments.sandbox.mode, sandbox::of_uplink(arguments))?;
    crate::status::process_start();
    let signals = ShutdownSignals::catch().context("Cannot catch signals")?;
    let unexpected = UnexpectedSignals::catch().context("Cannot catch signals")?;
    rlimits::prepare(arguments.ring_size);
    check_right(&arguments.segment, "an uplink")?;
    let local = arguments.local_port();
    let wait = LockWait::new(&signals);
    let listen = || StatusSocket::listen(arguments.status_socket.as_deref());
    let Some(mut status) = wait.acquire(listen)? else {
        return Ok(());
    };
    let (uplink, uplink_device) = Uplink::open(&arguments.device(), local.queues, local.mtu)?;
    let join = || {
        let limits = arguments.limits.limits();
        Segment::join_with(&arguments.segment, local.clone(), limits)
    };
    let Some(segment) = wait.acquire(join)? else {
        return Ok(());
    };
    // The event loop tries again and warns.
    let _ = status.listen_in_segment(&segment);
    let device = SharedUplinkDevice::relay(
        &local,
        arguments.busy_poll(),
        uplink_device,
        arguments.uplink_offload,
    )?;
    sandbox.log();
    info!(
        "Serving segment {} as uplink {} by tap device {}, priority {}, MTU {}",
        absolute(&arguments.segment).display(),
        local.id,
        uplink.name(),
        arguments.priority,
        local.mtu
    );
    let mut uplink = SharedUplink {
        poll: Epoll::new().context("Cannot wait for events")?,
        segment,
        device,
        uplink,
        retry: Timer::new().context("Cannot wait for events")?,
        settling: Some(Timer::new().context("Cannot wait for events")?),
        peers: BTreeMap::new(),
        peers_changed: false,
        links: LinkControl::new(LINK_IDLE).context("Cannot wait for events")?,
        watchdog: Watchdog::from_environment().context("Cannot wait for events")?,
        is_active: false,
        status,
        diagnostics: Diagnostics::new(&local),
        drop_check: Timer::new().context("Cannot wait for events")?,
        status_retry: RestoreBackoff::new().context("Cannot wait for events")?,
        arguments: arguments.clone(),
        sandbox,
        unexpected,
        signals,
    };
    uplink.watch().context("Cannot wait for events")?;
    uplink.choose_paths();
    uplink.status_retry.check_soon()?;
    notify::ready();
    uplink.serve()?;
    info!("Leaving {}", arguments.segment.display());
    Ok(())
}

struct SharedUplink {
    poll: Epoll,
    segment: Segment,
    device: SharedUplinkDevice,
    uplink: Uplink,
    retry: Timer,
    /// Until it has learnt of the others.
    settling: Option<Timer>,
    peers: BTreeMap<PeerKey, PeerInfo>,
    peers_changed: bool,
    links: LinkControl,
    watchdog: Watchdog,
    /// No other uplink has a higher priority.
    is_active: bool,
    status: StatusSocket,
    diagnostics: Diagnostics,
    /// The next check of dropped frames. Set only after workers dropped some.
    drop_check: Timer,
    /// The next attempt to serve the status in the segment's directory.
    status_retry: RestoreBackoff,
    arguments: UplinkArgs,
    sandbox: Report,
    unexpected: UnexpectedSignals,
    signals: ShutdownSignals,
}

impl SharedUplink {
    fn watch(&mut self) -> io::Result<()> {
        if let Some(settling) = &mut self.settling {
            settling.set(SETTLE)?;
            self.poll.add(&*settling, SETTLED)?;
        }
        self.poll.add(&self.signals, SIGNALS)?;
        self.poll.add(&self.unexpected, UNEXPECTED)?;
        self.poll.add(self.segment.fd(), SEGMENT)?;
        self.poll.add(self.device.events_fd(), DEVICE)?;
        self.poll.add(&self.retry, RETRY)?;
        self.poll.add(&self.links, IDLE_LINKS)?;
        self.poll.add(&self.watchdog, WATCHDOG)?;
        self.poll.add(&self.status_retry, STATUS_RETRY)?;
        self.poll.add(&self.drop_check, DROPS)?;
        self.poll.add(&self.status, STATUS)
    }

    fn serve(&mut self) -> Result<(), RunError> {
        loop {
            for token in self.poll.wait::<16>(Timeout::Never)? {
                match token {
                    SIGNALS => return Ok(()),
                    UNEXPECTED => {
                        if let Some(reason) = self.unexpected.process() {
                            return Err(RunError::Signal(reason));
                        }
                    }
                    SEGMENT => self.handle_segment()?,
                    STATUS => self.serve_status()?,
                    STATUS_RETRY => self.restore_status()?,
                    DROPS => self.check_drops()?,
                    IDLE_LINKS => self.links.close_quiet(&mut self.device)?,
                    WATCHDOG => self.watchdog.process()?,
                    RETRY => self.reopen()?,
                    SETTLED => {
                        self.settling = None;
                        self.choose_paths();
                    }
                    _ => self.handle_device()?,
                }
                // Once, however many peers this event added or removed.
                if std::mem::take(&mut self.peers_changed) {
                    self.diagnostics.peers(&self.peers);
                }
            }
        }
    }

    fn handle_segment(&mut self) -> io::Result<()> {
        for event in self.segment.process() {
            match event {
                SegmentEvent::Up(peer) => self.add_peer(peer),
                SegmentEvent::Down(key, _) => self.remove_peer(key),
                SegmentEvent::Guest { peer, away } => {
                    if let Some(peer) = self.peers.get_mut(&peer) {
                        peer.away = away;
                    }
                    self.choose_paths();
                }
                SegmentEvent::FilesChanged => {
                    self.segment.check_files();
                    self.status_retry.check_soon()?;
                }
                // Other uplinks are unknown to the device, which takes nothing of them.
                event => {
                    if let Err((peer, error)) = LinkControl::handle(&mut self.device, event) {
                        self.drop_peer(peer, &ErrorChain(&error).to_string());
                    }
                }
            }
        }
        self.diagnostics.refused(self.segment.refused());
        Ok(())
    }

    /// Warns of dropped frames, and looks again later if there were any.
    fn check_drops(&mut self) -> io::Result<()> {
        self.drop_check.clear();
        self.device.watch_drops();
        let counters = self.device.counters();
        if self.diagnostics.drops(counters, &self.peers) {
            self.drop_check.set(NEXT_DROP_CHECK)?;
        }
        self.diagnostics.uplink(&self.uplink.status());
        Ok(())
    }

    /// Looks at the segment's files, and restores the sockets by which readers find the status.
    fn restore_status(&mut self) -> io::Result<()> {
        let segment = &self.arguments.segment;
        self.diagnostics.lost_file(segment, self.segment.lost());
        self.diagnostics
            .segment_mode(segment, lets_others_remove(segment));
        if !self.status_retry.begin()? {
            return Ok(());
        }
        if !self.status.is_in_place() {
            self.status_retry.restored();
        }
        let mut complete = true;
        for (path, why) in self.status.restore(&self.segment) {
            complete &= why.is_none();
            // The warning of a lost segment says it all.
            let is_lost = self.segment.lost().is_some() && path.starts_with(segment);
            let why = why.filter(|_| !is_lost);
            self.diagnostics.no_status(&path, why.as_deref());
        }
        self.status_retry.end(complete)
    }

    /// Serves a port. Never from uplink to uplink: another one is known, and gets no link.
    fn add_peer(&mut self, peer: PeerInfo) {
        let key = peer.key;
        self.peers.insert(key, peer.clone());
        self.peers_changed = true;
        self.choose_paths();
        if peer.uplinks.shared.is_none()
            && let Err(error) = self.device.add_peer(&peer)
        {
            self.drop_peer(key, &ErrorChain(&error).to_string());
        }
    }

    fn drop_peer(&mut self, key: PeerKey, reason: &str) {
        self.remove_peer(key);
        self.segment.drop_peer(key, reason);
    }

    fn remove_peer(&mut self, key: PeerKey) {
        self.peers_changed |= self.peers.remove(&key).is_some();
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

    /// Becomes active or stands by, and serves the ports that have no uplink.
    fn choose_paths(&mut self) {
        let own = self.arguments.uplinks();
        let mut paths = paths::of_uplink(&self.arguments.id, &own, self.peers.values());
        paths.standby |= self.settling.is_some();
        if self.is_active == paths.standby {
            self.is_active = !paths.standby;
            let other = paths::active(self.peers.values());
            match other.filter(|_| paths.standby) {
                Some(other) => info!("Standing by for uplink {}", other.id),
                None => info!("Active"),
            }
        }
        self.links.choose(&mut self.device, paths);
    }

    fn handle_device(&mut self) -> io::Result<()> {
        for event in self.device.events() {
            match event {
                PortEvent::UplinkLost => self.reopen()?,
                PortEvent::LinkViolation { peer, reason } => {
                    self.remove_peer(peer);
                    self.segment.close_peer(peer, &reason);
                }
                PortEvent::Dropped => self.drop_check.set(FIRST_DROP_CHECK)?,
                PortEvent::BlankRing { .. } => {}
            }
        }
        let (device, segment) = (&mut self.device, &mut self.segment);
        for (peer, error) in self.links.serve(device, segment, &self.peers)? {
            self.drop_peer(peer, &ErrorChain(&error).to_string());
        }
        Ok(())
    }

    /// Opens the device again, which was deleted. It may have been made again already.
    fn reopen(&mut self) -> io::Result<()> {
        self.retry.clear();
        match self.uplink.reopen() {
            Ok(device) => {
                info!("Tap device {} is there again", self.uplink.name());
                if let Err(error) = self.device.set_uplink(device) {
                    log::error!("Cannot use the tap device: {}", ErrorChain(&error));
                }
            }
            Err(error) => {
                log::debug!("No uplink: {}", ErrorChain(&error));
                self.retry.set(UPLINK_RETRY)?;
            }
        }
        self.diagnostics.uplink(&self.uplink.status());
        Ok(())
    }

    fn serve_status(&mut self) -> io::Result<()> {
        let counters = self.device.counters();
        self.diagnostics.drops(counters, &self.peers);
        self.diagnostics.uplink(&self.uplink.status());
        self.segment.forget_old_conflicts();
        self.diagnostics.refused(self.segment.refused());
        self.status.process(|| {
            let peers = self.peers.values();
            let peers = peers.map(|peer| (peer, self.device.traffic(peer.key)));
            let now = SharedUplinkStatus::new(
                &self.arguments,
                self.is_active,
                self.uplink.status(),
                peers,
                &self.diagnostics,
                self.segment.refused(),
                self.device.counters(),
            )
            .with_sandbox(&self.sandbox)
            .with_usage(self.segment.usage());
            // The document has no values that JSON cannot represent.
            let mut document = serde_json::to_vec(&now).unwrap_or_default();
            document.push(b'\n');
            document
        })
    }
}
