//! A VM without a machine: a process that is a vhost-user frontend and the driver of two queues,
//! and exchanges streams of hashed data with the other ones of its segment. It costs no boot, and
//! nothing but its port, so that it can be killed and started again many times a second.
//!
//! - `frame.rs`: a frame, and how its receiver checks it;
//! - `stream.rs`: streams between VMs, which survive the loss of frames;
//! - `queue.rs`: a driver's queue;
//! - `frontend.rs`: the connection to a port;
//! - `progress.rs`: how another process sees what it does.

mod frame;
mod frontend;
mod progress;
mod queue;
mod stream;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::time::{ClockId, clock_gettime};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

pub use self::frontend::send_request;
use self::frontend::{F_PROTOCOL, Frontend};
pub use self::progress::{MAX_VMS, PeerProgress, Progress};
use self::queue::Queue;
use self::stream::Streams;
pub use self::stream::WINDOW;
use crate::Result;

const VERSION_1: u64 = 1 << 32;
const EVENT_INDEX: u64 = 1 << 29;
const MERGEABLE: u64 = 1 << 15;

/// Pause between attempts to connect.
const CONNECT: u64 = Duration::from_millis(5).as_nanos() as u64;
/// Longest sleep: a time-out of the streams is seen within this time.
const SLEEP: Duration = Duration::from_millis(5);
/// Time between two reports of progress.
const REPORT: u64 = Duration::from_millis(1).as_nanos() as u64;
/// Frames that are taken, and sent, before the other is looked at.
const BATCH: usize = 64;

/// What a mock VM is to be, from its command line: its number, the numbers of the others in one
/// word, the port's socket, and the file of its progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MockVm {
    /// Its own number; its address is [`crate::Mac::local`] of it.
    pub number: u8,
    /// The others' numbers.
    pub others: Vec<u8>,
    /// The socket of its port.
    pub socket: PathBuf,
    /// Where it reports its progress.
    pub progress: PathBuf,
}

impl MockVm {
    /// The command line.
    pub fn arguments(&self) -> Vec<String> {
        let others = self.others.iter().map(u8::to_string);
        vec![
            self.number.to_string(),
            others.collect::<Vec<_>>().join(","),
            self.socket.display().to_string(),
            self.progress.display().to_string(),
        ]
    }

    /// Reads a command line.
    ///
    /// # Errors
    ///
    /// Another number of arguments, or a VM's number that is none.
    pub fn parse(arguments: &[String]) -> Result<Self> {
        let [number, others, socket, progress] = arguments else {
            bail!("usage: NUMBER OTHER,... SOCKET PROGRESS-FILE");
        };
        let number_of = |text: &str| -> Result<u8> {
            let number: u8 = text.parse().with_context(|| format!("Number {text}"))?;
            ensure!(usize::from(number) < MAX_VMS, "{number}: at most {MAX_VMS}");
            Ok(number)
        };
        Ok(Self {
            number: number_of(number)?,
            others: others.split(',').map(number_of).collect::<Result<_>>()?,
            socket: socket.into(),
            progress: progress.into(),
        })
    }

    /// Features that its driver negotiates: each number has its own.
    fn features(&self) -> u64 {
        let among = |bit: u8, feature: u64| if self.number & bit != 0 { feature } else { 0 };
        VERSION_1 | among(1, EVENT_INDEX) | among(2, MERGEABLE) | among(1, F_PROTOCOL)
    }

    /// Runs until standard input ends. A line there is a command: `disconnect MS` ends the
    /// connection to the port for that time, `reset` boots the guest again.
    ///
    /// # Errors
    ///
    /// What a port must not do: a frame that is not as it was sent, a buffer out of order.
    pub fn run(&self) -> Result<()> {
        Running::new(self)?.run()
    }
}

/// Nanoseconds of the monotonic clock, which all processes share.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// What a line of standard input asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Disconnect(Duration),
    Reset,
}

fn command(line: &str) -> Result<Command> {
    match line.split_once(' ') {
        None if line == "reset" => Ok(Command::Reset),
        Some(("disconnect", ms)) => Ok(Command::Disconnect(Duration::from_millis(ms.parse()?))),
        _ => bail!("No command: {line:?}"),
    }
}

struct Running<'a> {
    config: &'a MockVm,
    progress: File,
    reported: u64,
    memory: File,
    rx: Queue,
    tx: Queue,
    /// An interrupt came, and not all used buffers were taken since.
    rx_open: bool,
    /// The queue was full, and no interrupt came since.
    tx_full: bool,
    streams: Streams,
    frontend: Option<Frontend>,
    sessions: u64,
    connect_at: u64,
    frame: Vec<u8>,
}

impl<'a> Running<'a> {
    fn new(config: &'a MockVm) -> Result<Self> {
        let memory = memfd_create("mock-vm", MemfdFlags::CLOEXEC)?;
        let size = (2 * queue::SIZE).next_multiple_of(0x1000);
        ftruncate(&memory, size)?;
        let memory = File::from(memory);
        let map = FileOffset::new(memory.try_clone()?, 0);
        let range = (GuestAddress(0), usize::try_from(size)?, Some(map));
        let map = GuestMemoryMmap::from_ranges_with_files([range])?;
        let event_index = config.features() & EVENT_INDEX != 0;
        let mut progress = OpenOptions::new();
        progress.write(true).create(true).truncate(false);
        let path = &config.progress;
        let progress = progress.open(path);
        Ok(Self {
            config,
            progress: progress.with_context(|| format!("Opening {}", path.display()))?,
            reported: 0,
            memory,
            rx: Queue::new(&map, 0, true, event_index)?,
            tx: Queue::new(&map, queue::SIZE, false, event_index)?,
            rx_open: true,
            tx_full: false,
            streams: Streams::new(config.number, &config.others, now()),
            frontend: None,
            sessions: 0,
            connect_at: 0,
            frame: Vec::new(),
        })
    }

    fn run(&mut self) -> Result<()> {
        let mut input = String::new();
        loop {
            let now = now();
            if self.frontend.is_none() && now >= self.connect_at {
                self.connect(now);
            }
            self.receive(now)?;
            self.send(now)?;
            if now >= self.reported + REPORT {
                let mut progress = self.streams.progress();
                progress.sessions = self.sessions;
                progress.write(&self.progress).context("Reporting")?;
                self.reported = now;
            }
            if !self.sleep(&mut input)? {
                return Ok(());
            }
            while let Some((line, rest)) = input.split_once('\n') {
                let line = command(line)?;
                input = rest.to_owned();
                self.execute(line)?;
            }
        }
    }

    fn connect(&mut self, now: u64) {
        let (features, queues) = (self.config.features(), [&self.rx, &self.tx]);
        let socket: &Path = &self.config.socket;
        match Frontend::connect(socket, features, &self.memory, queues) {
            Ok(frontend) => {
                self.frontend = Some(frontend);
                self.sessions += 1;
            }
            Err(error) => {
                log::debug!("{error:#}");
                self.connect_at = now + CONNECT;
            }
        }
    }

    fn receive(&mut self, now: u64) -> Result<()> {
        let mut taken = 0;
        while self.rx_open && taken < BATCH {
            if self.rx.receive(&mut self.frame)? {
                self.streams.receive(&self.frame, now)?;
                taken += 1;
            } else {
                self.rx_open = self.rx.want_interrupt()?;
            }
        }
        self.rx.publish()
    }

    fn send(&mut self, now: u64) -> Result<()> {
        if !self.tx_full {
            self.tx.reclaim()?;
        }
        for _ in 0..BATCH {
            while !self.tx_full && !self.tx.has_room() {
                self.tx_full = !self.tx.want_interrupt()?;
                if !self.tx_full {
                    self.tx.reclaim()?;
                    self.tx.want_no_interrupts()?;
                }
            }
            if self.tx_full || !self.streams.send(now, &mut self.frame) {
                break;
            }
            self.tx.send(&self.frame)?;
        }
        self.tx.publish()
    }

    /// Waits for something to do. Returns whether standard input is still open.
    fn sleep(&mut self, input: &mut String) -> Result<bool> {
        let time = if self.rx_open { Duration::ZERO } else { SLEEP };
        let time = Timespec::try_from(time)?;
        let stdin = io::stdin();
        let mut fds = vec![
            PollFd::new(&stdin, PollFlags::IN),
            PollFd::new(&self.rx.call, PollFlags::IN),
            PollFd::new(&self.tx.call, PollFlags::IN),
        ];
        if let Some(frontend) = &self.frontend {
            fds.push(PollFd::from_borrowed_fd(
                frontend.socket.as_fd(),
                PollFlags::IN,
            ));
        }
        match poll(&mut fds, Some(&time)) {
            Err(rustix::io::Errno::INTR) => return Ok(true),
            result => result.context("Waiting")?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[1] && self.rx.drain_call() {
            self.rx.want_no_interrupts()?;
            self.rx_open = true;
        }
        if ready[2] && self.tx.drain_call() {
            self.tx.want_no_interrupts()?;
            self.tx_full = false;
        }
        if ready.get(3) == Some(&true) {
            // A port says nothing unasked.
            self.frontend = None;
        }
        if !ready[0] {
            return Ok(true);
        }
        let mut bytes = [0; 256];
        // Not by the lock's buffer, of which poll(2) knows nothing.
        let len = rustix::io::read(stdin.as_fd(), &mut bytes)?;
        input.push_str(str::from_utf8(&bytes[..len])?);
        Ok(len != 0)
    }

    fn execute(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Disconnect(time) => {
                self.frontend = None;
                self.connect_at = now() + u64::try_from(time.as_nanos())?;
            }
            Command::Reset => {
                // A port that is gone or does not answer is connected to again.
                let stopped = self.frontend.as_ref().map(Frontend::stop);
                if !matches!(stopped, Some(Ok(()))) {
                    self.frontend = None;
                }
                let (number, others) = (self.config.number, &self.config.others);
                self.rx.reset()?;
                self.tx.reset()?;
                (self.rx_open, self.tx_full) = (true, false);
                self.streams = Streams::new(number, others, now());
                let queues = [&self.rx, &self.tx];
                let started = self
                    .frontend
                    .as_ref()
                    .map(|frontend| frontend.start(queues));
                if !matches!(started, Some(Ok(()))) {
                    self.frontend = None;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mock_vm_reads_its_own_command_line() {
        let vm = MockVm {
            number: 1,
            others: vec![2, 3],
            socket: "a.vhost".into(),
            progress: "a.progress".into(),
        };
        assert_eq!(MockVm::parse(&vm.arguments()).unwrap(), vm);
        let mut arguments = vm.arguments();
        arguments[0] = MAX_VMS.to_string();
        MockVm::parse(&arguments).unwrap_err();
        MockVm::parse(&arguments[1..]).unwrap_err();
    }

    #[test]
    fn mock_vm_reads_commands() {
        let pause = Duration::from_millis(20);
        assert_eq!(
            command("disconnect 20").unwrap(),
            Command::Disconnect(pause)
        );
        assert_eq!(command("reset").unwrap(), Command::Reset);
        command("").unwrap_err();
    }
}
