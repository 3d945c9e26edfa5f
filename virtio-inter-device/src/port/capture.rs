//! Captures of a port's frames: the control thread's side.

use super::Port;
use crate::backend::Backend;
use crate::batch::Direction;
use crate::capture::{CaptureCounts, CaptureRing};
use crate::device::DeviceError;
use crate::worker::{Answer, Command};

impl<B: Backend> Port<B> {
    /// Copies the heads of frames into these rings from now on: of the queues of each queue pair
    /// and direction that is named. They take the place of those before.
    ///
    /// # Errors
    ///
    /// When there is no such queue pair, or a worker does not answer; nothing is captured then.
    pub fn start_capture(
        &mut self,
        rings: Vec<(u16, Direction, CaptureRing)>,
    ) -> Result<(), DeviceError> {
        for (pair, direction, ring) in rings {
            let started = match self.workers.get(usize::from(pair)) {
                Some(worker) => worker.ask(Command::Capture(direction, Box::new(ring))),
                None => Err(DeviceError::NoSuchQueue {
                    index: pair * 2,
                    count: self.workers.len() as u16 * 2,
                }),
            };
            if let Err(error) = started {
                let _ = self.stop_capture();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Ends the capture, if there is one. Its rings keep what is in them.
    ///
    /// # Errors
    ///
    /// When a worker does not answer.
    pub fn stop_capture(&mut self) -> Result<CaptureCounts, DeviceError> {
        let mut result = Ok(CaptureCounts::default());
        // All workers, also after an error.
        for worker in &self.workers {
            let answer = worker.ask(Command::EndCapture);
            result = result.and_then(|sum| match answer? {
                Answer::Captured(counts) => Ok(sum.with(counts)),
                _ => Ok(sum),
            });
        }
        result
    }
}
