//! Rings doorbells that take long, on a thread of its own.
//!
//! Nothing interrupts the signal of an eventfd that has many watches, and whoever rings does
//! nothing else meanwhile. A worker pays for that twice at most, and then
//! [`RingCost::wants_ringer`](crate::RingCost::wants_ringer) for so long that it does not matter. A
//! doorbell is in this thread's queue once at most, so one that takes long is in the way of another
//! for one ring. Decision 0095.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;

use virtio_inter_common::thread_role::{self, Role};

use crate::ring_cost::RingCost;
use crate::signal::signal;

/// The eventfd of a doorbell, as those share it who ring it.
#[derive(Debug)]
pub(crate) struct Bell {
    pub(crate) fd: OwnedFd,
    /// It is in the queue, or about to be.
    is_due: AtomicBool,
}

impl Bell {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            is_due: AtomicBool::new(false),
        }
    }
}

#[derive(Debug)]
struct Due {
    bell: Arc<Bell>,
    cost: Arc<RingCost>,
}

/// Not set: the thread could not be started yet.
static QUEUE: OnceLock<Sender<Due>> = OnceLock::new();

/// Starts the thread if there is none. Workers may start none.
pub(crate) fn start() {
    if QUEUE.get().is_some() {
        return;
    }
    let (sender, queue) = mpsc::channel();
    let spawned = thread::Builder::new()
        .name("ringer".to_owned())
        .spawn(move || {
            thread_role::enter(Role::Worker);
            work(&queue);
        });
    match spawned {
        // Another caller may have been faster: then this thread ends, as nobody can send to it.
        Ok(_) => drop(QUEUE.set(sender)),
        // The next doorbell of a peer tries again.
        Err(e) => log::debug!("No thread for slow doorbells, so workers ring them: {e}"),
    }
}

/// Has the thread ring this doorbell soon. Whether it does.
pub(crate) fn ring(bell: &Arc<Bell>, cost: &Arc<RingCost>) -> bool {
    let Some(queue) = QUEUE.get() else {
        return false;
    };
    // Orders what the caller wrote before, and what the peer is to see, before the ring: also if it
    // is the ring of an earlier caller.
    if bell.is_due.swap(true, Ordering::AcqRel) {
        return true;
    }
    let due = Due {
        bell: Arc::clone(bell),
        cost: Arc::clone(cost),
    };
    let is_sent = queue.send(due).is_ok();
    if !is_sent {
        bell.is_due.store(false, Ordering::Release);
    }
    is_sent
}

fn work(queue: &Receiver<Due>) {
    for Due { bell, cost } in queue {
        // A caller that comes from here on wants another ring.
        bell.is_due.swap(false, Ordering::AcqRel);
        if cost.is_exceeded() {
            // Its peer goes, and is not worth that others wait.
            continue;
        }
        let rung = cost.measure(|| signal(bell.fd.as_fd()));
        debug_assert!(rung.is_ok(), "{rung:?}");
    }
}

#[cfg(all(test, not(any(miri, loom))))]
mod tests {
    use std::time::Duration;

    use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

    use super::*;

    fn bell() -> Arc<Bell> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        Arc::new(Bell::new(fd))
    }

    fn is_rung(bell: &Bell) -> bool {
        let mut fds = [PollFd::new(&bell.fd, PollFlags::IN)];
        let limit = Timespec::try_from(Duration::from_secs(10)).unwrap();
        poll(&mut fds, Some(&limit)).unwrap() == 1
    }

    #[test]
    fn ringer_rings_what_is_due_and_again_when_it_is_due_again() {
        start();
        let (bell, cost) = (bell(), Arc::default());
        for _ in 0..100 {
            assert!(ring(&bell, &cost));
            assert!(is_rung(&bell));
            let mut count = [0; 8];
            // Nothing is lost between two rings: this thread is done with the former one.
            assert_eq!(rustix::io::read(&bell.fd, &mut count), Ok(8));
        }
    }

    #[test]
    fn ringer_has_a_doorbell_in_its_queue_once() {
        let (bell, cost) = (bell(), Arc::<RingCost>::default());
        let (sender, queue) = mpsc::channel();
        let due = || Due {
            bell: Arc::clone(&bell),
            cost: Arc::clone(&cost),
        };
        bell.is_due.store(true, Ordering::Relaxed);
        sender.send(due()).unwrap();
        start();
        assert!(ring(&bell, &cost), "It is due already");
        assert_eq!(Arc::strong_count(&bell), 2, "Not in the queue again");
        drop(sender);
        work(&queue);
        assert!(is_rung(&bell) && !bell.is_due.load(Ordering::Relaxed));
        assert_eq!(Arc::strong_count(&bell), 1);
    }
}
