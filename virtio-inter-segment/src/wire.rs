//! The messages of the segment protocol, to the byte: see `docs/segment-protocol.md`.
//!
//! Each message is one packet of a SOCK_SEQPACKET socket. Integers are little-endian, structs are
//! packed by construction (all fields have alignment 1), sizes are asserted at compile time. What
//! comes in is copied out of the socket first and looked at afterwards.

use std::mem::size_of;

use thiserror::Error;
use virtio_inter_common::MAX_ID_LEN;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Oldest version of the segment protocol that this crate speaks.
pub const PROTOCOL_VERSION_MIN: u16 = 1;
/// Newest version of the segment protocol that this crate speaks.
pub const PROTOCOL_VERSION_MAX: u16 = 1;

/// First four bytes of every message of every version: `VIsg`.
pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"VIsg");

/// Room for the longest message. Other versions may send a longer HELLO than ours.
pub(crate) const MAX_MESSAGE: usize = 1024;

/// Room for the text of a REFUSE, in bytes.
const REFUSE_TEXT: usize = 172;

pub(crate) const KIND_HELLO: u16 = 1;
pub(crate) const KIND_REFUSE: u16 = 2;
pub(crate) const KIND_RING: u16 = 3;

/// Reason of a REFUSE: the recipient's id is taken, or is not a valid one.
pub(crate) const REASON_ID: u16 = 3;
/// Reason of a REFUSE: the recipient's MAC address is taken.
pub(crate) const REASON_MAC: u16 = 4;
/// Reason of a REFUSE: the sender is at one of its limits.
pub(crate) const REASON_FULL: u16 = 7;
/// Reason of a REFUSE: the handshake took too long.
pub(crate) const REASON_TIMEOUT: u16 = 9;
/// Reason of a REFUSE: the sender is busy at this moment, a system call of it failed, or what it
/// does with the link did.
pub(crate) const REASON_RESOURCES: u16 = 10;
/// Reason of a REFUSE: the two have a connection, or the sender makes one.
pub(crate) const REASON_DUPLICATE: u16 = 11;

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

    fn overlap(self, other: Versions) -> bool {
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

/// The first message of both sides. 128 bytes; the first 12 are the same in all versions.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Hello {
    pub(crate) header: Header,
    pub(crate) version_min: U16,
    pub(crate) version_max: U16,
    /// Format of the regions that the sender of the message creates and opens.
    pub(crate) region_version: U16,
    /// Queue pairs of the port.
    pub(crate) queues: U16,
    /// Drawn at random when the port joined: tells one run of a port from the next.
    pub(crate) incarnation: U64,
    /// Data bytes of each region that the sender of the message will create.
    pub(crate) ring_capacity: U32,
    /// No flag is defined in version 1: zero.
    pub(crate) flags: U32,
    /// For the log only.
    pub(crate) pid: U32,
    /// Largest IP packet, without the Ethernet header, in bytes.
    pub(crate) mtu: U16,
    pub(crate) mac: [u8; 6],
    /// Padded with zero bytes.
    pub(crate) id: [u8; MAX_ID_LEN],
    pub(crate) reserved: [u8; 20],
}

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

/// One region for the other side to send on. 16 bytes, with three descriptors beside them: memfd,
/// data doorbell, space doorbell.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Ring {
    pub(crate) header: Header,
    /// Queue pair of the side that gets this message: 0, 1, … in order.
    pub(crate) index: U16,
    /// How many of these messages there are: the queue pairs of the side that gets them.
    pub(crate) count: U16,
    /// As in HELLO.
    pub(crate) capacity: U32,
}

const _: () = assert!(size_of::<Header>() == 8);
const _: () = assert!(size_of::<Hello>() == 128);
const _: () = assert!(size_of::<Refuse>() == 192);
const _: () = assert!(size_of::<Ring>() == 16);
const _: () = assert!(size_of::<Refuse>() <= MAX_MESSAGE);

/// Descriptors beside a RING.
pub(crate) const RING_FDS: usize = 3;

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

impl Ring {
    pub(crate) fn new(index: u16, count: u16, capacity: u32) -> Ring {
        Ring {
            header: Header::new(KIND_RING, size_of::<Ring>()),
            index: index.into(),
            count: count.into(),
            capacity: capacity.into(),
        }
    }
}

/// A packet whose kind and size are right. What the fields say is still to be checked.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Hello(Box<Hello>),
    /// A HELLO of which only the versions can be understood, and none is ours.
    ForeignHello(Versions),
    Refuse(Box<Refuse>),
    Ring(Ring),
}

impl Message {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Message::Hello(_) | Message::ForeignHello(_) => "HELLO",
            Message::Refuse(_) => "REFUSE",
            Message::Ring(_) => "RING",
        }
    }
}

/// Why a packet is not a message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum WireError {
    /// Shorter than the header.
    #[error("Message of {0} bytes is shorter than a header")]
    Short(usize),
    /// Wrong first four bytes.
    #[error("Message starts with {0:#010x}, not with the magic")]
    Magic(u32),
    /// The size in the header is not the size of the packet.
    #[error("Message says that it has {said} bytes, but has {has}")]
    SaidSize {
        /// By the header.
        said: u16,
        /// By the socket.
        has: usize,
    },
    /// The size is not that of a message of this kind.
    #[error("{kind} of {0} bytes", kind = kind_name(*.1))]
    Size(usize, u16),
    /// No such kind of message.
    #[error("Message is of unknown kind {0}")]
    Kind(u16),
    /// The versions of a HELLO end before they start.
    #[error("HELLO says versions {0} to {1}")]
    Versions(u16, u16),
    /// A flag or reserved byte is not zero.
    #[error("HELLO has a reserved flag or byte set")]
    Reserved,
}

fn kind_name(kind: u16) -> &'static str {
    match kind {
        KIND_HELLO => "HELLO",
        KIND_REFUSE => "REFUSE",
        _ => "RING",
    }
}

/// Looks at one packet.
pub(crate) fn parse(packet: &[u8]) -> Result<Message, WireError> {
    let (header, _) =
        Header::read_from_prefix(packet).map_err(|_| WireError::Short(packet.len()))?;
    if header.magic.get() != MAGIC {
        return Err(WireError::Magic(header.magic.get()));
    }
    if usize::from(header.size.get()) != packet.len() {
        return Err(WireError::SaidSize {
            said: header.size.get(),
            has: packet.len(),
        });
    }
    let kind = header.kind.get();
    let size_error = || WireError::Size(packet.len(), kind);
    match kind {
        KIND_HELLO => parse_hello(packet).map_err(|e| e.unwrap_or_else(size_error)),
        KIND_REFUSE => Refuse::read_from_bytes(packet)
            .map(|refuse| Message::Refuse(Box::new(refuse)))
            .map_err(|_| size_error()),
        KIND_RING => Ring::read_from_bytes(packet)
            .map(Message::Ring)
            .map_err(|_| size_error()),
        _ => Err(WireError::Kind(kind)),
    }
}

/// `Err(None)`: the size is wrong.
fn parse_hello(packet: &[u8]) -> Result<Message, Option<WireError>> {
    // The part that all versions share comes first, so that any two can say why they do not match.
    let (_, rest) = Header::read_from_prefix(packet).map_err(|_| None)?;
    let ([min, max], _) = <[U16; 2]>::read_from_prefix(rest).map_err(|_| None)?;
    let theirs = Versions {
        min: min.get(),
        max: max.get(),
    };
    if theirs.min > theirs.max {
        return Err(Some(WireError::Versions(theirs.min, theirs.max)));
    }
    if !Versions::OURS.overlap(theirs) {
        return Ok(Message::ForeignHello(theirs));
    }
    let hello = Hello::read_from_bytes(packet).map_err(|_| None)?;
    if hello.flags.get() != 0 || hello.reserved != [0; 20] {
        return Err(Some(WireError::Reserved));
    }
    Ok(Message::Hello(Box::new(hello)))
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
