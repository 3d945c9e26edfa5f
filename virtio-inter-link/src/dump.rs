//! Keeps memory that belongs to a guest or a peer out of core dumps.
#![allow(
    unsafe_code,
    reason = "madvise(2) is unsafe for advice that changes memory; this one does not"
)]

use std::io;

use rustix::mm::{Advice, madvise};
use vm_memory::VolatileSlice;

/// Excludes mapped memory from this process's core dumps, as long as it is mapped. It must start on
/// a page, and include the whole of its last page.
///
/// The kernel dumps memfds as it dumps anonymous memory. VMMs exclude their mapping of the guest's
/// memory, but not that of another process.
///
/// # Errors
///
/// When the kernel refuses, say because it would need more mappings than a process may have.
pub fn exclude_from_dumps(memory: &VolatileSlice<'_>) -> io::Result<()> {
    let guard = memory.ptr_guard_mut();
    // SAFETY: the slice lends mapped memory, and MADV_DONTDUMP changes neither it nor how it may be
    // accessed: it sets a flag of its mapping that only the writer of a core dump reads.
    unsafe { madvise(guard.as_ptr().cast(), guard.len(), Advice::LinuxDontDump)? };
    Ok(())
}
