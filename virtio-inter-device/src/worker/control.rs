//! Carries out the commands of the control thread, between two batches.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::command::{Answer, Command};
use super::{QueueState, Worker};
use crate::announce::{announcement, is_virtual_router};
use crate::backend::Backend;
use crate::batch::{BATCH, BatchResult, Direction};
use crate::capture::CaptureCounts;
use crate::device::{DeviceError, QueueSetup};
use crate::queue::SplitQueue;

/// Number of batches that a transmit queue still gets when it is disabled: more than any queue
/// holds if its driver adds nothing.
const BATCHES_BEFORE_DISABLING: usize = 32768 / BATCH + 1;
/// Time after a queue's start in which the VMM itself may kick it, any number of times, although
/// the driver has written nothing to the ring.
const KICKS_BY_VMM: Duration = Duration::from_secs(5);

impl<B: Backend> Worker<B> {
    pub(super) fn handle_command(&mut self, command: Command<B>) -> Result<Answer<B>, DeviceError> {
        match command {
            Command::SetFeatures(negotiated) => {
                self.context.negotiated = negotiated;
                self.backend.set_offloads(negotiated.takes());
            }
            Command::SetMemory(memory) => self.memory = memory,
            Command::Start(direction, setup) => self.start(direction, setup)?,
            Command::Enable(direction, enabled) => self.enable(direction, enabled),
            Command::SetCall(direction, call) => {
                if let Some(queue) = &mut self.state(direction).queue {
                    queue.set_call(call);
                    // An interrupt may have found the former descriptor, or none.
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
            Command::Announce => {
                let count = self.announce(|backend, record| backend.announce(record));
                return Ok(Answer::Peers(count));
            }
            Command::Capture(Direction::Receive, ring) => self.rx.capture = Some(ring),
            Command::Capture(Direction::Transmit, ring) => self.tx.capture = Some(ring),
            Command::EndCapture => {
                let rings = [self.rx.capture.take(), self.tx.capture.take()];
                let rings = rings.into_iter().flatten();
                let counts = rings.map(|ring| ring.close());
                return Ok(Answer::Captured(
                    counts.fold(CaptureCounts::default(), CaptureCounts::with),
                ));
            }
            Command::Backend(command) => {
                let answer = self.backend.handle_command(command, &self.poller)?;
                return Ok(Answer::Backend(answer));
            }
        }
        Ok(Answer::Done)
    }

    /// Has the backend send an announcement of each address that is the guest's alone. Returns the
    /// result of `send` for the port's own address.
    pub(super) fn announce<T>(&mut self, mut send: impl FnMut(&mut B, &[u8]) -> T) -> T {
        let result = send(&mut self.backend, &announcement(self.context.mac));
        for address in self.context.allowed.exact() {
            if !is_virtual_router(address) && self.backend.may_announce(address) {
                send(&mut self.backend, &announcement(address));
            }
        }
        result
    }

    fn state(&mut self, direction: Direction) -> &mut QueueState {
        match direction {
            Direction::Receive => &mut self.rx_queue,
            Direction::Transmit => &mut self.tx_queue,
        }
    }

    fn queue_index(&self, direction: Direction) -> u16 {
        self.index * 2 + u16::from(direction == Direction::Transmit)
    }

    fn start(&mut self, direction: Direction, setup: QueueSetup) -> Result<(), DeviceError> {
        self.stop(direction);
        let index = self.queue_index(direction);
        let memory = self.memory.as_deref().ok_or(DeviceError::NoMemory(index))?;
        let queue = SplitQueue::start(memory, setup, self.context.negotiated.event_index())
            .map_err(|e| DeviceError::BadQueue {
                index,
                reason: e.to_string(),
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
            // Frames that the guest has sent so far still go out, unless a peer has no room.
            for _ in 0..BATCHES_BEFORE_DISABLING {
                if self.transmit() == BatchResult::Idle {
                    break;
                }
            }
        }
        let state = self.state(direction);
        let was_enabled = std::mem::replace(&mut state.enabled, enabled);
        state.draining &= !enabled;
        let Some(queue) = &mut state.queue else {
            return;
        };
        if enabled && !was_enabled {
            // A former process may have died between publishing used entries and interrupting.
            queue.interrupt();
            queue.reset_cached_state();
        }
        if !enabled && was_enabled && direction == Direction::Transmit {
            // User Mode Linux frees a ring that it has disabled: after the answer, only a new kick
            // may make the worker access it.
            queue.drain_kicks();
            state.draining = true;
            self.kicked = false;
            self.drain();
        }
    }

    fn stop(&mut self, direction: Direction) -> u16 {
        let state = std::mem::take(self.state(direction));
        state.queue.map_or(0, |queue| {
            // The transport keeps descriptors of its own for the same eventfd, so that closing this
            // one does not end the watch.
            self.poller.remove(queue.kick());
            log::debug!(
                "Queue {} stops at {}",
                self.queue_index(direction),
                queue.next_index()
            );
            queue.next_index()
        })
    }

    fn watch_kick(&self, direction: Direction, kick: &impl AsFd) -> Result<(), DeviceError> {
        let added = self.poller.add_kick(kick, direction);
        added.map_err(|e| DeviceError::BadQueue {
            index: self.queue_index(direction),
            reason: format!("its kick cannot be waited for: {e}"),
        })
    }
}
