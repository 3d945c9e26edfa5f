//! A packet becomes a message: its kind, size and fields are checked, not yet what they say.

use std::mem::size_of;

use thiserror::Error;
use zerocopy::FromBytes;
use zerocopy::little_endian::U16;

use crate::wire::*;

/// A packet whose kind and size are right. What the fields say is still to be checked.
#[derive(Clone, Debug)]
pub(crate) enum Message<'a> {
    Hello(Box<Hello>),
    /// A HELLO of which only the versions can be understood, and none is ours.
    ForeignHello(Versions),
    Refuse(Box<Refuse>),
    Link(Link),
    Accept(Accept),
    Done(Done),
    /// A record.
    Frame(&'a [u8]),
    Guest(Guest),
    /// Addresses of a trunk's guest.
    Addresses(&'a [[u8; 6]]),
    /// A message that may be skipped.
    Optional(u16),
}

impl Message<'_> {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Message::Hello(_) | Message::ForeignHello(_) => "HELLO",
            Message::Refuse(_) => "REFUSE",
            Message::Link(_) => "LINK",
            Message::Accept(_) => "ACCEPT",
            Message::Done(_) => "DONE",
            Message::Frame(_) => "FRAME",
            Message::Guest(_) => "GUEST",
            Message::Addresses(_) => "ADDRESSES",
            Message::Optional(_) => "optional message",
        }
    }

    /// Number of descriptors beside it.
    pub(crate) fn fds(&self) -> usize {
        match self {
            Message::Link(_) => LINK_FDS,
            Message::Accept(_) => ACCEPT_FDS,
            _ => 0,
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
    /// A flag that has to be understood.
    #[error("HELLO has flags {0:#06x}, which this port does not know and has to understand")]
    Flags(u16),
    /// A field that has to be understood.
    #[error(
        "HELLO has a field of type {0:#06x}, which this port does not know and has to understand"
    )]
    Field(u16),
    /// A field that there is once.
    #[error("HELLO has the field of type {0:#06x} twice")]
    FieldTwice(u16),
    /// A field that has to be there.
    #[error("HELLO lacks the field of type {0:#06x}")]
    NoField(u16),
    /// A field runs over the end of the message.
    #[error("HELLO ends within a field")]
    FieldEnd,
    /// The fixed part is shorter than it has to be, or longer than the message.
    #[error("HELLO says that its fields begin at {0}")]
    HeadSize(u16),
    /// A reserved value is not zero.
    #[error("{kind} has a reserved value that is not zero", kind = kind_name(*.0))]
    Reserved(u16),
}

impl WireError {
    /// Whether a later version of this protocol may make it right.
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(self, WireError::Flags(_) | WireError::Field(_))
    }
}

fn kind_name(kind: u16) -> &'static str {
    match kind {
        KIND_HELLO => "HELLO",
        KIND_REFUSE => "REFUSE",
        KIND_LINK => "LINK",
        KIND_ACCEPT => "ACCEPT",
        KIND_DONE => "DONE",
        KIND_FRAME => "FRAME",
        _ => "Message",
    }
}

/// Parses one packet.
pub(crate) fn parse(packet: &[u8]) -> Result<Message<'_>, WireError> {
    let (header, rest) =
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
    let wrong_size = || WireError::Size(packet.len(), kind);
    if kind != KIND_FRAME && packet.len() > MAX_SHORT {
        return Err(wrong_size());
    }
    let reserved = |is_zero: bool| {
        if is_zero {
            Ok(())
        } else {
            Err(WireError::Reserved(kind))
        }
    };
    match kind {
        KIND_HELLO => parse_hello(packet),
        KIND_REFUSE => {
            let refuse = Refuse::read_from_bytes(packet).map_err(|_| wrong_size())?;
            Ok(Message::Refuse(Box::new(refuse)))
        }
        KIND_LINK => {
            let link = Link::read_from_bytes(packet).map_err(|_| wrong_size())?;
            reserved(link.reserved == 0)?;
            Ok(Message::Link(link))
        }
        KIND_ACCEPT => {
            let accept = Accept::read_from_bytes(packet).map_err(|_| wrong_size())?;
            Ok(Message::Accept(accept))
        }
        KIND_DONE => {
            let done = Done::read_from_bytes(packet).map_err(|_| wrong_size())?;
            reserved(done.reserved.iter().all(|word| *word == 0))?;
            Ok(Message::Done(done))
        }
        KIND_FRAME if rest.is_empty() || packet.len() > MAX_MESSAGE => Err(wrong_size()),
        KIND_FRAME => Ok(Message::Frame(rest)),
        // One of another size is a later program's.
        KIND_GUEST => Ok(match Guest::read_from_bytes(packet) {
            Ok(guest) => Message::Guest(guest),
            Err(_) => Message::Optional(kind),
        }),
        KIND_ADDRESSES => Ok(match <[[u8; 6]]>::ref_from_bytes(rest) {
            Ok(addresses) if addresses.len() <= MAX_TRUNK_ADDRESSES => {
                Message::Addresses(addresses)
            }
            _ => Message::Optional(kind),
        }),
        _ if kind & KIND_OPTIONAL != 0 => Ok(Message::Optional(kind)),
        _ => Err(WireError::Kind(kind)),
    }
}

fn parse_hello(packet: &[u8]) -> Result<Message<'_>, WireError> {
    let wrong_size = || WireError::Size(packet.len(), KIND_HELLO);
    // The part that all versions share comes first, so that any two can say why they do not match.
    let (_, rest) = Header::read_from_prefix(packet).map_err(|_| wrong_size())?;
    let ([min, max], _) = <[U16; 2]>::read_from_prefix(rest).map_err(|_| wrong_size())?;
    let theirs = Versions {
        min: min.get(),
        max: max.get(),
    };
    if theirs.min > theirs.max {
        return Err(WireError::Versions(theirs.min, theirs.max));
    }
    if !Versions::OURS.overlap(theirs) {
        return Ok(Message::ForeignHello(theirs));
    }
    let (head, _) = HelloHead::read_from_prefix(packet).map_err(|_| wrong_size())?;
    if head.must_flags != 0 {
        return Err(WireError::Flags(head.must_flags.get()));
    }
    let head_size = head.head_size.get();
    let fields = packet.get(usize::from(head_size)..);
    let fields = fields.filter(|_| usize::from(head_size) >= size_of::<HelloHead>());
    let fields = fields.ok_or(WireError::HeadSize(head_size))?;
    let hello = parse_fields(head, fields)?;
    Ok(Message::Hello(Box::new(hello)))
}

/// The fields of a HELLO.
fn parse_fields(head: HelloHead, mut rest: &[u8]) -> Result<Hello, WireError> {
    let (mut id, mut role, mut network) = (None, None, None);
    let (mut addresses, mut guard) = (None, None);
    while !rest.is_empty() {
        let (field, values) = Field::read_from_prefix(rest).map_err(|_| WireError::FieldEnd)?;
        let size = usize::from(field.size.get());
        let (value, next) = values.split_at_checked(size).ok_or(WireError::FieldEnd)?;
        rest = next;
        let once = |slot: &mut Option<Vec<u8>>| match slot.replace(value.to_vec()) {
            Some(_) => Err(WireError::FieldTwice(field.kind.get())),
            None => Ok(()),
        };
        match field.kind.get() {
            FIELD_ID => once(&mut id)?,
            FIELD_ROLE => once(&mut role)?,
            FIELD_NETWORK => once(&mut network)?,
            FIELD_ADDRESSES => once(&mut addresses)?,
            FIELD_GUARD => once(&mut guard)?,
            kind if kind & FIELD_MUST != 0 => return Err(WireError::Field(kind)),
            _ => {}
        }
    }
    // Another role, or more of it, is none that concerns this port.
    let role = role.and_then(|value| RoleValue::read_from_bytes(&value).ok());
    let role = role.filter(|value| value.role == ROLE_UPLINK);
    Ok(Hello {
        head,
        id: id.ok_or(WireError::NoField(FIELD_ID))?,
        uplink_priority: role.map(|value| value.priority.get()),
        network,
        addresses,
        guard,
    })
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
