//! A device's port: started, awaited, started again when it dies, and ended.

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
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
use crate::device::Device;
use crate::protocol::{PortInfo, PortState};

/// A port that does not serve after that is given up at its first start, and killed and started again later.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// A port that has lived that long is started again at once when it dies; one that dies sooner, after a pause.
const STEADY: Duration = Duration::from_secs(10);

/// The first pause; each one is twice as long as the last.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Longest pause between two starts. Cloud Hypervisor looks for its backend ten times a second, for 60 s.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

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
    notify: UnixDatagram,
    state: State,
    /// It served once; from then on it is started again whenever it dies.
    proven: bool,
    restarts: u32,
    /// Before the next start, if the port does not last.
    pause: Duration,
    /// What it last said of why it ends.
    reason: Option<String>,
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
        let notify = UnixDatagram::bind(&notify_path)
            .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
            .with_context(|| format!("Cannot listen on {}", notify_path.display()))?;
        let child = match spawn(&device, &program, &notify_path) {
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
            notify,
            state: State::Starting {
                child,
                since: Instant::now(),
            },
            proven: false,
            restarts: 0,
            pause: Duration::ZERO,
            reason: None,
        })
    }

    /// Readable when the port says something.
    pub fn notify_fd(&self) -> &UnixDatagram {
        &self.notify
    }

    /// Readable when the port's process has ended; None: there is none.
    pub fn process_fd(&self) -> Option<BorrowedFd<'_>> {
        self.child().map(std::os::fd::AsFd::as_fd)
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
        match &self.state {
            State::Starting { since, .. } => Some(*since + READY_WITHIN),
            State::Serving { .. } => None,
            State::Down { until } => Some(*until),
            State::Ending { kill_at, .. } => *kill_at,
        }
    }

    /// Does what there is to do.
    pub fn process(&mut self) -> Change {
        self.process_at(Instant::now())
    }

    fn process_at(&mut self, now: Instant) -> Change {
        let ready = self.hear();
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

    /// Reads what it said; whether it said that it serves.
    fn hear(&mut self) -> bool {
        let mut ready = false;
        let mut buffer = [0; 4096];
        while let Ok(size) = self.notify.recv(&mut buffer) {
            for line in String::from_utf8_lossy(&buffer[..size]).lines() {
                if line == "READY=1" {
                    ready = true;
                } else if let Some(reason) = line.strip_prefix("STATUS=") {
                    self.reason = Some(reason.to_owned());
                }
            }
        }
        ready
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
        self.hear();
        let reason = self.reason.take();
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
        self.state = State::Down { until: now + pause };
        if pause.is_zero() {
            self.start_again(now);
        }
        Change::None
    }

    fn start_again(&mut self, now: Instant) {
        self.restarts += 1;
        match spawn(&self.device, &self.program, &self.notify_path) {
            Ok(child) => self.state = State::Starting { child, since: now },
            Err(error) => {
                warn!("Cannot run {}: {error}", self.program.path.display());
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

fn spawn(device: &Device, program: &PortProgram, notify: &PathBuf) -> io::Result<Child> {
    let mut command = Command::new(&program.path);
    command
        .arg("port")
        .args::<Vec<OsString>, _>(device.port_arguments())
        .env("NOTIFY_SOCKET", notify)
        // What it says there of its end is printed by this process, once.
        .env("VIRTIO_INTER_SUPERVISED", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // A terminal's Ctrl-C is for the VM, which wants its network to the end.
        .process_group(0);
    if std::env::var_os("RUST_LOG").is_none() {
        command.env("RUST_LOG", program.log);
    }
    // SIGTERM, so that its sockets go too.
    Child::spawn(command, Signal::TERM, Descriptors::StandardOnly)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    fn until(mut done: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !done() {
            assert!(Instant::now() < end, "It does not happen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn one_that_hangs_when_it_is_started_again_is_started_once_more() {
        let temp = TempDir::new().unwrap();
        // A port in name only: what it would say is said by this test.
        let path = temp.path().join("port");
        std::fs::write(&path, "#!/bin/sh\nexec sleep 600\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        let program = PortProgram { path, log: "warn" };
        let notify = temp.path().join("notify");
        let device = Device {
            id: "net0".parse().unwrap(),
            port_id: "vm.net0".parse().unwrap(),
            segment: temp.path().into(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            mtu: None,
            num_queues: 2,
            queue_size: None,
            socket: temp.path().join("socket"),
            status_socket: temp.path().join("status"),
            pci_segment: None,
            pci_device_id: None,
        };
        let mut port = Port::start(device, program, notify.clone()).unwrap();
        let says = UnixDatagram::unbound().unwrap();
        says.send_to(b"READY=1", &notify).unwrap();
        assert_eq!(port.process(), Change::Ready);
        let pid = |port: &Port| port.child().map(Child::pid);
        let kill = |port: &Port| port.child().unwrap().signal(Signal::KILL);

        kill(&port);
        until(|| {
            assert_eq!(port.process(), Change::None);
            port.restarts == 1
        });
        let hanging = pid(&port);
        let deadline = port.deadline().unwrap();
        assert_eq!(port.process_at(deadline), Change::None);
        let mut now = deadline;
        until(|| {
            // Its clock goes on, or the pause before the next start would have no end.
            now += FIRST_PAUSE;
            assert_eq!(port.process_at(now), Change::None);
            port.restarts == 2
        });
        assert_ne!(pid(&port), hanging);
        says.send_to(b"READY=1", &notify).unwrap();
        assert_eq!(port.process(), Change::None);
        assert!(matches!(port.state, State::Serving { .. }));

        port.end();
        until(|| port.process() == Change::Ended);
    }
}
