//! The guest's memory: maps the regions that the frontend shares, and translates addresses.
//!
//! Every region is checked before it is mapped: an overlap, an overflow or a region that reaches
//! beyond its file would otherwise cause a wrong write or a SIGBUS later. A frontend can still
//! shrink a file that it did not seal: that kills this process, and affects no other guest.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, fstat, fstatfs};
use virtio_inter_device::{DirtyLog, GuestMemory};
use virtio_inter_link::exclude_from_dumps;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion, VolatileMemory,
};

use super::error::RequestError;
use super::ranges::{Region, RingAddresses};
use super::unshared_memory::FilePart;

/// Maximum number of regions. Each costs a descriptor and a mapping; QEMU's machines have at most
/// 256 slots.
pub const MAX_REGIONS: usize = 256;

/// `f_type` of a file on hugetlbfs (statfs(2)).
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// The guest addresses of a ring's parts, as the device needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingPlace {
    /// Guest physical address of the descriptor table.
    pub descriptors: GuestAddress,
    /// Guest physical address of the available ring.
    pub available: GuestAddress,
    /// Guest physical address of the used ring.
    pub used: GuestAddress,
}

/// A mapped region.
#[derive(Debug, Clone)]
struct Mapped {
    /// Address in the frontend's process.
    user: u64,
    region: Arc<GuestRegionMmap<()>>,
}

impl Mapped {
    fn guest(&self) -> u64 {
        self.region.start_addr().0
    }

    fn size(&self) -> u64 {
        self.region.len()
    }
}

/// All regions that a frontend shares, sorted by guest address. A change makes a new table, so that
/// a request that fails leaves the old one intact.
#[derive(Debug, Clone, Default)]
pub struct MemoryTable {
    regions: Vec<Mapped>,
}

impl MemoryTable {
    /// Maps the regions of SET_MEM_TABLE.
    ///
    /// # Errors
    ///
    /// When one of them cannot be used.
    pub fn new(regions: Vec<(Region, OwnedFd)>) -> Result<Self, RequestError> {
        let mut table = Self::default();
        for (region, fd) in regions {
            table.add(&region, fd)?;
        }
        Ok(table)
    }

    /// A copy of the table with one more region.
    ///
    /// # Errors
    ///
    /// When it cannot be used.
    pub fn with(&self, region: &Region, fd: OwnedFd) -> Result<Self, RequestError> {
        let mut table = self.clone();
        table.add(region, fd)?;
        Ok(table)
    }

    /// A copy of the table without the region that has these addresses and this size.
    ///
    /// # Errors
    ///
    /// When there is no such region.
    pub fn without(&self, region: &Region) -> Result<Self, RequestError> {
        let mut table = self.clone();
        table.regions.retain(|mapped| {
            (mapped.guest(), mapped.user, mapped.size()) != (region.guest, region.user, region.size)
        });
        if table.regions.len() == self.regions.len() {
            return Err(RequestError::NoSuchRegion {
                guest: region.guest,
                size: region.size,
            });
        }
        Ok(table)
    }

    /// Whether the frontend shares nothing.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// The memory for the device; `None` when there is none.
    pub fn memory(&self) -> Option<GuestMemory> {
        let regions = self
            .regions
            .iter()
            .map(|mapped| Arc::clone(&mapped.region))
            .collect();
        // Sorted and free of overlaps (see `add`), so this fails only for an empty table.
        GuestMemoryMmap::from_arc_regions(regions)
            .ok()
            .map(GuestMemory::new)
    }

    /// The memory for the device, with the log in which the device marks written pages; `None` when
    /// there is no memory.
    pub(crate) fn device_memory(&self, log: Option<&Arc<DirtyLog>>) -> Option<Arc<GuestMemory>> {
        let memory = self.memory()?;
        Some(Arc::new(match log {
            Some(log) => memory.logged(Arc::clone(log)),
            None => memory,
        }))
    }

    /// The used index of a ring, the second u16 of the used ring (VIRTIO 1.3, 2.7.8). For logs.
    pub fn used_index(&self, place: &RingPlace) -> Option<u16> {
        let address = GuestAddress(place.used.0.checked_add(2)?);
        self.memory()?.read_obj(address).ok()
    }

    /// First guest address beyond the memory.
    pub fn end(&self) -> u64 {
        self.regions
            .last()
            .map_or(0, |mapped| mapped.guest() + mapped.size())
    }

    /// The file that is mapped at an address of the frontend's process.
    pub(crate) fn file_at(&self, user: u64) -> Option<&File> {
        let (mapped, _) = self.find(user)?;
        Some(mapped.region.file_offset()?.file())
    }

    /// The region with an address of the frontend's process, and the offset in it. A guest's memory
    /// may be visible at two guest addresses, so two regions may share a user address. Either of
    /// them is correct.
    fn find(&self, user: u64) -> Option<(&Mapped, u64)> {
        self.regions.iter().find_map(|mapped| {
            let offset = user.checked_sub(mapped.user)?;
            (offset < mapped.size()).then_some((mapped, offset))
        })
    }

    /// The files of the regions, from the first guest address on, and the parts of them that the
    /// device writes: the used rings of `queues`, each with its size.
    pub(crate) fn parts<'a>(
        &'a self,
        queues: &'a [(RingPlace, u16)],
    ) -> impl Iterator<Item = FilePart<'a>> {
        self.regions.iter().filter_map(|mapped| {
            let backing = mapped.region.file_offset()?;
            let start = backing.start();
            let used = |(place, size): &(RingPlace, u16)| {
                let at = start + place.used.0.checked_sub(mapped.guest())?;
                Some(at..at + used_ring_bytes(*size))
            };
            Some(FilePart {
                file: backing.file(),
                bytes: start..start + mapped.size(),
                written_by_us: queues.iter().filter_map(used).collect(),
            })
        })
    }

    fn add(&mut self, region: &Region, fd: OwnedFd) -> Result<(), RequestError> {
        if self.regions.len() == MAX_REGIONS {
            return Err(RequestError::TooManyRegions(MAX_REGIONS));
        }
        let refuse = |problem| RequestError::Region {
            guest: region.guest,
            size: region.size,
            problem,
        };
        if region.size == 0 {
            return Err(refuse("it is empty"));
        }
        let end = region.guest.checked_add(region.size);
        let file_end = region.offset.checked_add(region.size);
        let (Some(end), Some(_), Some(file_end)) =
            (end, region.user.checked_add(region.size), file_end)
        else {
            return Err(refuse("it reaches beyond the end of an address space"));
        };
        let at = self
            .regions
            .partition_point(|other| other.guest() < region.guest);
        let before = at.checked_sub(1).map(|before| &self.regions[before]);
        if before.is_some_and(|other| other.guest() + other.size() > region.guest)
            || self
                .regions
                .get(at)
                .is_some_and(|other| end > other.guest())
        {
            return Err(refuse("it overlaps another"));
        }
        let file = File::from(fd);
        check_file(&file, region, file_end).map_err(refuse)?;
        let size = usize::try_from(region.size).map_err(|_| refuse("it is too large"))?;
        let mapping = MmapRegion::from_file(FileOffset::new(file, region.offset), size).map_err(
            |source| RequestError::Map {
                guest: region.guest,
                size: region.size,
                source,
            },
        )?;
        exclude_from_dumps(&mapping.as_volatile_slice()).map_err(|source| RequestError::Dump {
            guest: region.guest,
            size: region.size,
            source,
        })?;
        let mapped = GuestRegionMmap::new(mapping, GuestAddress(region.guest))
            .ok_or_else(|| refuse("it reaches beyond the end of an address space"))?;
        self.regions.insert(
            at,
            Mapped {
                user: region.user,
                region: Arc::new(mapped),
            },
        );
        Ok(())
    }

    /// Translates queue `index` with `size` entries from the frontend's addresses.
    ///
    /// # Errors
    ///
    /// When a part of it is not wholly in one region or not aligned (VIRTIO 1.3, 2.7).
    pub fn translate(
        &self,
        index: u16,
        size: u16,
        addresses: &RingAddresses,
    ) -> Result<RingPlace, RequestError> {
        let entries = u64::from(size);
        let part = |part, address, length, alignment| {
            self.translate_range(address, length, alignment)
                .map_err(|problem| RequestError::RingAddress {
                    index,
                    part,
                    address,
                    problem,
                })
        };
        Ok(RingPlace {
            descriptors: part("descriptor table", addresses.descriptors, 16 * entries, 16)?,
            available: part("available ring", addresses.available, 6 + 2 * entries, 2)?,
            used: part("used ring", addresses.used, used_ring_bytes(size), 4)?,
        })
    }

    fn translate_range(
        &self,
        user: u64,
        length: u64,
        alignment: u64,
    ) -> Result<GuestAddress, &'static str> {
        let (mapped, offset) = self
            .find(user)
            .ok_or("outside the memory that the frontend shares")?;
        if length > mapped.size() - offset {
            return Err("only partly within a memory region");
        }
        let guest = mapped.guest() + offset;
        // A mapping starts on a page, so this is also the alignment in this process.
        if !offset.is_multiple_of(alignment) || !guest.is_multiple_of(alignment) {
            return Err("misaligned");
        }
        Ok(GuestAddress(guest))
    }
}

/// Bytes of a used ring (VIRTIO 1.3, 2.7), with the event index.
fn used_ring_bytes(size: u16) -> u64 {
    6 + 8 * u64::from(size)
}

/// Checks that a region can be mapped from its file, and read and written then.
fn check_file(file: &File, region: &Region, end: u64) -> Result<(), &'static str> {
    let stat = fstat(file).map_err(|_| "its file cannot be examined")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("it is no file in memory: the guest's memory must be shared");
    }
    if u64::try_from(stat.st_size).unwrap_or(0) < end {
        return Err("it reaches beyond the end of its file");
    }
    let filesystem = fstatfs(file).map_err(|_| "its file cannot be examined")?;
    let page = if filesystem.f_type == HUGETLBFS_MAGIC {
        u64::try_from(filesystem.f_bsize).unwrap_or(0)
    } else {
        rustix::param::page_size() as u64
    };
    if page == 0 || !region.offset.is_multiple_of(page) {
        return Err("it does not start on a page of its file");
    }
    // munmap(2) of a part of a huge page fails.
    if filesystem.f_type == HUGETLBFS_MAGIC && !region.size.is_multiple_of(page) {
        return Err("it is no multiple of its huge pages");
    }
    Ok(())
}
