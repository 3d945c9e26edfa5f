//! What a thread asks of the scheduler that no library asks for it.
#![allow(unsafe_code, reason = "a system call that no library wraps")]

use std::io;
use std::time::Duration;

use libc::{SCHED_BATCH, SCHED_OTHER, SYS_sched_getattr, SYS_sched_setattr};
use libc::{c_int, c_long, c_uint, c_ulong, sched_attr};

const SIZE: u32 = size_of::<sched_attr>() as u32;
/// The calling thread, for both calls.
const SELF: c_long = 0;
const NO_FLAGS: c_uint = 0;

/// Makes the calling thread one that lets others go first: it takes no thread's CPU away when it wakes up (`SCHED_BATCH`, sched(7)),
/// and runs for `slice` at a time (0.1 to 100 ms), so that it soon makes room for others, and when it has
/// done so soon has its turn again. `nice` has to be given, too: the thread's own, or more than that.
///
/// Returns whether the thread has such slices. Linux has them from 6.12 on, and not for threads of other policies than the usual one,
/// which are left as they are.
///
/// # Errors
///
/// Those of sched_setattr(2), as where the thread may not have so low a nice value.
pub fn let_others_go_first(nice: i32, slice: Duration) -> io::Result<bool> {
    let mut attributes = attributes()?;
    if ![SCHED_OTHER, SCHED_BATCH].contains(&(attributes.sched_policy as c_int)) {
        return Ok(false);
    }
    attributes.sched_policy = SCHED_BATCH as u32;
    attributes.sched_nice = nice;
    let nanoseconds = slice.as_nanos() as u64;
    attributes.sched_runtime = nanoseconds;
    let wanted = &raw const attributes;
    // SAFETY: the kernel reads `size` bytes of the structure, which are as many as it has, and keeps no pointer to it.
    check(unsafe { libc::syscall(SYS_sched_setattr, SELF, wanted, NO_FLAGS) })?;
    Ok(self::attributes()?.sched_runtime == nanoseconds)
}

/// Those of the calling thread.
fn attributes() -> io::Result<sched_attr> {
    let mut attributes = sched_attr {
        size: SIZE,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes at most `SIZE` bytes into the structure, which has as many, and all values are valid in it.
    let result = unsafe {
        libc::syscall(
            SYS_sched_getattr,
            SELF,
            &raw mut attributes,
            c_ulong::from(SIZE),
            NO_FLAGS,
        )
    };
    check(result)?;
    Ok(attributes)
}

/// How often the calling thread had to leave its CPU to another one so far.
pub(crate) fn switches() -> u64 {
    // SAFETY: all zeros are valid in it, and the kernel fills it and keeps no pointer to it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
        usage
    };
    (usage.ru_nvcsw + usage.ru_nivcsw).cast_unsigned()
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
            let knows = let_others_go_first(nice, slice).unwrap();
            assert_eq!(knows, is_at_least(6, 12));
            let policy = attributes().unwrap().sched_policy;
            assert_eq!(policy, SCHED_BATCH as u32);
            assert_eq!(rustix::process::getpriority_process(None).unwrap(), nice);
        });
    }

    #[test]
    fn a_nice_value_out_of_range_is_the_nearest() {
        in_a_thread(|| {
            let_others_go_first(20, Duration::from_millis(1)).unwrap();
            assert_eq!(rustix::process::getpriority_process(None).unwrap(), 19);
        });
    }

    #[test]
    fn a_thread_of_another_policy_keeps_it() {
        in_a_thread(|| {
            let mut idle = attributes().unwrap();
            idle.sched_policy = libc::SCHED_IDLE as u32;
            // SAFETY: as in `let_others_go_first`.
            let set = unsafe { libc::syscall(SYS_sched_setattr, SELF, &raw const idle, NO_FLAGS) };
            check(set).unwrap();
            let has = let_others_go_first(19, Duration::from_millis(1)).unwrap();
            assert!(!has);
            assert_eq!(attributes().unwrap().sched_policy, idle.sched_policy);
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
