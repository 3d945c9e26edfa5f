//! Encodes replies.

use vhost::vhost_user::message::{FrontendReq, VhostUserVringState};
use vm_memory::ByteValued;

use super::ranges::DirtyLogArea;

/// The reply to a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// No reply of its own: only an acknowledgement, if the frontend asked for one.
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
    /// SET_LOG_BASE: the area of the request. The `vhost` crate requires that, QEMU ignores it.
    Log(DirtyLogArea),
    /// GET_CONFIG: the range of the request, then the bytes.
    Config {
        /// First byte of the configuration space.
        offset: u32,
        /// As in the request.
        flags: u32,
        /// The bytes from `offset` on.
        bytes: Vec<u8>,
    },
}

impl Reply {
    /// The payload; `None` when the request has no reply of its own.
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
                // As many bytes as the request has, which fits.
                let size = bytes.len() as u32;
                let header = [*offset, size, *flags]
                    .into_iter()
                    .flat_map(u32::to_ne_bytes);
                Some(header.chain(bytes.iter().copied()).collect())
            }
        }
    }
}

/// Whether a request has a reply of its own. The port must not send an acknowledgement in its
/// place, which the frontend would interpret as that reply. Requests of protocol features that the
/// port does not offer are included.
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

/// The payload of an acknowledgement (REPLY_ACK): 0 for success, other values for failure.
pub(crate) fn acknowledgement(status: u64) -> Vec<u8> {
    status.to_ne_bytes().to_vec()
}
