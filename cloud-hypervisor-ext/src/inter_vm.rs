//! Parses `--inter-vm`. `device` has the complete device.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use thiserror::Error;
use virtio_inter_args::{SocketPathError, parse_size, segment_directory};
use virtio_inter_common::{Guard, MAX_QUEUE_PAIRS, MacAddr, MacSets, PortId};

use crate::options::{OptionError, Options, quote};
use crate::port_limits::PortLimits;
use crate::rate_limits::DeviceRateLimits;
use crate::sandbox_mode::SandboxMode;

/// A key of the flag: its name, its value, and what it means.
pub struct Key {
    /// The name before the `=`.
    pub name: &'static str,
    /// Its value, in the manner of Cloud Hypervisor's help.
    pub value: &'static str,
    /// Its description.
    pub help: &'static str,
}

/// All keys.
pub const KEYS: [Key; 26] = [
    Key {
        name: "segment",
        value: "<name_or_directory>",
        help: "Segment, required: a name, for a directory of /run/virtio-inter, or a path with '/'",
    },
    Key {
        name: "mac",
        value: "<mac_addr>",
        help: "MAC address of the guest. Default: derived from the VM and the device",
    },
    Key {
        name: "id",
        value: "<device_id>",
        help: "Name of the device. Default: inter-vm0, inter-vm1, and so on",
    },
    Key {
        name: "mtu",
        value: "<bytes>",
        help: "Size of an IP packet, 1280 to 65535. Default: 1500",
    },
    Key {
        name: "num_queues",
        value: "<number_of_queues>",
        help: "Number of virtqueues, two for each pair: 2 to 128. Default: 2",
    },
    Key {
        name: "queue_size",
        value: "<size_of_each_queue>",
        help: "Entries of each virtqueue, a power of two from 2 to 32K. Default: 256",
    },
    Key {
        name: "socket",
        value: "<vhost_user_socket_path>",
        help: "Socket of the port. Default: in the VM's own directory",
    },
    Key {
        name: "tap",
        value: "<if_name>",
        help: "Existing tap device, by which the guest reaches everything outside of the segment",
    },
    Key {
        name: "fd",
        value: "<fd1,fd2,...>",
        help: "Descriptors of that device instead, one for each pair of virtqueues",
    },
    Key {
        name: "uplink_offload",
        value: "on|off",
        help: "Whether that device takes partial checksums and unsegmented frames. Default: on",
    },
    Key {
        name: "allow_mac",
        value: "<mac1,mac2,...>",
        help: "Addresses that the guest may use beside mac, and prefixes such as 00:00:5e:00:01:*",
    },
    Key {
        name: "ip",
        value: "<ip1,ip2,...>",
        help: "IP addresses and prefixes that the guest may have; others are dropped. Default: any",
    },
    Key {
        name: "no_dhcp_server",
        value: "on|off",
        help: "Drop what only DHCP servers and routers send. Default: off",
    },
    Key {
        name: "trunk",
        value: "on|off",
        help: "Whether the guest may use any address that no other port has or lists. Default: off",
    },
    Key {
        name: "max_peers",
        value: "<number_of_peers>",
        help: "Most peers at a time. Default: 1024",
    },
    Key {
        name: "max_link_memory",
        value: "<bytes>",
        help: "Most memory of the rings for frames to peers, 64K or more. Default: 1G",
    },
    Key {
        name: "max_user_share",
        value: "<percent>",
        help: "Most of these two that peers of one user take. Default: 98",
    },
    Key {
        name: "bw_size",
        value: "<bytes>",
        help: "As with --net, and [sent,received]: bytes of frames in bw_refill_time. 0: no limit",
    },
    Key {
        name: "bw_one_time_burst",
        value: "<bytes>",
        help: "As with --net: bytes beside those, once",
    },
    Key {
        name: "bw_refill_time",
        value: "<ms>",
        help: "As with --net, 10 to 3600000",
    },
    Key {
        name: "ops_size",
        value: "<frames>",
        help: "The same for the number of frames",
    },
    Key {
        name: "ops_one_time_burst",
        value: "<frames>",
        help: "The same",
    },
    Key {
        name: "ops_refill_time",
        value: "<ms>",
        help: "The same",
    },
    Key {
        name: "sandbox",
        value: "off|log|on|strict",
        help: "Walls around the port's process, as virtio-inter port --sandbox. Default: on",
    },
    Key {
        name: "pci_segment",
        value: "<segment_id>",
        help: "As with --net",
    },
    Key {
        name: "pci_device_id",
        value: "<pci_slot>",
        help: "As with --net",
    },
];

/// The flag's help, in the style of Cloud Hypervisor's.
pub fn syntax() -> String {
    let keys = KEYS.map(|key| format!("{}={}", key.name, key.value));
    format!("Inter-VM network parameters \"{}\"", keys.join(","))
}

/// MTUs that Cloud Hypervisor accepts for a network device, in bytes.
const MTU: std::ops::RangeInclusive<u64> = 1280..=65535;

/// Sizes of a virtqueue (VIRTIO 1.3, 2.7), in entries.
const QUEUE_SIZE: std::ops::RangeInclusive<u64> = 2..=32768;

/// An error in the value of `--inter-vm`.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum InterVmError {
    /// The option string is wrong.
    #[error("Error parsing --inter-vm")]
    Options(#[source] OptionError),
    /// `segment` is missing.
    #[error("Error parsing --inter-vm: segment missing")]
    SegmentMissing,
    /// Two devices have the same id.
    #[error("Error parsing --inter-vm: Identifier {0} is not unique")]
    NotUnique(PortId),
    /// A value is invalid for the device.
    #[error("Error parsing --inter-vm: {0}")]
    Invalid(String),
}

/// A device as the user requested it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterVm {
    /// The segment's directory, absolute.
    pub segment: PathBuf,
    /// `None`: derived from the VM and the device.
    pub mac: Option<MacAddr>,
    /// Cloud Hypervisor's name for the device; `None`: the next free name.
    pub id: Option<PortId>,
    /// In bytes, without the Ethernet header; `None`: the port's default.
    pub mtu: Option<u16>,
    /// Virtqueues, two for each pair; `None`: one pair.
    pub num_queues: Option<u16>,
    /// Entries of each virtqueue; `None`: Cloud Hypervisor's default.
    pub queue_size: Option<u16>,
    /// The port's vhost-user socket; `None`: in the VM's own directory.
    pub socket: Option<PathBuf>,
    /// The tap device that is the port's uplink; None: there is none, or `fds`.
    pub tap: Option<String>,
    /// Descriptors of it, by number.
    pub fds: Vec<RawFd>,
    /// Whether its switch takes offloads; `None`: the port's default.
    pub uplink_offload: Option<bool>,
    /// Addresses that the guest may use beside `mac`.
    pub allow_mac: MacSets,
    /// What the guest must not send.
    pub guard: Guard,
    /// It may use any that no other port has or lists; `None`: the port's default.
    pub trunk: Option<bool>,
    /// What peers take of the port at most.
    pub limits: PortLimits,
    /// What the guest may send and get.
    pub rate_limits: DeviceRateLimits,
    /// The port's sandbox; `None`: its default.
    pub sandbox: Option<SandboxMode>,
    /// As with `--net`.
    pub pci_segment: Option<u16>,
    /// As with `--net`.
    pub pci_device_id: Option<u8>,
}

impl InterVm {
    /// Parses one device.
    ///
    /// # Errors
    /// When a key or value is wrong.
    pub fn parse(text: &str) -> Result<Self, InterVmError> {
        let names = KEYS.map(|key| key.name);
        let options = Options::parse(text, &names).map_err(InterVmError::Options)?;
        if let Some(key) = options.empty() {
            return Err(InterVmError::Invalid(format!("{key}= has no value")));
        }
        let segment = options.get("segment").ok_or(InterVmError::SegmentMissing)?;
        let device = Self {
            segment: segment_directory(OsStr::new(&segment))
                .map_err(|error| InterVmError::Invalid(format!("segment: {error}")))?,
            mac: parse_with_reason(&options, "mac")?,
            id: parse_with_reason(&options, "id")?,
            mtu: small(size(&options, "mtu", MTU)?),
            num_queues: convert(&options, "num_queues")?,
            queue_size: small(size(&options, "queue_size", QUEUE_SIZE)?),
            socket: options.get("socket").map(PathBuf::from),
            tap: options.get("tap"),
            fds: fds(&options)?,
            uplink_offload: switch(&options, "uplink_offload")?,
            allow_mac: list(&options, "allow_mac")?,
            guard: Guard {
                ips: list(&options, "ip")?,
                no_dhcp_server: options
                    .toggle("no_dhcp_server")
                    .map_err(InterVmError::Options)?
                    .unwrap_or(false),
            },
            trunk: switch(&options, "trunk")?,
            limits: PortLimits::new(|key, range| size(&options, key, range))?,
            rate_limits: DeviceRateLimits::new(
                |key| each_direction(&options, key),
                InterVmError::Invalid,
            )?,
            sandbox: SandboxMode::parse(&options).map_err(InterVmError::Options)?,
            pci_segment: convert(&options, "pci_segment")?,
            pci_device_id: convert(&options, "pci_device_id")?,
        };
        device.check()?;
        Ok(device)
    }

    fn check(&self) -> Result<(), InterVmError> {
        let invalid = |reason: String| Err(InterVmError::Invalid(reason));
        if let Some(id) = &self.id
            && id.as_str().starts_with("__")
        {
            return invalid(format!("Identifier {id} is not valid"));
        }
        if let Some(count) = self.num_queues
            && (count < 2 || count % 2 != 0 || count / 2 > MAX_QUEUE_PAIRS)
        {
            return invalid(format!(
                "Number of queues {count} is not an even number from 2 to {}: \
                 there are two for each pair",
                MAX_QUEUE_PAIRS * 2
            ));
        }
        if let Some(size) = self.queue_size
            && !size.is_power_of_two()
        {
            return invalid(format!(
                "queue_size={size} is not a power of two from 2 to 32K"
            ));
        }
        if let Some(socket) = &self.socket {
            check_socket_path(socket, "socket=")?;
        }
        if self.tap.is_some() && !self.fds.is_empty() {
            return invalid("tap= and fd= are two ways to give one uplink".to_owned());
        }
        if self.uplink_offload.is_some() && self.tap.is_none() && self.fds.is_empty() {
            return invalid("uplink_offload= needs an uplink (tap= or fd=)".to_owned());
        }
        if let Some(mac) = self.mac
            && self.allow_mac.exact().any(|allowed| allowed == mac)
        {
            return invalid(format!("allow_mac= lists {mac}, which is mac= already"));
        }
        let pairs = usize::from(self.num_queues.unwrap_or(2) / 2);
        if !self.fds.is_empty() && self.fds.len() != pairs {
            return invalid(format!(
                "fd= has {} descriptor(s) for {pairs} pair(s) of virtqueues (num_queues=): one is \
                 needed for each",
                self.fds.len()
            ));
        }
        Ok(())
    }
}

impl InterVm {
    /// Checks that it names no descriptors, which have no meaning in another process.
    ///
    /// # Errors
    ///
    /// When it does.
    pub fn check_without_fds(&self) -> Result<(), InterVmError> {
        if self.fds.is_empty() {
            return Ok(());
        }
        Err(InterVmError::Invalid(
            "fd= is for the command line of cloud-hypervisor-ext: a device that is added later \
             takes tap="
                .to_owned(),
        ))
    }

    /// The same device for a process with another working directory.
    ///
    /// # Errors
    /// When this process has no working directory.
    pub fn with_absolute_paths(mut self) -> std::io::Result<Self> {
        self.socket = self.socket.map(std::path::absolute).transpose()?;
        Ok(self)
    }
}

/// The format that [`InterVm::parse`] accepts.
impl fmt::Display for InterVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment={}", quote(&self.segment.display().to_string()))?;
        let optional = [
            ("mac", self.mac.map(|mac| mac.to_string())),
            ("id", self.id.as_ref().map(ToString::to_string)),
            ("mtu", self.mtu.map(|mtu| mtu.to_string())),
            ("num_queues", self.num_queues.map(|count| count.to_string())),
            ("queue_size", self.queue_size.map(|size| size.to_string())),
            (
                "socket",
                self.socket.as_ref().map(|path| path.display().to_string()),
            ),
            ("tap", self.tap.clone()),
            ("uplink_offload", self.uplink_offload.map(on_or_off)),
            ("trunk", self.trunk.map(on_or_off)),
            ("sandbox", self.sandbox.map(|mode| mode.to_string())),
            (
                "pci_segment",
                self.pci_segment.map(|number| number.to_string()),
            ),
            (
                "pci_device_id",
                self.pci_device_id.map(|number| number.to_string()),
            ),
        ];
        for (key, value) in optional {
            if let Some(value) = value {
                write!(f, ",{key}={}", quote(&value))?;
            }
        }
        for (key, limit) in self.limits.iter() {
            write!(f, ",{key}={limit}")?;
        }
        for (key, value) in self.rate_limits.iter() {
            write!(f, ",{key}={value}")?;
        }
        if self.guard.no_dhcp_server {
            f.write_str(",no_dhcp_server=on")?;
        }
        for (key, count, list) in [
            (
                "ip",
                self.guard.ips.iter().count(),
                &self.guard.ips as &dyn fmt::Display,
            ),
            ("allow_mac", self.allow_mac.iter().count(), &self.allow_mac),
        ] {
            match count {
                0 => {}
                1 => write!(f, ",{key}={list}")?,
                _ => write!(f, ",{key}=[{list}]")?,
            }
        }
        Ok(())
    }
}

/// Checks a socket's path. If it is too long, the error advises a shorter `option`.
///
/// # Errors
/// When it is not a valid path of a socket.
pub fn check_socket_path(path: &Path, option: &str) -> Result<(), InterVmError> {
    virtio_inter_args::check_socket_path(path).map_err(|error| {
        InterVmError::Invalid(match error {
            SocketPathError::TooLong(_) => {
                format!("{error}; give a shorter {option}")
            }
            error => error.to_string(),
        })
    })
}

/// A number of bytes or entries, with or without a suffix.
fn size(
    options: &Options,
    key: &str,
    range: std::ops::RangeInclusive<u64>,
) -> Result<Option<u64>, InterVmError> {
    let Some(text) = options.get(key) else {
        return Ok(None);
    };
    let Ok(size) = parse_size(&text) else {
        let key = key.to_owned();
        let error = OptionError::Conversion { key, value: text };
        return Err(InterVmError::Options(error));
    };
    if !range.contains(&size) {
        return Err(InterVmError::Invalid(format!(
            "{key}={text} is not from {} to {}",
            range.start(),
            range.end()
        )));
    }
    Ok(Some(size))
}

/// One number for both directions, or `[2,1]`: for what the guest sends and for what it gets.
fn each_direction(options: &Options, key: &str) -> Result<Option<[u64; 2]>, InterVmError> {
    let Some(text) = options.get(key) else {
        return Ok(None);
    };
    let list = text
        .strip_prefix('[')
        .and_then(|list| list.strip_suffix(']'));
    let numbers = match list {
        Some(list) => list.split_once(',').map(|(sent, got)| [sent, got]),
        None => Some([text.as_str(); 2]),
    };
    let numbers = numbers.and_then(|[sent, got]| {
        let number = |text: &str| parse_size(text.trim()).ok();
        Some([number(sent)?, number(got)?])
    });
    let conversion = || OptionError::Conversion {
        key: key.to_owned(),
        value: text.clone(),
    };
    numbers
        .map(Some)
        .ok_or_else(|| InterVmError::Options(conversion()))
}

/// A size from a range that ends below 65536.
fn small(size: Option<u64>) -> Option<u16> {
    size.and_then(|size| size.try_into().ok())
}

fn convert<T: std::str::FromStr>(options: &Options, key: &str) -> Result<Option<T>, InterVmError> {
    options.convert(key).map_err(InterVmError::Options)
}

fn on_or_off(on: bool) -> String {
    if on { "on" } else { "off" }.to_owned()
}

/// `on` or `off`.
fn switch(options: &Options, key: &str) -> Result<Option<bool>, InterVmError> {
    match options.get(key) {
        None => Ok(None),
        Some(text) if text == "on" => Ok(Some(true)),
        Some(text) if text == "off" => Ok(Some(false)),
        Some(value) => {
            let key = key.to_owned();
            let error = OptionError::Conversion { key, value };
            Err(InterVmError::Options(error))
        }
    }
}

/// Descriptors as Cloud Hypervisor's lists have them, `[3,4]` or one number.
fn fds(options: &Options) -> Result<Vec<RawFd>, InterVmError> {
    let Some(text) = options.get("fd") else {
        return Ok(Vec::new());
    };
    let conversion = || OptionError::Conversion {
        key: "fd".to_owned(),
        value: text.clone(),
    };
    let list = text
        .strip_prefix('[')
        .and_then(|list| list.strip_suffix(']'));
    let numbers = list.unwrap_or(&text).split(',');
    let mut fds = Vec::new();
    for number in numbers {
        // The first three are standard input, output and error.
        let number = number.trim().parse().ok().filter(|number| *number > 2);
        let number = number.ok_or_else(|| InterVmError::Options(conversion()))?;
        if fds.contains(&number) {
            return Err(InterVmError::Invalid(format!(
                "fd={text} lists {number} twice"
            )));
        }
        fds.push(number);
    }
    Ok(fds)
}

/// Addresses and prefixes, `[02:00:00:00:00:01,00:00:5e:00:01:*]` or one.
fn list<T>(options: &Options, key: &str) -> Result<T, InterVmError>
where
    T: std::str::FromStr<Err: fmt::Display> + Default,
{
    let Some(text) = options.get(key) else {
        return Ok(T::default());
    };
    let list = text
        .strip_prefix('[')
        .and_then(|list| list.strip_suffix(']'));
    list.unwrap_or(&text).parse().map_err(|error: T::Err| {
        InterVmError::Options(OptionError::Value(format!("{key}={text}: {error}")))
    })
}

/// For types whose parse errors give a reason.
fn parse_with_reason<T>(options: &Options, key: &str) -> Result<Option<T>, InterVmError>
where
    T: std::str::FromStr<Err: ToString>,
{
    let parse = |text: String| {
        text.parse().map_err(|error: T::Err| {
            InterVmError::Options(OptionError::Value(format!(
                "{key}={text}: {}",
                error.to_string()
            )))
        })
    };
    options.get(key).map(parse).transpose()
}

/// Parses all devices of a command line, and names those without an id: `inter-vm0` and so on.
///
/// # Errors
/// The first error.
pub fn parse_all<'a>(
    texts: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<(PortId, InterVm)>, InterVmError> {
    let mut devices = Vec::new();
    for text in texts {
        devices.push(InterVm::parse(text)?);
    }
    let mut named: Vec<(PortId, InterVm)> = Vec::new();
    let mut taken: Vec<PortId> = Vec::new();
    for id in devices.iter().filter_map(|device| device.id.clone()) {
        if taken.contains(&id) {
            return Err(InterVmError::NotUnique(id));
        }
        taken.push(id);
    }
    for device in devices {
        let id = device.id.clone().unwrap_or_else(|| free_id(&taken));
        taken.push(id.clone());
        named.push((id, device));
    }
    Ok(named)
}

/// The first of `inter-vm0`, `inter-vm1`, … that is not in `taken`.
pub fn free_id(taken: &[PortId]) -> PortId {
    (0u32..)
        .filter_map(|number| format!("inter-vm{number}").parse().ok())
        .find(|id| !taken.contains(id))
        .unwrap_or_else(|| unreachable!("there are more names than devices"))
}

#[cfg(test)]
#[path = "inter_vm_tests.rs"]
mod tests;
