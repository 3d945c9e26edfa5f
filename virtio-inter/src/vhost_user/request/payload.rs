//! Reads a message's payload as structures and numbers, and takes its descriptors, with checks.

use std::os::fd::OwnedFd;

use vhost::vhost_user::message::{
    VHOST_USER_CONFIG_SIZE, VhostUserConfig, VhostUserConfigFlags, VhostUserLog, VhostUserMemory,
    VhostUserMemoryRegion, VhostUserSingleMemoryRegion, VhostUserU64, VhostUserVringAddr,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vm_memory::ByteValued;

use crate::vhost_user::connection::Message;
use crate::vhost_user::error::MessageError;
use crate::vhost_user::ranges::{DirtyLogArea, Region, RingAddresses};

/// Bits of SET_VRING_KICK, CALL and ERR that contain the queue's index.
const VRING_INDEX_MASK: u64 = 0xff;
/// VHOST_USER_VRING_NOFD_MASK: SET_VRING_KICK, CALL or ERR comes without a descriptor.
const VRING_NO_FD: u64 = 0x100;

/// A message of a known type.
pub(super) struct Payload(pub(super) Message);

impl Payload {
    fn bad_size(&self) -> MessageError {
        MessageError::Size {
            code: self.0.code,
            size: self.0.body.len(),
        }
    }

    pub(super) fn bad_fds(&self, expected: usize) -> MessageError {
        MessageError::Fds {
            code: self.0.code,
            got: self.0.fds.len(),
            expected,
        }
    }

    pub(super) fn bad_field(&self, field: &'static str, value: u64) -> MessageError {
        MessageError::Field {
            code: self.0.code,
            field,
            value,
        }
    }

    pub(super) fn check_size(&self, size: usize) -> Result<(), MessageError> {
        if self.0.body.len() == size {
            Ok(())
        } else {
            Err(self.bad_size())
        }
    }

    fn check_fds(&self, count: usize) -> Result<(), MessageError> {
        if self.0.fds.len() == count {
            Ok(())
        } else {
            Err(self.bad_fds(count))
        }
    }

    /// The structure at `offset` of the payload.
    fn structure<T: ByteValued + Default>(&self, offset: usize) -> Result<T, MessageError> {
        let mut value = T::default();
        let bytes = self
            .0
            .body
            .get(offset..)
            .and_then(|rest| rest.get(..size_of::<T>()));
        value
            .as_mut_slice()
            .copy_from_slice(bytes.ok_or_else(|| self.bad_size())?);
        Ok(value)
    }

    /// A payload that is exactly one structure, without descriptors.
    fn only<T: ByteValued + Default>(&self) -> Result<T, MessageError> {
        self.check_fds(0)?;
        self.check_size(size_of::<T>())?;
        self.structure(0)
    }

    /// Checks that the message has neither payload nor descriptors. Returns `request`.
    pub(super) fn empty<T>(&self, request: T) -> Result<T, MessageError> {
        self.check_fds(0)?;
        self.check_size(0)?;
        Ok(request)
    }

    pub(super) fn number(&self) -> Result<u64, MessageError> {
        Ok(self.only::<VhostUserU64>()?.value)
    }

    pub(super) fn vring_state(&self) -> Result<VhostUserVringState, MessageError> {
        self.only()
    }

    pub(super) fn vring_addr(&self) -> Result<(u32, RingAddresses), MessageError> {
        let address: VhostUserVringAddr = self.only()?;
        let flags = address.flags;
        if flags & !VhostUserVringAddrFlags::all().bits() != 0 {
            return Err(self.bad_field("flags", flags.into()));
        }
        let addresses = RingAddresses {
            descriptors: address.descriptor,
            available: address.available,
            used: address.used,
        };
        Ok((address.index, addresses))
    }

    /// A log without a file would be an address in the frontend's process, which is not usable
    /// here.
    pub(super) fn log_base(self) -> Result<Option<(DirtyLogArea, OwnedFd)>, MessageError> {
        if self.0.fds.is_empty() {
            return Ok(None);
        }
        self.check_size(size_of::<VhostUserLog>())?;
        let log: VhostUserLog = self.structure(0)?;
        let area = DirtyLogArea {
            size: log.mmap_size,
            offset: log.mmap_offset,
        };
        Ok(Some((area, self.one_fd()?)))
    }

    pub(super) fn one_fd(mut self) -> Result<OwnedFd, MessageError> {
        self.check_fds(1)?;
        self.0.fds.pop().ok_or_else(|| self.bad_fds(1))
    }

    /// The queue's index, and the descriptor unless NOFD is set.
    pub(super) fn vring_fd(self) -> Result<(u32, Option<OwnedFd>), MessageError> {
        self.check_size(size_of::<u64>())?;
        let value = self.structure::<VhostUserU64>(0)?.value;
        if value & !(VRING_INDEX_MASK | VRING_NO_FD) != 0 {
            return Err(self.bad_field("index", value));
        }
        // Masked to eight bits.
        let index = (value & VRING_INDEX_MASK) as u32;
        if value & VRING_NO_FD != 0 {
            self.check_fds(0)?;
            return Ok((index, None));
        }
        Ok((index, Some(self.one_fd()?)))
    }

    /// User Mode Linux always sends two slots, even if it uses one: whole slots beyond the count
    /// are ignored.
    pub(super) fn memory_table(mut self) -> Result<Vec<(Region, OwnedFd)>, MessageError> {
        const REGION: usize = size_of::<VhostUserMemoryRegion>();
        let header: VhostUserMemory = self.structure(0)?;
        let slots = self.0.body.len() - size_of::<VhostUserMemory>();
        let count = header.num_regions as usize;
        if !slots.is_multiple_of(REGION) || slots / REGION < count {
            return Err(self.bad_size());
        }
        self.check_fds(count)?;
        let regions = (0..count)
            .map(|slot| {
                let at = size_of::<VhostUserMemory>() + slot * REGION;
                Ok(Region::from(&self.structure::<VhostUserMemoryRegion>(at)?))
            })
            .collect::<Result<Vec<_>, MessageError>>()?;
        Ok(regions.into_iter().zip(self.0.fds.drain(..)).collect())
    }

    pub(super) fn single_region(&self) -> Result<Region, MessageError> {
        self.check_size(size_of::<VhostUserSingleMemoryRegion>())?;
        Ok(Region::from(
            &*self.structure::<VhostUserSingleMemoryRegion>(0)?,
        ))
    }

    /// The header of GET_CONFIG or SET_CONFIG, and the number of bytes after it.
    fn config_header(&self) -> Result<(VhostUserConfig, usize), MessageError> {
        self.check_fds(0)?;
        let config: VhostUserConfig = self.structure(0)?;
        let (offset, size, flags) = (config.offset, config.size, config.flags);
        if size == 0
            || offset
                .checked_add(size)
                .is_none_or(|end| end > VHOST_USER_CONFIG_SIZE)
        {
            return Err(self.bad_field("size", size.into()));
        }
        if flags & !VhostUserConfigFlags::all().bits() != 0 {
            return Err(self.bad_field("flags", flags.into()));
        }
        Ok((config, self.0.body.len() - size_of::<VhostUserConfig>()))
    }

    pub(super) fn get_config(&self) -> Result<VhostUserConfig, MessageError> {
        let (config, payload) = self.config_header()?;
        // The payload of the request has no meaning; some frontends leave it out.
        if payload != 0 && payload != config.size as usize {
            return Err(self.bad_size());
        }
        Ok(config)
    }

    pub(super) fn set_config(mut self) -> Result<(u32, Vec<u8>), MessageError> {
        let (config, payload) = self.config_header()?;
        if payload != config.size as usize {
            return Err(self.bad_size());
        }
        let bytes = self.0.body.split_off(size_of::<VhostUserConfig>());
        Ok((config.offset, bytes))
    }
}
