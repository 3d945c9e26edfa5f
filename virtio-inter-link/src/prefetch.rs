//! Hints to the processor that memory is about to be used. A cache line that another processor
//! wrote last takes some 100 ns to arrive; several prefetched lines arrive at the same time.
#![allow(unsafe_code, reason = "the hints are instructions of the processor")]

use vm_memory::VolatileSlice;

/// What is going to be done with the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read only: others may keep their copy.
    Read,
    /// Written: the only copy is wanted.
    Write,
}

/// Bytes of the next record or buffer that are prefetched while the current one is copied: a packet
/// of the usual MTU. In longer ones the hardware prefetcher continues by itself.
pub const NEXT: usize = 1536;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Hints that the first `len` bytes of `memory`, or all if it has fewer, are about to be accessed.
/// Changes nothing but the time of that access.
#[inline]
pub fn prefetch(memory: &VolatileSlice<'_>, len: usize, access: Access) {
    let len = len.min(memory.len());
    let start = memory.ptr_guard().as_ptr();
    let mut line = 0;
    while line < len {
        hint(start.wrapping_add(line), access);
        line += LINE;
    }
    // The lines of an unaligned piece are one more than its length says.
    if len != 0 {
        hint(start.wrapping_add(len - 1), access);
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
fn hint(address: *const u8, access: Access) {
    use std::arch::asm;
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    match access {
        // SAFETY: a hint has no effect that a program can see, and faults at no address.
        Access::Read => unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) },
        // Written as assembly: for targets before 2014 compilers turn the intrinsic into a read
        // prefetch. Those processors treat `prefetchw` as a no-op. SAFETY: as above.
        Access::Write => unsafe {
            asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
        },
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
#[inline]
fn hint(_: *const u8, _: Access) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefetch_takes_any_length_and_changes_nothing() {
        let mut bytes = [7; 300];
        let slice = VolatileSlice::from(&mut bytes[1..]);
        for access in [Access::Read, Access::Write] {
            for len in [0, 1, 64, 299, 300, usize::MAX] {
                prefetch(&slice, len, access);
            }
        }
        assert_eq!(bytes, [7; 300]);
    }
}
