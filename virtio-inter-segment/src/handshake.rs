//! What is a valid course of a handshake: pure judgement of messages, no socket, no clock.
//!
//! The connector sends HELLO; the acceptor answers with HELLO once it has accepted that one. A side
//! that does not want the other sends REFUSE and closes.

use std::net::IpAddr;
use std::sync::Arc;

use thiserror::Error;
use virtio_inter_common::{
    ErrorChain, Guard, IpSet, IpSetError, MAX_IP_SETS, MAX_MAC_SETS, MacAddr, MacSet, MacSetError,
    MacSets, PortId, PortIdError,
};
use virtio_inter_link::FORMAT_VERSION;
use zerocopy::{FromBytes, IntoBytes};

use crate::message::WireError;
use crate::port::{LocalPort, PortError, Uplinks, check_port};
use crate::wire::{
    AddressSet, FLAG_AWAY, FLAG_TRUNK, GUARD_NO_DHCP_SERVER, GuardHead, Header, Hello, HelloHead,
    IpEntry, KIND_HELLO, REASON_DUPLICATE, REASON_FULL, REASON_ID, REASON_MAC, REASON_RESOURCES,
    REASON_TIMEOUT, REASON_UNKNOWN, Refuse, Versions,
};

/// This port, and what tells this run of it from others.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) port: LocalPort,
    pub(crate) incarnation: u64,
    pub(crate) pid: u32,
    /// Its guest is not here, as peers know it.
    pub(crate) away: bool,
    /// What its guest uses, of a trunk, as peers know it.
    pub(crate) addresses: Arc<[MacAddr]>,
}

/// This side's part in making the connection, and what that says about the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// We connected to the socket of this port.
    Connector(PortId),
    /// We accepted the peer's connection.
    Acceptor,
}

/// A peer whose HELLO is valid as such. Whether there is room for it is another question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) id: PortId,
    pub(crate) mac: MacAddr,
    pub(crate) mtu: u16,
    pub(crate) queues: u16,
    pub(crate) ring_capacity: u32,
    pub(crate) uplinks: Uplinks,
    pub(crate) allowed: MacSets,
    pub(crate) guard: Guard,
    pub(crate) incarnation: u64,
    /// As the peer says.
    pub(crate) pid: u32,
    /// Its guest is not here.
    pub(crate) away: bool,
    /// It is a trunk.
    pub(crate) trunk: bool,
    /// Addresses that it may not use as such: they are pinned to other ports.
    pub(crate) barred: MacSets,
}

/// Why a peer is refused. The text goes to the log and to the peer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Refusal {
    #[error(
        "Peer speaks version {theirs} of the segment protocol, this port speaks {}",
        Versions::OURS
    )]
    Version { theirs: Versions },
    #[error("Peer has region format {theirs}, this port has {FORMAT_VERSION}")]
    RegionVersion { theirs: u16 },
    #[error("Peer's id is not valid")]
    BadId(#[source] PortIdError),
    #[error("Peer's id is not text")]
    IdEncoding,
    #[error("Name of the peer's network is not valid")]
    BadNetwork(#[source] PortIdError),
    #[error("Name of the peer's network is not text")]
    NetworkEncoding,
    #[error("List of the peer's further MAC addresses is not valid")]
    BadAddresses(#[source] MacSetError),
    #[error("List of the peer's further MAC addresses has {0} bytes")]
    AddressesSize(usize),
    #[error("List of the peer's IP addresses is not valid")]
    BadIps(#[source] IpSetError),
    #[error("Guard of the peer has {0} bytes")]
    GuardSize(usize),
    #[error("Guard of the peer has an address of IP version {0}")]
    IpVersion(u8),
    #[error("Peer has this port's own id {0}")]
    OwnId(PortId),
    #[error("Peer says that it is {got}, but its socket is that of {expected}")]
    WrongId { expected: PortId, got: PortId },
    #[error("Id {0} has a live link")]
    IdTaken(PortId),
    #[error("Peer {0} is connected already, or being connected to")]
    Duplicate(PortId),
    #[error("Peer has this port's own MAC address {0}")]
    OwnMac(MacAddr),
    #[error("MAC address {mac} belongs to {holder}")]
    MacTaken { mac: MacAddr, holder: PortId },
    #[error(transparent)]
    Parameters(#[from] PortError),
    #[error("{0}")]
    Unauthorized(String),
    #[error("No room: {0}")]
    Full(String),
    #[error("No room at this moment: {0}")]
    Busy(String),
    #[error("{0}")]
    Unknown(WireError),
    #[error("{0}")]
    Violation(String),
    #[error("Handshake made no progress within {0} ms")]
    Timeout(u128),
    #[error("Out of resources: {0}")]
    Resources(String),
}

impl Refusal {
    /// The code in REFUSE.
    pub(crate) fn reason(&self) -> u16 {
        match self {
            Refusal::Version { .. } => 1,
            Refusal::RegionVersion { .. } => 2,
            Refusal::BadId(_)
            | Refusal::IdEncoding
            | Refusal::OwnId(_)
            | Refusal::WrongId { .. }
            | Refusal::IdTaken(_) => REASON_ID,
            Refusal::OwnMac(_) | Refusal::MacTaken { .. } => REASON_MAC,
            Refusal::Parameters(_)
            | Refusal::BadNetwork(_)
            | Refusal::NetworkEncoding
            | Refusal::BadAddresses(_)
            | Refusal::AddressesSize(_)
            | Refusal::BadIps(_)
            | Refusal::GuardSize(_)
            | Refusal::IpVersion(_) => 5,
            Refusal::Unauthorized(_) => 6,
            Refusal::Full(_) => REASON_FULL,
            Refusal::Violation(_) => 8,
            Refusal::Timeout(_) => REASON_TIMEOUT,
            Refusal::Unknown(_) => REASON_UNKNOWN,
            // Reason 7 would keep the peer away for as long as a limit that stays.
            Refusal::Busy(_) | Refusal::Resources(_) => REASON_RESOURCES,
            Refusal::Duplicate(_) => REASON_DUPLICATE,
        }
    }

    /// Whether both sides, or two peers, have one name or one address.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(
            self,
            Refusal::OwnId(_) | Refusal::IdTaken(_) | Refusal::OwnMac(_) | Refusal::MacTaken { .. }
        )
    }

    /// The last message to the peer.
    pub(crate) fn message(&self) -> Refuse {
        let seen = match self {
            Refusal::Version { theirs } => Some(*theirs),
            _ => None,
        };
        Refuse::new(self.reason(), seen, &ErrorChain(self).to_string())
    }

    pub(crate) fn violation(error: impl std::error::Error) -> Refusal {
        Refusal::Violation(ErrorChain(&error).to_string())
    }

    pub(crate) fn resources(error: impl std::error::Error) -> Refusal {
        Refusal::Resources(ErrorChain(&error).to_string())
    }
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Refusal {
        if error.is_unknown() {
            Refusal::Unknown(error)
        } else {
            Refusal::violation(error)
        }
    }
}

impl Local {
    fn flags(&self) -> u16 {
        let flag = |is_set: bool, flag: u16| if is_set { flag } else { 0 };
        flag(self.away, FLAG_AWAY) | flag(self.port.trunk, FLAG_TRUNK)
    }

    /// The message with which this port introduces itself.
    pub(crate) fn hello(&self) -> Hello {
        let network = self.port.uplinks.network.as_ref();
        Hello {
            head: HelloHead {
                header: Header::new(KIND_HELLO, 0),
                version_min: Versions::OURS.min.into(),
                version_max: Versions::OURS.max.into(),
                region_version: FORMAT_VERSION.into(),
                queues: self.port.queues.into(),
                incarnation: self.incarnation.into(),
                ring_capacity: self.port.ring_capacity.into(),
                must_flags: 0.into(),
                may_flags: self.flags().into(),
                pid: self.pid.into(),
                mtu: self.port.mtu.into(),
                mac: self.port.mac.octets(),
                head_size: 0.into(),
                reserved: 0.into(),
            },
            id: self.port.id.as_str().as_bytes().to_vec(),
            uplink_priority: self.port.uplinks.shared,
            network: network.map(|name| name.as_str().as_bytes().to_vec()),
            addresses: addresses_field(&self.port.allowed),
            guard: guard_field(&self.port.guard),
        }
    }

    /// Checks what the peer says of itself.
    pub(crate) fn judge(&self, role: &Role, hello: &Hello) -> Result<Candidate, Refusal> {
        let head = &hello.head;
        let region_version = head.region_version.get();
        if region_version != FORMAT_VERSION {
            return Err(Refusal::RegionVersion {
                theirs: region_version,
            });
        }
        let candidate = Candidate {
            id: parse_id(&hello.id)?,
            mac: MacAddr::new(head.mac),
            mtu: head.mtu.get(),
            queues: head.queues.get(),
            ring_capacity: head.ring_capacity.get(),
            uplinks: Uplinks {
                network: hello.network.as_deref().map(parse_network).transpose()?,
                shared: hello.uplink_priority,
            },
            allowed: parse_addresses(hello.addresses.as_deref().unwrap_or_default())?,
            guard: hello
                .guard
                .as_deref()
                .map_or_else(|| Ok(Guard::default()), parse_guard)?,
            incarnation: head.incarnation.get(),
            pid: head.pid.get(),
            away: head.may_flags.get() & FLAG_AWAY != 0,
            trunk: head.may_flags.get() & FLAG_TRUNK != 0,
            barred: MacSets::default(),
        };
        check_port(
            candidate.mac,
            candidate.mtu,
            candidate.queues,
            candidate.ring_capacity,
        )?;
        if candidate.id == self.port.id {
            return Err(Refusal::OwnId(candidate.id));
        }
        if let Role::Connector(expected) = role
            && candidate.id != *expected
        {
            return Err(Refusal::WrongId {
                expected: expected.clone(),
                got: candidate.id,
            });
        }
        if candidate.mac == self.port.mac {
            return Err(Refusal::OwnMac(candidate.mac));
        }
        Ok(candidate)
    }
}

/// The text of a network's field.
fn parse_network(field: &[u8]) -> Result<PortId, Refusal> {
    let text = std::str::from_utf8(field).map_err(|_| Refusal::NetworkEncoding)?;
    text.parse().map_err(Refusal::BadNetwork)
}

/// The field of secondary addresses; None: there are none.
fn addresses_field(allowed: &MacSets) -> Option<Vec<u8>> {
    let entry = |set: MacSet| AddressSet {
        octets: set.octets(),
        address: set.address().octets(),
    };
    let entries: Vec<AddressSet> = allowed.iter().map(entry).collect();
    (!entries.is_empty()).then(|| entries.as_bytes().to_vec())
}

/// The value of the field of secondary addresses.
fn parse_addresses(field: &[u8]) -> Result<MacSets, Refusal> {
    let entries =
        <[AddressSet]>::ref_from_bytes(field).map_err(|_| Refusal::AddressesSize(field.len()))?;
    if entries.len() > MAX_MAC_SETS {
        return Err(Refusal::BadAddresses(MacSetError::TooMany(entries.len())));
    }
    let set = |entry: &AddressSet| MacSet::new(entry.octets, MacAddr::new(entry.address));
    let sets: Result<MacSets, MacSetError> = entries.iter().map(set).collect();
    sets.map_err(Refusal::BadAddresses)
}

/// The field of the guard; None: there is none.
fn guard_field(guard: &Guard) -> Option<Vec<u8>> {
    let flags = match guard.no_dhcp_server {
        true => GUARD_NO_DHCP_SERVER,
        false => 0,
    };
    let head = GuardHead {
        flags: flags.into(),
    };
    let entry = |set: IpSet| {
        let mut address = [0; 16];
        let version = match set.address() {
            IpAddr::V4(v4) => {
                address[..4].copy_from_slice(&v4.octets());
                4
            }
            IpAddr::V6(v6) => {
                address = v6.octets();
                6
            }
        };
        IpEntry {
            version,
            prefix: set.prefix(),
            address,
        }
    };
    let entries: Vec<IpEntry> = guard.ips.iter().map(entry).collect();
    (!guard.is_off()).then(|| [head.as_bytes(), entries.as_bytes()].concat())
}

/// The value of the field of the guard.
fn parse_guard(field: &[u8]) -> Result<Guard, Refusal> {
    let wrong_size = || Refusal::GuardSize(field.len());
    let (head, rest) = GuardHead::read_from_prefix(field).map_err(|_| wrong_size())?;
    let entries = <[IpEntry]>::ref_from_bytes(rest).map_err(|_| wrong_size())?;
    if entries.len() > MAX_IP_SETS {
        return Err(Refusal::BadIps(IpSetError::TooMany(entries.len())));
    }
    let set = |entry: &IpEntry| {
        let [a, b, c, d, ..] = entry.address;
        let address = match entry.version {
            4 => IpAddr::from([a, b, c, d]),
            6 => IpAddr::from(entry.address),
            other => return Err(Refusal::IpVersion(other)),
        };
        IpSet::new(address, entry.prefix).map_err(Refusal::BadIps)
    };
    Ok(Guard {
        ips: entries.iter().map(set).collect::<Result<_, _>>()?,
        no_dhcp_server: head.flags.get() & GUARD_NO_DHCP_SERVER != 0,
    })
}

/// The text of an id's field.
pub(crate) fn parse_id(field: &[u8]) -> Result<PortId, Refusal> {
    let text = std::str::from_utf8(field).map_err(|_| Refusal::IdEncoding)?;
    text.parse().map_err(Refusal::BadId)
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
