//! A port: the workers of one device, and the control thread's handle to them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use virtio_inter_link::BusyPollConfig;
use virtio_inter_segment::{LocalPort, PeerKey, PeerLink};

use crate::config::{CONFIG_SIZE, config_space};
use crate::counters::Counters;
use crate::device::{Device, DeviceError, GuestMemory, QueueSetup};
use crate::features::{Negotiated, offered};
use crate::queue::check_setup;
use crate::worker::{
    Answer, Command, Direction, InUse, PeerPart, Poller, Ready, Report, Request, Source, Waker,
    Worker, WorkerSetup,
};

/// A worker answers a command between two batches, microseconds later; one that takes this long is gone.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What a port tells the process that runs it.
#[derive(Debug)]
pub enum PortEvent {
    /// A peer broke the rules of a link, which is no longer used. The peer is to be removed, and its other links with it.
    LinkViolation {
        /// Whose link.
        peer: PeerKey,
        /// What it did.
        reason: String,
    },
    /// Frames were dropped for reasons that an operator can remove: [`Counters::drops`]. Not told
    /// again before [`Port::watch_drops`] is called.
    Dropped,
    /// A queue is kicked, long after its start, but its ring is blank: the guest's memory may not
    /// be shared. Told at most once of each start.
    BlankRing {
        /// Which queue.
        queue: u16,
    },
}

/// A virtio-net device whose frames go to the peers that it is given.
#[derive(Debug)]
pub struct Port {
    features: u64,
    config: [u8; CONFIG_SIZE],
    /// As last set and checked.
    memory: Option<Arc<GuestMemory>>,
    workers: Vec<Handle>,
    reports: Receiver<Report>,
    /// Workers whose receive queues are in use.
    ready: Ready,
    /// Readable when there are events.
    bell: Arc<OwnedFd>,
}

/// The control thread's end of a worker.
#[derive(Debug)]
struct Handle {
    commands: Option<Sender<Request>>,
    waker: Waker,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

impl Port {
    /// Starts the workers, one for each queue pair, with nothing to do yet.
    ///
    /// # Errors
    ///
    /// When a thread or a descriptor cannot be had.
    pub fn new(local: &LocalPort, busy_poll: BusyPollConfig) -> Result<Port, DeviceError> {
        let io = |action| move |source| DeviceError::Io { action, source };
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| io("create an eventfd")(e.into()))?;
        let bell = Arc::new(bell);
        // The link's way of ringing takes a resource that other users of the host can use up. It is taken at the first ring:
        // now, before there are peers.
        virtio_inter_link::Doorbell::new()
            .map_err(io("create an eventfd"))?
            .ring();
        let (reporter, reports) = mpsc::channel();
        let mut port = Port {
            features: offered(local.queues),
            config: config_space(local),
            memory: None,
            workers: Vec::new(),
            reports,
            ready: Ready::default(),
            bell,
        };
        let in_use = Arc::new(InUse::default());
        for index in 0..local.queues {
            let (commands, inbox) = mpsc::channel();
            let (poller, waker) = Poller::new().map_err(io("create an epoll instance"))?;
            let counters = Arc::new(Counters::default());
            let (reporter, bell) = (reporter.clone(), Arc::clone(&port.bell));
            let worker = Worker::new(WorkerSetup {
                index,
                mac: local.mac,
                mtu: local.mtu,
                counters: Arc::clone(&counters),
                commands: inbox,
                poller,
                in_use: Arc::clone(&in_use),
                busy_poll,
                report: Box::new(move |report| {
                    // The port may be on its way out; then nobody listens any more.
                    let _ = reporter.send(report);
                    let _ = rustix::io::write(&*bell, &1u64.to_ne_bytes());
                }),
            });
            let thread = Builder::new()
                .name(format!("queue-{index}"))
                .spawn(move || worker.run())
                .map_err(io("start a worker thread"))?;
            port.workers.push(Handle {
                commands: Some(commands),
                waker,
                counters,
                thread: Some(thread),
            });
        }
        Ok(port)
    }

    /// Readable when [`Port::events`] has something to tell.
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// What happened since the last call. To be called whenever [`Port::events_fd`] is readable: this is also when
    /// links move to the workers whose queues the guest uses.
    pub fn events(&mut self) -> Vec<PortEvent> {
        // Empties the counter; it is empty already when somebody asks without being told.
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
        let mut ready = self.ready;
        let mut to_steer = false;
        let mut events = Vec::new();
        for report in self.reports.try_iter() {
            match report {
                Report::Fault(fault) => events.push(PortEvent::LinkViolation {
                    peer: fault.peer,
                    reason: fault.violation.to_string(),
                }),
                Report::Dropped => events.push(PortEvent::Dropped),
                Report::BlankRing { queue } => events.push(PortEvent::BlankRing { queue }),
                Report::Ready { index, ready: now } => {
                    ready = ready.with(index, now);
                    to_steer = true;
                }
            }
        }
        // Also when one came and went: workers may hold frames for it.
        if to_steer {
            self.ready = ready;
            if let Err(e) = self.steer() {
                log::error!("Cannot move links between workers: {e}");
            }
        }
        events
    }

    /// Moves each link to the worker that is to serve it now.
    fn steer(&self) -> Result<(), DeviceError> {
        let mut moved: Vec<Vec<Source>> = self.workers.iter().map(|_| Vec::new()).collect();
        for worker in 0..self.workers.len() {
            if let Answer::Sources(sources) = self.ask(worker, Command::GiveSources(self.ready))? {
                for source in sources {
                    moved[usize::from(source.serving(self.ready))].push(source);
                }
            }
        }
        for (worker, sources) in moved.into_iter().enumerate().filter(|(_, s)| !s.is_empty()) {
            self.ask(worker, Command::TakeSources(sources))?;
        }
        Ok(())
    }

    /// Frames may go to and come from a peer.
    ///
    /// # Errors
    ///
    /// When the links cannot be watched (out of memory); the peer is then not known to any worker.
    pub fn add_peer(&mut self, link: PeerLink) -> Result<(), DeviceError> {
        let workers = self.workers.len();
        let PeerLink {
            peer,
            senders,
            receivers,
        } = link;
        let mut shares: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
        for (i, receiver) in receivers.into_iter().enumerate() {
            // The peer's queue i feeds our queue i mod n, or one in use in its place.
            let home = (i % workers) as u16;
            shares[usize::from(self.ready.serving(home))].push((receiver, home));
        }
        for (index, (sender, receivers)) in senders.into_iter().zip(shares).enumerate() {
            let part = PeerPart {
                key: peer.key,
                mac: peer.mac,
                sender,
                receivers,
            };
            if let Err(e) = self.ask(index, Command::AddPeer(Box::new(part))) {
                self.remove_peer(peer.key)?;
                return Err(e);
            }
        }
        Ok(())
    }

    /// Frames go to and come from a peer no more; its links are closed.
    ///
    /// # Errors
    ///
    /// When a worker does not answer.
    pub fn remove_peer(&mut self, peer: PeerKey) -> Result<(), DeviceError> {
        self.ask_all(|| Command::RemovePeer(peer))
    }

    /// The counters of each worker, by queue pair.
    pub fn counters(&self) -> impl Iterator<Item = &Counters> {
        self.workers.iter().map(|w| &*w.counters)
    }

    /// Asks for a [`PortEvent::Dropped`] when the next frame is dropped. What was dropped before is
    /// in the counters by now.
    pub fn watch_drops(&self) {
        for worker in &self.workers {
            worker.counters.drops.watch();
        }
    }

    fn ask(&self, worker: usize, command: Command) -> Result<Answer, DeviceError> {
        let gone = || DeviceError::Io {
            action: "reach a worker thread",
            source: io::Error::from(io::ErrorKind::BrokenPipe),
        };
        let handle = &self.workers[worker];
        let (reply, answer) = mpsc::sync_channel(1);
        let commands = handle.commands.as_ref().ok_or_else(gone)?;
        commands
            .send(Request { command, reply })
            .map_err(|_| gone())?;
        handle.waker.wake();
        answer.recv_timeout(ANSWER_WITHIN).map_err(|_| gone())?
    }

    fn ask_all(&self, command: impl Fn() -> Command) -> Result<(), DeviceError> {
        // All of them, also when one fails: what one worker has let go of, no other may go on with.
        (0..self.workers.len())
            .map(|worker| self.ask(worker, command()).map(|_| ()))
            .fold(Ok(()), Result::and)
    }

    fn ask_queue(
        &self,
        index: u16,
        command: impl FnOnce(Direction) -> Command,
    ) -> Result<Answer, DeviceError> {
        if index >= self.queue_count() {
            return Err(DeviceError::NoSuchQueue {
                index,
                count: self.queue_count(),
            });
        }
        let direction = if index.is_multiple_of(2) {
            Direction::Receive
        } else {
            Direction::Transmit
        };
        self.ask(usize::from(index / 2), command(direction))
    }
}

impl Device for Port {
    fn queue_count(&self) -> u16 {
        self.workers.len() as u16 * 2 // A port has at most some dozens of pairs: `MAX_QUEUE_PAIRS`.
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn set_features(&mut self, acked: u64) -> Result<(), DeviceError> {
        let negotiated = Negotiated::new(acked, self.features)?;
        self.ask_all(|| Command::SetFeatures(negotiated))
    }

    fn set_memory(&mut self, memory: Option<Arc<GuestMemory>>) -> Result<(), DeviceError> {
        self.memory.clone_from(&memory);
        self.ask_all(|| Command::SetMemory(memory.clone()))
    }

    fn start_queue(&mut self, index: u16, setup: QueueSetup) -> Result<(), DeviceError> {
        let memory = self.memory.as_deref().ok_or(DeviceError::NoMemory(index))?;
        check_setup(memory, &setup).map_err(|reason| DeviceError::BadQueue { index, reason })?;
        self.ask_queue(index, |direction| Command::Start(direction, setup))
            .map(|_| ())
    }

    fn enable_queue(&mut self, index: u16, enabled: bool) -> Result<(), DeviceError> {
        self.ask_queue(index, |direction| Command::Enable(direction, enabled))
            .map(|_| ())
    }

    fn set_call(&mut self, index: u16, call: Option<OwnedFd>) -> Result<(), DeviceError> {
        self.ask_queue(index, |direction| Command::SetCall(direction, call))
            .map(|_| ())
    }

    fn set_kick(&mut self, index: u16, kick: OwnedFd) -> Result<(), DeviceError> {
        self.ask_queue(index, |direction| Command::SetKick(direction, kick))
            .map(|_| ())
    }

    fn stop_queue(&mut self, index: u16) -> Result<u16, DeviceError> {
        match self.ask_queue(index, Command::Stop)? {
            Answer::Index(index) => Ok(index),
            _ => Ok(0),
        }
    }

    fn announce(&mut self) -> Result<usize, DeviceError> {
        match self.ask(0, Command::Announce)? {
            Answer::Peers(count) => Ok(count),
            _ => Ok(0),
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            worker.commands = None;
            worker.waker.wake();
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take()
                && thread.join().is_err()
            {
                log::error!("A worker thread panicked");
            }
        }
    }
}
