//! The control thread: signals, the frontend and the device's events, one after another.
//!
//! No frame passes here; the device's workers have threads of their own.

use std::io;

use virtio_inter_device::{Port, PortEvent};

use crate::door::Door;
use crate::poll::Poll;
use crate::signals::Signals;

const SIGNALS: u64 = 0;
const DOOR: u64 = 1;
const DEVICE: u64 = 2;

/// All that the control thread owns, in the order in which it is let go of.
#[derive(Debug)]
pub struct EventLoop {
    poll: Poll,
    _signals: Signals,
    door: Door,
    device: Port,
}

impl EventLoop {
    /// Brings the parts together.
    ///
    /// # Errors
    ///
    /// When the kernel cannot watch them.
    pub fn new(signals: Signals, door: Door, device: Port) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.add(&signals, SIGNALS)?;
        poll.add(&door, DOOR)?;
        poll.add(device.events_fd(), DEVICE)?;
        Ok(Self {
            poll,
            _signals: signals,
            door,
            device,
        })
    }

    /// Runs until a signal asks for the end, then stops the device.
    ///
    /// # Errors
    ///
    /// When the kernel cannot watch descriptors any more.
    pub fn run(mut self) -> io::Result<()> {
        let result = self.serve();
        self.door.close(&mut self.device);
        result
    }

    fn serve(&mut self) -> io::Result<()> {
        loop {
            for token in self.poll.wait(true)? {
                match token {
                    SIGNALS => return Ok(()),
                    DOOR => self.door.process(&mut self.device)?,
                    _ => self.heed_device(),
                }
            }
        }
    }

    fn heed_device(&mut self) {
        for event in self.device.events() {
            match event {
                PortEvent::LinkViolation { peer, reason } => {
                    log::warn!("{peer} {reason}");
                }
            }
        }
    }
}
