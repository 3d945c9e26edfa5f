//! The driver's interrupt: a descriptor that the VMM made.
//!
//! The VMM shares its open file description: it can make an eventfd full and blocking at any
//! moment, and `write` would then wait for as long as it likes. So an eventfd is signalled as a
//! doorbell is (decision 0001). Anything else, such as User Mode Linux's pipe, is written to with
//! `RWF_NOWAIT`. Where the kernel has neither, the port's end waits for a VMM that blocks a write,
//! but 10 s at most.

use std::cell::Cell;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, ReadWriteFlags};
use virtio_inter_link::Doorbell;

/// The offset that means the current position, as pipes and eventfds have no other.
const NO_OFFSET: u64 = u64::MAX;

/// What is known of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// An eventfd, as far as is known.
    Eventfd,
    /// Another one, which can be written to without waiting.
    NoWait,
    /// One that is written to like any file.
    Plain,
}

/// The driver's interrupt.
#[derive(Debug)]
pub(crate) struct Interrupt {
    fd: OwnedFd,
    kind: Cell<Kind>,
}

impl Interrupt {
    pub(crate) fn new(fd: OwnedFd) -> Interrupt {
        Interrupt {
            fd,
            kind: Cell::new(Kind::Eventfd),
        }
    }

    /// Interrupts the driver. A full counter or pipe already holds an interrupt that the driver has
    /// not seen, and other errors concern the VMM alone.
    pub(crate) fn signal(&self) {
        if self.kind.get() == Kind::Eventfd {
            match Doorbell::signal_eventfd(self.fd.as_fd()) {
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => self.kind.set(Kind::NoWait),
                Err(e) if e.kind() == io::ErrorKind::Unsupported => self.kind.set(Kind::NoWait),
                _ => return,
            }
        }
        let one = 1u64.to_ne_bytes();
        if self.kind.get() == Kind::NoWait {
            let (slices, flags) = ([IoSlice::new(&one)], ReadWriteFlags::NOWAIT);
            match rustix::io::pwritev2(&self.fd, &slices, NO_OFFSET, flags) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => self.kind.set(Kind::Plain),
                _ => return,
            }
        }
        let _ = rustix::io::write(&self.fd, &one);
    }
}

/// Reads eight bytes, if there are some: without waiting, where the kernel can.
pub(crate) fn read_now(fd: BorrowedFd<'_>) {
    let mut count = [0; 8];
    let flags = ReadWriteFlags::NOWAIT;
    let read = rustix::io::preadv2(fd, &mut [IoSliceMut::new(&mut count)], NO_OFFSET, flags);
    if let Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) = read {
        let _ = rustix::io::read(fd, &mut count);
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    #[test]
    fn interrupt_by_a_full_and_blocking_eventfd_does_not_wait() {
        let fd = eventfd(0, EventfdFlags::empty()).unwrap();
        let interrupt = Interrupt::new(fd.try_clone().unwrap());
        interrupt.signal();
        let mut count = [0; 8];
        rustix::io::read(&fd, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        interrupt.signal();
        assert_eq!(interrupt.kind.get(), Kind::Eventfd);
    }

    #[test]
    fn interrupt_by_a_full_and_blocking_pipe_does_not_wait() {
        let (reader, writer) = pipe_with(PipeFlags::empty()).unwrap();
        let interrupt = Interrupt::new(writer.try_clone().unwrap());
        interrupt.signal();
        let mut count = [0; 8];
        assert_eq!(rustix::io::read(&reader, &mut count), Ok(8));
        assert_eq!(u64::from_ne_bytes(count), 1);
        if interrupt.kind.get() == Kind::Plain {
            virtio_inter_test_support::skip("this kernel cannot write to a pipe without waiting");
            return;
        }
        let room = rustix::pipe::fcntl_getpipe_size(&writer).unwrap();
        rustix::io::write(&writer, &vec![0; room]).unwrap();
        interrupt.signal();
    }

    #[test]
    fn read_of_a_blocking_eventfd_that_is_empty_does_not_wait() {
        let fd = eventfd(5, EventfdFlags::empty()).unwrap();
        read_now(fd.as_fd());
        read_now(fd.as_fd());
    }
}
