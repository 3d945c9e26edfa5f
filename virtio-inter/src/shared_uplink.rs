//! The process of an uplink that ports share: a segment on one side, a device on the other.

use std::io;
use std::time::Duration;

use anyhow::Context;
use log::{debug, info};
use virtio_inter_args::absolute;
use virtio_inter_common::{Epoll, PortId, Timeout};
use virtio_inter_device::backend::Paths;
use virtio_inter_device::{Port, PortEvent};
use virtio_inter_segment::{PeerInfo, Segment, Uplinks};

use crate::attachment::{Attachment, Role};
use crate::cli::UplinkArgs;
use crate::lock_wait::{LockWait, Signals};
use crate::opened::{Opened, Opening, name_user};
use crate::restore_backoff::RestoreBackoff;
use crate::run_error::RunError;
use crate::sandbox::{self, Report};
use crate::shutdown_signals::ShutdownSignals;
use crate::status::SharedUplinkStatus;
use crate::status_socket::StatusSocket;
use crate::timer::Timer;
use crate::unexpected_signals::UnexpectedSignals;
use crate::uplink::{SharedUplinkBackend, Uplink, check_right};
use crate::watchdog::Watchdog;
use crate::{notify, paths};

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

/// Time after which rings are given back on which nothing was sent.
const LINK_IDLE: Duration = Duration::from_secs(60);

/// Time after the start in which the uplink stands by in any case: it learns of the others, so that
/// no address is seen at two of them.
const SETTLE: Duration = Duration::from_secs(1);

/// Runs an uplink until SIGTERM, SIGINT or SIGHUP.
///
/// # Errors
///
/// When it cannot run, in words for its user.
pub fn run(arguments: &UplinkArgs) -> anyhow::Result<()> {
    let sockets = [arguments.status_socket.as_deref()];
    let open = |wait: &LockWait<'_>| Opened::of_uplink(arguments, wait);
    let Some(opening) = Opening::begin(arguments.user.as_ref(), &sockets, open)? else {
        return Ok(());
    };
    let sandbox = sandbox::enter_process(arguments.sandbox.mode, sandbox::of_uplink(arguments))?;
    crate::status::process_start();
    let signals = ShutdownSignals::catch().context("Cannot catch signals")?;
    let unexpected = UnexpectedSignals::catch().context("Cannot catch signals")?;
    check_right(&arguments.segment, "an uplink")?;
    let local = arguments.local_port();
    let wait = LockWait::new(Signals::Caught(&signals));
    let Some(Opened {
        mut status,
        uplink: Some((uplink, uplink_device)),
        ..
    }) = opening.finish(&wait)?
    else {
        return Ok(());
    };
    let join = || {
        let limits = arguments.limits.limits();
        Segment::join_with(&arguments.segment, local.clone(), limits)
    };
    let joined = wait.acquire(join);
    let Some(segment) = joined.map_err(|error| name_user(error, arguments.user.as_ref()))? else {
        return Ok(());
    };
    // The event loop tries again and warns.
    let _ = status.listen_in_segment(&segment);
    let device = Port::<SharedUplinkBackend>::relay(
        &local,
        arguments.busy_poll(),
        uplink_device,
        arguments.uplink_offload,
    )?;
    sandbox.log();
    info!(
        "Serving segment {} as uplink {} by {}, priority {}, MTU {}",
        absolute(&arguments.segment).display(),
        local.id,
        uplink.describe(),
        arguments.priority,
        local.mtu
    );
    let role = UplinkRole {
        id: arguments.id.clone(),
        uplinks: arguments.uplinks(),
        is_settling: true,
        is_active: false,
        has_switched: false,
    };
    let attachment = Attachment::new(&local, segment, device, role, LINK_IDLE);
    let mut uplink = SharedUplink {
        poll: Epoll::new().context("Cannot wait for events")?,
        attachment: attachment.context("Cannot wait for events")?,
        uplink,
        retry: Timer::new().context("Cannot wait for events")?,
        settling: Timer::new().context("Cannot wait for events")?,
        watchdog: Watchdog::from_environment().context("Cannot wait for events")?,
        status,
        status_retry: RestoreBackoff::new().context("Cannot wait for events")?,
        arguments: arguments.clone(),
        sandbox,
        unexpected,
        signals,
    };
    uplink.watch().context("Cannot wait for events")?;
    uplink.attachment.choose_paths();
    uplink.status_retry.check_soon()?;
    notify::ready();
    uplink.serve()?;
    info!("Leaving {}", arguments.segment.display());
    Ok(())
}

/// What the uplink is to its peers.
struct UplinkRole {
    id: PortId,
    uplinks: Uplinks,
    /// It has not learnt of the others yet.
    is_settling: bool,
    /// No other uplink has a higher priority.
    is_active: bool,
    /// That has changed, or is known for the first time.
    has_switched: bool,
}

impl Role for UplinkRole {
    /// Becomes active or stands by, and serves the ports that have no uplink.
    fn paths<'a>(&mut self, peers: impl Iterator<Item = &'a PeerInfo> + Clone) -> Paths {
        let mut paths = paths::of_uplink(&self.id, &self.uplinks, peers.clone());
        paths.standby |= self.is_settling;
        if self.is_active == paths.standby {
            self.is_active = !paths.standby;
            self.has_switched = true;
            match paths::active(peers).filter(|_| paths.standby) {
                Some(other) => info!("Standing by for uplink {}", other.id),
                None => info!("Active"),
            }
        }
        paths
    }

    /// Never from uplink to uplink.
    fn has_links_with(&self, peer: &PeerInfo) -> bool {
        peer.uplinks.shared.is_none()
    }
}

struct SharedUplink {
    poll: Epoll,
    attachment: Attachment<SharedUplinkBackend, UplinkRole>,
    uplink: Uplink,
    retry: Timer,
    /// Until it has learnt of the others.
    settling: Timer,
    watchdog: Watchdog,
    status: StatusSocket,
    /// The next attempt to serve the status in the segment's directory.
    status_retry: RestoreBackoff,
    arguments: UplinkArgs,
    sandbox: Report,
    unexpected: UnexpectedSignals,
    signals: ShutdownSignals,
}

impl SharedUplink {
    fn watch(&mut self) -> io::Result<()> {
        self.settling.set(SETTLE)?;
        self.poll.add(&self.settling, SETTLED)?;
        self.poll.add(&self.signals, SIGNALS)?;
        self.poll.add(&self.unexpected, UNEXPECTED)?;
        self.poll.add(self.attachment.segment.fd(), SEGMENT)?;
        let events = self.attachment.device.events_fd();
        self.poll.add(events, DEVICE)?;
        self.poll.add(&self.retry, RETRY)?;
        self.poll.add(&self.attachment.links, IDLE_LINKS)?;
        self.poll.add(&self.watchdog, WATCHDOG)?;
        self.poll.add(&self.status_retry, STATUS_RETRY)?;
        self.poll.add(&self.attachment.drop_check, DROPS)?;
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
                    DROPS => {
                        self.attachment.check_drops()?;
                        self.check_uplink();
                    }
                    IDLE_LINKS => self.attachment.close_quiet()?,
                    WATCHDOG => self.watchdog.process()?,
                    RETRY => self.reopen()?,
                    SETTLED => {
                        self.settling.clear();
                        self.attachment.role.is_settling = false;
                        self.attachment.role.has_switched = true;
                        self.attachment.choose_paths();
                    }
                    _ => self.handle_device()?,
                }
                self.attachment.report_peers();
                // What the state of its device means depends on that.
                if std::mem::take(&mut self.attachment.role.has_switched) {
                    self.check_uplink();
                }
            }
        }
    }

    fn handle_segment(&mut self) -> io::Result<()> {
        if self.attachment.handle_segment() {
            self.attachment.segment.check_files();
            self.status_retry.check_soon()?;
        }
        Ok(())
    }

    /// Warns of a device that is down or gone, and ends the warning when it is not any more. What
    /// that means is known when the uplink knows of the others.
    fn check_uplink(&mut self) {
        let Attachment {
            role, diagnostics, ..
        } = &mut self.attachment;
        if !role.is_settling {
            diagnostics.uplink(&self.uplink.status(), role.is_active);
        }
    }

    /// Looks at the segment's files, and restores the sockets by which readers find the status.
    fn restore_status(&mut self) -> io::Result<()> {
        self.attachment.check_directory(&self.arguments.segment);
        if !self.status_retry.begin()? {
            return Ok(());
        }
        if !self.status.is_in_place() {
            self.status_retry.restored();
        }
        let mut complete = true;
        let directory = &self.arguments.segment;
        let Attachment {
            segment,
            diagnostics,
            ..
        } = &mut self.attachment;
        for (path, why) in self.status.restore(segment) {
            complete &= why.is_none();
            // The warning of a lost segment says it all.
            let is_lost = segment.lost().is_some() && path.starts_with(directory);
            let why = why.filter(|_| !is_lost);
            diagnostics.no_status(&path, why.as_deref());
        }
        self.status_retry.end(complete)
    }

    fn handle_device(&mut self) -> io::Result<()> {
        for event in self.attachment.device_events()? {
            match event {
                PortEvent::UplinkLost => self.reopen()?,
                // There is no guest, and the attachment has handled the others.
                PortEvent::BlankRing { .. }
                | PortEvent::Dropped
                | PortEvent::LinkViolation { .. } => {}
            }
        }
        self.attachment.serve_links()
    }

    /// Opens the device again, which was deleted.
    fn reopen(&mut self) -> io::Result<()> {
        let device = &mut self.attachment.device;
        if let Some(why) = self.uplink.reopen(device, &mut self.retry)? {
            debug!("No uplink: {why}");
        }
        self.check_uplink();
        Ok(())
    }

    fn serve_status(&mut self) -> io::Result<()> {
        self.attachment.check_directory(&self.arguments.segment);
        self.attachment.refresh_warnings();
        self.check_uplink();
        let Attachment {
            segment,
            device,
            role,
            peers,
            diagnostics,
            ..
        } = &self.attachment;
        self.status.process(|| {
            let peers = peers.values();
            let peers = peers.map(|peer| (peer, device.traffic(peer.key)));
            SharedUplinkStatus::new(
                &self.arguments,
                role.is_active,
                self.uplink.status(),
                peers,
                diagnostics,
                segment.refused(),
                device.counters(),
            )
            .with_sandbox(&self.sandbox)
            .with_usage(segment.usage())
        })
    }
}
