//! What serves one queue pair, on one thread at a time: the guest's transmit queue into the peers' rings, the peers' rings into the
//! guest's receive queue. It owns all that it touches; the control thread talks to it by commands.
//!
//! It follows the plain rules of VIRTIO and of the scheduler: decision 0063.

mod adapt;
mod buffers;
mod command;
mod cut;
mod obey;
mod peer;
mod poller;
mod receive;
mod steering;
mod transmit;

use std::sync::Arc;
use std::sync::mpsc::{Receiver as CommandReceiver, TryRecvError};
use std::time::{Duration, Instant};

use log::Level;
use virtio_inter_link::{BusyPoll, BusyPollConfig, Violation};
use virtio_inter_segment::{LogLimit, MacAddr, PeerKey, log_limited};

pub(crate) use command::{Answer, Command, Direction, PeerPart, Request};
pub(crate) use poller::{Poller, Waker};
pub(crate) use receive::Source;
pub(crate) use steering::{InUse, Ready};

use crate::counters::Counters;
use crate::device::GuestMemory;
use crate::features::Negotiated;
use crate::queue::{QueueViolation, Rings, SplitQueue};
use poller::Woken;
use receive::Collector;
use transmit::Transmitter;

/// Frames that one half of a worker moves before the other half's turn.
const BATCH: usize = 64;

/// For how long after a queue's start kicks on a blank ring may be the VMM's own, however many.
const KICKS_BY_VMM: Duration = Duration::from_secs(5);

/// A guest can break its queues as often as it resets them.
static QUEUE_VIOLATIONS: LogLimit = LogLimit::new(std::time::Duration::from_secs(10), 5);

/// What a batch came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Something moved: look again.
    Busy,
    /// Nothing moved.
    Idle,
}

/// Whether a worker may sleep, and until when at most.
#[derive(Debug, Clone, Copy)]
struct Rest {
    safe: bool,
    until: Option<Instant>,
}

/// A link's peer broke the ring's rules.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinkFault {
    pub(crate) peer: PeerKey,
    pub(crate) violation: Violation,
}

/// What a worker tells the control thread unasked.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Report {
    /// A link's peer broke the rules.
    Fault(LinkFault),
    /// Frames were dropped: see [`Drops`](crate::Drops).
    Dropped,
    /// A queue was kicked long after its start, and yet its ring is blank. Told once of each start.
    BlankRing {
        /// Which queue.
        queue: u16,
    },
    /// This worker's receive queue can be fed from now on, or cannot any more.
    Ready {
        /// Which worker.
        index: u16,
        /// Whether it can.
        ready: bool,
    },
}

/// Why a frame could not be handed over.
#[derive(Debug)]
enum Failure {
    /// The peer broke the ring's rules.
    Link(Violation),
    /// The guest broke its queue's rules.
    Queue(QueueViolation),
}

impl From<Violation> for Failure {
    fn from(violation: Violation) -> Self {
        Failure::Link(violation)
    }
}

impl From<QueueViolation> for Failure {
    fn from(violation: QueueViolation) -> Self {
        Failure::Queue(violation)
    }
}

/// What both halves must know of their port.
#[derive(Debug, Clone)]
struct Rules {
    mac: MacAddr,
    mtu: u16,
    negotiated: Negotiated,
    counters: Arc<Counters>,
}

/// One virtqueue of the pair, with what the transport said of it.
#[derive(Default)]
struct QueueState {
    queue: Option<SplitQueue>,
    enabled: bool,
    /// The driver broke the rules: not looked at again before it is started anew.
    broken: bool,
    /// A transmit queue that was enabled and is not any more: emptied at each kick, and touched for nothing else.
    retired: bool,
    /// From when on a kick that finds the ring blank is reported. None: that was done.
    suspect_from: Option<Instant>,
}

impl QueueState {
    /// The queue, if there is work to be done on it.
    fn usable(&mut self) -> Option<&mut SplitQueue> {
        self.queue.as_mut().filter(|_| self.enabled && !self.broken)
    }

    /// The queue, if it is only to be emptied.
    fn retired(&mut self) -> Option<&mut SplitQueue> {
        self.queue.as_mut().filter(|_| self.retired && !self.broken)
    }

    /// Whether the queue, which was just kicked, is to be reported for its blank ring.
    fn is_kicked_in_vain(&mut self, memory: Option<&GuestMemory>) -> bool {
        let is_due = |from| Instant::now() >= from;
        if !self.suspect_from.is_some_and(is_due) {
            return false;
        }
        let (Some(queue), Some(memory)) = (self.usable(), memory) else {
            return false;
        };
        let is_blank = queue.rings(memory).and_then(|rings| queue.is_blank(&rings));
        self.suspect_from = None;
        is_blank.unwrap_or(false)
    }
}

/// What a worker is born with.
pub(crate) struct WorkerSetup {
    pub(crate) index: u16,
    pub(crate) mac: MacAddr,
    pub(crate) mtu: u16,
    pub(crate) counters: Arc<Counters>,
    pub(crate) commands: CommandReceiver<Request>,
    pub(crate) poller: Poller,
    /// Shared by the port's workers.
    pub(crate) in_use: Arc<InUse>,
    pub(crate) busy_poll: BusyPollConfig,
    /// Tells the control thread.
    pub(crate) report: Box<dyn Fn(Report) + Send>,
}

/// The state of one worker thread.
pub(crate) struct Worker {
    index: u16,
    rules: Rules,
    memory: Option<Arc<GuestMemory>>,
    receive: QueueState,
    transmit: QueueState,
    collector: Collector,
    transmitter: Transmitter,
    commands: CommandReceiver<Request>,
    poller: Poller,
    in_use: Arc<InUse>,
    report: Box<dyn Fn(Report) + Send>,
    /// What the control thread was told last: the receive queue can be fed.
    ready: bool,
    /// The transmit queue was kicked since it was last looked at.
    kicked: bool,
    busy_poll: BusyPollConfig,
}

impl Worker {
    pub(crate) fn new(setup: WorkerSetup) -> Self {
        let WorkerSetup {
            index,
            mac,
            mtu,
            counters,
            commands,
            poller,
            in_use,
            busy_poll,
            report,
        } = setup;
        Worker {
            index,
            rules: Rules {
                mac,
                mtu,
                negotiated: Negotiated::default(),
                counters,
            },
            memory: None,
            receive: QueueState::default(),
            transmit: QueueState::default(),
            collector: Collector::new(),
            transmitter: Transmitter::new(),
            commands,
            poller,
            in_use,
            report,
            ready: false,
            kicked: false,
            busy_poll,
        }
    }

    /// Works until the port is gone.
    pub(crate) fn run(mut self) {
        let mut busy_poll = BusyPoll::of_this_thread(self.busy_poll);
        loop {
            loop {
                match self.commands.try_recv() {
                    Ok(request) => {
                        let reply = self.obey(request.command);
                        // The control thread may have given up waiting; then nobody wants the answer.
                        let _ = request.reply.send(reply);
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            let sent = self.transmit();
            let delivered = self.deliver();
            self.report_ready();
            self.report_faults();
            if sent == Pace::Idle && delivered == Pace::Idle {
                let idle_since = Instant::now();
                if !self.busy_poll(&mut busy_poll, idle_since) {
                    self.sleep();
                    busy_poll.idle_ended(idle_since.elapsed());
                }
            }
        }
    }

    /// Polls the queues and links for a moment, if that pays. True: there was work, some of which is done.
    fn busy_poll(&mut self, busy_poll: &mut BusyPoll, idle_since: Instant) -> bool {
        // A retired queue's kicks are heard in sleep only.
        !self.transmit.retired
            && busy_poll.poll(idle_since, || {
                self.transmit() == Pace::Busy || self.deliver() == Pace::Busy
            })
    }

    /// Sleeps until something happens, unless something has happened meanwhile.
    fn sleep(&mut self) {
        // Busy-polling may have found the receive queue in use, or broken it.
        self.report_ready();
        let rest = self.arm();
        self.report_faults();
        if rest.safe {
            let woken = self.poller.wait(rest.until);
            self.rules.counters.wakeups.add(1);
            self.kicked |= woken.kicked;
            self.suspect(woken);
        }
    }

    /// Tells the control thread of a queue on which the driver cannot be heard.
    fn suspect(&mut self, woken: Woken) {
        let memory = self.memory.as_deref();
        let queues = [
            (woken.receive_kicked, &mut self.receive),
            (woken.kicked, &mut self.transmit),
        ];
        for ((kicked, state), offset) in queues.into_iter().zip(0..) {
            if kicked && state.is_kicked_in_vain(memory) {
                (self.report)(Report::BlankRing {
                    queue: self.index * 2 + offset,
                });
            }
        }
    }

    fn transmit(&mut self) -> Pace {
        if let (Some(queue), Some(memory)) = (self.transmit.usable(), &self.memory) {
            match self.transmitter.run(queue, memory, &self.rules) {
                Ok(pace) => return pace,
                Err(violation) => break_queue(&mut self.transmit, self.index * 2 + 1, violation),
            }
        } else {
            // Frames that wait aside for room go on without a guest.
            self.transmitter.flush();
            if std::mem::take(&mut self.kicked) {
                self.empty_retired();
                if self.kicked {
                    return Pace::Busy;
                }
            }
        }
        Pace::Idle
    }

    /// Gives all frames of a disabled transmit queue back unsent (vhost-user, "Ring states"): the driver does not take
    /// them back by itself, and a socket may wait for one of them.
    fn empty_retired(&mut self) {
        if let (Some(queue), Some(memory)) = (self.transmit.retired(), &self.memory) {
            match self.transmitter.empty(queue, memory, &self.rules) {
                // There is more: as if kicked again.
                Ok(Pace::Busy) => self.kicked = true,
                Ok(Pace::Idle) => {}
                Err(violation) => break_queue(&mut self.transmit, self.index * 2 + 1, violation),
            }
        }
    }

    fn deliver(&mut self) -> Pace {
        if let (Some(queue), Some(memory)) = (self.receive.usable(), &self.memory) {
            match self.collector.run(queue, memory, &self.rules) {
                Ok(pace) => return pace,
                Err(violation) => break_queue(&mut self.receive, self.index * 2, violation),
            }
        }
        if self.in_use.by_others(self.index) {
            // The guest goes on with another queue, and the control thread is about to move the links there. Whatever it
            // does about them comes as a command, which wakes this worker.
            self.collector.hold();
        } else {
            self.collector.discard(&self.rules.counters);
        }
        Pace::Idle
    }

    /// Asks for all the bells. Whatever came before they were armed is seen by asking, whatever comes after rings.
    fn arm(&mut self) -> Rest {
        let memory = self.memory.as_deref();
        let rest = match self.transmitter.arm(self.transmit.usable(), memory) {
            Ok(rest) => rest,
            Err(violation) => {
                break_queue(&mut self.transmit, self.index * 2 + 1, violation);
                Rest {
                    safe: false,
                    until: None,
                }
            }
        };
        match self.collector.arm(self.receive.usable(), memory) {
            Ok(safe) => Rest {
                safe: rest.safe && safe,
                ..rest
            },
            Err(violation) => {
                break_queue(&mut self.receive, self.index * 2, violation);
                Rest {
                    safe: false,
                    ..rest
                }
            }
        }
    }

    /// Tells the control thread when the receive queue has come into use, or gone out of it.
    fn report_ready(&mut self) {
        let ready = self
            .receive
            .usable()
            .is_some_and(|queue| queue.has_had_buffers());
        if ready != self.ready {
            self.ready = ready;
            self.in_use.set(self.index, ready);
            (self.report)(Report::Ready {
                index: self.index,
                ready,
            });
        }
    }

    fn report_faults(&mut self) {
        for fault in self.transmitter.faults().chain(self.collector.faults()) {
            (self.report)(Report::Fault(fault));
        }
        if self.rules.counters.drops.is_news() {
            (self.report)(Report::Dropped);
        }
    }
}

/// Shows the driver what was given back, and interrupts it if it wants that.
fn publish(
    queue: &mut SplitQueue,
    rings: &Rings<'_>,
    counters: &Counters,
) -> Result<(), QueueViolation> {
    queue.publish(rings)?;
    if queue.take_signal(rings)? {
        counters.interrupts.add(1);
        queue.interrupt();
    }
    Ok(())
}

fn break_queue(state: &mut QueueState, index: u16, violation: QueueViolation) {
    state.broken = true;
    log_limited!(
        QUEUE_VIOLATIONS,
        Level::Error,
        "Queue {index} stops until the driver resets it: {violation}"
    );
}
