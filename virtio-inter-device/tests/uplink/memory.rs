//! A second kind of uplink: a device of this test's own, whose frames are in memory, and which can
//! be full, down and gone as the test wants it. It shows that a kind of uplink is one file.

use std::collections::VecDeque;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use virtio_inter_device::Offloads;
use virtio_inter_device::backend::{
    ReadError, UplinkDevice, UplinkQueue, UplinkReader, UplinkWriter, WriteError,
};
use vm_memory::VolatileSlice;

use crate::driver::{PATIENCE, Packet, wait_readable};

/// The counter of an eventfd that cannot be written to.
const UNWRITABLE: u64 = u64::MAX - 1;

/// Whether the device takes and has frames.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Up,
    Down,
    Gone,
    /// It is up, and takes no frame.
    Choosy,
}

/// What both sides see.
struct Shared {
    state: Mutex<State>,
    /// Signals frames that were written.
    written: OwnedFd,
    /// One for each queue: writable while there is room.
    room: Vec<OwnedFd>,
    /// Two ends for each queue: the reader's signals that there are frames to read, or that the
    /// device is gone.
    frames: Vec<(UnixStream, UnixStream)>,
}

struct State {
    mode: Mode,
    /// Number of frames that fit.
    capacity: usize,
    written: VecDeque<Vec<u8>>,
    /// By queue. None: a frame that is lost.
    to_read: Vec<VecDeque<Option<Vec<u8>>>>,
    offloads: Option<Offloads>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// A device, open by all of its queues.
pub(crate) struct MemoryDevice(Arc<Shared>);

/// Takes frames of a port.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    queue: usize,
}

/// Has frames for a port.
pub(crate) struct Reader {
    shared: Arc<Shared>,
    queue: usize,
}

impl UplinkDevice for MemoryDevice {
    /// Few, so that frames in more pieces have to be put together.
    const MAX_PIECES: usize = 3;

    type Writer = Writer;
    type Reader = Reader;

    fn into_queues(self) -> Vec<UplinkQueue<Self>> {
        let halves = |queue| {
            let writer = Writer {
                shared: Arc::clone(&self.0),
                queue,
            };
            let reader = Reader {
                shared: Arc::clone(&self.0),
                queue,
            };
            (writer, reader)
        };
        (0..self.0.frames.len()).map(halves).collect()
    }
}

impl UplinkWriter for Writer {
    fn write(&mut self, pieces: &[VolatileSlice<'_>]) -> Result<(), WriteError> {
        assert!(pieces.len() <= MemoryDevice::MAX_PIECES);
        let mut state = self.shared.state();
        match state.mode {
            Mode::Up if state.written.len() < state.capacity => {}
            Mode::Up => {
                for room in &self.shared.room {
                    signal(room, UNWRITABLE);
                }
                return Err(WriteError::Full);
            }
            Mode::Down => return Err(WriteError::Down),
            Mode::Gone => return Err(WriteError::Gone),
            Mode::Choosy => return Err(WriteError::Refused),
        }
        let mut frame = Vec::new();
        for piece in pieces {
            let at = frame.len();
            frame.resize(at + piece.len(), 0);
            piece.copy_to(&mut frame[at..]);
        }
        state.written.push_back(frame);
        signal(&self.shared.written, 1);
        Ok(())
    }

    fn set_offloads(&mut self, takes: Offloads) {
        self.shared.state().offloads = Some(takes);
    }
}

impl UplinkReader for Reader {
    fn read(&mut self, pieces: &[VolatileSlice<'_>], rest: &mut [u8]) -> Result<usize, ReadError> {
        assert!(pieces.len() <= MemoryDevice::MAX_PIECES);
        let mut state = self.shared.state();
        if state.mode == Mode::Gone {
            return Err(ReadError::Gone);
        }
        if state.to_read[self.queue].is_empty() {
            // Those of frames that were read.
            while rustix::io::read(self.as_fd(), &mut [0; 4096]).is_ok_and(|len| len == 4096) {}
        }
        let next = state.to_read[self.queue].pop_front();
        let frame = next.ok_or(ReadError::Empty)?;
        let frame = frame.ok_or(ReadError::Failed)?;
        let mut bytes = &frame[..];
        for piece in pieces {
            let (first, others) = bytes.split_at(bytes.len().min(piece.len()));
            piece.copy_from(first);
            bytes = others;
        }
        rest[..bytes.len()].copy_from_slice(bytes);
        Ok(frame.len())
    }
}

impl AsFd for Writer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.room[self.queue].as_fd()
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.frames[self.queue].0.as_fd()
    }
}

/// What is behind the device.
pub(crate) struct Far(Arc<Shared>);

/// A device with so many queues that takes so many frames before it is full, and what is behind it.
pub(crate) fn memory_device(queues: u16, capacity: usize) -> (MemoryDevice, Far) {
    let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let signals = || {
        let (ours, far) = UnixStream::pair().unwrap();
        for end in [&ours, &far] {
            end.set_nonblocking(true).unwrap();
        }
        (ours, far)
    };
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            mode: Mode::Up,
            capacity,
            written: VecDeque::new(),
            to_read: (0..queues).map(|_| VecDeque::new()).collect(),
            offloads: None,
        }),
        written: event(),
        room: (0..queues).map(|_| event()).collect(),
        frames: (0..queues).map(|_| signals()).collect(),
    });
    (MemoryDevice(Arc::clone(&shared)), Far(shared))
}

impl Far {
    /// Has a queue's reader find a frame.
    pub(crate) fn send(&self, queue: usize, packet: &Packet) {
        self.push(queue, Some(packet.bytes()));
    }

    /// Has it find that a frame was lost.
    pub(crate) fn lose_frame(&self, queue: usize) {
        self.push(queue, None);
    }

    fn push(&self, queue: usize, frame: Option<Vec<u8>>) {
        self.0.state().to_read[queue].push_back(frame);
        let _ = (&self.0.frames[queue].1).write(&[0]);
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.0.state().mode = mode;
        for (_, far) in &self.0.frames {
            let _ = (&*far).write(&[0]);
        }
    }

    /// Ends what the readers are connected to. They read as if there were no frames now.
    pub(crate) fn hang_up(&self) {
        for queue in 0..self.0.frames.len() {
            self.hang_up_queue(queue);
        }
    }

    /// The same of one queue's reader.
    pub(crate) fn hang_up_queue(&self, queue: usize) {
        self.0.frames[queue].1.shutdown(Shutdown::Both).unwrap();
    }

    /// The offloads that the port takes, once it has said so.
    pub(crate) fn offloads(&self) -> Option<Offloads> {
        self.0.state().offloads
    }

    /// The next frame that was written, if there is one now.
    pub(crate) fn try_receive(&self) -> Option<Packet> {
        let mut state = self.0.state();
        let frame = state.written.pop_front()?;
        for room in &self.0.room {
            clear(room);
        }
        Some(Packet::from_bytes(&frame))
    }

    /// The next frame that was written, waiting for it.
    #[track_caller]
    pub(crate) fn receive(&self) -> Packet {
        let deadline = Instant::now() + PATIENCE;
        loop {
            clear(&self.0.written);
            if let Some(packet) = self.try_receive() {
                return packet;
            }
            let is_written = wait_readable(&self.0.written, deadline);
            assert!(is_written, "No frame came");
        }
    }
}

/// Has no effect if the counter is as high as it can be.
fn signal(event: &OwnedFd, count: u64) {
    let _ = rustix::io::write(event, &count.to_ne_bytes());
}

/// Has no effect if the counter is 0.
fn clear(event: &OwnedFd) {
    let _ = rustix::io::read(event, &mut [0; 8]);
}
