//! Making and opening the files of a link: the region, which its sender makes, and the receiver's
//! page. Nobody but the maker can change either, and every check comes before one is trusted.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::layout::{
    FORMAT_VERSION, Geometry, MAGIC, MAX_CAPACITY, PAGE_MAGIC, PageGeometry, RECORD_ALIGN,
    RECORD_HEADER, SMALL_CAPACITY, is_capacity,
};
#[cfg(not(loom))]
use crate::mapping::SharedReceiverWords;
use crate::mapping::{Mapping, PageMapping, Rights};

/// File system type of a memfd (linux/magic.h). One on hugetlbfs has another.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Seals without which a file is refused. Size and pages stay as they are: a file that shrinks, or
/// that has a hole for which there is no memory, is a SIGBUS to its reader; and a hole is charged
/// to whoever touches it first. With `F_SEAL_FUTURE_WRITE` the mapping that the maker had before it
/// sealed the file is the only way to write to it, and nobody can punch holes, the maker included.
const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::FUTURE_WRITE)
    .union(SealFlags::SEAL);

/// Seals of a page that its sender makes and its receiver writes to: the size stays as it is. Who
/// punches a hole into it gives its memory back, and finds zeros there.
const PAGE_SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// Why a region could not be made or was not accepted.
#[derive(Debug, Error)]
pub enum RegionError {
    /// The size of the data area is not a power of two within the bounds of the format.
    #[error("Capacity of {0} bytes is not a power of two from {SMALL_CAPACITY} to {MAX_CAPACITY}")]
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
    /// The memfd's size or pages could change, or others than its maker could write to it.
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
    /// Not all of the memfd's pages are allocated.
    #[error("Region of {size} bytes has only {allocated} bytes allocated")]
    Holes {
        /// Bytes allocated.
        allocated: u64,
        /// Size of the memfd, in bytes.
        size: u64,
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

/// The memory of one link that its sender writes: words and records.
#[derive(Debug)]
pub struct Region {
    fd: OwnedFd,
    mapping: Mapping,
    capacity: u32,
}

impl Region {
    /// Makes a region with a data area of `capacity` bytes; the sender does, and so pays for the
    /// memory (decision 0080).
    ///
    /// All of it is allocated here: later no write can fail for want of memory, and no access of
    /// the receiver is charged to it.
    ///
    /// # Errors
    ///
    /// The capacity is not a power of two from [`SMALL_CAPACITY`] to [`MAX_CAPACITY`], or the
    /// kernel refuses the memory.
    pub fn create(capacity: u32) -> Result<Self, RegionError> {
        let (data_offset, size) = dimensions(capacity)?;
        let fd = allocate(c"virtio-inter-region", size)?;
        let capacity_bytes = capacity as usize;
        let mapping = Mapping::new(fd.as_fd(), data_offset, capacity_bytes, Rights::Write)
            .map_err(RegionError::Map)?;
        mapping.write_geometry(geometry(capacity, data_offset));
        seal(fd.as_fd(), SEALS)?;
        Ok(Self {
            fd,
            mapping,
            capacity,
        })
    }

    /// Opens the region that a peer made, `fd`, whose data area has `capacity` bytes as it says.
    /// Only to read: this process cannot write to it.
    ///
    /// # Errors
    ///
    /// One for each thing wrong with it: no memfd of ordinary pages, seals missing, another size,
    /// holes, another format version, another geometry.
    pub fn open(fd: OwnedFd, capacity: u32) -> Result<Self, RegionError> {
        let (data_offset, size) = dimensions(capacity)?;
        check_file(fd.as_fd(), size, SEALS)?;
        let capacity_bytes = capacity as usize;
        let mapping = Mapping::new(fd.as_fd(), data_offset, capacity_bytes, Rights::Read)
            .map_err(RegionError::Map)?;
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

/// The memory of one link that its receiver writes: its words.
#[derive(Debug)]
pub struct ReceiverPage {
    fd: OwnedFd,
    mapping: PageMapping,
}

impl ReceiverPage {
    /// Makes a page; the receiver does.
    ///
    /// # Errors
    ///
    /// The kernel refuses the memory.
    pub fn create() -> Result<Self, RegionError> {
        Self::create_with(SEALS)
    }

    /// Makes a page for a receiver in another process, which opens it with
    /// [`ReceiverPage::open_to_write`]. A sender that makes it takes no descriptor from there.
    ///
    /// # Errors
    ///
    /// The kernel refuses the memory.
    pub fn create_for_receiver() -> Result<Self, RegionError> {
        let page = Self::create_with(PAGE_SEALS)?;
        // This side only reads.
        let size = rustix::param::page_size();
        let mapping =
            PageMapping::new(page.fd.as_fd(), size, Rights::Read).map_err(RegionError::Map)?;
        Ok(Self { mapping, ..page })
    }

    fn create_with(seals: SealFlags) -> Result<Self, RegionError> {
        let size = rustix::param::page_size();
        let fd = allocate(c"virtio-inter-receiver", size as u64)?;
        let mapping =
            PageMapping::new(fd.as_fd(), size, Rights::Write).map_err(RegionError::Map)?;
        mapping.write_geometry(PageGeometry {
            magic: PAGE_MAGIC,
            version: FORMAT_VERSION,
            reserved: [0; 3],
        });
        seal(fd.as_fd(), seals)?;
        Ok(Self { fd, mapping })
    }

    /// Opens the page that a peer made. Only to read: this process cannot write to it.
    ///
    /// # Errors
    ///
    /// As [`Region::open`].
    pub fn open(fd: OwnedFd) -> Result<Self, RegionError> {
        Self::open_with(fd, SEALS, Rights::Read)
    }

    /// Opens the page that the sender has made for this side, to write to it.
    ///
    /// # Errors
    ///
    /// As [`Region::open`], but others may be able to write to the page.
    pub fn open_to_write(fd: OwnedFd) -> Result<Self, RegionError> {
        Self::open_with(fd, PAGE_SEALS, Rights::Write)
    }

    fn open_with(fd: OwnedFd, seals: SealFlags, rights: Rights) -> Result<Self, RegionError> {
        let size = rustix::param::page_size();
        check_file(fd.as_fd(), size as u64, seals)?;
        let mapping = PageMapping::new(fd.as_fd(), size, rights).map_err(RegionError::Map)?;
        let found = mapping.read_geometry();
        check_magic(found.magic, PAGE_MAGIC, found.version)?;
        Ok(Self { fd, mapping })
    }

    /// The memfd, for handing it to the peer.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The receiver's words, for another thread.
    #[cfg(not(loom))]
    pub(crate) fn share(&self) -> SharedReceiverWords {
        self.mapping.share()
    }

    /// The mapping alone: a ring needs no descriptor.
    pub(crate) fn into_mapping(self) -> PageMapping {
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

/// Makes a memfd of this size, with all its pages.
fn allocate(name: &CStr, size: u64) -> Result<OwnedFd, RegionError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Kernels before 6.3 do not know the flag that forbids execution.
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        result => result,
    }
    .map_err(|e| RegionError::Create(e.into()))?;
    rustix::fs::ftruncate(&fd, size)
        .and_then(|()| rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, size))
        .map_err(|e| RegionError::Allocate {
            size,
            source: e.into(),
        })?;
    Ok(fd)
}

/// Seals a memfd of our own. Mappings that exist stay writable.
fn seal(fd: BorrowedFd<'_>, seals: SealFlags) -> Result<(), RegionError> {
    rustix::fs::fcntl_add_seals(fd, seals).map_err(|e| RegionError::Seal(e.into()))
}

/// Checks what the kernel knows of the file: none of it can change once it has passed.
fn check_file(fd: BorrowedFd<'_>, size: u64, needed: SealFlags) -> Result<(), RegionError> {
    let inspect = |e: Errno| RegionError::Inspect(e.into());
    let file_system = rustix::fs::fstatfs(fd).map_err(inspect)?.f_type as u64;
    if file_system != TMPFS_MAGIC {
        return Err(RegionError::NotMemfd(file_system));
    }
    let found = match rustix::fs::fcntl_get_seals(fd) {
        Ok(seals) => seals,
        // A directory or a socket on tmpfs.
        Err(Errno::INVAL) => return Err(RegionError::NotMemfd(file_system)),
        Err(e) => return Err(inspect(e)),
    };
    if !found.contains(needed) {
        return Err(RegionError::Seals {
            found: found.bits(),
            needed: needed.bits(),
        });
    }
    let stat = rustix::fs::fstat(fd).map_err(inspect)?;
    let found = stat.st_size as u64;
    if found != size {
        return Err(RegionError::Size {
            found,
            expected: size,
        });
    }
    // Pages stay allocated: nobody can punch holes into a file with these seals.
    let allocated = stat.st_blocks as u64 * 512;
    if allocated < size {
        return Err(RegionError::Holes { allocated, size });
    }
    Ok(())
}

/// Checks how a file starts.
fn check_magic(found: u64, expected: u64, version: u16) -> Result<(), RegionError> {
    if found != expected {
        return Err(RegionError::Magic(found));
    }
    if version != FORMAT_VERSION {
        return Err(RegionError::Version {
            theirs: version,
            ours: FORMAT_VERSION,
        });
    }
    Ok(())
}

/// Checks a copy of the region's description.
fn check_geometry(found: Geometry, expected: Geometry) -> Result<(), RegionError> {
    check_magic(found.magic, expected.magic, found.version)?;
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
