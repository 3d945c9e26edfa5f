//! Bounded waiting.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a test waits for something that must happen: long enough for a machine that does ten
/// other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until a descriptor is readable, at the latest until `deadline`. Says whether it is.
pub(crate) fn wait_readable(fd: impl AsFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return ready != 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("Cannot poll: {e}"),
        }
    }
}

/// Waits until a condition that another thread makes true, and that nothing announces, holds.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "Never came true: {what}");
        std::thread::yield_now();
    }
}

/// Tells threads that look at a flag to end, also when an assertion fails in the one that has this.
pub(crate) struct SetOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
