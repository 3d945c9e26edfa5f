//! The dirty log that the frontend hands over for a migration (vhost-user specification,
//! "Migration"): checks and maps it.
//!
//! VHOST_F_LOG_ALL turns logging on for the whole device. Every frontend sets it together with the
//! flag of SET_VRING_ADDR that asks for the used ring alone, and the address that comes with that
//! flag is the used ring's own guest address. The port closes SET_LOG_FD's descriptor, which it
//! should signal with each entry: no frontend waits for it.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::fstat;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_inter_device::DirtyLog;
use virtio_inter_link::exclude_from_dumps;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use super::error::RequestError;
use super::ranges::DirtyLogArea;

/// The feature bit with which the frontend asks for a log of all writes.
pub(super) const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

/// Maps a dirty log.
///
/// # Errors
///
/// When its file is too short, or cannot be mapped.
pub(super) fn map(area: DirtyLogArea, fd: OwnedFd) -> Result<DirtyLog, RequestError> {
    let DirtyLogArea { size, offset } = area;
    let refuse = |problem| RequestError::Log {
        size,
        offset,
        problem,
    };
    let file = File::from(fd);
    let end = offset
        .checked_add(size)
        .ok_or_else(|| refuse("it reaches beyond the end of an address space"))?;
    let stat = fstat(&file).map_err(|_| refuse("its file cannot be examined"))?;
    // A write beyond the file's end would kill this process (SIGBUS).
    if u64::try_from(stat.st_size).unwrap_or(0) < end {
        return Err(refuse("it reaches beyond the end of its file"));
    }
    if !offset.is_multiple_of(rustix::param::page_size() as u64) {
        return Err(refuse("it does not start on a page of its file"));
    }
    let length = usize::try_from(size)
        .ok()
        .filter(|size| *size != 0)
        .ok_or_else(|| refuse("it is empty or too large"))?;
    let bits = MmapRegion::from_file(FileOffset::new(file, offset), length).map_err(|source| {
        RequestError::MapLog {
            size,
            offset,
            source,
        }
    })?;
    exclude_from_dumps(&bits.as_volatile_slice())
        .map_err(|source| RequestError::DumpLog { size, source })?;
    Ok(DirtyLog::new(bits))
}
