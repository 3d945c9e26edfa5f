//! A tap device as a whole: it is attached here, queue by queue, and watched by name.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use libc::{EBUSY, EINVAL, EPERM, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_UP, IFF_VNET_HDR};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use thiserror::Error;

use super::queue::{TapReader, TapWriter};
use super::sys;
use crate::backend::interface::{UplinkDevice, UplinkQueue};
use crate::frame::NET_HEADER;

/// Why a tap device cannot be used.
#[derive(Debug, Error)]
pub enum TapError {
    /// There is no interface of that name.
    #[error("No tap device {0}: create it first, as by 'ip tuntap add dev {0} mode tap'")]
    Missing(String),
    /// The interface is something else.
    #[error("{0} is no tap device")]
    NotTap(String),
    /// It belongs to another user.
    #[error(
        "Tap device {0} may not be opened by this user: create it with 'user NAME' or 'group \
         NAME' (ip tuntap), or hand over a descriptor (tap-fd=)"
    )]
    NotAllowed(String),
    /// Another process has its queue.
    #[error("Tap device {0} is in use by another process")]
    Busy(String),
    /// It has one queue only.
    #[error(
        "Tap device {name} has 1 queue, which is less than {wanted} queue pairs: create it with \
         'multi_queue' (ip tuntap), or use --queues 1"
    )]
    OneQueue {
        /// The device.
        name: String,
        /// Number of queues wanted.
        wanted: u16,
    },
    /// Descriptors for another number of queues.
    #[error(
        "{given} descriptor(s) of a tap device do not fit {wanted} queue pair(s): one is needed \
         for each"
    )]
    Count {
        /// Number of descriptors.
        given: usize,
        /// Number of queues wanted.
        wanted: u16,
    },
    /// A descriptor of something else.
    #[error("Descriptor {0} of tap-fd= is not attached to a tap device")]
    NotTapFd(usize),
    /// It was attached without net headers.
    #[error(
        "Tap device {0} was attached without virtio net headers: its opener has to set \
         IFF_VNET_HDR"
    )]
    NoNetHeader(String),
    /// Descriptors of several devices.
    #[error("The descriptors of tap-fd= belong to two tap devices, {0} and {1}")]
    TwoDevices(String, String),
    /// A system call failed.
    #[error("Cannot {action} tap device {name}")]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The device.
        name: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// The state of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapState {
    /// It is up.
    pub up: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// A tap device, attached by some of its queues.
#[derive(Debug)]
pub struct TapDevice {
    name: String,
    queues: Vec<UplinkQueue<TapDevice>>,
}

impl TapDevice {
    /// Attaches `queues` queues of the device with this name. The device stays as it is configured.
    ///
    /// # Errors
    ///
    /// When it does not exist or cannot be used.
    pub fn open(name: &str, queues: u16) -> Result<Self, TapError> {
        if Self::state(name).is_none() {
            // TUNSETIFF would make one.
            return Err(TapError::Missing(name.to_owned()));
        }
        let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        let flags = if queues == 1 {
            match open_queue(name, flags) {
                // A device of several queues, of which one is used.
                Err(Failure(_, EINVAL)) => flags | IFF_MULTI_QUEUE,
                Err(failure) => return Err(failure.explain(name)),
                Ok(queue) => {
                    let queues = vec![queue];
                    return Self::with_headers(name.to_owned(), queues);
                }
            }
        } else {
            flags | IFF_MULTI_QUEUE
        };
        let all: Result<Vec<_>, _> = (0..queues).map(|_| open_queue(name, flags)).collect();
        match all {
            Ok(queues) => Self::with_headers(name.to_owned(), queues),
            Err(Failure(_, EINVAL)) if queues > 1 => {
                let single = open_queue(name, flags & !IFF_MULTI_QUEUE);
                Err(match single {
                    Err(Failure(_, EINVAL)) => TapError::NotTap(name.to_owned()),
                    _ => TapError::OneQueue {
                        name: name.to_owned(),
                        wanted: queues,
                    },
                })
            }
            Err(Failure(_, EINVAL)) => Err(TapError::NotTap(name.to_owned())),
            Err(failure) => Err(failure.explain(name)),
        }
    }

    /// Takes over the descriptors of a device that another process has attached: one for each of
    /// `queues` queues.
    ///
    /// # Errors
    ///
    /// When they are not such descriptors.
    pub fn adopt(descriptors: Vec<OwnedFd>, queues: u16) -> Result<Self, TapError> {
        if descriptors.len() != usize::from(queues) {
            return Err(TapError::Count {
                given: descriptors.len(),
                wanted: queues,
            });
        }
        let mut device = String::new();
        for (position, fd) in (1..).zip(&descriptors) {
            let (name, flags) = sys::attached(fd).map_err(|_| TapError::NotTapFd(position))?;
            if flags & IFF_TAP == 0 {
                return Err(TapError::NotTap(name));
            }
            if flags & IFF_VNET_HDR == 0 {
                return Err(TapError::NoNetHeader(name));
            }
            if position > 1 && name != device {
                return Err(TapError::TwoDevices(device, name));
            }
            device = name;
        }
        Self::with_headers(device, descriptors)
    }

    fn with_headers(name: String, descriptors: Vec<OwnedFd>) -> Result<Self, TapError> {
        let failed = |action| {
            let name = name.clone();
            move |source| TapError::Io {
                action,
                name,
                source,
            }
        };
        let mut queues = Vec::new();
        for writer in descriptors {
            sys::set_header(&writer, NET_HEADER as i32)
                .and_then(|()| rustix::io::ioctl_fionbio(&writer, true).map_err(Into::into))
                .map_err(failed("set the net header of"))?;
            let reader = writer.try_clone();
            let reader = reader.map_err(failed("duplicate a descriptor of"))?;
            queues.push((TapWriter(writer), TapReader(reader)));
        }
        Ok(TapDevice { name, queues })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A descriptor of each queue, for another process.
    pub fn into_descriptors(self) -> Vec<OwnedFd> {
        let writers = self.queues.into_iter().map(|(writer, _)| writer.0);
        writers.collect()
    }

    /// The state of the device with this name. None: there is none in this network namespace.
    pub fn state(name: &str) -> Option<TapState> {
        // Any socket will do. The sandbox allows those of this family.
        let (family, kind) = (AddressFamily::UNIX, SocketType::DGRAM);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None).ok()?;
        let flags = sys::interface_flags(&socket, name).ok()?;
        let mtu = sys::interface_mtu(&socket, name).ok()?;
        Some(TapState {
            up: flags & IFF_UP != 0,
            mtu: mtu.try_into().ok()?,
        })
    }
}

impl UplinkDevice for TapDevice {
    const MAX_PIECES: usize = sys::MAX_PIECES;

    type Writer = TapWriter;
    type Reader = TapReader;

    fn into_queues(self) -> Vec<UplinkQueue<Self>> {
        self.queues
    }
}

/// What failed, and why.
struct Failure(&'static str, i32);

impl Failure {
    fn explain(self, name: &str) -> TapError {
        let name = name.to_owned();
        match self.1 {
            EPERM => TapError::NotAllowed(name),
            EBUSY => TapError::Busy(name),
            error => TapError::Io {
                action: self.0,
                name,
                source: io::Error::from_raw_os_error(error),
            },
        }
    }
}

fn open_queue(name: &str, flags: i32) -> Result<OwnedFd, Failure> {
    let options = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let failure = |action| move |error: Errno| Failure(action, error.raw_os_error());
    let queue =
        open("/dev/net/tun", options, Mode::empty()).map_err(failure("open /dev/net/tun for"))?;
    sys::attach(&queue.as_fd(), name, flags)
        .map_err(|error| Failure("attach to", error.raw_os_error().unwrap_or_default()))?;
    Ok(queue)
}
