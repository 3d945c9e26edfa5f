//! A guest's memory, and the dirty log of the device's writes while the guest is migrated.
//!
//! `queue/` marks every write of the data path here afterwards: the used ring in `rings.rs`,
//! receive buffers in `chain.rs`. Without a log that is one comparison for each write
//! (decision 0011).

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::{GuestAddress, GuestMemoryMmap, MmapRegion, VolatileMemory};

/// A guest's memory as mapped by this process, and the dirty log, if there is one.
#[derive(Debug, Clone)]
pub struct GuestMemory {
    map: GuestMemoryMmap<()>,
    log: Option<Arc<DirtyLog>>,
}

impl GuestMemory {
    /// Memory without a dirty log.
    pub fn new(map: GuestMemoryMmap<()>) -> Self {
        Self { map, log: None }
    }

    /// The same memory with the device's writes marked in `log`.
    #[must_use]
    pub fn logged(self, log: Arc<DirtyLog>) -> Self {
        Self {
            log: Some(log),
            ..self
        }
    }

    /// Whether there is a dirty log.
    pub fn is_logged(&self) -> bool {
        self.log.is_some()
    }

    /// The dirty log.
    pub(crate) fn log(&self) -> Option<&DirtyLog> {
        self.log.as_deref()
    }

    /// Marks the `len` bytes at `address` as written.
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

/// A bitmap in memory shared with the VMM, one bit for each 4 KiB of guest address space, from
/// address 0 on (vhost-user specification, "Migration"): bit `n % 8` of byte `n / 8` is page `n`'s.
/// The device sets bits, the VMM clears them.
#[derive(Debug)]
pub struct DirtyLog {
    bits: MmapRegion<()>,
}

impl DirtyLog {
    /// Size of a page of the log in bytes, whatever the host's pages are.
    pub const PAGE: u64 = 4096;

    /// A log in `bits`.
    pub fn new(bits: MmapRegion<()>) -> Self {
        Self { bits }
    }

    /// First guest address beyond the log.
    pub fn end(&self) -> u64 {
        (self.bits.size() as u64).saturating_mul(8 * Self::PAGE)
    }

    /// Sets the bits of the `len` bytes at `address`, after they were written. Bytes beyond the end
    /// of the log are not marked: the VMM does not ask for them.
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
            // Also if the bit is set: the VMM may have seen it just now, and be about to read the
            // page. Sequentially consistent, so that the write is in memory when the bit is seen.
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
    fn dirty_log_marks_each_page_of_a_write_and_no_other() {
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
    fn dirty_log_ignores_writes_beyond_its_end() {
        let log = log(1);
        log.mark(8 * 4096 - 1, 2);
        log.mark(u64::MAX, 1);
        log.mark(u64::MAX, 2);
        log.mark(1 << 60, 4096);
        assert_eq!(dirty(&log), [7]);
    }
}
