//! Decoding: a message's bytes and descriptors into one request, its size and fields checked.
//!
//! Whatever is wrong here is wrong in itself; whether a request fits the state of the session is for
//! [`super::session`] to say. Descriptors that do not end up in a request are closed with the message.

use std::os::fd::OwnedFd;

use vhost::vhost_user::message::FrontendReq;

use super::connection::Message;
use super::dirty_log::LOG_ALL;
use super::error::Malformed;
use parts::Parts;

mod parts;

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
    /// SEND_RARP: the address to be announced.
    SendRarp([u8; 6]),
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
            FrontendReq::SEND_RARP => {
                // The first six of eight bytes as they lie in memory.
                let [a, b, c, d, e, f, ..] = parts.number()?.to_ne_bytes();
                Self::SendRarp([a, b, c, d, e, f])
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
    /// Whether it only asks, or says how to answer.
    pub fn is_question(&self) -> bool {
        matches!(
            self,
            Self::GetFeatures
                | Self::GetProtocolFeatures
                | Self::SetProtocolFeatures(_)
                | Self::GetMaxMemSlots
                | Self::GetQueueNum
                | Self::GetConfig { .. }
                | Self::GetVringBase { .. }
        )
    }

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
            | Self::SendRarp(_)
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
