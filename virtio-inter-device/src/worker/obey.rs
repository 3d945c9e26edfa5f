//! What a worker does about the control thread's commands: queues and peers come and go, between two batches.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use virtio_inter_segment::PeerKey;

use super::command::{Answer, Command, Direction, PeerPart};
use super::peer::Peer;
use super::receive::Source;
use super::{BATCH, KICKS_BY_VMM, Pace, QueueState, Worker};
use crate::announce::announcement;
use crate::device::{DeviceError, QueueSetup};
use crate::queue::SplitQueue;

/// Batches that a transmit queue still gets when it is disabled: more than any queue holds, were it not filled anew.
const BATCHES_BEFORE_DISABLING: usize = 32768 / BATCH + 1;

impl Worker {
    pub(super) fn obey(&mut self, command: Command) -> Result<Answer, DeviceError> {
        match command {
            Command::SetFeatures(negotiated) => self.rules.negotiated = negotiated,
            Command::SetMemory(memory) => self.memory = memory,
            Command::Start(direction, setup) => self.start(direction, setup)?,
            Command::Enable(direction, enabled) => self.enable(direction, enabled),
            Command::SetCall(direction, call) => {
                if let Some(queue) = &mut self.state(direction).queue {
                    queue.set_call(call);
                    // An interrupt that found no descriptor, or the former one, is made good.
                    queue.interrupt();
                }
            }
            Command::SetKick(direction, kick) => {
                if self.state(direction).queue.is_some() {
                    self.watch_kick(direction, &kick)?;
                }
                if let Some(queue) = &mut self.state(direction).queue {
                    let former = queue.set_kick(kick);
                    self.poller.remove(former);
                }
            }
            Command::Stop(direction) => return Ok(Answer::Index(self.stop(direction))),
            Command::AddPeer(part) => self.add_peer(*part)?,
            Command::RemovePeer(key) => self.remove_peer(key),
            Command::GiveSources(ready) => {
                let sources = self.collector.give_sources(self.index, ready);
                for source in &sources {
                    self.poller.remove(source.receiver.data_bell());
                }
                return Ok(Answer::Sources(sources));
            }
            Command::Announce => {
                let record = announcement(self.rules.mac);
                let peers = self.transmitter.send_to_all(&record, &self.rules.counters);
                return Ok(Answer::Peers(peers));
            }
            Command::TakeSources(sources) => {
                for source in sources {
                    self.add_source(source)?;
                }
            }
        }
        Ok(Answer::Done)
    }

    fn state(&mut self, direction: Direction) -> &mut QueueState {
        match direction {
            Direction::Receive => &mut self.receive,
            Direction::Transmit => &mut self.transmit,
        }
    }

    fn queue_index(&self, direction: Direction) -> u16 {
        self.index * 2 + u16::from(direction == Direction::Transmit)
    }

    fn start(&mut self, direction: Direction, setup: QueueSetup) -> Result<(), DeviceError> {
        self.stop(direction);
        let index = self.queue_index(direction);
        let memory = self.memory.as_deref().ok_or(DeviceError::NoMemory(index))?;
        let queue =
            SplitQueue::start(memory, setup, self.rules.negotiated.event_index()).map_err(|e| {
                DeviceError::BadQueue {
                    index,
                    reason: e.to_string(),
                }
            })?;
        self.watch_kick(direction, &queue.kick())?;
        log::debug!("Queue {index} starts at {}", queue.next_index());
        *self.state(direction) = QueueState {
            queue: Some(queue),
            suspect_from: Some(Instant::now() + KICKS_BY_VMM),
            ..QueueState::default()
        };
        Ok(())
    }

    fn enable(&mut self, direction: Direction, enabled: bool) {
        if !enabled && direction == Direction::Transmit {
            // What the guest has sent so far still goes out, unless a peer has no room for it.
            for _ in 0..BATCHES_BEFORE_DISABLING {
                if self.transmit() == Pace::Idle {
                    break;
                }
            }
        }
        let state = self.state(direction);
        let was_enabled = std::mem::replace(&mut state.enabled, enabled);
        state.retired &= !enabled;
        let Some(queue) = &mut state.queue else {
            return;
        };
        if enabled && !was_enabled {
            // A former life may have given entries back and died before it said so.
            queue.interrupt();
            queue.rearm();
        }
        if !enabled && was_enabled && direction == Direction::Transmit {
            // User Mode Linux frees a ring that it has disabled, so from the answer on only a new kick may lead there.
            queue.forget_kicks();
            state.retired = true;
            self.kicked = false;
            self.empty_retired();
        }
    }

    fn stop(&mut self, direction: Direction) -> u16 {
        let state = std::mem::take(self.state(direction));
        state.queue.map_or(0, |queue| {
            // The transport keeps descriptors of its own to the same eventfd, so closing ours does not end the watch.
            self.poller.remove(queue.kick());
            log::debug!(
                "Queue {} stops at {}",
                self.queue_index(direction),
                queue.next_index()
            );
            queue.next_index()
        })
    }

    fn add_peer(&mut self, part: PeerPart) -> Result<(), DeviceError> {
        self.watch(part.sender.space_bell())?;
        self.transmitter
            .add_peer(Peer::new(part.key, part.mac, part.sender));
        for (receiver, home) in part.receivers {
            self.add_source(Source::new(part.key, part.mac, receiver, home))?;
        }
        Ok(())
    }

    fn add_source(&mut self, source: Source) -> Result<(), DeviceError> {
        self.watch(source.receiver.data_bell())?;
        self.collector.add_source(source);
        Ok(())
    }

    fn watch_kick(&self, direction: Direction, kick: &impl AsFd) -> Result<(), DeviceError> {
        self.poller
            .add_kick(kick, direction)
            .map_err(|e| bad_kick(self.queue_index(direction), &e))
    }

    fn watch(&self, bell: BorrowedFd<'_>) -> Result<(), DeviceError> {
        self.poller.add(&bell).map_err(|source| DeviceError::Io {
            action: "watch a link's doorbell",
            source,
        })
    }

    fn remove_peer(&mut self, key: PeerKey) {
        if let Some(peer) = self.transmitter.remove_peer(key) {
            self.poller.remove(peer.sender.space_bell());
        }
        for source in self.collector.remove_peer(key) {
            self.poller.remove(source.receiver.data_bell());
        }
    }
}

fn bad_kick(index: u16, error: &std::io::Error) -> DeviceError {
    DeviceError::BadQueue {
        index,
        reason: format!("its kick cannot be waited for: {error}"),
    }
}
