//! Replies, as bytes.

use vhost::vhost_user::message::{FrontendReq, VhostUserVringState};
use vm_memory::ByteValued;

use super::request::LogArea;

/// What a request is answered with.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing of its own: an acknowledgement, if one was asked for.
    Done,
    /// A number.
    Number(u64),
    /// GET_VRING_BASE.
    VringBase {
        /// The queue.
        index: u32,
        /// The next available index to process.
        base: u16,
    },
    /// SET_LOG_BASE: what was asked for. Rust's `vhost` wants it so, QEMU does not look.
    Log(LogArea),
    /// GET_CONFIG: what was asked for, then the bytes.
    Config {
        /// First byte of the configuration space.
        offset: u32,
        /// As in the request.
        flags: u32,
        /// The bytes from there.
        bytes: Vec<u8>,
    },
}

impl Reply {
    /// The payload, None when the request has no reply of its own.
    pub fn payload(&self) -> Option<Vec<u8>> {
        match self {
            Self::Done => None,
            Self::Number(number) => Some(acknowledgement(*number)),
            Self::VringBase { index, base } => Some(
                VhostUserVringState::new(*index, (*base).into())
                    .as_slice()
                    .to_vec(),
            ),
            Self::Log(area) => Some(
                [area.size, area.offset]
                    .into_iter()
                    .flat_map(u64::to_ne_bytes)
                    .collect(),
            ),
            Self::Config {
                offset,
                flags,
                bytes,
            } => {
                // As long as the request said, which fits.
                let size = bytes.len() as u32;
                let header = [*offset, size, *flags]
                    .into_iter()
                    .flat_map(u32::to_ne_bytes);
                Some(header.chain(bytes.iter().copied()).collect())
            }
        }
    }
}

/// Whether a request has a reply of its own, in whose place no acknowledgement may come: the frontend would
/// take it for the answer. Those that only a protocol feature brings which is not offered are among them.
pub(crate) fn has_own_reply(code: u32) -> bool {
    matches!(
        FrontendReq::try_from(code),
        Ok(FrontendReq::GET_FEATURES
            | FrontendReq::GET_PROTOCOL_FEATURES
            | FrontendReq::GET_VRING_BASE
            | FrontendReq::SET_LOG_BASE
            | FrontendReq::GET_QUEUE_NUM
            | FrontendReq::GET_CONFIG
            | FrontendReq::CREATE_CRYPTO_SESSION
            | FrontendReq::POSTCOPY_ADVISE
            | FrontendReq::POSTCOPY_END
            | FrontendReq::GET_INFLIGHT_FD
            | FrontendReq::GET_MAX_MEM_SLOTS
            | FrontendReq::GET_STATUS
            | FrontendReq::GET_SHARED_OBJECT
            | FrontendReq::SET_DEVICE_STATE_FD
            | FrontendReq::CHECK_DEVICE_STATE
            | FrontendReq::GET_SHMEM_CONFIG)
    )
}

/// The payload of REPLY_ACK: 0 for done, anything else for refused.
pub(crate) fn acknowledgement(status: u64) -> Vec<u8> {
    status.to_ne_bytes().to_vec()
}
