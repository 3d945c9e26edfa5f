//! Signalling an eventfd that a hostile process shares, without ever blocking.
//!
//! `write` will not do: the peer shares the open file description, so it can clear `O_NONBLOCK` at
//! any moment, and it can raise the counter to its end; then `write` sleeps for as long as the peer
//! likes. The kernel's own signallers never sleep, and asynchronous I/O makes one of them available
//! to user space: a request that names an eventfd signals it on completion, wakes its waiters even
//! when the counter is at its end, and is refused if the descriptor is no eventfd. So this module
//! signals a doorbell by reading nothing from an empty file. See decision 0001.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, OFlags};
use rustix::io::Errno;
use vmm_sys_util::aio::{IOCB_CMD_PREAD, IOCB_FLAG_RESFD, IoContext, IoControlBlock, IoEvent};

/// Completions that the kernel keeps for us before it wants them collected (it rounds up, on many
/// processors far).
const COMPLETIONS: usize = 64;

/// Signals the eventfd `fd`.
///
/// # Errors
///
/// `EINVAL`: it is no eventfd.
pub(crate) fn signal(fd: BorrowedFd<'_>) -> io::Result<()> {
    match signal_by_kernel(fd) {
        Some(Ok(())) => Ok(()),
        // Not to be had, out of memory, or inherited across a fork, which contexts are not.
        None | Some(Err(_)) => signal_by_write(fd),
    }
}

/// Signals the eventfd `fd` by asynchronous I/O; `None` where this process has none. The kernel
/// refuses a descriptor of another type and does not call its driver.
///
/// # Errors
///
/// `EINVAL`: it is no eventfd. Others: the kernel has no memory for it.
pub(crate) fn signal_by_kernel(fd: BorrowedFd<'_>) -> Option<io::Result<()>> {
    signaller().map(|signaller| signaller.signal(fd))
}

/// Whether this process has asynchronous I/O.
pub(crate) fn has_kernel_signals() -> bool {
    signaller().is_some()
}

fn signaller() -> Option<&'static Signaller> {
    /// One for the process: signals are rare (somebody slept), and the kernel makes contexts safe
    /// to share.
    static SIGNALLER: OnceLock<Option<Signaller>> = OnceLock::new();

    let signaller = SIGNALLER.get_or_init(|| {
        Signaller::new()
            .inspect_err(|e| {
                log::warn!(
                    "No asynchronous I/O here ({e}), without which a hostile peer can block a \
                     worker that signals its doorbell: only peers of this user and root may join. \
                     See fs.aio-max-nr and fs.aio-nr"
                );
            })
            .ok()
    });
    signaller.as_ref()
}

/// An asynchronous I/O context and the file that it reads nothing from.
struct Signaller {
    context: IoContext,
    empty: OwnedFd,
}

impl Signaller {
    fn new() -> io::Result<Self> {
        let empty = rustix::fs::memfd_create(c"virtio-inter-empty", MemfdFlags::CLOEXEC)?;
        Ok(Self {
            context: IoContext::new(COMPLETIONS as u32)?,
            empty,
        })
    }

    fn signal(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut request = IoControlBlock {
            aio_lio_opcode: IOCB_CMD_PREAD as u16,
            aio_fildes: self.empty.as_raw_fd() as u32,
            aio_flags: IOCB_FLAG_RESFD,
            aio_resfd: fd.as_raw_fd() as u32,
            ..IoControlBlock::default()
        };
        // A read of nothing completes, and signals, within the call.
        match self.context.submit(&[&mut request]) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            result => return result.map(drop),
        }
        // No room for another completion. Nobody wants to know of the old ones: collect them all at
        // once, now and then.
        let mut events = [IoEvent::default(); COMPLETIONS];
        let mut no_wait = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        while self
            .context
            .get_events(0, &mut events, Some(&mut no_wait))?
            == COMPLETIONS
        {}
        self.context.submit(&[&mut request]).map(drop)
    }
}

/// Second best: between the two calls the peer can still make the second one block.
fn signal_by_write(fd: BorrowedFd<'_>) -> io::Result<()> {
    rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK)?;
    match rustix::io::write(fd, &1u64.to_ne_bytes()) {
        // The counter is at its end: waiters have been told often enough.
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(all(test, not(any(miri, loom))))]
mod tests {
    use std::os::fd::AsFd;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

    use super::*;

    #[test]
    fn doorbell_by_write_signals_and_does_not_wait_for_a_full_counter() {
        let fd = eventfd(0, EventfdFlags::empty()).unwrap();
        signal_by_write(fd.as_fd()).unwrap();
        rustix::io::write(&fd, &(u64::MAX - 2).to_ne_bytes()).unwrap();
        rustix::fs::fcntl_setfl(&fd, OFlags::empty()).unwrap();
        signal_by_write(fd.as_fd()).unwrap();
        let mut count = [0; 8];
        rustix::io::read(&fd, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), u64::MAX - 1);
    }

    #[test]
    fn doorbell_refuses_what_is_no_eventfd_both_ways() {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::empty()).unwrap();
        let refused = Some(Errno::INVAL.raw_os_error());
        assert_eq!(
            signal_by_write(fd.as_fd()).unwrap_err().raw_os_error(),
            refused
        );
        assert_eq!(signal(fd.as_fd()).unwrap_err().raw_os_error(), refused);
    }
}
