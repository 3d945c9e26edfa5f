//! What no library asks the scheduler for.
#![allow(unsafe_code, reason = "a system call that no library wraps")]

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
