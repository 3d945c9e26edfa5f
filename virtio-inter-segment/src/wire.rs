//! The messages of the segment protocol, to the byte: see `docs/segment-protocol.md`.
//!
//! Each message is one packet of a SOCK_SEQPACKET socket. Integers are little-endian, structs are
//! packed by construction (all fields have alignment 1), sizes are asserted at compile time. What
//! comes in is copied out of the socket first and inspected afterwards. Why messages are made of
//! typed fields: decision 0081.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Oldest version of the segment protocol that this crate speaks.
pub const PROTOCOL_VERSION_MIN: u16 = 2;
/// Newest version of the segment protocol that this crate speaks.
pub const PROTOCOL_VERSION_MAX: u16 = 2;

/// First four bytes of every message of every version: `VIsg`.
pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"VIsg");

/// Longest record in a FRAME, in bytes. A longer one goes by a link.
pub const MAX_FRAME: usize = 16 << 10;
/// Longest message of any kind but FRAME.
pub(crate) const MAX_SHORT: usize = 1024;
/// Room for the longest message.
pub(crate) const MAX_MESSAGE: usize = size_of::<Header>() + MAX_FRAME;

/// Room for the text of a REFUSE, in bytes.
pub(crate) const REFUSE_TEXT: usize = 172;

pub(crate) const KIND_HELLO: u16 = 1;
pub(crate) const KIND_REFUSE: u16 = 2;
pub(crate) const KIND_LINK: u16 = 4;
pub(crate) const KIND_ACCEPT: u16 = 5;
pub(crate) const KIND_DONE: u16 = 6;
pub(crate) const KIND_FRAME: u16 = 7;
/// The sender's guest has come or gone.
pub(crate) const KIND_GUEST: u16 = KIND_OPTIONAL | 8;
/// The addresses that the sender's guest uses now, of a trunk.
pub(crate) const KIND_ADDRESSES: u16 = KIND_OPTIONAL | 9;
/// A recipient that does not know a message whose kind has this bit skips it.
pub(crate) const KIND_OPTIONAL: u16 = 0x8000;

/// Flag of HELLO that a recipient may ignore, and of GUEST: the sender's guest is not here.
pub(crate) const FLAG_AWAY: u16 = 1;
/// Flag of HELLO that a recipient may ignore: the sender is a trunk.
pub(crate) const FLAG_TRUNK: u16 = 2;

/// Most addresses that a trunk may learn.
pub const MAX_TRUNK_ADDRESSES: usize = 64;

/// Field of HELLO: the port's id.
pub(crate) const FIELD_ID: u16 = FIELD_MUST | 1;
/// Field of HELLO: what the port is beside the port of a guest.
pub(crate) const FIELD_ROLE: u16 = 2;
/// Field of HELLO: name of the network that the port's uplink is on.
pub(crate) const FIELD_NETWORK: u16 = 3;
/// Field of HELLO: addresses that the port's guest may use beside its own.
pub(crate) const FIELD_ADDRESSES: u16 = 4;
/// Field of HELLO: what the port's guest must not send.
pub(crate) const FIELD_GUARD: u16 = 5;
/// A recipient that does not know a field whose type has this bit refuses the sender.
pub(crate) const FIELD_MUST: u16 = 0x8000;

/// Reason of a REFUSE: the recipient's id is taken, or is not a valid one.
pub(crate) const REASON_ID: u16 = 3;
/// Reason of a REFUSE: the recipient's MAC address is taken.
pub(crate) const REASON_MAC: u16 = 4;
/// Reason of a REFUSE: the sender is at one of its limits.
pub(crate) const REASON_FULL: u16 = 7;
/// Reason of a REFUSE: the handshake took too long.
pub(crate) const REASON_TIMEOUT: u16 = 9;
/// Reason of a REFUSE: the sender is busy at this moment, or a system call of it failed.
pub(crate) const REASON_RESOURCES: u16 = 10;
/// Reason of a REFUSE: the two have a connection, or the sender makes one.
pub(crate) const REASON_DUPLICATE: u16 = 11;
/// Reason of a REFUSE: HELLO has a flag or field that the sender has to understand and does not.
pub(crate) const REASON_UNKNOWN: u16 = 12;

/// A range of protocol versions, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Versions {
    pub(crate) min: u16,
    pub(crate) max: u16,
}

impl Versions {
    pub(crate) const OURS: Versions = Versions {
        min: PROTOCOL_VERSION_MIN,
        max: PROTOCOL_VERSION_MAX,
    };

    pub(crate) fn overlap(self, other: Versions) -> bool {
        self.min <= other.max && other.min <= self.max
    }
}

/// "2", or "1 to 3".
impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{} to {}", self.min, self.max)
        }
    }
}

/// Start of every message. 8 bytes, the same in all versions.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) magic: U32,
    pub(crate) kind: U16,
    /// Of the whole message, header included, in bytes.
    pub(crate) size: U16,
}

/// The fixed part of the first message of both sides. 48 bytes; the first 12 are the same in all
/// versions. Fields follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct HelloHead {
    pub(crate) header: Header,
    pub(crate) version_min: U16,
    pub(crate) version_max: U16,
    /// Format of the regions that the sender of the message makes and opens.
    pub(crate) region_version: U16,
    /// Queue pairs of the port.
    pub(crate) queues: U16,
    /// Drawn at random when the port joined: distinguishes one run of a port from the next.
    pub(crate) incarnation: U64,
    /// Largest data area of a region that the sender of the message opens, in bytes.
    pub(crate) ring_capacity: U32,
    /// Flags that a recipient has to understand: none is defined.
    pub(crate) must_flags: U16,
    /// Flags that a recipient may ignore: [`FLAG_AWAY`], [`FLAG_TRUNK`].
    pub(crate) may_flags: U16,
    /// For the log only.
    pub(crate) pid: U32,
    /// Largest IP packet, without the Ethernet header, in bytes.
    pub(crate) mtu: U16,
    pub(crate) mac: [u8; 6],
    /// Where the fields begin, in bytes from the beginning of the message: 48 or more.
    pub(crate) head_size: U16,
    pub(crate) reserved: U16,
}

/// The start of a field of HELLO; its value follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Field {
    pub(crate) kind: U16,
    /// Of the value, in bytes.
    pub(crate) size: U16,
}

/// What a port says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Hello {
    pub(crate) head: HelloHead,
    pub(crate) id: Vec<u8>,
    /// Of the uplink of other ports that this one is.
    pub(crate) uplink_priority: Option<u16>,
    pub(crate) network: Option<Vec<u8>>,
    /// [`AddressSet`]s.
    pub(crate) addresses: Option<Vec<u8>>,
    /// A [`GuardHead`] and [`IpEntry`]s.
    pub(crate) guard: Option<Vec<u8>>,
}

/// Value of the field of the role.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RoleValue {
    pub(crate) role: U16,
    pub(crate) priority: U16,
}

/// An entry of the field of secondary addresses. 7 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct AddressSet {
    /// Number of the address's bytes that count: 3 to 6.
    pub(crate) octets: u8,
    /// Its other bytes are zero when sent, and not checked.
    pub(crate) address: [u8; 6],
}

/// The start of the field of the guard; the IP addresses that the guest may claim follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct GuardHead {
    /// [`GUARD_NO_DHCP_SERVER`]; others are zero when sent, and not checked.
    pub(crate) flags: U16,
}

/// Flag of a guard: the guest is neither a DHCP server nor a router.
pub(crate) const GUARD_NO_DHCP_SERVER: u16 = 1;

/// An entry of the field of the guard. 18 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct IpEntry {
    /// Version of IP: 4 or 6.
    pub(crate) version: u8,
    /// Number of the address's bits that count.
    pub(crate) prefix: u8,
    /// One of version 4 is in the first four bytes; the others are zero when sent, and not checked.
    pub(crate) address: [u8; 16],
}

/// The role of an uplink of other ports.
pub(crate) const ROLE_UPLINK: u16 = 1;

/// The last message of a side that does not want the link. 192 bytes, the same in all versions.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Refuse {
    pub(crate) header: Header,
    /// Versions that the refusing side speaks.
    pub(crate) version_min: U16,
    pub(crate) version_max: U16,
    /// Versions that the refused side said it speaks; zero if it did not get that far.
    pub(crate) seen_min: U16,
    pub(crate) seen_max: U16,
    pub(crate) reason: U16,
    pub(crate) text_len: U16,
    /// UTF-8, for the log, padded with zero bytes.
    pub(crate) text: [u8; REFUSE_TEXT],
}

/// A region that the sender of the message sends on from now on. 24 bytes, with three descriptors
/// beside them: memfd, data doorbell, space doorbell.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Link {
    pub(crate) header: Header,
    /// Queue pair of the sender of the message.
    pub(crate) queue: U16,
    pub(crate) reserved: U16,
    /// Data area of the region, in bytes.
    pub(crate) capacity: U32,
    /// Names the ring on this connection, in this direction: counts up from 1.
    pub(crate) number: U64,
}

/// The recipient of a LINK reads the ring. 16 bytes, with one descriptor: the receiver's page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Accept {
    pub(crate) header: Header,
    /// As in LINK.
    pub(crate) number: U64,
}

/// The recipient of a LINK does not read the ring any more. 24 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Done {
    pub(crate) header: Header,
    /// As in LINK.
    pub(crate) number: U64,
    pub(crate) status: U16,
    pub(crate) reserved: [U16; 3],
}

/// The sender's guest has come or gone. 16 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Guest {
    pub(crate) header: Header,
    /// [`FLAG_AWAY`]; others are not checked.
    pub(crate) flags: U16,
    /// Zero when sent, and not checked.
    pub(crate) reserved: [U16; 3],
}

/// The ring was closed, and all records were read.
pub(crate) const DONE_DRAINED: u16 = 0;
/// The recipient of LINK has no room for it, or no resources: nothing of it was read.
pub(crate) const DONE_DECLINED: u16 = 1;

const _: () = {
    assert!(size_of::<Header>() == 8);
    assert!(size_of::<HelloHead>() == 48);
    assert!(offset_of!(HelloHead, head_size) == 44);
    assert!(size_of::<Field>() == 4);
    assert!(size_of::<AddressSet>() == 7);
    assert!(size_of::<GuardHead>() == 2);
    assert!(size_of::<IpEntry>() == 18);
    assert!(size_of::<Refuse>() == 192);
    assert!(size_of::<Link>() == 24);
    assert!(size_of::<Accept>() == 16);
    assert!(size_of::<Done>() == 24);
    assert!(size_of::<Guest>() == 16);
    assert!(size_of::<Refuse>() <= MAX_SHORT);
    assert!(MAX_MESSAGE <= u16::MAX as usize);
};

/// Descriptors beside a LINK.
pub(crate) const LINK_FDS: usize = 3;
/// Descriptors beside an ACCEPT.
pub(crate) const ACCEPT_FDS: usize = 1;

impl Header {
    pub(crate) fn new(kind: u16, size: usize) -> Header {
        let size = u16::try_from(size).expect("all messages are shorter than MAX_MESSAGE");
        Header {
            magic: MAGIC.into(),
            kind: kind.into(),
            size: size.into(),
        }
    }
}

impl Refuse {
    pub(crate) fn new(reason: u16, seen: Option<Versions>, text: &str) -> Refuse {
        let mut end = text.len().min(REFUSE_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut field = [0; REFUSE_TEXT];
        field[..end].copy_from_slice(&text.as_bytes()[..end]);
        let seen = seen.unwrap_or(Versions { min: 0, max: 0 });
        Refuse {
            header: Header::new(KIND_REFUSE, size_of::<Refuse>()),
            version_min: Versions::OURS.min.into(),
            version_max: Versions::OURS.max.into(),
            seen_min: seen.min.into(),
            seen_max: seen.max.into(),
            reason: reason.into(),
            text_len: (end as u16).into(),
            text: field,
        }
    }

    /// Whether the next attempt may succeed with nothing changed on the recipient's side.
    pub(crate) fn may_pass(&self) -> bool {
        [REASON_FULL, REASON_TIMEOUT, REASON_RESOURCES].contains(&self.reason.get())
    }

    pub(crate) fn versions(&self) -> Versions {
        Versions {
            min: self.version_min.get(),
            max: self.version_max.get(),
        }
    }

    /// The text, as far as it is one. Print it with `{:?}`: it comes from the other side.
    pub(crate) fn text(&self) -> String {
        let len = usize::from(self.text_len.get()).min(REFUSE_TEXT);
        String::from_utf8_lossy(&self.text[..len]).into_owned()
    }
}

impl Hello {
    /// The message, as it is sent.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut fields = Vec::new();
        let mut add = |kind: u16, value: &[u8]| {
            let size = (value.len() as u16).into(); // At most 448: 64 addresses.
            let kind = kind.into();
            fields.extend_from_slice(Field { kind, size }.as_bytes());
            fields.extend_from_slice(value);
        };
        add(FIELD_ID, &self.id);
        if let Some(priority) = self.uplink_priority {
            let role = RoleValue {
                role: ROLE_UPLINK.into(),
                priority: priority.into(),
            };
            add(FIELD_ROLE, role.as_bytes());
        }
        if let Some(network) = &self.network {
            add(FIELD_NETWORK, network);
        }
        if let Some(addresses) = &self.addresses {
            add(FIELD_ADDRESSES, addresses);
        }
        if let Some(guard) = &self.guard {
            add(FIELD_GUARD, guard);
        }
        let head = HelloHead {
            header: Header::new(KIND_HELLO, size_of::<HelloHead>() + fields.len()),
            head_size: (size_of::<HelloHead>() as u16).into(),
            ..self.head
        };
        [head.as_bytes(), &fields].concat()
    }
}

impl Link {
    pub(crate) fn new(queue: u16, capacity: u32, number: u64) -> Link {
        Link {
            header: Header::new(KIND_LINK, size_of::<Link>()),
            queue: queue.into(),
            reserved: 0.into(),
            capacity: capacity.into(),
            number: number.into(),
        }
    }
}

impl Accept {
    pub(crate) fn new(number: u64) -> Accept {
        Accept {
            header: Header::new(KIND_ACCEPT, size_of::<Accept>()),
            number: number.into(),
        }
    }
}

impl Done {
    pub(crate) fn new(number: u64, status: u16) -> Done {
        Done {
            header: Header::new(KIND_DONE, size_of::<Done>()),
            number: number.into(),
            status: status.into(),
            reserved: [0.into(); 3],
        }
    }
}

impl Guest {
    pub(crate) fn new(away: bool) -> Guest {
        Guest {
            header: Header::new(KIND_GUEST, size_of::<Guest>()),
            flags: if away { FLAG_AWAY } else { 0 }.into(),
            reserved: [0.into(); 3],
        }
    }

    pub(crate) fn away(&self) -> bool {
        self.flags.get() & FLAG_AWAY != 0
    }
}
