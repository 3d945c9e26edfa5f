//! Decodes a message's bytes and descriptors to a request, and checks its size and fields.
//!
//! These checks do not depend on the state of the session; [`super::session`] checks whether a
//! request fits that. Descriptors that do not become part of a request are closed with the message.

use std::os::fd::OwnedFd;

use vhost::vhost_user::message::FrontendReq;

use super::connection::Message;
use super::error::MessageError;
use super::ranges::{DirtyLogArea, Region, RingAddresses};
use payload::Payload;

mod payload;

/// A request, decoded from a valid message.
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
        /// Its addresses.
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
        /// `None`: the backend must poll the queue.
        fd: Option<OwnedFd>,
    },
    /// SET_VRING_CALL.
    SetVringCall {
        /// The queue.
        index: u32,
        /// `None`: no interrupts.
        fd: Option<OwnedFd>,
    },
    /// SET_VRING_ERR.
    SetVringErr {
        /// The queue.
        index: u32,
        /// `None`: no error notifications.
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
        /// The bytes that the driver wrote.
        bytes: Vec<u8>,
    },
    /// NET_SET_MTU, in bytes.
    SetMtu(u64),
    /// SEND_RARP: the address to announce.
    SendRarp([u8; 6]),
    /// SET_BACKEND_REQ_FD.
    SetBackendReqFd(OwnedFd),
    /// SET_LOG_BASE with a file.
    SetLogBase(DirtyLogArea, OwnedFd),
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
    pub fn decode(message: Message) -> Result<Self, MessageError> {
        let Ok(code) = FrontendReq::try_from(message.code) else {
            return Ok(Self::Other(message.code));
        };
        let payload = Payload(message);
        Ok(match code {
            FrontendReq::GET_FEATURES => payload.empty(Self::GetFeatures)?,
            FrontendReq::GET_PROTOCOL_FEATURES => payload.empty(Self::GetProtocolFeatures)?,
            FrontendReq::SET_OWNER => payload.empty(Self::SetOwner)?,
            FrontendReq::RESET_OWNER => payload.empty(Self::ResetOwner)?,
            FrontendReq::RESET_DEVICE => payload.empty(Self::ResetDevice)?,
            FrontendReq::GET_MAX_MEM_SLOTS => payload.empty(Self::GetMaxMemSlots)?,
            FrontendReq::GET_QUEUE_NUM => payload.empty(Self::GetQueueNum)?,
            FrontendReq::SET_FEATURES => Self::SetFeatures(payload.number()?),
            FrontendReq::SET_PROTOCOL_FEATURES => Self::SetProtocolFeatures(payload.number()?),
            FrontendReq::NET_SET_MTU => Self::SetMtu(payload.number()?),
            FrontendReq::SET_MEM_TABLE => Self::SetMemTable(payload.memory_table()?),
            FrontendReq::ADD_MEM_REG => {
                let region = payload.single_region()?;
                Self::AddMemReg(region, payload.one_fd()?)
            }
            FrontendReq::SEND_RARP => {
                // The first six of eight bytes as they lie in memory.
                let [a, b, c, d, e, f, ..] = payload.number()?.to_ne_bytes();
                Self::SendRarp([a, b, c, d, e, f])
            }
            FrontendReq::REM_MEM_REG => {
                // The specification lets a frontend pass one descriptor, which is closed unused.
                if payload.0.fds.len() > 1 {
                    return Err(payload.bad_fds(0));
                }
                Self::RemMemReg(payload.single_region()?)
            }
            FrontendReq::SET_VRING_NUM => {
                let state = payload.vring_state()?;
                Self::SetVringNum {
                    index: state.index,
                    size: state.num,
                }
            }
            FrontendReq::SET_VRING_BASE => {
                let state = payload.vring_state()?;
                let base = u16::try_from(state.num)
                    .map_err(|_| payload.bad_field("base", state.num.into()))?;
                Self::SetVringBase {
                    index: state.index,
                    base,
                }
            }
            FrontendReq::GET_VRING_BASE => Self::GetVringBase {
                index: payload.vring_state()?.index,
            },
            FrontendReq::SET_VRING_ENABLE => {
                let state = payload.vring_state()?;
                if state.num > 1 {
                    return Err(payload.bad_field("state", state.num.into()));
                }
                Self::SetVringEnable {
                    index: state.index,
                    enabled: state.num == 1,
                }
            }
            FrontendReq::SET_VRING_ADDR => {
                let (index, addresses) = payload.vring_addr()?;
                Self::SetVringAddr { index, addresses }
            }
            FrontendReq::SET_VRING_KICK => {
                let (index, fd) = payload.vring_fd()?;
                Self::SetVringKick { index, fd }
            }
            FrontendReq::SET_VRING_CALL => {
                let (index, fd) = payload.vring_fd()?;
                Self::SetVringCall { index, fd }
            }
            FrontendReq::SET_VRING_ERR => {
                let (index, fd) = payload.vring_fd()?;
                Self::SetVringErr { index, fd }
            }
            FrontendReq::GET_CONFIG => {
                let config = payload.get_config()?;
                Self::GetConfig {
                    offset: config.offset,
                    size: config.size,
                    flags: config.flags,
                }
            }
            FrontendReq::SET_CONFIG => {
                let (offset, bytes) = payload.set_config()?;
                Self::SetConfig { offset, bytes }
            }
            FrontendReq::SET_BACKEND_REQ_FD => {
                payload.check_size(0)?;
                Self::SetBackendReqFd(payload.one_fd()?)
            }
            FrontendReq::SET_LOG_BASE => match payload.log_base()? {
                Some((area, fd)) => Self::SetLogBase(area, fd),
                None => Self::Other(code.into()),
            },
            FrontendReq::SET_LOG_FD => {
                payload.check_size(0)?;
                Self::SetLogFd(payload.one_fd()?)
            }
            _ => Self::Other(payload.0.code),
        })
    }
}

impl Request {
    /// Whether it only asks for a value, or negotiates the format of replies.
    pub fn is_query(&self) -> bool {
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
}
