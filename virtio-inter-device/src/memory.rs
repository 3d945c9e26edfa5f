//! A guest's memory, and the log of what the device writes there while the guest is being moved.
//!
//! Every write of the data path goes through `queue/`, which marks it here afterwards: the used ring in `rings.rs`,
//! receive buffers in `chain.rs`. Without a log that is one comparison for each write.
//!
//! See decision 0011.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::{GuestAddress, GuestMemoryMmap, MmapRegion, VolatileMemory};

/// A guest's memory as mapped by this process, and where writes to it are noted, if anywhere.
#[derive(Debug, Clone)]
pub struct GuestMemory {
    map: GuestMemoryMmap<()>,
    log: Option<Arc<DirtyLog>>,
}

impl GuestMemory {
    /// Memory whose changes nobody wants to know of.
    pub fn new(map: GuestMemoryMmap<()>) -> Self {
        Self { map, log: None }
    }

    /// The same memory with the device's writes noted in `log`.
    #[must_use]
    pub fn logged(self, log: Arc<DirtyLog>) -> Self {
        Self {
            log: Some(log),
            ..self
        }
    }

    /// Whether writes are noted.
    pub fn is_logged(&self) -> bool {
        self.log.is_some()
    }

    /// Where writes are noted.
    pub(crate) fn log(&self) -> Option<&DirtyLog> {
        self.log.as_deref()
    }

    /// Notes that the `len` bytes at `address` were written.
    #[inline]
    pub(crate) fn wrote(&self, address: u64, len: u64) {
        if let Some(log) = &self.log {
            log.mark(address, len);
        }
    }
}

impl Deref for GuestMemory {
    type Target = GuestMemoryMmap<()>;

    fn deref(&self) -> &Self::Target {
        &self.map
    }
}

/// A bitmap in memory shared with the VMM, one bit for each 4 KiB of guest address space, from address 0 on
/// (vhost-user specification, "Migration"): bit `n % 8` of byte `n / 8` is page `n`'s. The device sets bits, the VMM
/// clears them.
#[derive(Debug)]
pub struct DirtyLog {
    bits: MmapRegion<()>,
}

impl DirtyLog {
    /// Size of a page of the log in bytes, whatever the host's pages are.
    pub const PAGE: u64 = 4096;

    /// Notes writes in `bits`.
    pub fn new(bits: MmapRegion<()>) -> Self {
        Self { bits }
    }

    /// First guest address beyond the log.
    pub fn end(&self) -> u64 {
        (self.bits.size() as u64).saturating_mul(8 * Self::PAGE)
    }

    /// Sets the bits of the `len` bytes at `address`, after they were written. What lies beyond the log's end is not
    /// noted: the VMM does not ask for it.
    pub(crate) fn mark(&self, address: u64, len: u64) {
        let Some(last) = len
            .checked_sub(1)
            .and_then(|last| address.checked_add(last))
        else {
            return;
        };
        for page in address / Self::PAGE..=last / Self::PAGE {
            let Ok(byte) = usize::try_from(page / 8) else {
                return;
            };
            let Ok(bits) = self.bits.get_atomic_ref::<AtomicU8>(byte) else {
                return;
            };
            // Not only where the bit is clear: the VMM may have seen it set just now, and be about to read the page.
            // Sequentially consistent, so that the write before is in memory when the bit is seen.
            bits.fetch_or(1 << (page % 8), Ordering::SeqCst);
        }
    }

    /// Whether the page at `address` was written. For tests and logs.
    pub fn is_dirty(&self, address: GuestAddress) -> bool {
        let page = address.0 / Self::PAGE;
        let byte = usize::try_from(page / 8).unwrap_or(usize::MAX);
        self.bits
            .get_atomic_ref::<AtomicU8>(byte)
            .is_ok_and(|bits| bits.load(Ordering::SeqCst) & 1 << (page % 8) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(bytes: usize) -> DirtyLog {
        DirtyLog::new(MmapRegion::new(bytes).unwrap())
    }

    fn dirty(log: &DirtyLog) -> Vec<u64> {
        (0..log.end() / DirtyLog::PAGE)
            .filter(|page| log.is_dirty(GuestAddress(page * DirtyLog::PAGE)))
            .collect()
    }

    #[test]
    fn each_page_that_a_write_touches_is_marked_and_no_other() {
        for (address, len, pages) in [
            (0, 1, vec![0]),
            (4095, 1, vec![0]),
            (4095, 2, vec![0, 1]),
            (4096, 4096, vec![1]),
            (7 * 4096 + 1, 2 * 4096, vec![7, 8, 9]),
            (5000, 0, vec![]),
        ] {
            let log = log(2);
            log.mark(address, len);
            assert_eq!(dirty(&log), pages, "{len} bytes at {address}");
        }
    }

    #[test]
    fn what_lies_beyond_the_log_is_left_alone() {
        let log = log(1);
        log.mark(8 * 4096 - 1, 2);
        log.mark(u64::MAX, 1);
        log.mark(u64::MAX, 2);
        log.mark(1 << 60, 4096);
        assert_eq!(dirty(&log), [7]);
    }
}
