//! The control loop of a port: handles signals and the events of frontends, segment and device, one
//! by one.
//!
//! No frame passes here; the device's workers are threads of their own. What concerns peers is in
//! `attachment.rs`.

use std::io;
use std::path::Path;

use virtio_inter_common::{DirNotify, Epoll, ErrorChain, Events, Timeout};
use virtio_inter_device::PortEvent;
use virtio_inter_device::backend::Paths;
use virtio_inter_segment::{PeerInfo, Segment, Uplinks};

use crate::attachment::{Attachment, Role};
use crate::capture_socket::CaptureSocket;
use crate::cli::PortArgs;
use crate::file_watch::FileWatch;
use crate::frontend_server::FrontendServer;
use crate::paths;
use crate::restore_backoff::RestoreBackoff;
use crate::run_error::RunError;
use crate::sandbox::Report;
use crate::shutdown_signals::ShutdownSignals;
use crate::status::Status;
use crate::status_socket::StatusSocket;
use crate::timer::Timer;
use crate::trunk::Trunk;
use crate::unexpected_signals::UnexpectedSignals;
use crate::uplink::{PortBackend, PortDevice, Uplink};
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

/// What a port is to its peers.
#[derive(Debug)]
struct PortRole {
    uplinks: Uplinks,
}

impl Role for PortRole {
    fn paths<'a>(&mut self, peers: impl Iterator<Item = &'a PeerInfo> + Clone) -> Paths {
        paths::of_port(&self.uplinks, peers)
    }
}

/// The state of the control thread.
#[derive(Debug)]
pub struct EventLoop {
    poll: Epoll,
    frontends: FrontendServer,
    attachment: Attachment<PortBackend, PortRole>,
    uplink: Option<Uplink>,
    /// The next attempt to open the uplink's device, which is gone.
    uplink_retry: Timer,
    status: StatusSocket,
    capture: CaptureSocket,
    restore_backoff: RestoreBackoff,
    file_watch: FileWatch,
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
        segment.set_away(true);
        let local = arguments.local_port();
        let uplinks = local.uplinks.clone();
        let (role, idle) = (PortRole { uplinks }, arguments.link_idle());
        let mut attachment = Attachment::new(&local, segment, device, role, idle)?;
        poll.add(attachment.segment.fd(), SEGMENT)?;
        poll.add(attachment.device.events_fd(), DEVICE)?;
        poll.add(&attachment.links, IDLE_LINKS)?;
        poll.add(&attachment.drop_check, DROPS)?;
        let uplink_retry = Timer::new()?;
        poll.add(&uplink_retry, UPLINK)?;
        let watchdog = Watchdog::from_environment()?;
        poll.add(&watchdog, WATCHDOG)?;
        let trunk = Trunk::new()?;
        poll.add(&trunk, TRUNK)?;
        let restore_backoff = RestoreBackoff::new()?;
        poll.add(&restore_backoff, RESTORE)?;
        let file_watch = FileWatch::new()?;
        poll.add(&file_watch, FILES)?;
        attachment.segment.watch_with(DirNotify::watch);
        poll.add(&status, STATUS)?;
        let mut capture = CaptureSocket::new()?;
        // If that fails, the loop tries again and warns.
        let _ = capture.listen(&attachment.segment);
        poll.add(&capture, CAPTURE)?;
        Ok(Self {
            poll,
            frontends,
            attachment,
            uplink: None,
            uplink_retry,
            status,
            capture,
            restore_backoff,
            file_watch,
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
        let _ = self.capture.end(&mut self.attachment.device);
        let Attachment {
            segment,
            mut device,
            ..
        } = self.attachment;
        let (status, capture) = (self.status, self.capture);
        // The next port waits while this one holds its lock and no longer listens (see
        // `lock_wait`).
        let lock = self
            .frontends
            .close(&mut device, || drop((status, capture, segment)));
        log_counters(&device);
        // The next port opens the uplink as soon as it has the lock.
        drop(device);
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
                        self.frontends.process(&mut self.attachment.device)?;
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
                    CAPTURE => self.capture.process(&mut self.attachment.device)?,
                    DROPS => {
                        self.attachment.check_drops()?;
                        self.check_uplink();
                    }
                    RESTORE => self.restore_files()?,
                    UPLINK => self.reopen_uplink()?,
                    FILES => {
                        // Further notifications wait for the check, however many come.
                        self.poll.modify(&self.file_watch, Events::empty(), FILES)?;
                        self.restore_backoff.check_soon()?;
                    }
                    TRUNK => {
                        let Attachment {
                            device, segment, ..
                        } = &mut self.attachment;
                        self.trunk.forget_old(device, segment)?;
                    }
                    IDLE_LINKS => self.attachment.close_quiet()?,
                    WATCHDOG => self.watchdog.process()?,
                    _ => self.handle_device()?,
                }
                self.attachment.report_peers();
            }
        }
    }

    fn serve_status(&mut self) -> io::Result<()> {
        self.attachment.refresh_warnings();
        let uplink = self.uplink.as_ref().map(Uplink::status);
        if let Some(uplink) = &uplink {
            self.attachment.diagnostics.uplink(uplink, true);
        }
        let Attachment {
            segment,
            device,
            peers,
            diagnostics,
            ..
        } = &self.attachment;
        self.status.process(|| {
            let peers = peers.values();
            let peers = peers.map(|peer| (peer, device.traffic(peer.key)));
            Status::new(
                &self.arguments,
                &self.frontends,
                peers,
                device,
                uplink,
                diagnostics,
                segment.refused(),
            )
            .with_sandbox(&self.sandbox)
            .with_capture(self.capture.active())
            .with_usage(segment.usage())
            .with_trunk(self.arguments.trunk.then_some(&self.trunk))
        })
    }

    fn handle_segment(&mut self) -> Result<(), RunError> {
        if self.attachment.handle_segment() {
            self.restore_files()?;
        }
        Ok(())
    }

    /// Restores the socket and lock files that other programs need to find this port, and has the
    /// segment restore its own.
    fn restore_files(&mut self) -> Result<(), RunError> {
        self.file_watch.clear();
        self.poll.modify(&self.file_watch, Events::EPOLLIN, FILES)?;
        let directory = &self.arguments.segment;
        self.attachment.segment.check_files();
        self.attachment.check_directory(directory);
        let Attachment {
            segment,
            device,
            diagnostics,
            ..
        } = &mut self.attachment;
        if !self.restore_backoff.begin()? {
            return Ok(());
        }
        let mut complete = true;
        let mut result = Ok(());
        let listener = self.frontends.listener();
        if listener.is_some_and(|listener| !listener.is_in_place()) {
            self.restore_backoff.restored();
            result = self.frontends.restore(device);
        }
        let why = result.err().map(|error| ErrorChain(&error).to_string());
        if let Some(listener) = self.frontends.listener() {
            diagnostics.lost_file(listener.path(), why.as_deref());
            complete &= why.is_none() && self.file_watch.add_files_of(listener);
        }
        if !self.status.is_in_place() || !self.capture.is_in_place() {
            self.restore_backoff.restored();
        }
        // The warning of a lost segment says it all.
        let is_lost = segment.lost().is_some();
        let is_news = |path: &Path| !is_lost || !path.starts_with(directory);
        for (path, why) in self.status.restore(segment) {
            complete &= why.is_none();
            let why = why.filter(|_| is_news(&path));
            diagnostics.no_status(&path, why.as_deref());
        }
        let (path, why) = self.capture.restore(segment);
        complete &= why.is_none();
        let why = why.filter(|_| is_news(&path));
        diagnostics.no_capture(&path, why.as_deref());
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

    /// Warns of guest memory that is not shared, and of queues that cannot start for another
    /// reason, and ends the warnings when that is over.
    fn check_queues(&mut self) {
        let waits = self.frontends.queue_waits();
        let (lack, other) = match waits {
            Some(waits) if waits.without_memory => (Some(waits.text.as_str()), None),
            waits => (None, waits.map(|waits| waits.text.as_str())),
        };
        let diagnostics = &mut self.attachment.diagnostics;
        diagnostics.memory(self.frontends.unshared_memory().or(lack));
        diagnostics.queues(other);
    }

    /// Warns of an uplink that is down or gone, and ends the warning when it is not any more.
    fn check_uplink(&mut self) {
        if let Some(uplink) = &self.uplink {
            let diagnostics = &mut self.attachment.diagnostics;
            diagnostics.uplink(&uplink.status(), true);
        }
    }

    /// Opens the uplink's device again, which was deleted.
    fn reopen_uplink(&mut self) -> io::Result<()> {
        if let Some(uplink) = &mut self.uplink {
            let device = &mut self.attachment.device;
            if let Some(why) = uplink.reopen(device, &mut self.uplink_retry)? {
                log::debug!("No uplink: {why}");
            }
        }
        self.check_uplink();
        Ok(())
    }

    fn handle_device(&mut self) -> io::Result<()> {
        for event in self.attachment.device_events()? {
            match event {
                PortEvent::UplinkLost => self.reopen_uplink()?,
                PortEvent::BlankRing { queue } => {
                    self.frontends.check_unshared_memory(queue);
                    self.check_queues();
                }
                // The attachment has handled those.
                PortEvent::Dropped | PortEvent::LinkViolation { .. } => {}
            }
        }
        let attachment = &mut self.attachment;
        attachment.segment.set_away(!attachment.device.has_guest());
        attachment.serve_links()?;
        let new = attachment.links.take_new_addresses();
        let (device, segment) = (&mut attachment.device, &mut attachment.segment);
        self.trunk.learn(&new, device, segment)
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
