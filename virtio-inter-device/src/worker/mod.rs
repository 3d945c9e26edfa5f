//! A worker serves one queue pair on a thread of its own: frames of the guest's transmit queue go
//! to the backend, records of the backend to the guest's receive queue. It owns everything that it
//! accesses; the control thread sends it commands. It follows the plain rules of VIRTIO and of the
//! scheduler (decision 0063).

mod command;
mod control;

use std::sync::Arc;
use std::sync::mpsc::{Receiver as CommandReceiver, TryRecvError};
use std::time::{Duration, Instant};

use log::Level;
use virtio_inter_common::thread_role::{self, Role};
use virtio_inter_common::{LogLimit, log_limited};
use virtio_inter_link::{BusyPoll, BusyPollConfig};

pub(crate) use command::{Answer, Command, Request};

use crate::backend::steering::SharedActiveQueues;
use crate::backend::{Backend, Generation, LinkFault, LinkRequest};
use crate::batch::{BatchResult, PortContext, Sleep};
use crate::guest_memory::GuestMemory;
use crate::poller::{Poller, Woken};
use crate::queue::{QueueViolation, RxQueue, SplitQueue, TxQueue};
use crate::rx::RxHandler;
use crate::tx::TxHandler;

/// A guest can violate its queues' rules as often as it resets them.
static QUEUE_VIOLATIONS: LogLimit = LogLimit::new(Duration::from_secs(10), 5);

/// A report of a worker to the control thread.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Report {
    /// A peer violated the rules of its link.
    Fault(LinkFault),
    /// The links of worker `index` want something.
    Request { index: u16, request: LinkRequest },
    /// Frames were dropped: see [`Drops`](crate::Drops).
    Dropped,
    /// A queue was kicked long after its start, but its ring is blank. Reported once after each
    /// start.
    BlankRing { queue: u16 },
    /// The uplink's device of that generation is gone.
    UplinkLost { generation: Generation },
    /// The receive queue of worker `index` has come into use, or gone out of use.
    QueueActive { index: u16, active: bool },
}

/// One virtqueue of the pair, and its state in terms of vhost-user ("Ring states").
#[derive(Default)]
struct QueueState {
    queue: Option<SplitQueue>,
    enabled: bool,
    /// The driver violated the rules: the queue is not accessed before it is started again.
    broken: bool,
    /// A transmit queue that was enabled and is not any more: each kick returns its frames, and
    /// nothing else accesses it.
    draining: bool,
    /// From this time on a ring that was kicked and is blank is reported. None: it was examined.
    suspect_from: Option<Instant>,
    /// A kick before that time found the ring blank. With VIRTIO_F_EVENT_IDX it may be the only
    /// one.
    kicked_early: bool,
}

impl QueueState {
    /// The queue, if it is to be served.
    fn usable(&mut self) -> Option<&mut SplitQueue> {
        self.queue.as_mut().filter(|_| self.enabled && !self.broken)
    }

    /// The queue, if it is only to be drained.
    fn draining(&mut self) -> Option<&mut SplitQueue> {
        self.queue
            .as_mut()
            .filter(|_| self.draining && !self.broken)
    }

    /// Whether the queue is to be reported because it was kicked, just now or early, and its ring
    /// is blank.
    fn was_kicked_but_blank(
        &mut self,
        kicked: bool,
        memory: Option<&GuestMemory>,
        context: &PortContext,
    ) -> bool {
        let Some(from) = self.suspect_from else {
            return false;
        };
        let is_due = Instant::now() >= from;
        if !(kicked || (self.kicked_early && is_due)) {
            return false;
        }
        let (Some(queue), Some(memory)) = (self.usable(), memory) else {
            return false;
        };
        let is_blank = TxQueue::new(queue, memory, context).and_then(|queue| queue.is_blank());
        let is_blank = is_blank.unwrap_or(false);
        if is_blank && !is_due {
            self.kicked_early = true;
            return false;
        }
        self.suspect_from = None;
        is_blank
    }

    /// When the queue has to be examined although nobody kicks it.
    fn examine_at(&mut self) -> Option<Instant> {
        let at = self.suspect_from.filter(|_| self.kicked_early)?;
        self.usable().map(|_| at)
    }

    fn set_broken(&mut self, index: u16, violation: QueueViolation) {
        self.broken = true;
        log_limited!(
            QUEUE_VIOLATIONS,
            Level::Error,
            "Queue {index} stops until the driver resets it: {violation}"
        );
    }
}

/// What a new worker needs.
pub(crate) struct WorkerSetup<B: Backend> {
    pub(crate) index: u16,
    pub(crate) context: PortContext,
    pub(crate) backend: B,
    pub(crate) commands: CommandReceiver<Request<B>>,
    pub(crate) poller: Poller,
    /// Shared by the port's workers.
    pub(crate) in_use: Arc<SharedActiveQueues>,
    pub(crate) busy_poll: BusyPollConfig,
    /// Reports to the control thread.
    pub(crate) report: Box<dyn Fn(Report) + Send>,
}

/// The state of one worker.
pub(crate) struct Worker<B: Backend> {
    index: u16,
    context: PortContext,
    memory: Option<Arc<GuestMemory>>,
    rx_queue: QueueState,
    tx_queue: QueueState,
    rx: RxHandler,
    tx: TxHandler,
    backend: B,
    commands: CommandReceiver<Request<B>>,
    poller: Poller,
    in_use: Arc<SharedActiveQueues>,
    busy_poll: BusyPollConfig,
    report: Box<dyn Fn(Report) + Send>,
    /// The last report said that the receive queue is in use.
    active: bool,
    /// The transmit queue was kicked since it was served last.
    kicked: bool,
}

impl<B: Backend> Worker<B> {
    pub(crate) fn new(setup: WorkerSetup<B>) -> Self {
        Worker {
            index: setup.index,
            context: setup.context,
            memory: None,
            rx_queue: QueueState::default(),
            tx_queue: QueueState::default(),
            rx: RxHandler::new(setup.backend.without_timeouts()),
            tx: TxHandler::default(),
            backend: setup.backend,
            commands: setup.commands,
            poller: setup.poller,
            in_use: setup.in_use,
            busy_poll: setup.busy_poll,
            report: setup.report,
            active: false,
            kicked: false,
        }
    }

    /// Runs until the port is dropped.
    pub(crate) fn run(mut self) {
        let mut busy_poll = BusyPoll::of_this_thread(self.busy_poll);
        thread_role::enter(Role::Worker);
        loop {
            loop {
                match self.commands.try_recv() {
                    Ok(request) => {
                        let answer = self.handle_command(request.command);
                        // The control thread may have given up waiting for it.
                        let _ = request.reply.send(answer);
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            let sent = self.transmit();
            let received = self.receive();
            self.report_activity();
            self.report_faults();
            if sent == BatchResult::Idle && received == BatchResult::Idle {
                let idle_since = Instant::now();
                if !self.busy_poll(&mut busy_poll, idle_since) {
                    self.sleep();
                    busy_poll.idle_ended(idle_since.elapsed());
                }
            }
        }
    }

    /// Busy-polls queues and backend, if that pays. True: there was work, some of which is done.
    fn busy_poll(&mut self, busy_poll: &mut BusyPoll, idle_since: Instant) -> bool {
        // Only the epoll instance sees the kicks of a queue that is to be drained.
        !self.tx_queue.draining
            && busy_poll.poll(idle_since, || {
                self.transmit() == BatchResult::Moved || self.receive() == BatchResult::Moved
            })
    }

    /// Sleeps until there is work, unless some has come meanwhile.
    fn sleep(&mut self) {
        // The receive queue may have come into use while the worker busy-polled.
        self.report_activity();
        let sleep = self.enable_notifications();
        self.report_faults();
        if sleep.allowed {
            let examine = [self.rx_queue.examine_at(), self.tx_queue.examine_at()];
            let until = examine.into_iter().chain([sleep.until]).flatten().min();
            let woken = self.poller.wait(until);
            self.context.counters.wakeups.add(1);
            self.kicked |= woken.transmit_kicked;
            if woken.source_ready {
                self.backend.wake(woken.source_lost);
            }
            self.backend.wake_links(&woken.links);
            self.report_blank_rings(&woken);
        }
    }

    /// Reports the queues that were kicked but whose rings are blank.
    fn report_blank_rings(&mut self, woken: &Woken) {
        let memory = self.memory.as_deref();
        let queues = [
            (woken.receive_kicked, &mut self.rx_queue),
            (woken.transmit_kicked, &mut self.tx_queue),
        ];
        for ((kicked, state), offset) in queues.into_iter().zip(0..) {
            if state.was_kicked_but_blank(kicked, memory, &self.context) {
                (self.report)(Report::BlankRing {
                    queue: self.index * 2 + offset,
                });
            }
        }
    }

    /// Sends a batch.
    fn transmit(&mut self) -> BatchResult {
        let backend = &mut self.backend;
        if let (Some(queue), Some(memory)) = (self.tx_queue.usable(), &self.memory) {
            match self.tx.run(queue, memory, &self.context, backend) {
                Ok(pace) => return pace,
                Err(violation) => self.tx_queue.set_broken(self.index * 2 + 1, violation),
            }
        } else {
            // Frames that the backend has go on without a guest.
            backend.flush();
            if std::mem::take(&mut self.kicked) {
                self.drain();
                if self.kicked {
                    return BatchResult::Moved;
                }
            }
        }
        BatchResult::Idle
    }

    /// Returns all frames of a disabled transmit queue unsent (vhost-user, "Ring states"): the
    /// driver does not take them back by itself, and a socket may wait for one of them.
    fn drain(&mut self) {
        if let (Some(queue), Some(memory)) = (self.tx_queue.draining(), &self.memory) {
            match self.tx.drain(queue, memory, &self.context) {
                // There are more frames, as if the driver had kicked again.
                Ok(BatchResult::Moved) => self.kicked = true,
                Ok(BatchResult::Idle) => {}
                Err(violation) => self.tx_queue.set_broken(self.index * 2 + 1, violation),
            }
        }
    }

    /// Delivers a batch.
    fn receive(&mut self) -> BatchResult {
        let backend = &mut self.backend;
        if let (Some(queue), Some(memory)) = (self.rx_queue.usable(), &self.memory) {
            match self.rx.run(queue, memory, &self.context, backend) {
                Ok(pace) => return pace,
                Err(violation) => self.rx_queue.set_broken(self.index * 2, violation),
            }
        }
        if B::STEERED && self.in_use.by_others(self.index) {
            // The control thread is about to move the links to another worker. Its command wakes
            // this one.
            self.rx.hold();
            BatchResult::Idle
        } else {
            self.rx.discard(&mut self.backend, &self.context.counters)
        }
    }

    /// Asks for all notifications. Work that came before is seen now; work that comes later wakes
    /// the worker.
    fn enable_notifications(&mut self) -> Sleep {
        let tx = self.enable_tx_notification().unwrap_or_else(|violation| {
            self.tx_queue.set_broken(self.index * 2 + 1, violation);
            Sleep::NOT_NOW
        });
        let rx = self.enable_rx_notification().unwrap_or_else(|violation| {
            self.rx_queue.set_broken(self.index * 2, violation);
            Sleep::NOT_NOW
        });
        Sleep {
            allowed: tx.allowed && rx.allowed,
            until: tx.until.into_iter().chain(rx.until).min(),
        }
    }

    fn enable_tx_notification(&mut self) -> Result<Sleep, QueueViolation> {
        let queue = match (self.tx_queue.usable(), &self.memory) {
            (Some(queue), Some(memory)) => Some(TxQueue::new(queue, memory, &self.context)?),
            _ => None,
        };
        self.tx.enable_notification(queue, &mut self.backend)
    }

    fn enable_rx_notification(&mut self) -> Result<Sleep, QueueViolation> {
        let queue = match (self.rx_queue.usable(), &self.memory) {
            (Some(queue), Some(memory)) => Some(RxQueue::new(queue, memory, &self.context)?),
            _ => None,
        };
        self.rx.enable_notification(queue, &mut self.backend)
    }

    /// Reports that the receive queue has come into use, or gone out of use.
    fn report_activity(&mut self) {
        let active = self
            .rx_queue
            .usable()
            .is_some_and(|queue| queue.has_seen_entries());
        if active != self.active {
            self.active = active;
            self.in_use.set(self.index, active);
            if active {
                // The guest has started, or has moved here: the network learns where it is.
                self.announce(|backend, record| backend.announce_arrival(record));
            }
            (self.report)(Report::QueueActive {
                index: self.index,
                active,
            });
        }
    }

    fn report_faults(&mut self) {
        while let Some(fault) = self.backend.take_fault() {
            (self.report)(Report::Fault(fault));
        }
        while let Some(request) = self.backend.take_request() {
            let index = self.index;
            (self.report)(Report::Request { index, request });
        }
        if let Some(generation) = self.backend.take_uplink_loss() {
            (self.report)(Report::UplinkLost { generation });
        }
        if self.context.counters.drops.is_pending() {
            (self.report)(Report::Dropped);
        }
    }
}
