//! A port: the workers of one device, and the control thread's handle to them.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use virtio_inter_link::Doorbell;
use virtio_inter_segment::{LocalPort, PeerKey};

use crate::backend::steering::{ActiveQueues, SharedActiveQueues};
use crate::backend::{Backend, BackendSetup, Generation, LinkRequest, Links};
use crate::batch::{Direction, PortContext};
use crate::config::{CONFIG_SIZE, config_space};
use crate::counters::Counters;
use crate::device::{Device, DeviceError, QueueSetup};
use crate::features::{Negotiated, offered};
use crate::guest_memory::GuestMemory;
use crate::poller::{Poller, Waker};
use crate::queue::check_setup;
use crate::rate_limit::{RateLimiter, RateLimits};
use crate::worker::{Answer, Command, Report, Request, Worker, WorkerSetup};

mod capture;
mod config;
mod link_book;
mod links;
mod uplink;

pub use config::PortConfig;
pub use link_book::LinkEvent;
use link_book::{FloodEnd, LinkBook};
pub use links::LinkBackend;

/// A worker answers a command between two batches, microseconds later. One that takes this long has
/// ended.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// An event that a port reports to the process that runs it.
#[derive(Debug)]
pub enum PortEvent {
    /// A peer violated the rules of a link, which is not used any more. The process is to remove
    /// the peer, and its other links with it.
    LinkViolation {
        /// The peer.
        peer: PeerKey,
        /// The violation.
        reason: String,
    },
    /// Frames were dropped for reasons that an operator can remove: [`Counters::drops`]. Not
    /// reported again before [`Port::watch_drops`] is called.
    Dropped,
    /// A queue was kicked long after its start, but its ring is blank: the guest's memory may not
    /// be shared. Reported at most once after each start.
    BlankRing {
        /// The queue.
        queue: u16,
    },
    /// The device of the uplink is gone: see [`Port::set_uplink`].
    UplinkLost,
}

/// A virtio-net device whose frames go to a backend: links to the peers that the port is given, or
/// another one.
pub struct Port<B: Backend = Links> {
    features: u64,
    config: [u8; CONFIG_SIZE],
    /// As last set and checked.
    memory: Option<Arc<GuestMemory>>,
    workers: Vec<Handle<B>>,
    reports: mpsc::Receiver<Report>,
    /// Workers whose receive queues are in use.
    active: ActiveQueues,
    /// Readable when there are events.
    event_fd: Arc<OwnedFd>,
    /// Requests of links, with the worker that reported each.
    requests: Vec<(u16, LinkRequest)>,
    book: LinkBook,
    /// Of the uplink's device.
    generation: Generation,
}

/// The control thread's end of a worker.
struct Handle<B: Backend> {
    commands: Option<mpsc::Sender<Request<B>>>,
    waker: Waker,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

impl<B: Backend> Handle<B> {
    /// Has the worker carry out a command.
    fn ask(&self, command: Command<B>) -> Result<Answer<B>, DeviceError> {
        let failed = |kind: io::ErrorKind| DeviceError::Io {
            action: "reach a worker thread",
            source: io::Error::from(kind),
        };
        let gone = || failed(io::ErrorKind::BrokenPipe);
        let (reply, answer) = mpsc::sync_channel(1);
        let commands = self.commands.as_ref().ok_or_else(gone)?;
        commands
            .send(Request { command, reply })
            .map_err(|_| gone())?;
        self.waker.wake();
        answer.recv_timeout(ANSWER_TIMEOUT).map_err(|e| match e {
            RecvTimeoutError::Timeout => failed(io::ErrorKind::TimedOut),
            RecvTimeoutError::Disconnected => gone(),
        })?
    }

    /// Has the worker's backend carry out a command.
    fn ask_backend(&self, command: B::Command) -> Result<Option<B::Answer>, DeviceError> {
        match self.ask(Command::Backend(command))? {
            Answer::Backend(answer) => Ok(Some(answer)),
            _ => Ok(None),
        }
    }
}

impl Port {
    /// Starts the workers, one for each queue pair, without any peer.
    ///
    /// # Errors
    ///
    /// When a thread or a descriptor cannot be created.
    pub fn new(local: &LocalPort, config: impl Into<PortConfig>) -> Result<Port, DeviceError> {
        take_doorbell_resource()?;
        Port::with_links(local, config, Links::new)
    }

    /// The same, with links that `make` makes.
    ///
    /// # Errors
    ///
    /// As [`Port::new`].
    pub fn with_links(
        local: &LocalPort,
        config: impl Into<PortConfig>,
        mut make: impl FnMut(BackendSetup) -> Links,
    ) -> Result<Port, DeviceError> {
        Port::with_flood(local, config, |setup, flood| {
            let mut links = make(setup);
            if let Some((sender, receiver)) = flood {
                links.set_flood(sender, receiver);
            }
            links
        })
    }
}

fn new_event_fd() -> Result<OwnedFd, DeviceError> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| DeviceError::Io {
        action: "create an eventfd",
        source: e.into(),
    })
}

/// Ringing a doorbell takes a resource that other users of the host can exhaust. It is taken at the
/// first ring: now, before there are peers.
fn take_doorbell_resource() -> Result<(), DeviceError> {
    let doorbell = Doorbell::new().map_err(|source| DeviceError::Io {
        action: "create an eventfd",
        source,
    })?;
    doorbell.ring();
    Ok(())
}

impl<B: Backend> Port<B> {
    /// Starts the workers, each with a backend that `make` makes of its ends of the floods.
    fn with_flood(
        local: &LocalPort,
        config: impl Into<PortConfig>,
        mut make: impl FnMut(BackendSetup, Option<FloodEnd>) -> B,
    ) -> Result<Port<B>, DeviceError> {
        let event_fd = new_event_fd()?;
        let (book, mut ends) = LinkBook::new(local, &event_fd)?;
        let make = |setup| make(setup, ends.next());
        Port::start_workers(local, config.into(), event_fd, book, make)
    }

    /// Starts the workers, one for each queue pair, each with a backend that `make` makes.
    ///
    /// # Errors
    ///
    /// When a thread or a descriptor cannot be created.
    pub fn with_backend(
        local: &LocalPort,
        config: impl Into<PortConfig>,
        make: impl FnMut(BackendSetup) -> B,
    ) -> Result<Port<B>, DeviceError> {
        let book = LinkBook::without_floods(local);
        Port::start_workers(local, config.into(), new_event_fd()?, book, make)
    }

    fn start_workers(
        local: &LocalPort,
        config: PortConfig,
        event_fd: OwnedFd,
        book: LinkBook,
        mut make: impl FnMut(BackendSetup) -> B,
    ) -> Result<Port<B>, DeviceError> {
        let io = |action| move |source| DeviceError::Io { action, source };
        let (reporter, reports) = mpsc::channel();
        let mut port = Port {
            features: offered(local.queues),
            config: config_space(local),
            memory: None,
            workers: Vec::new(),
            reports,
            active: ActiveQueues::default(),
            event_fd: Arc::new(event_fd),
            requests: Vec::new(),
            book,
            generation: 0,
        };
        let in_use = Arc::new(SharedActiveQueues::default());
        let learned = Arc::clone(port.book.learned());
        let RateLimits { transmit, receive } = config.rate_limits;
        let (tx_limit, rx_limit) = (RateLimiter::new(transmit), RateLimiter::new(receive));
        for index in 0..local.queues {
            let (commands, inbox) = mpsc::channel();
            let (poller, waker) = Poller::new().map_err(io("create an epoll instance"))?;
            let context = PortContext {
                mac: local.mac,
                allowed: local.allowed.clone(),
                guard: local.guard.clone(),
                trunk: local.trunk,
                mtu: local.mtu,
                negotiated: Negotiated::default(),
                tx_limit: tx_limit.clone(),
                rx_limit: rx_limit.clone(),
                counters: Arc::new(Counters::default()),
            };
            let counters = Arc::clone(&context.counters);
            let mut backend = make(BackendSetup {
                index,
                mac: local.mac,
                allowed: local.allowed.clone(),
                trunk: local.trunk,
                learned: Arc::clone(&learned),
                mtu: local.mtu,
                counters: Arc::clone(&counters),
            });
            backend.attach(&poller)?;
            let (reporter, event_fd) = (reporter.clone(), Arc::clone(&port.event_fd));
            let worker = Worker::new(WorkerSetup {
                index,
                context,
                backend,
                commands: inbox,
                poller,
                in_use: Arc::clone(&in_use),
                busy_poll: config.busy_poll,
                report: Box::new(move |report| {
                    // While the port is dropped, nobody receives reports any more.
                    let _ = reporter.send(report);
                    let _ = rustix::io::write(&*event_fd, &1u64.to_ne_bytes());
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

    /// Readable when [`Port::events`] has events.
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        self.event_fd.as_fd()
    }

    /// The events since the last call. To be called whenever [`Port::events_fd`] is readable: this
    /// is also when links move to the workers whose queues the guest uses.
    pub fn events(&mut self) -> Vec<PortEvent> {
        // Resets the counter. If it is zero already, that is as good.
        let _ = rustix::io::read(&*self.event_fd, &mut [0; 8]);
        let mut active = self.active;
        let mut to_steer = false;
        let mut events = Vec::new();
        for report in self.reports.try_iter() {
            match report {
                Report::Fault(fault) => events.push(PortEvent::LinkViolation {
                    peer: fault.peer,
                    reason: fault.violation.to_string(),
                }),
                Report::Request { index, request } => self.requests.push((index, request)),
                Report::Dropped => events.push(PortEvent::Dropped),
                // Each worker reports it, and some may when there is another device already.
                Report::UplinkLost { generation } => {
                    let is_known = events.iter().any(|it| matches!(it, PortEvent::UplinkLost));
                    let is_new = generation == self.generation && !is_known;
                    events.extend(is_new.then_some(PortEvent::UplinkLost));
                }
                Report::BlankRing { queue } => events.push(PortEvent::BlankRing { queue }),
                Report::QueueActive { index, active: now } => {
                    active = active.with(index, now);
                    to_steer = true;
                }
            }
        }
        // Also if a queue came into use and went out of use: workers may hold records for it.
        if to_steer {
            self.active = active;
            if let Err(e) = self.steer() {
                log::error!("Cannot move links between workers: {e}");
            }
        }
        events
    }

    /// Moves each link to the worker that is to serve it now.
    fn steer(&self) -> Result<(), DeviceError> {
        let mut ask = |worker: u16, command| {
            let answer = self.workers[usize::from(worker)].ask_backend(command)?;
            answer.ok_or_else(|| DeviceError::Io {
                action: "reach the backend of a worker",
                source: io::Error::from(io::ErrorKind::Unsupported),
            })
        };
        B::steer(self.active, self.workers.len() as u16, &mut ask)
    }

    /// Whether there is a guest: a receive queue is in use, as of the last [`Port::events`].
    pub fn has_guest(&self) -> bool {
        self.active != ActiveQueues::default()
    }

    /// The counters of each worker, by queue pair.
    pub fn counters(&self) -> impl Iterator<Item = &Counters> {
        self.workers.iter().map(|worker| &*worker.counters)
    }

    /// Asks for a [`PortEvent::Dropped`] when the next frame is dropped. Frames that were dropped
    /// before are in the counters.
    pub fn watch_drops(&self) {
        for worker in &self.workers {
            worker.counters.drops.watch();
        }
    }

    fn ask_all(&self, command: impl Fn() -> Command<B>) -> Result<(), DeviceError> {
        // All workers, also after an error: none may use what the caller is about to free.
        self.workers
            .iter()
            .map(|worker| worker.ask(command()).map(|_| ()))
            .fold(Ok(()), Result::and)
    }

    fn ask_queue(
        &self,
        index: u16,
        command: impl FnOnce(Direction) -> Command<B>,
    ) -> Result<Answer<B>, DeviceError> {
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
        self.workers[usize::from(index / 2)].ask(command(direction))
    }
}

impl<B: Backend> Device for Port<B> {
    fn queue_count(&self) -> u16 {
        self.workers.len() as u16 * 2 // A port has at most 64 pairs: `MAX_QUEUE_PAIRS`.
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
        match self.workers[0].ask(Command::Announce)? {
            Answer::Peers(count) => Ok(count),
            _ => Ok(0),
        }
    }
}

impl<B: Backend> fmt::Debug for Port<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("workers", &self.workers.len())
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}

impl<B: Backend> Drop for Port<B> {
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
