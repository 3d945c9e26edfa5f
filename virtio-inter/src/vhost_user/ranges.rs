//! Ranges of memory and files as the frontend describes them, unchecked.

use vhost::vhost_user::message::VhostUserMemoryRegion;

/// A region of guest memory as the frontend describes it, unchecked.
#[derive(Debug)]
pub struct Region {
    /// Guest physical address.
    pub guest: u64,
    /// Size in bytes.
    pub size: u64,
    /// Address in the frontend's process.
    pub user: u64,
    /// Offset in its file, in bytes.
    pub offset: u64,
}

/// The parts of a ring, as addresses in the frontend's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
}

/// The place of a dirty log in its file, unchecked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirtyLogArea {
    /// Size in bytes.
    pub size: u64,
    /// Offset in its file, in bytes.
    pub offset: u64,
}

impl From<&VhostUserMemoryRegion> for Region {
    fn from(region: &VhostUserMemoryRegion) -> Self {
        Self {
            guest: region.guest_phys_addr,
            size: region.memory_size,
            user: region.user_addr,
            offset: region.mmap_offset,
        }
    }
}
