//! A device's port: started, awaited, started again when it dies, and ended.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use log::{info, warn};
use rustix::process::Signal;
use virtio_inter_args::absolute;

use crate::child::{Child, Descriptors};
use crate::closer::{Closer, Deferred};
use crate::device::Device;
use crate::fd_store::{self, FdStore, MAX_KEPT};
use crate::protocol::{PortInfo, PortState};

/// A port that does not serve after that is given up at its first start, and killed and started again later.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// A port that has lived that long is started again at once when it dies; one that dies sooner, after a pause.
const STEADY: Duration = Duration::from_secs(10);

/// The first pause; each one is twice as long as the last.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Longest pause between two starts. Cloud Hypervisor looks for its backend ten times a second, for 60 s.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long a port may be away until its connection is not kept for it any more. A VMM that asks
/// for something meanwhile waits.
const AWAY_FOR: Duration = Duration::from_secs(60);

/// A port that serves and dies again after a pause longer than that does not get the connection any
/// more.
const MOST_PATIENCE: Duration = Duration::from_millis(300);

/// How long starts may fail until the connection is not kept any more: the port does not come back
/// then, as a rule, and a VMM that asks for something waits for nobody.
const FAILS_FOR: Duration = Duration::from_secs(5);

/// Most that a port's words are read at a time, as others wait meanwhile.
const WORDS_AT_A_TIME: usize = 8;

/// Most that is read of what a port said before it ended.
const LAST_WORDS: usize = 64;

/// How long nothing is read of a port of which too many descriptors wait to be closed.
const DEAF_FOR: Duration = Duration::from_secs(1);

/// Time to end in good order.
const END_WITHIN: Duration = Duration::from_secs(5);

/// How ports are run.
#[derive(Clone, Debug)]
pub struct PortProgram {
    /// The program.
    pub path: PathBuf,
    /// `RUST_LOG`, unless the user has set it.
    pub log: &'static str,
}

/// One device's port.
#[derive(Debug)]
pub struct Port {
    /// What it serves.
    pub device: Device,
    program: PortProgram,
    notify_path: PathBuf,
    notify: Deferred,
    state: State,
    /// It served once; from then on it is started again whenever it dies.
    proven: bool,
    restarts: u32,
    /// Before the next start, if the port does not last.
    pause: Duration,
    /// What it last said of why it ends.
    reason: Option<String>,
    /// Its connection to Cloud Hypervisor, kept for the next process.
    kept: FdStore,
    /// When Cloud Hypervisor is let notice that the port is away.
    give_up_at: Option<Instant>,
    /// Since when every start has failed.
    failing_since: Option<Instant>,
    /// It hung at its start and was killed, which is no failed start.
    hung: bool,
    /// The VM is about to end, and does not wait for a port that is away.
    vm_ends: bool,
    /// Closes what the port has sent.
    closer: Closer,
    /// Until when nothing is read of it.
    deaf_until: Option<Instant>,
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

/// What has become of a port.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that matters to others.
    None,
    /// It serves, for the first time.
    Ready,
    /// It cannot be started: why, the cause last.
    Failed(Vec<String>),
    /// It has ended, as it was asked to.
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
        let kept = FdStore::new(&closer);
        let child = match spawn(&device, &program, &notify_path, &kept) {
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
            notify: Deferred::new(notify, &closer),
            state: State::Starting {
                child,
                since: Instant::now(),
            },
            proven: false,
            restarts: 0,
            pause: Duration::ZERO,
            reason: None,
            kept,
            give_up_at: None,
            failing_since: None,
            hung: false,
            vm_ends: false,
            closer,
            deaf_until: None,
        })
    }

    /// Readable when the port says something; None: nothing is read of it for now.
    pub fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        self.deaf_until.is_none().then(|| self.notify.as_fd())
    }

    /// Readable when the port's process has ended; None: there is none.
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

    /// Whether it served once.
    pub fn is_proven(&self) -> bool {
        self.proven
    }

    /// When [`Port::process`] has something to do although nothing is readable.
    pub fn deadline(&self) -> Option<Instant> {
        let next = match &self.state {
            State::Starting { since, .. } => Some(*since + READY_WITHIN),
            State::Serving { .. } => None,
            State::Down { until } => Some(*until),
            State::Ending { kill_at, .. } => *kill_at,
        };
        let others = [self.give_up_at, self.deaf_until];
        next.into_iter().chain(others.into_iter().flatten()).min()
    }

    /// Does what there is to do.
    pub fn process(&mut self) -> Change {
        self.process_at(Instant::now())
    }

    fn process_at(&mut self, now: Instant) -> Change {
        let ready = self.hear(WORDS_AT_A_TIME, now);
        if self.give_up_at.is_some_and(|at| now >= at) {
            self.give_connection_up(&format!("is away for {} s", AWAY_FOR.as_secs()));
        }
        if let Some(status) = self.take_end() {
            return self.ended(status, now);
        }
        match &mut self.state {
            State::Starting { .. } if ready => return self.serves(now),
            State::Starting { since, .. } if !self.proven && now >= *since + READY_WITHIN => {
                return Change::Failed(vec![
                    self.cannot_start(),
                    format!("It does not serve after {} s", READY_WITHIN.as_secs()),
                ]);
            }
            State::Starting { child, since } if now >= *since + READY_WITHIN => {
                // Its end is told as any other's, and leads to the next start.
                child.signal(Signal::KILL);
                *since = now;
                self.hung = true;
                self.reason = Some(format!(
                    "it did not serve after {} s",
                    READY_WITHIN.as_secs()
                ));
            }
            State::Down { until } if now >= *until => self.start_again(now),
            State::Ending { child, kill_at } if kill_at.is_some_and(|at| now >= at) => {
                warn!("Port of {} does not end; killing it", self.device.id);
                child.signal(Signal::KILL);
                *kill_at = None;
            }
            _ => {}
        }
        Change::None
    }

    /// Reads what it said, `most` messages of it; whether it said that it serves.
    fn hear(&mut self, most: usize, now: Instant) -> bool {
        if self.deaf_until.is_some_and(|until| now < until) {
            return false;
        }
        self.deaf_until = None;
        let mut ready = false;
        for _ in 0..most {
            if self.closer.is_full() {
                self.deaf_until = Some(now + DEAF_FOR);
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
                self.kept.heed(notification);
            }
        }
        ready
    }

    /// The VM is about to end: Cloud Hypervisor is not to wait for this port if it is away, now or
    /// later.
    pub fn vm_ends(&mut self) {
        self.vm_ends = true;
        self.release();
    }

    /// Lets Cloud Hypervisor notice that the port is away, if it is: its device is to be removed.
    pub fn release(&mut self) {
        if !matches!(self.state, State::Serving { .. }) && !self.kept.is_empty() {
            info!("Port of {} is away: its connection ends", self.device.id);
            self.give_up_at = None;
            self.kept.shut_down();
        }
    }

    /// It ended before it served, or could not be started at all.
    fn start_failed(&mut self, now: Instant) {
        let since = *self.failing_since.get_or_insert(now);
        if now.duration_since(since) >= FAILS_FOR {
            self.give_connection_up("cannot be started again");
        }
    }

    /// Lets Cloud Hypervisor notice that its connection has ended, if it was kept.
    fn give_connection_up(&mut self, why: &str) {
        self.give_up_at = None;
        if self.kept.is_empty() {
            return;
        }
        self.kept.shut_down();
        warn!(
            "Port of {} {why}: Cloud Hypervisor is disconnected from it. If its VM is paused or the \
             guest's driver does not run, reboot the VM by `ch-remote-ext reboot`: its interface is \
             dead, or out of control, until then",
            self.device.id
        );
    }

    fn take_end(&mut self) -> Option<ExitStatus> {
        match &mut self.state {
            State::Starting { child, .. }
            | State::Serving { child, .. }
            | State::Ending { child, .. } => child.try_wait().ok().flatten(),
            State::Down { .. } => None,
        }
    }

    fn serves(&mut self, now: Instant) -> Change {
        let State::Starting { child, .. } =
            std::mem::replace(&mut self.state, State::Down { until: now })
        else {
            unreachable!("only a port that starts begins to serve");
        };
        self.state = State::Serving { child, since: now };
        self.give_up_at = None;
        self.failing_since = None;
        if self.proven {
            warn!("Port of {} serves again", self.device.id);
            return Change::None;
        }
        info!(
            "Port of {} serves {}",
            self.device.id,
            absolute(&self.device.socket).display()
        );
        self.proven = true;
        Change::Ready
    }

    fn ended(&mut self, status: ExitStatus, now: Instant) -> Change {
        // What it said last may have come after the look before.
        self.hear(LAST_WORDS, now);
        let reason = self.reason.take();
        let served = matches!(self.state, State::Serving { .. });
        match &self.state {
            State::Ending { .. } => {
                self.state = State::Down { until: now };
                return Change::Ended;
            }
            State::Serving { since, .. } if now.duration_since(*since) >= STEADY => {
                self.pause = Duration::ZERO;
            }
            _ => {}
        }
        let reason = reason.unwrap_or_else(|| status.to_string());
        if !self.proven {
            return Change::Failed(vec![self.cannot_start(), reason]);
        }
        let pause = self.pause;
        self.pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        warn!(
            "Port of {} died ({reason}); starting it again",
            self.device.id
        );
        if served && pause > MOST_PATIENCE {
            // It may be the connection of which it dies.
            self.give_connection_up("dies again and again");
        }
        if !std::mem::take(&mut self.hung) && !served {
            self.start_failed(now);
        }
        self.state = State::Down { until: now + pause };
        if self.vm_ends {
            self.release();
        }
        if !self.kept.is_empty() {
            self.give_up_at.get_or_insert(now + AWAY_FOR);
        }
        if pause.is_zero() {
            self.start_again(now);
        }
        Change::None
    }

    fn start_again(&mut self, now: Instant) {
        self.restarts += 1;
        // A new one each time: something may have removed the former.
        let _ = std::fs::remove_file(&self.notify_path);
        let started = bind(&self.notify_path).and_then(|notify| {
            self.notify = Deferred::new(notify, &self.closer);
            self.deaf_until = None;
            spawn(&self.device, &self.program, &self.notify_path, &self.kept)
        });
        match started {
            Ok(child) => self.state = State::Starting { child, since: now },
            Err(error) => {
                warn!("{}: {error}", self.cannot_start());
                self.start_failed(now);
                self.state = State::Down {
                    until: now + LONGEST_PAUSE,
                };
            }
        }
    }

    fn cannot_start(&self) -> String {
        format!(
            "Cannot start the port of {} on segment {}",
            self.device.id,
            self.device.segment.display()
        )
    }

    /// Asks it to end; false: there is no process that would have to.
    pub fn end(&mut self) -> bool {
        let now = Instant::now();
        // A port that serves ends its connection itself, when it does not listen any more.
        self.release();
        self.kept.clear();
        self.give_up_at = None;
        match std::mem::replace(&mut self.state, State::Down { until: now }) {
            State::Starting { child, .. } | State::Serving { child, .. } => {
                child.signal(Signal::TERM);
                let kill_at = Some(now + END_WITHIN);
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

    /// What others are told of it.
    pub fn info(&self) -> PortInfo {
        // Who is told may have another working directory.
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
        // Gone with its directory at the latest.
        let _ = std::fs::remove_file(&self.notify_path);
    }
}

fn bind(notify: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::bind(notify)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn spawn(
    device: &Device,
    program: &PortProgram,
    notify: &PathBuf,
    kept: &FdStore,
) -> io::Result<Child> {
    let mut command = Command::new(&program.path);
    command
        .arg("port")
        .args::<Vec<OsString>, _>(device.port_arguments())
        .env("NOTIFY_SOCKET", notify)
        // What it says there of its end is printed by this process, once.
        .env("VIRTIO_INTER_SUPERVISED", "1")
        .env("FDSTORE", MAX_KEPT.to_string())
        .env("LISTEN_FDS", kept.fds().len().to_string())
        .env("LISTEN_FDNAMES", kept.names())
        // What this process may have been started with is its own.
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_PIDFDID")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // A terminal's Ctrl-C is for the VM, which wants its network to the end.
        .process_group(0);
    if std::env::var_os("RUST_LOG").is_none() {
        command.env("RUST_LOG", program.log);
    }
    // SIGTERM, so that its sockets go too.
    Child::spawn(command, Signal::TERM, Descriptors::Standard(kept.fds()))
}

#[cfg(test)]
mod tests;
