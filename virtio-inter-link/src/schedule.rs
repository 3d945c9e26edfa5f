//! What a thread asks of the scheduler that no library asks for it.
#![allow(unsafe_code, reason = "a system call that no library wraps")]

use std::io;
use std::time::Duration;

use libc::{SYS_sched_getattr, SYS_sched_setattr, c_long, c_uint, c_ulong, sched_attr};

/// Leave the policy as it is (Linux, `include/uapi/linux/sched.h`).
const SCHED_FLAG_KEEP_POLICY: u64 = 0x08;
const SIZE: u32 = size_of::<sched_attr>() as u32;
/// The calling thread, for both calls.
const SELF: c_long = 0;

/// Makes the calling thread run for `slice` at a time (0.1 to 100 ms), so that it soon makes room for others, and when it has
/// done so soon has its turn again. `nice` has to be given, too: the thread's own, or more than that.
///
/// Returns whether the kernel knows slices of threads: Linux does from 6.12 on.
///
/// # Errors
///
/// Those of sched_setattr(2), as where the thread is a real-time one, or may not have so low a nice value.
pub fn set_time_slice(nice: i32, slice: Duration) -> io::Result<bool> {
    let nanoseconds = slice.as_nanos() as u64;
    let wanted = sched_attr {
        size: SIZE,
        sched_policy: 0,
        sched_flags: SCHED_FLAG_KEEP_POLICY,
        sched_nice: nice,
        sched_priority: 0,
        sched_runtime: nanoseconds,
        sched_deadline: 0,
        sched_period: 0,
    };
    let no_flags: c_uint = 0;
    // SAFETY: the kernel reads `size` bytes of the structure, which are as many as it has, and keeps no pointer to it.
    check(unsafe { libc::syscall(SYS_sched_setattr, SELF, &raw const wanted, no_flags) })?;
    let mut got = wanted;
    got.sched_runtime = 0;
    // SAFETY: the kernel writes at most `SIZE` bytes into the structure, which has as many, and all values are valid in it.
    let result = unsafe {
        libc::syscall(
            SYS_sched_getattr,
            SELF,
            &raw mut got,
            c_ulong::from(SIZE),
            no_flags,
        )
    };
    check(result)?;
    Ok(got.sched_runtime == nanoseconds)
}

fn check(result: c_long) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(all(test, not(any(miri, loom))))]
mod tests {
    use super::*;

    /// In a thread of its own, as it changes that.
    fn in_a_thread(test: fn()) {
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_thread_gets_its_slice_where_the_kernel_knows_that() {
        in_a_thread(|| {
            let nice = rustix::process::getpriority_process(None).unwrap();
            let slice = Duration::from_micros(100);
            let knows = set_time_slice(nice, slice).unwrap();
            assert_eq!(knows, is_at_least(6, 12));
            assert_eq!(rustix::process::getpriority_process(None).unwrap(), nice);
        });
    }

    #[test]
    fn a_nice_value_out_of_range_is_the_nearest() {
        in_a_thread(|| {
            set_time_slice(20, Duration::from_millis(1)).unwrap();
            assert_eq!(rustix::process::getpriority_process(None).unwrap(), 19);
        });
    }

    fn is_at_least(major: u32, minor: u32) -> bool {
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        let mut parts = release.split(|c: char| !c.is_ascii_digit());
        let mut next = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
        (next(), next()) >= (major, minor)
    }
}
