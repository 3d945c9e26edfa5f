//! Dispatch: for each request, whether it needs the device, and how a session handles it.

use std::fmt;
use std::sync::Arc;

use log::Level;
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures as Protocol};
use virtio_inter_common::log_limited;
use virtio_inter_device::Device;

use super::{ADDED_FEATURES, CHANGES, OFFERED, Session};
use crate::vhost_user::dirty_log::{self, LOG_ALL};
use crate::vhost_user::error::RequestError;
use crate::vhost_user::memory_table::{MAX_REGIONS, MemoryTable};
use crate::vhost_user::reply::Reply;
use crate::vhost_user::request::Request;
use crate::vhost_user::vring::Vring;

/// Smallest MTU that a frontend may set, in bytes.
const MIN_MTU: u64 = 68;

/// Whether the session must have the device for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NeedsDevice {
    /// Also a frontend without the device may send the request.
    Never,
    /// If the frontend has shared memory, since a queue may start or change.
    WithMemory,
    /// The request changes the memory that the device uses.
    Always,
}

use NeedsDevice::{Always, Never, WithMemory};

type Handler = Box<dyn FnOnce(&mut Session, &mut dyn Device) -> Result<Reply, RequestError> + Send>;

/// The handling of one request.
pub struct Action {
    needs: NeedsDevice,
    handler: Handler,
}

impl fmt::Debug for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Action")
            .field("needs", &self.needs)
            .finish_non_exhaustive()
    }
}

/// An action whose request has a reply of its own, or an error.
fn reply<F>(needs: NeedsDevice, handler: F) -> Action
where
    F: FnOnce(&mut Session, &mut dyn Device) -> Result<Reply, RequestError> + Send + 'static,
{
    Action {
        needs,
        handler: Box::new(handler),
    }
}

/// An action whose request has no reply but an acknowledgement.
fn done<F>(needs: NeedsDevice, handler: F) -> Action
where
    F: FnOnce(&mut Session, &mut dyn Device) -> Result<(), RequestError> + Send + 'static,
{
    reply(needs, |session, device| {
        handler(session, device).map(|()| Reply::Done)
    })
}

impl From<Request> for Action {
    fn from(request: Request) -> Self {
        match request {
            Request::GetFeatures => reply(Never, |_, device| {
                Ok(Reply::Number(device.features() | ADDED_FEATURES))
            }),
            Request::SetFeatures(bits) => {
                let needs = if bits & LOG_ALL != 0 {
                    Always
                } else {
                    WithMemory
                };
                done(needs, move |session, device| {
                    session.set_features(bits, device)
                })
            }
            Request::GetProtocolFeatures => reply(Never, |_, _| Ok(Reply::Number(OFFERED.bits()))),
            Request::SetProtocolFeatures(bits) => done(Never, move |session, _| {
                session.protocol = Protocol::from_bits(bits)
                    .filter(|protocol| OFFERED.contains(*protocol))
                    .ok_or(RequestError::ProtocolFeatures(bits & !OFFERED.bits()))?;
                Ok(())
            }),
            Request::SetOwner => done(Never, |_, _| Ok(())),
            Request::ResetOwner => done(WithMemory, |session, device| {
                session.resumed_queues = 0;
                session.stop_all(device)
            }),
            Request::ResetDevice => done(WithMemory, |session, device| {
                session.resumed_queues = 0;
                session.stop_all(device)?;
                session.features = None;
                session.vrings.fill_with(Vring::default);
                Ok(())
            }),
            Request::GetMaxMemSlots => reply(Never, |_, _| Ok(Reply::Number(MAX_REGIONS as u64))),
            Request::SetMemTable(regions) => done(Always, |session, device| {
                session.set_memory(MemoryTable::new(regions)?, device)
            }),
            Request::AddMemReg(region, fd) => done(Always, move |session, device| {
                session.set_memory(session.memory.with(&region, fd)?, device)
            }),
            Request::RemMemReg(region) => done(Always, move |session, device| {
                session.set_memory(session.memory.without(&region)?, device)
            }),
            Request::SetLogBase(area, fd) => reply(Always, move |session, device| {
                if !session.protocol.contains(Protocol::LOG_SHMFD) {
                    return Err(RequestError::Unsupported(FrontendReq::SET_LOG_BASE.into()));
                }
                let log = Arc::new(dirty_log::map(area, fd)?);
                session.set_log(Some(log), session.logs_all, device)?;
                Ok(Reply::Log(area))
            }),
            // The descriptor is closed: see `dirty_log`.
            Request::SetLogFd(_) => done(Never, |_, _| Ok(())),
            // The specification says "queues". Cloud Hypervisor and User Mode Linux compare with
            // queues, QEMU with pairs; QEMU gets an error when it names a queue beyond the limit.
            Request::GetQueueNum => reply(Never, |session, _| {
                Ok(Reply::Number(session.vrings.len() as u64))
            }),
            Request::SetVringNum { index, size } => done(WithMemory, move |session, device| {
                session.set_size(index, size, device)
            }),
            Request::SetVringAddr { index, addresses } => {
                done(WithMemory, move |session, device| {
                    session.set_addresses(index, addresses, device)
                })
            }
            Request::SetVringBase { index, base } => done(WithMemory, move |session, device| {
                session.set_base(index, base, device)
            }),
            // Without the device none of the session's queues runs.
            Request::GetVringBase { index } => reply(Never, move |session, device| {
                session.get_base(index, device)
            }),
            Request::SetVringKick { index, fd } => done(WithMemory, move |session, device| {
                session.set_kick(index, fd, device)
            }),
            Request::SetVringCall { index, fd } => done(WithMemory, move |session, device| {
                session.set_call(index, fd, device)
            }),
            Request::SetVringErr { index, fd } => done(WithMemory, move |session, _| {
                session.vring(index)?.1.error = fd;
                Ok(())
            }),
            Request::SetVringEnable { index, enabled } => {
                done(WithMemory, move |session, device| {
                    let (index, _) = session.vring(index)?;
                    session.change(index, |vring| &mut vring.enabled, enabled, device)
                })
            }
            Request::GetConfig {
                offset,
                size,
                flags,
            } => reply(Never, move |_, device| {
                Ok(config(device.config(), offset, size, flags))
            }),
            // The segment assigns the address, not the driver; nothing else is writable.
            Request::SetConfig { .. } => done(Never, |_, _| Err(RequestError::ReadOnly)),
            Request::SetMtu(mtu) => done(Never, move |session, _| {
                let max = session.limits.mtu;
                if (MIN_MTU..=max.into()).contains(&mtu) {
                    return Ok(());
                }
                Err(RequestError::Mtu { asked: mtu, max })
            }),
            Request::SendRarp(address) => done(Never, move |_, device| announce(address, device)),
            Request::SetBackendReqFd(fd) => done(Never, |session, _| {
                session.backend_requests = Some(fd);
                Ok(())
            }),
            Request::Other(code) => done(Never, move |_, _| Err(RequestError::Unsupported(code))),
        }
    }
}

impl Session {
    /// Whether the session must have the device for an action.
    pub fn needs_device_for(&self, action: &Action) -> bool {
        match action.needs {
            Never => false,
            WithMemory => !self.memory.is_empty(),
            Always => true,
        }
    }

    /// Handles a request.
    ///
    /// # Errors
    ///
    /// When the request failed. The session is then in its former state, unless the device failed
    /// to stop.
    pub fn handle(
        &mut self,
        action: Action,
        device: &mut dyn Device,
    ) -> Result<Reply, RequestError> {
        (action.handler)(self, device)
    }
}

/// Announces the guest's address on the segment after a migration, for a guest that does not do so
/// itself (GUEST_ANNOUNCE).
///
/// Ports know the address from the handshake. But a bridge in a peer's guest learns addresses from
/// frames.
fn announce(asked: [u8; 6], device: &mut dyn Device) -> Result<(), RequestError> {
    let own = device.config().first_chunk().copied().unwrap_or_default();
    if asked != own {
        return Err(RequestError::Address { asked, own });
    }
    let peers = device.announce()?;
    log_limited!(
        CHANGES,
        Level::Info,
        "Announced the guest's address to {peers} peer(s), as the frontend asked"
    );
    Ok(())
}

/// The reply to GET_CONFIG: exactly as many bytes as requested, zeros beyond the device's own.
fn config(space: &[u8], offset: u32, size: u32, flags: u32) -> Reply {
    let mut bytes: Vec<u8> = space
        .iter()
        .skip(offset as usize)
        .take(size as usize)
        .copied()
        .collect();
    bytes.resize(size as usize, 0);
    Reply::Config {
        offset,
        flags,
        bytes,
    }
}
