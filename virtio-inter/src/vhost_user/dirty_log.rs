//! The log of what the device writes, as the frontend hands it over for a migration (vhost-user specification,
//! "Migration"): checked and mapped.
//!
//! Whether anything is logged is one question for the whole device: it is when VHOST_F_LOG_ALL is among the features. The
//! flag of SET_VRING_ADDR that asks for the used ring alone comes together with it from every frontend, and
//! the address that goes with it is the used ring's own guest address. SET_LOG_FD's descriptor, to be signalled with
//! each entry, is closed: no frontend waits for it.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::fstat;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_inter_device::DirtyLog;
use virtio_inter_link::exclude_from_dumps;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use super::error::Refusal;
use super::request::LogArea;

/// The feature bit by which the frontend asks for everything to be logged.
pub(super) const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

/// Maps a log.
///
/// # Errors
///
/// When its file does not have the bytes, or cannot be mapped.
pub(super) fn map(area: LogArea, fd: OwnedFd) -> Result<DirtyLog, Refusal> {
    let LogArea { size, offset } = area;
    let refuse = |problem| Refusal::Log {
        size,
        offset,
        problem,
    };
    let file = File::from(fd);
    let end = offset
        .checked_add(size)
        .ok_or_else(|| refuse("it reaches beyond the end of an address space"))?;
    let stat = fstat(&file).map_err(|_| refuse("its file cannot be examined"))?;
    // Checked here, as a write beyond the file's end would end this process.
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
        Refusal::MapLog {
            size,
            offset,
            source,
        }
    })?;
    exclude_from_dumps(&bits.as_volatile_slice())
        .map_err(|source| Refusal::DumpLog { size, source })?;
    Ok(DirtyLog::new(bits))
}
