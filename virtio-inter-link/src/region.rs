//! Making and opening a region: a memfd that can neither shrink nor grow, and every check before it
//! is trusted.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::layout::{
    FORMAT_VERSION, Geometry, MAGIC, MAX_CAPACITY, MIN_CAPACITY, RECORD_ALIGN, RECORD_HEADER,
    is_capacity,
};
use crate::mapping::Mapping;

/// File system type of a memfd (linux/magic.h). One on hugetlbfs has another; there a hole that the
/// peer punches can be impossible to fill again, which kills the reader by SIGBUS.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Seals without which a region is refused: a file that shrinks under its reader is a SIGBUS.
const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// Why a region could not be made or was not accepted.
#[derive(Debug, Error)]
pub enum RegionError {
    /// The size of the data area is not a power of two within the bounds of the format.
    #[error("Capacity of {0} bytes is not a power of two from {MIN_CAPACITY} to {MAX_CAPACITY}")]
    Capacity(u32),
    /// No memfd could be made.
    #[error("Cannot create the region's memfd")]
    Create(#[source] io::Error),
    /// There is no memory for the region.
    #[error("Cannot allocate {size} bytes for the region")]
    Allocate {
        /// Size of the region, in bytes.
        size: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The memfd could not be sealed.
    #[error("Cannot seal the region's memfd")]
    Seal(#[source] io::Error),
    /// The descriptor could not be inspected.
    #[error("Cannot inspect the region's descriptor")]
    Inspect(#[source] io::Error),
    /// The descriptor is not a memfd of ordinary pages.
    #[error("Region's descriptor is not a memfd of ordinary pages (file system {0:#x})")]
    NotMemfd(u64),
    /// The memfd's size could change.
    #[error("Region's memfd has seals {found:#x} where {needed:#x} are needed")]
    Seals {
        /// Seals (`F_SEAL_…`) of the memfd.
        found: u32,
        /// Seals needed.
        needed: u32,
    },
    /// The memfd has another size than the agreed capacity makes.
    #[error("Region of {found} bytes where {expected} were agreed")]
    Size {
        /// Size of the memfd, in bytes.
        found: u64,
        /// Size agreed, in bytes.
        expected: u64,
    },
    /// The region could not be mapped.
    #[error("Cannot map the region")]
    Map(#[source] io::Error),
    /// The region does not start as one.
    #[error("Region starts with {0:#018x}, which is no region's magic")]
    Magic(u64),
    /// The peer speaks another version of the region's format.
    #[error("Region has format version {theirs}, this program speaks {ours}")]
    Version {
        /// Version of the region.
        theirs: u16,
        /// Version of this program ([`FORMAT_VERSION`]).
        ours: u16,
    },
    /// The region describes itself otherwise than its version and the agreed capacity do.
    #[error("Region's {field} is {found}, expected {expected}")]
    Geometry {
        /// The field of the description.
        field: &'static str,
        /// What it says.
        found: u32,
        /// What it has to say.
        expected: u32,
    },
}

/// The shared memory of one link.
#[derive(Debug)]
pub struct Region {
    fd: OwnedFd,
    mapping: Mapping,
    capacity: u32,
}

impl Region {
    /// Makes a region with a data area of `capacity` bytes; the receiver does, and so pays for the
    /// memory.
    ///
    /// All of it is allocated here: later no write of the peer can fail for want of memory.
    ///
    /// # Errors
    ///
    /// The capacity is not a power of two from [`MIN_CAPACITY`] to [`MAX_CAPACITY`], or the kernel
    /// refuses the memory.
    pub fn create(capacity: u32) -> Result<Self, RegionError> {
        let (data_offset, size) = dimensions(capacity)?;
        let fd = create_memfd().map_err(|e| RegionError::Create(e.into()))?;
        let allocated = rustix::fs::ftruncate(&fd, size)
            .and_then(|()| rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, size));
        allocated.map_err(|e| RegionError::Allocate {
            size,
            source: e.into(),
        })?;
        rustix::fs::fcntl_add_seals(&fd, SEALS).map_err(|e| RegionError::Seal(e.into()))?;
        let mapping =
            Mapping::new(fd.as_fd(), data_offset, capacity as usize).map_err(RegionError::Map)?;
        mapping.write_geometry(geometry(capacity, data_offset));
        Ok(Self {
            fd,
            mapping,
            capacity,
        })
    }

    /// Opens the region that a peer made, `fd`, whose data area has `capacity` bytes as agreed
    /// beforehand.
    ///
    /// # Errors
    ///
    /// One for each thing wrong with it: no memfd of ordinary pages, seals missing, another size,
    /// another format version, another geometry.
    pub fn open(fd: OwnedFd, capacity: u32) -> Result<Self, RegionError> {
        let (data_offset, size) = dimensions(capacity)?;
        check_file(fd.as_fd(), size)?;
        let mapping =
            Mapping::new(fd.as_fd(), data_offset, capacity as usize).map_err(RegionError::Map)?;
        check_geometry(mapping.read_geometry(), geometry(capacity, data_offset))?;
        Ok(Self {
            fd,
            mapping,
            capacity,
        })
    }

    /// The memfd, for handing it to the peer.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Size of the data area, in bytes.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The mapping alone: a ring needs no descriptor.
    pub(crate) fn into_mapping(self) -> Mapping {
        self.mapping
    }
}

/// Offset of the data area and size of the whole region, in bytes.
fn dimensions(capacity: u32) -> Result<(usize, u64), RegionError> {
    if !is_capacity(capacity) {
        return Err(RegionError::Capacity(capacity));
    }
    // Both sides run on one host, so they agree on the page.
    let data_offset = rustix::param::page_size();
    Ok((data_offset, data_offset as u64 + u64::from(capacity)))
}

/// How a region of this version with this capacity describes itself.
fn geometry(capacity: u32, data_offset: usize) -> Geometry {
    Geometry {
        magic: MAGIC,
        version: FORMAT_VERSION,
        record_header: RECORD_HEADER as u16,
        record_align: RECORD_ALIGN as u32,
        capacity,
        data_offset: data_offset as u32,
    }
}

fn create_memfd() -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(c"virtio-inter-region", flags | MemfdFlags::NOEXEC_SEAL) {
        // Kernels before 6.3 do not know the flag that forbids execution.
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"virtio-inter-region", flags),
        result => result,
    }
}

/// Checks what the kernel knows of the file: none of it can change once it has passed.
fn check_file(fd: BorrowedFd<'_>, size: u64) -> Result<(), RegionError> {
    let inspect = |e: Errno| RegionError::Inspect(e.into());
    let file_system = rustix::fs::fstatfs(fd).map_err(inspect)?.f_type as u64;
    if file_system != TMPFS_MAGIC {
        return Err(RegionError::NotMemfd(file_system));
    }
    let seals = match rustix::fs::fcntl_get_seals(fd) {
        Ok(seals) => seals,
        // A directory or a socket on tmpfs.
        Err(Errno::INVAL) => return Err(RegionError::NotMemfd(file_system)),
        Err(e) => return Err(inspect(e)),
    };
    if !seals.contains(SEALS) {
        return Err(RegionError::Seals {
            found: seals.bits(),
            needed: SEALS.bits(),
        });
    }
    let found = rustix::fs::fstat(fd).map_err(inspect)?.st_size as u64;
    if found != size {
        return Err(RegionError::Size {
            found,
            expected: size,
        });
    }
    Ok(())
}

/// Checks a copy of the region's description.
fn check_geometry(found: Geometry, expected: Geometry) -> Result<(), RegionError> {
    if found.magic != expected.magic {
        return Err(RegionError::Magic(found.magic));
    }
    if found.version != expected.version {
        return Err(RegionError::Version {
            theirs: found.version,
            ours: expected.version,
        });
    }
    let fields = [
        (
            "record header",
            u32::from(found.record_header),
            u32::from(expected.record_header),
        ),
        (
            "record alignment",
            found.record_align,
            expected.record_align,
        ),
        ("capacity", found.capacity, expected.capacity),
        ("data offset", found.data_offset, expected.data_offset),
    ];
    for (field, found, expected) in fields {
        if found != expected {
            return Err(RegionError::Geometry {
                field,
                found,
                expected,
            });
        }
    }
    Ok(())
}
