//! A network driver's queues: frames into a transmit queue, frames out of a receive queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::arena::Arena;
use super::packet::{HEADER, Packet};
use super::queue::{Piece, Queue, Shape};
use super::wait::PATIENCE;

/// A driver: its memory, and its queue pairs.
pub(crate) struct Guest {
    pub(crate) arena: Arc<Arena>,
    pub(crate) rx: Vec<RxQueue>,
    pub(crate) tx: Vec<TxQueue>,
}

/// A transmit queue.
pub(crate) struct TxQueue {
    pub(crate) queue: Queue,
    arena: Arc<Arena>,
}

impl TxQueue {
    pub(crate) fn new(arena: &Arc<Arena>, queue: Queue) -> Self {
        TxQueue {
            queue,
            arena: Arc::clone(arena),
        }
    }

    /// Adds a frame, cut behind each of `cuts` bytes in turn, without publishing it. False: there
    /// is no room.
    pub(crate) fn add(&mut self, packet: &Packet, cuts: &[usize], shape: Shape) -> bool {
        let bytes = packet.bytes();
        let mut parts = Vec::new();
        let mut rest = &bytes[..];
        for &cut in cuts {
            let (part, behind) = rest.split_at(cut.min(rest.len()));
            parts.push(part);
            rest = behind;
        }
        if !rest.is_empty() || parts.is_empty() {
            parts.push(rest);
        }
        self.reclaim();
        if self.queue.room(parts.len(), shape) == 0 {
            return false;
        }
        let pieces = parts
            .into_iter()
            .map(|part| {
                let address = self.arena.take(part.len());
                self.arena.write(address, part);
                Piece {
                    address,
                    len: part.len() as u32,
                }
            })
            .collect();
        self.queue.add(pieces, false, shape)
    }

    /// Adds a frame in one buffer and publishes it. False: there is no room.
    pub(crate) fn try_send(&mut self, packet: &Packet) -> bool {
        let added = self.add(packet, &[], Shape::Direct);
        self.queue.publish();
        added
    }

    /// Sends a frame in one buffer, waiting for room.
    #[track_caller]
    pub(crate) fn send(&mut self, packet: &Packet) {
        self.send_cut(packet, &[], Shape::Direct);
    }

    /// Sends a frame cut behind each of `cuts` bytes in turn, waiting for room.
    #[track_caller]
    pub(crate) fn send_cut(&mut self, packet: &Packet, cuts: &[usize], shape: Shape) {
        let deadline = Instant::now() + PATIENCE;
        while !self.add(packet, cuts, shape) {
            self.queue.publish();
            assert!(self.queue.wait(deadline), "The device takes nothing");
        }
        self.queue.publish();
    }

    /// Takes back all that the device is done with. Says how many frames.
    pub(crate) fn reclaim(&mut self) -> usize {
        let mut count = 0;
        while let Some((pieces, len)) = self.queue.take() {
            assert_eq!(len, 0, "The device wrote into a frame to be sent");
            for piece in pieces {
                self.arena.give(piece.address, piece.len as usize);
            }
            count += 1;
        }
        count
    }

    /// Waits until the device is done with everything.
    #[track_caller]
    pub(crate) fn finish(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        self.reclaim();
        while self.queue.in_flight() != 0 {
            assert!(
                self.queue.wait(deadline),
                "The device keeps {} frames",
                self.queue.in_flight()
            );
            self.reclaim();
        }
    }
}

/// A frame as it arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) packet: Packet,
    /// Bytes written into each of its buffers.
    pub(crate) buffers: Vec<u32>,
}

/// A receive queue.
pub(crate) struct RxQueue {
    pub(crate) queue: Queue,
    arena: Arc<Arena>,
    mergeable: bool,
    /// Buffers that were taken are given again, as they were.
    pub(crate) refill: bool,
}

impl RxQueue {
    pub(crate) fn new(arena: &Arc<Arena>, queue: Queue, mergeable: bool) -> Self {
        RxQueue {
            queue,
            arena: Arc::clone(arena),
            mergeable,
            refill: true,
        }
    }

    /// Adds a chain of buffers of these sizes, without publishing it. False: there is no room.
    pub(crate) fn add(&mut self, lens: &[usize], shape: Shape) -> bool {
        if self.queue.room(lens.len(), shape) == 0 {
            return false;
        }
        let pieces = lens
            .iter()
            .map(|&len| Piece {
                address: self.arena.take(len),
                len: len as u32,
            })
            .collect();
        self.queue.add(pieces, true, shape)
    }

    /// Gives the device `count` buffers of `len` bytes.
    #[track_caller]
    pub(crate) fn post(&mut self, count: usize, len: usize) {
        for _ in 0..count {
            assert!(self.add(&[len], Shape::Direct), "The receive queue is full");
        }
        self.queue.publish();
    }

    /// The next frame, if there is one. All of its buffers have to be there with the first.
    pub(crate) fn try_receive(&mut self) -> Option<Received> {
        let ready = self.queue.ready();
        if ready == 0 {
            return None;
        }
        let (pieces, len) = self.queue.take().unwrap();
        let mut bytes = self.read(&pieces, len);
        assert!(
            bytes.len() >= HEADER,
            "The first buffer holds {len} bytes, no header"
        );
        let buffers = Packet::from_bytes(&bytes).num_buffers();
        let mut lens = vec![len];
        if self.mergeable {
            assert!(buffers != 0, "A frame in no buffers");
            assert!(
                buffers <= ready,
                "The driver sees {ready} buffers of a frame that spans {buffers}"
            );
        } else {
            assert_eq!(buffers, 1, "Buffers were not negotiated to be merged");
        }
        let mut chains = vec![pieces];
        for _ in 1..buffers {
            let (pieces, len) = self.queue.take().unwrap();
            bytes.extend(self.read(&pieces, len));
            lens.push(len);
            chains.push(pieces);
        }
        for pieces in chains {
            if self.refill {
                assert!(self.queue.add(pieces, true, Shape::Direct));
            } else {
                for piece in pieces {
                    self.arena.give(piece.address, piece.len as usize);
                }
            }
        }
        self.queue.publish();
        Some(Received {
            packet: Packet::from_bytes(&bytes),
            buffers: lens,
        })
    }

    /// The next frame, waiting for it at most for `patience`.
    pub(crate) fn receive_within(&mut self, patience: Duration) -> Option<Received> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(received) = self.try_receive() {
                return Some(received);
            }
            if !self.queue.wait(deadline) {
                return None;
            }
        }
    }

    /// The next frame, which has to come.
    #[track_caller]
    pub(crate) fn receive(&mut self) -> Packet {
        match self.receive_within(PATIENCE) {
            Some(received) => received.packet,
            None => panic!("No frame came"),
        }
    }

    /// Asserts that the device has delivered nothing. Only meaningful once it cannot be about to.
    #[track_caller]
    pub(crate) fn expect_nothing(&mut self) {
        if let Some(received) = self.try_receive() {
            panic!("Unexpected frame: {:?}", received.packet);
        }
    }

    fn read(&self, pieces: &[Piece], len: u32) -> Vec<u8> {
        let mut left = len as usize;
        let mut bytes = Vec::with_capacity(left);
        for piece in pieces {
            let part = left.min(piece.len as usize);
            bytes.extend(self.arena.read(piece.address, part));
            left -= part;
        }
        assert_eq!(left, 0, "The device says {len} bytes, more than fit");
        bytes
    }
}
