//! The uplink of a port: opens and checks the device of the command line, and opens it again after
//! it was removed. What depends on the kind of the device, here a tap device, is in this file.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use log::{Level, error, info};
use rustix::process::geteuid;
use rustix::thread::CapabilitySet;
use serde::Serialize;
use thiserror::Error;
use virtio_inter_args::check_interface_name;
use virtio_inter_common::{ErrorChain, LogLimit, log_limited};
use virtio_inter_device::Port;
use virtio_inter_device::backend::{Network, Relay, TapDevice, TapError, TapState, UplinkBackend};
use virtio_inter_sandbox::DeviceNeeds;

use crate::fd_store;
use crate::timer::Timer;

/// The kind of an uplink's device.
pub type UplinkKind = TapDevice;

/// The network side of a port: with an uplink or without.
pub type PortBackend = Network<UplinkKind>;
/// The device of a port's process.
pub type PortDevice = Port<PortBackend>;
/// The network side of an uplink that ports share.
pub type SharedUplinkBackend = Relay<UplinkKind>;

/// Time between attempts to open the device again.
const RETRY: Duration = Duration::from_secs(1);

/// Maximum time to wait for a tap device that a killed port is about to close: the kernel may
/// release its locks before.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two tries.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Limits the log lines about a device that this user may not open any more.
static FORBIDDEN: LogLimit = LogLimit::new(Duration::from_secs(60), 1);

/// `--uplink`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UplinkArg {
    /// A device's name.
    Tap(String),
    /// Descriptors of a device, one for each queue pair.
    TapFd(Vec<RawFd>),
}

impl FromStr for UplinkArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("tap", name)) => {
                check_interface_name(name).map_err(|error| error.to_string())?;
                Ok(UplinkArg::Tap(name.to_owned()))
            }
            Some(("tap-fd", list)) => {
                let mut numbers = Vec::new();
                for number in list.split(':') {
                    let number: RawFd = number
                        .parse()
                        .ok()
                        .filter(|number| *number > 2)
                        .ok_or_else(|| format!("'{number}' is no descriptor from 3 on"))?;
                    if numbers.contains(&number) {
                        return Err(format!("descriptor {number} is listed twice"));
                    }
                    numbers.push(number);
                }
                Ok(UplinkArg::TapFd(numbers))
            }
            _ => Err("tap=NAME or tap-fd=N[:N…] is needed".to_owned()),
        }
    }
}

impl UplinkArg {
    /// What a process in a sandbox needs to open the device again.
    pub fn needs(&self) -> DeviceNeeds {
        DeviceNeeds {
            files: &["/dev/net/tun"],
            // The device may have another owner.
            capabilities: CapabilitySet::NET_ADMIN,
        }
    }
}

/// Why a port cannot use its uplink. The program reports these as errors of the command line.
#[derive(Debug, Error)]
pub enum UplinkError {
    /// The device cannot be used.
    #[error("Cannot use the uplink")]
    Tap(#[from] TapError),
    /// A descriptor is not open.
    #[error("Cannot use the uplink: descriptor {0} of tap-fd= is not open")]
    NotOpen(RawFd),
    /// Another user's segment.
    #[error(
        "User {user} may not run {what} of {}: only root and the owner of the directory may",
        .directory.display()
    )]
    NotOwner {
        /// The user.
        user: u32,
        /// What that user may not run.
        what: &'static str,
        /// The segment's directory.
        directory: PathBuf,
    },
    /// Packets of the port do not fit the device.
    #[error(
        "Cannot use the uplink: tap device {name} has MTU {tap}, which is smaller than the port's \
         {port}: give both one MTU (ip link set {name} mtu {port}, or --mtu {tap})"
    )]
    Mtu {
        /// The device.
        name: String,
        /// Its MTU in bytes.
        tap: u32,
        /// The port's MTU in bytes.
        port: u16,
    },
}

/// Checks that this process may run the uplink of a segment's ports, or a trunk, as they check it
/// themselves.
///
/// # Errors
///
/// When it may not. A directory that is not there is the segment's affair.
pub fn check_right(segment: &Path, what: &'static str) -> Result<(), UplinkError> {
    let user = geteuid().as_raw();
    match segment.metadata() {
        Ok(directory) if user != 0 && directory.uid() != user => Err(UplinkError::NotOwner {
            user,
            what,
            directory: segment.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// The state of an uplink, as the status document has it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct UplinkStatus<'a> {
    /// The device's name.
    pub tap: &'a str,
    /// Whether it carries frames.
    pub state: UplinkState,
    /// Its MTU in bytes, if the state is `Up` or `Down`.
    pub mtu: Option<u32>,
}

impl UplinkStatus<'_> {
    /// The device's name.
    pub fn name(&self) -> &str {
        self.tap
    }

    /// Why the device carries no frames, and what to do. `None`: it does, as far as is known.
    pub fn problem(&self) -> Option<String> {
        let problem = match self.state {
            UplinkState::Gone => "is gone: create it again",
            UplinkState::Down => "is down: set it up (ip link set DEV up)",
            UplinkState::Up | UplinkState::Unknown => return None,
        };
        Some(format!("Tap device {} {problem}", self.tap))
    }
}

/// Whether an uplink's device carries frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UplinkState {
    /// It does.
    Up,
    /// It is not set up.
    Down,
    /// It was removed.
    Gone,
    /// It is in another network namespace.
    Unknown,
}

/// The uplink of a port.
#[derive(Debug)]
pub struct Uplink {
    name: String,
    queues: u16,
    is_gone: bool,
}

impl Uplink {
    /// Opens the device, with one queue for each of `queues` queue pairs.
    ///
    /// # Errors
    ///
    /// When the port cannot use it.
    pub fn open(
        argument: &UplinkArg,
        queues: u16,
        mtu: u16,
    ) -> Result<(Self, UplinkKind), UplinkError> {
        let device = match argument {
            UplinkArg::Tap(name) => open_when_free(name, queues)?,
            UplinkArg::TapFd(numbers) => {
                let duplicate = |number: &RawFd| {
                    fd_store::duplicate(*number).ok_or(UplinkError::NotOpen(*number))
                };
                let descriptors: Result<Vec<_>, _> = numbers.iter().map(duplicate).collect();
                TapDevice::adopt(descriptors?, queues)?
            }
        };
        let uplink = Uplink {
            name: device.name().to_owned(),
            queues,
            is_gone: false,
        };
        match uplink.status().mtu {
            Some(tap) if tap < u32::from(mtu) => Err(UplinkError::Mtu {
                name: uplink.name,
                tap,
                port: mtu,
            }),
            _ => Ok((uplink, device)),
        }
    }

    /// Opens the device again, which was removed, and has `port` use it. It may have been made
    /// again already. If not, sets the timer for the next attempt, and returns why.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub(crate) fn reopen<B: UplinkBackend<Device = UplinkKind>>(
        &mut self,
        port: &mut Port<B>,
        retry: &mut Timer,
    ) -> io::Result<Option<String>> {
        retry.clear();
        self.is_gone = true;
        match TapDevice::open(&self.name, self.queues) {
            Ok(device) => {
                info!("Tap device {} is there again", self.name);
                if let Err(error) = port.set_uplink(device) {
                    // Some workers may have the former device, whose loss they do not tell again.
                    error!("Cannot use the uplink: {}", ErrorChain(&error));
                    retry.set(RETRY)?;
                    return Ok(Some(ErrorChain(&error).to_string()));
                }
                self.is_gone = false;
                Ok(None)
            }
            Err(error) => {
                if let TapError::NotAllowed(_) = error {
                    log_limited!(FORBIDDEN, Level::Warn, "{error}");
                }
                retry.set(RETRY)?;
                Ok(Some(ErrorChain(&error).to_string()))
            }
        }
    }

    /// The device, for texts.
    pub fn describe(&self) -> String {
        format!("tap device {}", self.name)
    }

    /// Its present state.
    pub fn status(&self) -> UplinkStatus<'_> {
        let (state, mtu) = if self.is_gone {
            (UplinkState::Gone, None)
        } else {
            match TapDevice::state(&self.name) {
                None => (UplinkState::Unknown, None),
                Some(TapState { up: true, mtu }) => (UplinkState::Up, Some(mtu)),
                Some(TapState { up: false, mtu }) => (UplinkState::Down, Some(mtu)),
            }
        };
        UplinkStatus {
            tap: &self.name,
            state,
            mtu,
        }
    }
}

fn open_when_free(name: &str, queues: u16) -> Result<TapDevice, TapError> {
    let give_up = Instant::now() + BUSY_TIMEOUT;
    loop {
        match TapDevice::open(name, queues) {
            Err(TapError::Busy(_)) if Instant::now() < give_up => std::thread::sleep(BUSY_PAUSE),
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uplink_argument_is_a_name_or_descriptors() {
        let parse = |text: &str| text.parse::<UplinkArg>();
        assert_eq!(parse("tap=vm1"), Ok(UplinkArg::Tap("vm1".to_owned())));
        assert_eq!(parse("tap-fd=3"), Ok(UplinkArg::TapFd(vec![3])));
        assert_eq!(parse("tap-fd=7:4"), Ok(UplinkArg::TapFd(vec![7, 4])));
        for (text, reason) in [
            ("vm1", "tap=NAME or tap-fd=N"),
            ("fd=3", "tap=NAME or tap-fd=N"),
            ("tap=", "1 to 15 bytes"),
            ("tap=sixteen-bytes-16", "1 to 15 bytes"),
            ("tap=a/b", "no name of an interface"),
            ("tap=..", "no name of an interface"),
            ("tap-fd=", "no descriptor"),
            ("tap-fd=2", "no descriptor"),
            ("tap-fd=3:x", "'x' is no descriptor"),
            ("tap-fd=3:4:3", "3 is listed twice"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
