//! The port of one device: its process, from start over restarts to end.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use log::{info, warn};
use rustix::process::Signal;
use virtio_inter_args::absolute;

use crate::child::{Child, Descriptors, passed_numbers};
use crate::control_protocol::{PortInfo, PortState};
use crate::deferred_close::{Closer, DeferredFd};
use crate::device::Device;
use crate::fd_store::{self, FdStore, MAX_STORED};

/// Maximum time until a port is ready. After it the first start fails; a port that was restarted is
/// killed and restarted again.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// A port that dies after this time is restarted at once; one that dies sooner, after a delay.
const STABLE_TIME: Duration = Duration::from_secs(10);

/// The first delay; it doubles with each restart.
const MIN_RESTART_DELAY: Duration = Duration::from_millis(50);

/// Maximum delay. Cloud Hypervisor tries to connect to its backend ten times a second, for 60 s.
const MAX_RESTART_DELAY: Duration = Duration::from_secs(1);

/// Time without a ready port after which its connection to Cloud Hypervisor is shut down. Requests
/// of the VMM wait meanwhile.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// A port that was ready and dies after a restart delay longer than this does not get the
/// connection any more.
const MAX_DELAY_WITH_CONNECTION: Duration = Duration::from_millis(300);

/// Time for which all starts failed after which the connection is shut down: the port will not be
/// back, as a rule, and requests of the VMM would wait in vain.
const START_FAILURE_TIME: Duration = Duration::from_secs(5);

/// Maximum number of a port's notifications that are read at a time, since other ports wait.
const MAX_NOTIFICATIONS: usize = 8;

/// Maximum number of notifications that are read after a port has exited.
const MAX_FINAL_NOTIFICATIONS: usize = 64;

/// Time for which nothing is read from a port with too many descriptors that wait to be closed.
const READ_PAUSE: Duration = Duration::from_secs(1);

/// Time from SIGTERM to SIGKILL.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The program of a port.
#[derive(Clone, Debug)]
pub struct PortProgram {
    /// Its path.
    pub path: PathBuf,
    /// Its `RUST_LOG`, unless the user has set that.
    pub log: &'static str,
}

/// One device's port.
#[derive(Debug)]
pub struct Port {
    /// The device that it serves.
    pub device: Device,
    program: PortProgram,
    notify_path: PathBuf,
    notify: DeferredFd,
    state: State,
    /// It was ready once; from then on it is restarted whenever it dies.
    has_served: bool,
    restarts: u32,
    /// Delay before the next start, if the port dies early.
    restart_delay: Duration,
    /// The last error that the port reported (STATUS= of sd_notify(3)).
    reason: Option<String>,
    /// Its connection to Cloud Hypervisor, stored for the next process.
    fd_store: FdStore,
    /// When the connection is shut down, while the port is not ready.
    disconnect_at: Option<Instant>,
    /// Since when all starts have failed.
    failing_since: Option<Instant>,
    /// It hung at its start and was killed. That does not count as a failed start.
    hung: bool,
    /// The VM is about to end, and must not wait for a port that is not ready.
    vm_ends: bool,
    /// Closes descriptors that the port has sent.
    closer: Closer,
    /// Until when nothing is read from the port.
    paused_until: Option<Instant>,
}

#[derive(Debug)]
enum State {
    Starting {
        child: Child,
        since: Instant,
    },
    Serving {
        child: Child,
        since: Instant,
    },
    Down {
        until: Instant,
    },
    Ending {
        child: Child,
        kill_at: Option<Instant>,
    },
}

/// A change of a port that concerns the supervisor.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// No such change.
    None,
    /// It is ready for the first time.
    Ready,
    /// It cannot be started: the errors, the cause last.
    Failed(Vec<String>),
    /// It has ended as requested.
    Ended,
}

impl Port {
    /// Starts a port.
    ///
    /// # Errors
    ///
    /// When the program cannot be run.
    pub fn start(
        device: Device,
        program: PortProgram,
        notify_path: PathBuf,
    ) -> anyhow::Result<Self> {
        let closer = Closer::default();
        let notify = bind(&notify_path)
            .with_context(|| format!("Cannot listen on {}", notify_path.display()))?;
        let fd_store = FdStore::new(&closer);
        let child = match spawn(&device, &program, &notify_path, &fd_store) {
            Ok(child) => child,
            Err(error) => {
                let _ = std::fs::remove_file(&notify_path);
                let program = program.path.display().to_string();
                return Err(error).with_context(|| format!("Cannot run {program}"));
            }
        };
        Ok(Self {
            device,
            program,
            notify_path,
            notify: DeferredFd::new(notify, &closer),
            state: State::Starting {
                child,
                since: Instant::now(),
            },
            has_served: false,
            restarts: 0,
            restart_delay: Duration::ZERO,
            reason: None,
            fd_store,
            disconnect_at: None,
            failing_since: None,
            hung: false,
            vm_ends: false,
            closer,
            paused_until: None,
        })
    }

    /// Readable when the port has sent a notification; `None` while none is read.
    pub fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        self.paused_until.is_none().then(|| self.notify.as_fd())
    }

    /// Readable when the port's process has ended; `None` if there is none.
    pub fn process_fd(&self) -> Option<BorrowedFd<'_>> {
        self.child().map(AsFd::as_fd)
    }

    fn child(&self) -> Option<&Child> {
        match &self.state {
            State::Starting { child, .. }
            | State::Serving { child, .. }
            | State::Ending { child, .. } => Some(child),
            State::Down { .. } => None,
        }
    }

    /// Whether it was ready once.
    pub fn has_served(&self) -> bool {
        self.has_served
    }

    /// When [`Port::process`] must be called even if no descriptor is readable.
    pub fn deadline(&self) -> Option<Instant> {
        let next = match &self.state {
            State::Starting { since, .. } => Some(*since + READY_TIMEOUT),
            State::Serving { .. } => None,
            State::Down { until } => Some(*until),
            State::Ending { kill_at, .. } => *kill_at,
        };
        let others = [self.disconnect_at, self.paused_until];
        next.into_iter().chain(others.into_iter().flatten()).min()
    }

    /// Handles events. Non-blocking.
    pub fn process(&mut self) -> Change {
        self.process_at(Instant::now())
    }

    fn process_at(&mut self, now: Instant) -> Change {
        let ready = self.read_notifications(MAX_NOTIFICATIONS, now);
        if self.disconnect_at.is_some_and(|at| now >= at) {
            self.shut_connection_down(&format!("is away for {} s", DISCONNECT_TIMEOUT.as_secs()));
        }
        if let Some(status) = self.take_exit_status() {
            return self.handle_exit(status, now);
        }
        match &mut self.state {
            State::Starting { .. } if ready => return self.set_serving(now),
            State::Starting { since, .. } if !self.has_served && now >= *since + READY_TIMEOUT => {
                return Change::Failed(vec![
                    self.start_error(),
                    format!("It does not serve after {} s", READY_TIMEOUT.as_secs()),
                ]);
            }
            State::Starting { child, since } if now >= *since + READY_TIMEOUT => {
                // Its exit is logged and handled like any other, and leads to the next start.
                child.signal(Signal::KILL);
                *since = now;
                self.hung = true;
                self.reason = Some(format!(
                    "it did not serve after {} s",
                    READY_TIMEOUT.as_secs()
                ));
            }
            State::Down { until } if now >= *until => self.restart(now),
            State::Ending { child, kill_at } if kill_at.is_some_and(|at| now >= at) => {
                warn!("Port of {} does not end; killing it", self.device.id);
                child.signal(Signal::KILL);
                *kill_at = None;
            }
            _ => {}
        }
        Change::None
    }

    /// Reads at most `max` notifications. Returns whether the port is ready.
    fn read_notifications(&mut self, max: usize, now: Instant) -> bool {
        if self.paused_until.is_some_and(|until| now < until) {
            return false;
        }
        self.paused_until = None;
        let mut ready = false;
        for _ in 0..max {
            if self.closer.is_full() {
                self.paused_until = Some(now + READ_PAUSE);
                break;
            }
            let Some(notification) = fd_store::receive(&self.notify, &self.closer) else {
                break;
            };
            for line in notification.text.lines() {
                if line == "READY=1" {
                    ready = true;
                } else if let Some(reason) = line.strip_prefix("STATUS=") {
                    self.reason = Some(reason.to_owned());
                }
            }
            if !matches!(self.state, State::Ending { .. }) && !self.vm_ends {
                self.fd_store.handle(notification);
            }
        }
        ready
    }

    /// Notes that the VM is about to end: Cloud Hypervisor must not wait for this port if it is not
    /// ready, now or later.
    pub fn vm_ends(&mut self) {
        self.vm_ends = true;
        self.release();
    }

    /// Shuts the stored connection down if the port is not ready, before its device is removed.
    pub fn release(&mut self) {
        if !matches!(self.state, State::Serving { .. }) && !self.fd_store.is_empty() {
            info!("Port of {} is away: its connection ends", self.device.id);
            self.disconnect_at = None;
            self.fd_store.shut_down();
        }
    }

    /// Handles an exit before the port was ready, or a start that failed.
    fn start_failed(&mut self, now: Instant) {
        let since = *self.failing_since.get_or_insert(now);
        if now.duration_since(since) >= START_FAILURE_TIME {
            self.shut_connection_down("cannot be started again");
        }
    }

    /// Shuts the stored connection down, so that Cloud Hypervisor notices its end.
    fn shut_connection_down(&mut self, why: &str) {
        self.disconnect_at = None;
        if self.fd_store.is_empty() {
            return;
        }
        self.fd_store.shut_down();
        warn!(
            "Port of {} {why}: Cloud Hypervisor is disconnected from it. If its VM is paused or \
             the guest's driver does not run, reboot the VM by `ch-remote-ext reboot`: its \
             interface is dead, or out of control, until then",
            self.device.id
        );
    }

    fn take_exit_status(&mut self) -> Option<ExitStatus> {
        match &mut self.state {
            State::Starting { child, .. }
            | State::Serving { child, .. }
            | State::Ending { child, .. } => child.try_wait().ok().flatten(),
            State::Down { .. } => None,
        }
    }

    fn set_serving(&mut self, now: Instant) -> Change {
        let State::Starting { child, .. } =
            std::mem::replace(&mut self.state, State::Down { until: now })
        else {
            unreachable!("only a port that starts begins to serve");
        };
        self.state = State::Serving { child, since: now };
        self.disconnect_at = None;
        self.failing_since = None;
        if self.has_served {
            warn!("Port of {} serves again", self.device.id);
            return Change::None;
        }
        info!(
            "Port of {} serves {}",
            self.device.id,
            absolute(&self.device.socket).display()
        );
        self.has_served = true;
        Change::Ready
    }

    fn handle_exit(&mut self, status: ExitStatus, now: Instant) -> Change {
        // Its last notifications may have come since the previous call.
        self.read_notifications(MAX_FINAL_NOTIFICATIONS, now);
        let reason = self.reason.take();
        let served = matches!(self.state, State::Serving { .. });
        match &self.state {
            State::Ending { .. } => {
                self.state = State::Down { until: now };
                return Change::Ended;
            }
            State::Serving { since, .. } if now.duration_since(*since) >= STABLE_TIME => {
                self.restart_delay = Duration::ZERO;
            }
            _ => {}
        }
        let reason = reason.unwrap_or_else(|| describe(status));
        if !self.has_served {
            return Change::Failed(vec![self.start_error(), reason]);
        }
        let delay = self.restart_delay;
        self.restart_delay = (delay * 2).clamp(MIN_RESTART_DELAY, MAX_RESTART_DELAY);
        warn!(
            "Port of {} died ({reason}); starting it again",
            self.device.id
        );
        if served && delay > MAX_DELAY_WITH_CONNECTION {
            // The connection may be the cause.
            self.shut_connection_down("dies again and again");
        }
        if !std::mem::take(&mut self.hung) && !served {
            self.start_failed(now);
        }
        self.state = State::Down { until: now + delay };
        if self.vm_ends {
            self.release();
        }
        if !self.fd_store.is_empty() {
            self.disconnect_at.get_or_insert(now + DISCONNECT_TIMEOUT);
        }
        if delay.is_zero() {
            self.restart(now);
        }
        Change::None
    }

    fn restart(&mut self, now: Instant) {
        self.restarts += 1;
        // A new socket each time: something may have removed the former.
        let _ = std::fs::remove_file(&self.notify_path);
        let started = bind(&self.notify_path).and_then(|notify| {
            self.notify = DeferredFd::new(notify, &self.closer);
            self.paused_until = None;
            spawn(
                &self.device,
                &self.program,
                &self.notify_path,
                &self.fd_store,
            )
        });
        match started {
            Ok(child) => self.state = State::Starting { child, since: now },
            Err(error) => {
                warn!("{}: {error}", self.start_error());
                self.start_failed(now);
                self.state = State::Down {
                    until: now + MAX_RESTART_DELAY,
                };
            }
        }
    }

    fn start_error(&self) -> String {
        format!(
            "Cannot start the port of {} on segment {}",
            self.device.id,
            self.device.segment.display()
        )
    }

    /// Sends SIGTERM. Returns false if there is no process.
    pub fn end(&mut self) -> bool {
        let now = Instant::now();
        // A port that serves ends its connection itself, when it does not listen any more.
        self.release();
        self.fd_store.clear();
        self.disconnect_at = None;
        match std::mem::replace(&mut self.state, State::Down { until: now }) {
            State::Starting { child, .. } | State::Serving { child, .. } => {
                child.signal(Signal::TERM);
                let kill_at = Some(now + EXIT_TIMEOUT);
                self.state = State::Ending { child, kill_at };
                true
            }
            ending @ State::Ending { .. } => {
                self.state = ending;
                true
            }
            State::Down { .. } => false,
        }
    }

    /// Its state for clients of the control socket.
    pub fn info(&self) -> PortInfo {
        // Clients may have another working directory.
        let shown = |path: &Path| absolute(path).display().to_string();
        PortInfo {
            id: self.device.id.to_string(),
            port_id: self.device.port_id.to_string(),
            segment: shown(&self.device.segment),
            mac: self.device.mac.to_string(),
            state: match &self.state {
                State::Starting { .. } => PortState::Starting,
                State::Serving { .. } => PortState::Serving,
                State::Down { .. } => PortState::Down,
                State::Ending { .. } => PortState::Ending,
            },
            pid: self.child().map(Child::pid),
            restarts: self.restarts,
            socket: shown(&self.device.socket),
            status_socket: shown(&self.device.status_socket),
            net: self.device.net_config(),
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // Removed with its directory at the latest.
        let _ = std::fs::remove_file(&self.notify_path);
    }
}

fn bind(notify: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::bind(notify)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The end of a port that said nothing.
fn describe(status: ExitStatus) -> String {
    if status.signal() == Some(Signal::SYS.as_raw()) {
        return format!(
            "{status}: it made a system call that its sandbox forbids, which the kernel's log \
             names; sandbox=log does without"
        );
    }
    status.to_string()
}

fn spawn(
    device: &Device,
    program: &PortProgram,
    notify: &PathBuf,
    fd_store: &FdStore,
) -> io::Result<Child> {
    let mut command = Command::new(&program.path);
    command
        .arg("port")
        .args::<Vec<OsString>, _>(device.port_arguments())
        .env("NOTIFY_SOCKET", notify)
        // This process logs the port's last error, so the port does not.
        .env("VIRTIO_INTER_SUPERVISED", "1")
        .env("FDSTORE", MAX_STORED.to_string())
        .env("LISTEN_FDS", fd_store.fds().len().to_string())
        .env("LISTEN_FDNAMES", fd_store.names())
        // These would be for this process.
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_PIDFDID")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // A terminal's Ctrl-C ends the VM, which needs its network until then.
        .process_group(0);
    if std::env::var_os("RUST_LOG").is_none() {
        command.env("RUST_LOG", program.log);
    }
    let mut fds = fd_store.fds();
    if let Some(tap_fds) = &device.tap_fds {
        let first = fds.len();
        fds.extend(tap_fds.fds());
        let numbers = passed_numbers().skip(first).take(fds.len() - first);
        let numbers: Vec<String> = numbers.map(|number| number.to_string()).collect();
        command.arg(format!("--uplink=tap-fd={}", numbers.join(":")));
    }
    // SIGTERM, so that the port removes its sockets.
    Child::spawn(command, Signal::TERM, Descriptors::Standard(fds))
}

#[cfg(test)]
mod tests;
