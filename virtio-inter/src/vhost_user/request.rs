//! Decoding: a message's bytes and descriptors into one request, its size and fields checked.
//!
//! Whatever is wrong here is wrong in itself; whether a request fits the state of the session is for
//! [`super::session`] to say. Descriptors that do not end up in a request are closed with the message.

use std::os::fd::OwnedFd;

use vhost::vhost_user::message::{
    FrontendReq, VHOST_USER_CONFIG_SIZE, VhostUserConfig, VhostUserConfigFlags, VhostUserLog,
    VhostUserMemory, VhostUserMemoryRegion, VhostUserSingleMemoryRegion, VhostUserU64,
    VhostUserVringAddr, VhostUserVringAddrFlags, VhostUserVringState,
};
use vm_memory::ByteValued;

use super::connection::Message;
use super::dirty_log::LOG_ALL;
use super::error::Malformed;

/// Bits of SET_VRING_KICK, CALL and ERR that hold the queue's index.
const VRING_INDEX_MASK: u64 = 0xff;
/// The bit of SET_VRING_KICK, CALL and ERR that says that no descriptor comes along.
const VRING_NO_FD: u64 = 0x100;

/// A piece of guest memory as the frontend describes it; nothing is checked yet.
#[derive(Debug)]
pub struct Region {
    /// Guest physical address.
    pub guest: u64,
    /// Size in bytes.
    pub size: u64,
    /// The frontend's own address of it.
    pub user: u64,
    /// Where it starts in its file, in bytes.
    pub offset: u64,
}

/// Where the frontend says that a ring lies, in its own addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
}

/// Where the log of what the device writes lies in its file; nothing is checked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogArea {
    /// Size in bytes.
    pub size: u64,
    /// Where it starts in its file, in bytes.
    pub offset: u64,
}

/// A request that came in one well-formed message.
#[derive(Debug)]
pub enum Request {
    /// GET_FEATURES.
    GetFeatures,
    /// SET_FEATURES.
    SetFeatures(u64),
    /// GET_PROTOCOL_FEATURES.
    GetProtocolFeatures,
    /// SET_PROTOCOL_FEATURES.
    SetProtocolFeatures(u64),
    /// SET_OWNER.
    SetOwner,
    /// RESET_OWNER.
    ResetOwner,
    /// RESET_DEVICE.
    ResetDevice,
    /// SET_MEM_TABLE, the descriptors in the order of the regions.
    SetMemTable(Vec<(Region, OwnedFd)>),
    /// GET_MAX_MEM_SLOTS.
    GetMaxMemSlots,
    /// ADD_MEM_REG.
    AddMemReg(Region, OwnedFd),
    /// REM_MEM_REG.
    RemMemReg(Region),
    /// SET_VRING_NUM.
    SetVringNum {
        /// The queue.
        index: u32,
        /// Its number of entries.
        size: u32,
    },
    /// SET_VRING_ADDR.
    SetVringAddr {
        /// The queue.
        index: u32,
        /// Where it lies.
        addresses: RingAddresses,
    },
    /// SET_VRING_BASE.
    SetVringBase {
        /// The queue.
        index: u32,
        /// The next available index to process.
        base: u16,
    },
    /// GET_VRING_BASE.
    GetVringBase {
        /// The queue.
        index: u32,
    },
    /// SET_VRING_KICK.
    SetVringKick {
        /// The queue.
        index: u32,
        /// None: the queue is to be polled.
        fd: Option<OwnedFd>,
    },
    /// SET_VRING_CALL.
    SetVringCall {
        /// The queue.
        index: u32,
        /// None: no interrupts.
        fd: Option<OwnedFd>,
    },
    /// SET_VRING_ERR.
    SetVringErr {
        /// The queue.
        index: u32,
        /// None: do not tell.
        fd: Option<OwnedFd>,
    },
    /// SET_VRING_ENABLE.
    SetVringEnable {
        /// The queue.
        index: u32,
        /// Whether it is to run.
        enabled: bool,
    },
    /// GET_QUEUE_NUM.
    GetQueueNum,
    /// GET_CONFIG.
    GetConfig {
        /// First byte of the configuration space.
        offset: u32,
        /// Number of bytes.
        size: u32,
        /// Echoed in the reply.
        flags: u32,
    },
    /// SET_CONFIG.
    SetConfig {
        /// First byte of the configuration space.
        offset: u32,
        /// What the driver wrote there.
        bytes: Vec<u8>,
    },
    /// NET_SET_MTU, in bytes.
    SetMtu(u64),
    /// SET_BACKEND_REQ_FD.
    SetBackendReqFd(OwnedFd),
    /// SET_LOG_BASE with a file.
    SetLogBase(LogArea, OwnedFd),
    /// SET_LOG_FD.
    SetLogFd(OwnedFd),
    /// Anything else, by its number.
    Other(u32),
}

impl Request {
    /// Decodes a message.
    ///
    /// # Errors
    ///
    /// When its size, its number of descriptors or a field is not as the specification has it.
    pub fn decode(message: Message) -> Result<Self, Malformed> {
        let Ok(code) = FrontendReq::try_from(message.code) else {
            return Ok(Self::Other(message.code));
        };
        let parts = Parts(message);
        Ok(match code {
            FrontendReq::GET_FEATURES => parts.nothing(Self::GetFeatures)?,
            FrontendReq::GET_PROTOCOL_FEATURES => parts.nothing(Self::GetProtocolFeatures)?,
            FrontendReq::SET_OWNER => parts.nothing(Self::SetOwner)?,
            FrontendReq::RESET_OWNER => parts.nothing(Self::ResetOwner)?,
            FrontendReq::RESET_DEVICE => parts.nothing(Self::ResetDevice)?,
            FrontendReq::GET_MAX_MEM_SLOTS => parts.nothing(Self::GetMaxMemSlots)?,
            FrontendReq::GET_QUEUE_NUM => parts.nothing(Self::GetQueueNum)?,
            FrontendReq::SET_FEATURES => Self::SetFeatures(parts.number()?),
            FrontendReq::SET_PROTOCOL_FEATURES => Self::SetProtocolFeatures(parts.number()?),
            FrontendReq::NET_SET_MTU => Self::SetMtu(parts.number()?),
            FrontendReq::SET_MEM_TABLE => Self::SetMemTable(parts.memory_table()?),
            FrontendReq::ADD_MEM_REG => {
                let region = parts.single_region()?;
                Self::AddMemReg(region, parts.one_fd()?)
            }
            FrontendReq::REM_MEM_REG => {
                // The specification lets a frontend pass one descriptor, which is closed unused.
                if parts.0.fds.len() > 1 {
                    return Err(parts.bad_fds(0));
                }
                Self::RemMemReg(parts.single_region()?)
            }
            FrontendReq::SET_VRING_NUM => {
                let state = parts.vring_state()?;
                Self::SetVringNum {
                    index: state.index,
                    size: state.num,
                }
            }
            FrontendReq::SET_VRING_BASE => {
                let state = parts.vring_state()?;
                let base = u16::try_from(state.num)
                    .map_err(|_| parts.bad_field("base", state.num.into()))?;
                Self::SetVringBase {
                    index: state.index,
                    base,
                }
            }
            FrontendReq::GET_VRING_BASE => Self::GetVringBase {
                index: parts.vring_state()?.index,
            },
            FrontendReq::SET_VRING_ENABLE => {
                let state = parts.vring_state()?;
                if state.num > 1 {
                    return Err(parts.bad_field("state", state.num.into()));
                }
                Self::SetVringEnable {
                    index: state.index,
                    enabled: state.num == 1,
                }
            }
            FrontendReq::SET_VRING_ADDR => parts.vring_addr()?,
            FrontendReq::SET_VRING_KICK => {
                let (index, fd) = parts.vring_fd()?;
                Self::SetVringKick { index, fd }
            }
            FrontendReq::SET_VRING_CALL => {
                let (index, fd) = parts.vring_fd()?;
                Self::SetVringCall { index, fd }
            }
            FrontendReq::SET_VRING_ERR => {
                let (index, fd) = parts.vring_fd()?;
                Self::SetVringErr { index, fd }
            }
            FrontendReq::GET_CONFIG => parts.get_config()?,
            FrontendReq::SET_CONFIG => parts.set_config()?,
            FrontendReq::SET_BACKEND_REQ_FD => {
                parts.check_size(0)?;
                Self::SetBackendReqFd(parts.one_fd()?)
            }
            FrontendReq::SET_LOG_BASE => parts.log_base()?,
            FrontendReq::SET_LOG_FD => {
                parts.check_size(0)?;
                Self::SetLogFd(parts.one_fd()?)
            }
            _ => Self::Other(parts.0.code),
        })
    }
}

impl Request {
    /// Whether carrying it out needs the device: a frontend that does not have it can ask for everything else.
    /// `has_memory`: the frontend has handed memory over before, so that a queue might start.
    pub fn needs_device(&self, has_memory: bool) -> bool {
        match self {
            Self::GetFeatures
            | Self::GetProtocolFeatures
            | Self::SetProtocolFeatures(_)
            | Self::SetOwner
            | Self::GetMaxMemSlots
            | Self::GetQueueNum
            | Self::GetConfig { .. }
            | Self::SetConfig { .. }
            | Self::SetMtu(_)
            | Self::SetBackendReqFd(_)
            | Self::SetLogFd(_)
            // None of its queues runs.
            | Self::GetVringBase { .. }
            | Self::Other(_) => false,
            Self::SetMemTable(_)
            | Self::AddMemReg(..)
            | Self::RemMemReg(_)
            | Self::SetLogBase(..) => true,
            Self::SetFeatures(bits) => has_memory || bits & LOG_ALL != 0,
            Self::ResetOwner
            | Self::ResetDevice
            | Self::SetVringNum { .. }
            | Self::SetVringAddr { .. }
            | Self::SetVringBase { .. }
            | Self::SetVringKick { .. }
            | Self::SetVringCall { .. }
            | Self::SetVringErr { .. }
            | Self::SetVringEnable { .. } => has_memory,
        }
    }
}

/// A message of a known type, to be taken apart.
struct Parts(Message);

impl Parts {
    fn bad_size(&self) -> Malformed {
        Malformed::Size {
            code: self.0.code,
            size: self.0.body.len(),
        }
    }

    fn bad_fds(&self, expected: usize) -> Malformed {
        Malformed::Fds {
            code: self.0.code,
            got: self.0.fds.len(),
            expected,
        }
    }

    fn bad_field(&self, field: &'static str, value: u64) -> Malformed {
        Malformed::Field {
            code: self.0.code,
            field,
            value,
        }
    }

    fn check_size(&self, size: usize) -> Result<(), Malformed> {
        if self.0.body.len() == size {
            Ok(())
        } else {
            Err(self.bad_size())
        }
    }

    fn check_fds(&self, count: usize) -> Result<(), Malformed> {
        if self.0.fds.len() == count {
            Ok(())
        } else {
            Err(self.bad_fds(count))
        }
    }

    /// The structure at `offset` of the payload.
    fn structure<T: ByteValued + Default>(&self, offset: usize) -> Result<T, Malformed> {
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
    fn only<T: ByteValued + Default>(&self) -> Result<T, Malformed> {
        self.check_fds(0)?;
        self.check_size(size_of::<T>())?;
        self.structure(0)
    }

    fn nothing(&self, request: Request) -> Result<Request, Malformed> {
        self.check_fds(0)?;
        self.check_size(0)?;
        Ok(request)
    }

    fn number(&self) -> Result<u64, Malformed> {
        Ok(self.only::<VhostUserU64>()?.value)
    }

    fn vring_state(&self) -> Result<VhostUserVringState, Malformed> {
        self.only()
    }

    fn vring_addr(&self) -> Result<Request, Malformed> {
        let address: VhostUserVringAddr = self.only()?;
        let flags = address.flags;
        if flags & !VhostUserVringAddrFlags::all().bits() != 0 {
            return Err(self.bad_field("flags", flags.into()));
        }
        Ok(Request::SetVringAddr {
            index: address.index,
            addresses: RingAddresses {
                descriptors: address.descriptor,
                available: address.available,
                used: address.used,
            },
        })
    }

    /// A log without a file would be an address of the frontend's, which means nothing here.
    fn log_base(self) -> Result<Request, Malformed> {
        if self.0.fds.is_empty() {
            return Ok(Request::Other(self.0.code));
        }
        self.check_size(size_of::<VhostUserLog>())?;
        let log: VhostUserLog = self.structure(0)?;
        let area = LogArea {
            size: log.mmap_size,
            offset: log.mmap_offset,
        };
        Ok(Request::SetLogBase(area, self.one_fd()?))
    }

    fn one_fd(mut self) -> Result<OwnedFd, Malformed> {
        self.check_fds(1)?;
        self.0.fds.pop().ok_or_else(|| self.bad_fds(1))
    }

    /// The queue's index, and the descriptor unless the flag says that there is none.
    fn vring_fd(self) -> Result<(u32, Option<OwnedFd>), Malformed> {
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

    /// User Mode Linux sends two slots however many it uses: whole slots beyond the count are passed over.
    fn memory_table(mut self) -> Result<Vec<(Region, OwnedFd)>, Malformed> {
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
                Ok(Region::new(&self.structure::<VhostUserMemoryRegion>(at)?))
            })
            .collect::<Result<Vec<_>, Malformed>>()?;
        Ok(regions.into_iter().zip(self.0.fds.drain(..)).collect())
    }

    fn single_region(&self) -> Result<Region, Malformed> {
        self.check_size(size_of::<VhostUserSingleMemoryRegion>())?;
        Ok(Region::new(
            &*self.structure::<VhostUserSingleMemoryRegion>(0)?,
        ))
    }

    /// The range, which is the frontend's, and how many bytes of payload follow it.
    fn config_header(&self) -> Result<(VhostUserConfig, usize), Malformed> {
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

    fn get_config(&self) -> Result<Request, Malformed> {
        let (config, payload) = self.config_header()?;
        // The payload of the request means nothing; some frontends leave it out.
        if payload != 0 && payload != config.size as usize {
            return Err(self.bad_size());
        }
        Ok(Request::GetConfig {
            offset: config.offset,
            size: config.size,
            flags: config.flags,
        })
    }

    fn set_config(mut self) -> Result<Request, Malformed> {
        let (config, payload) = self.config_header()?;
        if payload != config.size as usize {
            return Err(self.bad_size());
        }
        let bytes = self.0.body.split_off(size_of::<VhostUserConfig>());
        Ok(Request::SetConfig {
            offset: config.offset,
            bytes,
        })
    }
}

impl Region {
    fn new(region: &VhostUserMemoryRegion) -> Self {
        Self {
            guest: region.guest_phys_addr,
            size: region.memory_size,
            user: region.user_addr,
            offset: region.mmap_offset,
        }
    }
}
