//! A virtqueue as a driver serves it, to the letter of VIRTIO 1.3, 2.7, that trusts its device in
//! nothing.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use virtio_inter_device::QueueSetup;
use virtio_queue::desc::split::Descriptor;
use vm_memory::GuestAddress;

use super::arena::Arena;
use super::ring::{INDIRECT, NEXT, Ring, WRITE};
use super::wait::{PATIENCE, wait_readable};

/// A buffer: guest physical address and length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) address: u64,
    pub(crate) len: u32,
}

/// How a chain lies in the descriptor table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A descriptor for each piece.
    Direct,
    /// One descriptor for a table of them.
    Indirect,
}

/// A chain in the device's hands.
#[derive(Debug)]
struct Chain {
    head: u16,
    descriptors: Vec<u16>,
    table: Option<Piece>,
    pieces: Vec<Piece>,
}

/// One virtqueue, driver side.
pub(crate) struct Queue {
    pub(crate) ring: Ring,
    arena: Arc<Arena>,
    event_index: bool,
    /// Descriptors not in use.
    free: Vec<u16>,
    /// Next place in the available ring, and the index that the device can see.
    added: u16,
    published: u16,
    /// Next place in the used ring.
    taken: u16,
    in_flight: VecDeque<Chain>,
    kick: OwnedFd,
    call: OwnedFd,
    /// Kicks sent, and kicks that the device did not want.
    pub(crate) kicks: u64,
    pub(crate) kicks_saved: u64,
}

impl Queue {
    /// An empty queue whose indices start at `start`.
    pub(crate) fn new(arena: &Arc<Arena>, size: u16, start: u16, event_index: bool) -> Self {
        let doorbell = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let ring = Ring::new(arena, size);
        ring.set_available_index(start);
        ring.set_used_index(start);
        let mut queue = Queue {
            ring,
            arena: Arc::clone(arena),
            event_index,
            free: (0..size).rev().collect(),
            added: start,
            published: start,
            taken: start,
            in_flight: VecDeque::new(),
            kick: doorbell(),
            call: doorbell(),
            kicks: 0,
            kicks_saved: 0,
        };
        queue.want_no_interrupts();
        queue
    }

    /// What the transport hands to the device.
    pub(crate) fn setup(&self) -> QueueSetup {
        QueueSetup {
            size: self.ring.size,
            descriptors: GuestAddress(self.ring.descriptors),
            available: GuestAddress(self.ring.available),
            used: GuestAddress(self.ring.used),
            kick: self.kick.try_clone().unwrap(),
            call: Some(self.call.try_clone().unwrap()),
        }
    }

    pub(crate) fn call(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    /// Chains that can be added, of `pieces` each.
    pub(crate) fn room(&self, pieces: usize, shape: Shape) -> usize {
        match shape {
            Shape::Direct => self.free.len() / pieces.max(1),
            Shape::Indirect => self.free.len(),
        }
    }

    /// Chains in the device's hands or not yet published.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The available index that the device can see.
    pub(crate) fn published(&self) -> u16 {
        self.published
    }

    /// Index of the next used entry to take.
    pub(crate) fn taken(&self) -> u16 {
        self.taken
    }

    /// Puts a chain into the available ring. False: there is no room.
    pub(crate) fn add(&mut self, pieces: Vec<Piece>, writable: bool, shape: Shape) -> bool {
        if self.room(pieces.len(), shape) == 0 {
            return false;
        }
        let flags = if writable { WRITE } else { 0 };
        let link = |i: usize| if i + 1 < pieces.len() { NEXT } else { 0 };
        let (descriptors, table) = match shape {
            Shape::Direct => {
                let descriptors = self.free.split_off(self.free.len() - pieces.len());
                for (i, (&at, piece)) in descriptors.iter().zip(&pieces).enumerate() {
                    let next = descriptors.get(i + 1).copied().unwrap_or(0);
                    let descriptor =
                        Descriptor::new(piece.address, piece.len, flags | link(i), next);
                    self.ring.set_descriptor(at, descriptor);
                }
                (descriptors, None)
            }
            Shape::Indirect => {
                let len = 16 * pieces.len();
                let table = self.arena.take(len);
                for (i, piece) in pieces.iter().enumerate() {
                    let descriptor =
                        Descriptor::new(piece.address, piece.len, flags | link(i), i as u16 + 1);
                    self.ring.set_descriptor_at(table, i, descriptor);
                }
                let at = self.free.pop().unwrap();
                let len = len as u32;
                self.ring
                    .set_descriptor(at, Descriptor::new(table, len, INDIRECT, 0));
                (
                    vec![at],
                    Some(Piece {
                        address: table,
                        len,
                    }),
                )
            }
        };
        let head = descriptors[0];
        self.ring.set_available_entry(self.added, head);
        self.added = self.added.wrapping_add(1);
        self.in_flight.push_back(Chain {
            head,
            descriptors,
            table,
            pieces,
        });
        true
    }

    /// Shows the device all that was added, and kicks it if it wants that (VIRTIO 1.3, 2.7.13.3 and
    /// 2.7.13.4).
    pub(crate) fn publish(&mut self) {
        let (former, now) = (self.published, self.added);
        if former == now {
            return;
        }
        self.ring.set_available_index(now);
        self.published = now;
        fence(Ordering::SeqCst);
        let wanted = if self.event_index {
            let event = self.ring.available_event();
            now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(former)
        } else {
            self.ring.used_flags() & 1 == 0
        };
        if wanted {
            self.kicks += 1;
            self.kick();
        } else {
            self.kicks_saved += 1;
        }
    }

    /// Starts over on a ring that is all zero: what was in the device's hands is forgotten.
    pub(crate) fn replace(&mut self, ring: Ring) {
        self.free = (0..ring.size).rev().collect();
        self.ring = ring;
        (self.added, self.published, self.taken) = (0, 0, 0);
        self.in_flight.clear();
        self.want_no_interrupts();
    }

    /// Shows the device all that was added, and keeps quiet about it.
    pub(crate) fn publish_silently(&mut self) {
        self.ring.set_available_index(self.added);
        self.published = self.added;
    }

    /// Kicks the device, wanted or not.
    pub(crate) fn kick(&self) {
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
    }

    /// Kicks the device by another descriptor from now on.
    pub(crate) fn set_kick(&mut self, kick: OwnedFd) {
        self.kick = kick;
    }

    /// Used entries that were not taken yet.
    pub(crate) fn ready(&self) -> u16 {
        let ready = self.ring.used_index().wrapping_sub(self.taken);
        let out = self.published.wrapping_sub(self.taken);
        assert!(
            ready <= out,
            "The device used {ready} entries where it had {out}"
        );
        ready
    }

    /// Takes the next used entry: the chain's pieces and the bytes that the device says to have
    /// written. Chains have to come back in order, as a port promises.
    pub(crate) fn take(&mut self) -> Option<(Vec<Piece>, u32)> {
        if self.ready() == 0 {
            return None;
        }
        let (head, len) = self.ring.used_entry(self.taken);
        let chain = self.in_flight.pop_front().unwrap();
        assert_eq!(
            head,
            u32::from(chain.head),
            "Used entry {} is not the oldest chain's",
            self.taken
        );
        self.taken = self.taken.wrapping_add(1);
        self.free.extend(chain.descriptors);
        if let Some(table) = chain.table {
            self.arena.give(table.address, table.len as usize);
        }
        Some((chain.pieces, len))
    }

    /// Asks for an interrupt once `entries` more are used than were taken (`entries` at least 1;
    /// without the event index: at the next one). True: they are there already.
    pub(crate) fn want_interrupt(&mut self, entries: u16) -> bool {
        if self.event_index {
            self.ring
                .set_used_event(self.taken.wrapping_add(entries - 1));
        } else {
            self.ring.set_available_flags(0);
        }
        fence(Ordering::SeqCst);
        self.ready() >= entries
    }

    /// Asks for no interrupts (with the event index: the furthest one).
    pub(crate) fn want_no_interrupts(&mut self) {
        if self.event_index {
            self.ring.set_used_event(self.taken.wrapping_sub(1));
        } else {
            self.ring.set_available_flags(1);
        }
    }

    /// Waits, by its interrupt, for the device to use something. False: it did not until
    /// `deadline`.
    pub(crate) fn wait(&mut self, deadline: Instant) -> bool {
        loop {
            self.drain_call();
            let there = self.want_interrupt(1) || {
                if !wait_readable(&self.call, deadline) {
                    if self.ready() == 0 {
                        return false;
                    }
                    // Shown just now: on a busy machine the interrupt may come a while later. A
                    // lost one does not.
                    let late = Instant::now() + PATIENCE;
                    let came = wait_readable(&self.call, late);
                    assert!(came, "An interrupt was wanted and not sent");
                }
                self.ready() != 0
            };
            if there {
                self.want_no_interrupts();
                return true;
            }
        }
    }

    /// Forgets interrupts that came. Says whether there were any.
    pub(crate) fn drain_call(&self) -> bool {
        rustix::io::read(&self.call, &mut [0; 8]).is_ok()
    }
}
