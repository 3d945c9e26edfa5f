//! Tests of the message formats.

use std::mem::offset_of;

use proptest::prelude::*;

use super::*;
use zerocopy::IntoBytes;

fn hello(min: u16, max: u16) -> Hello {
    Hello {
        head: HelloHead {
            header: Header::new(KIND_HELLO, 0),
            version_min: min.into(),
            version_max: max.into(),
            region_version: 2.into(),
            queues: 2.into(),
            incarnation: 0x0102_0304_0506_0708.into(),
            ring_capacity: (1 << 20).into(),
            must_flags: 0.into(),
            may_flags: 0.into(),
            pid: 77.into(),
            mtu: 1500.into(),
            mac: [0x52, 0x54, 0, 1, 2, 3],
            head_size: 0.into(),
            reserved: 0.into(),
        },
        id: b"web".to_vec(),
        uplink_priority: None,
        network: None,
        addresses: None,
        guard: None,
    }
}

/// A HELLO with these fields in place of its own.
fn with_fields(fields: &[u8]) -> Vec<u8> {
    let mut bytes = hello(2, 2).to_bytes();
    bytes.truncate(48);
    bytes.extend(fields);
    resized(bytes)
}

/// With the right size in the header.
fn resized(mut bytes: Vec<u8>) -> Vec<u8> {
    let size = (bytes.len() as u16).to_le_bytes();
    bytes[6..8].copy_from_slice(&size);
    bytes
}

fn field(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((value.len() as u16).to_le_bytes());
    bytes.extend(value);
    bytes
}

fn parsed_hello(bytes: &[u8]) -> Hello {
    match parse(bytes) {
        Ok(Message::Hello(hello)) => *hello,
        other => panic!("{other:?}"),
    }
}

/// The offsets that `docs/segment-protocol.md` gives.
#[test]
fn offsets_are_the_documented_ones() {
    assert_eq!(
        [offset_of!(Header, magic), offset_of!(Header, kind)],
        [0, 4]
    );
    assert_eq!(offset_of!(Header, size), 6);
    let hello = [
        offset_of!(HelloHead, version_min),
        offset_of!(HelloHead, version_max),
        offset_of!(HelloHead, region_version),
        offset_of!(HelloHead, queues),
        offset_of!(HelloHead, incarnation),
        offset_of!(HelloHead, ring_capacity),
        offset_of!(HelloHead, must_flags),
        offset_of!(HelloHead, may_flags),
        offset_of!(HelloHead, pid),
        offset_of!(HelloHead, mtu),
        offset_of!(HelloHead, mac),
        offset_of!(HelloHead, head_size),
        offset_of!(HelloHead, reserved),
    ];
    assert_eq!(hello, [8, 10, 12, 14, 16, 24, 28, 30, 32, 36, 38, 44, 46]);
    let refuse = [
        offset_of!(Refuse, version_min),
        offset_of!(Refuse, version_max),
        offset_of!(Refuse, seen_min),
        offset_of!(Refuse, seen_max),
        offset_of!(Refuse, reason),
        offset_of!(Refuse, text_len),
        offset_of!(Refuse, text),
    ];
    assert_eq!(refuse, [8, 10, 12, 14, 16, 18, 20]);
    let link = [
        offset_of!(Link, queue),
        offset_of!(Link, reserved),
        offset_of!(Link, capacity),
        offset_of!(Link, number),
    ];
    assert_eq!(link, [8, 10, 12, 16]);
    let done = [
        offset_of!(Done, number),
        offset_of!(Done, status),
        offset_of!(Done, reserved),
    ];
    assert_eq!(done, [8, 16, 18]);
    assert_eq!(offset_of!(Accept, number), 8);
}

#[test]
fn bytes_are_little_endian() {
    let bytes = Link::new(0x0102, 0x0304_0506, 0x0708_090a_0b0c_0d0e);
    assert_eq!(
        bytes.as_bytes(),
        [
            b'V', b'I', b's', b'g', 4, 0, 24, 0, 2, 1, 0, 0, 6, 5, 4, 3, 14, 13, 12, 11, 10, 9, 8,
            7
        ]
        .as_slice()
    );
    let bytes = hello(2, 2).to_bytes();
    assert_eq!(bytes.len(), 55);
    assert_eq!(bytes[..12], *b"VIsg\x01\0\x37\0\x02\0\x02\0");
    assert_eq!(bytes[44..], *b"\x30\0\0\0\x01\x80\x03\0web");
}

#[test]
fn wire_hello_has_the_uplinks() {
    let mut hello = hello(2, 2);
    hello.uplink_priority = Some(0x0102);
    hello.network = Some(b"lan".to_vec());
    let bytes = hello.to_bytes();
    assert_eq!(bytes[55..], *b"\x02\0\x04\0\x01\0\x02\x01\x03\0\x03\0lan");
    let parsed = parsed_hello(&bytes);
    assert_eq!(parsed.uplink_priority, Some(0x0102));
    assert_eq!(parsed.network, Some(b"lan".to_vec()));
    hello.addresses = Some(b"1234567".to_vec());
    let bytes = hello.to_bytes();
    assert_eq!(bytes[70..], *b"\x04\0\x07\x001234567");
    assert_eq!(parsed_hello(&bytes).addresses, hello.addresses);
    // Another role is none that this version knows.
    let fields = |role: &[u8]| [field(FIELD_ID, b"a"), field(FIELD_ROLE, role)].concat();
    for role in [&b"\x02\0\x04\0"[..], b"\x01\0", b""] {
        let parsed = parsed_hello(&with_fields(&fields(role)));
        assert_eq!(parsed.uplink_priority, None);
    }
    let twice = [fields(b"\x01\0\x04\0"), field(FIELD_ROLE, b"")].concat();
    let error = parse(&with_fields(&twice)).unwrap_err();
    assert_eq!(error, WireError::FieldTwice(FIELD_ROLE));
}

#[test]
fn wire_messages_parse_as_written() {
    let parsed = parsed_hello(&hello(2, 2).to_bytes());
    assert_eq!(parsed.id, b"web");
    assert_eq!(
        parsed.head.as_bytes()[8..44],
        hello(2, 2).head.as_bytes()[8..44]
    );
    let refuse = Refuse::new(7, Some(Versions { min: 3, max: 4 }), "No");
    match parse(refuse.as_bytes()).unwrap() {
        Message::Refuse(parsed) => {
            assert_eq!(parsed.text(), "No");
            assert_eq!(parsed.versions(), Versions::OURS);
            assert_eq!([parsed.seen_min.get(), parsed.seen_max.get()], [3, 4]);
            assert_eq!(parsed.reason.get(), 7);
        }
        other => panic!("{other:?}"),
    }
    match parse(Link::new(1, 2, 3).as_bytes()).unwrap() {
        Message::Link(link) => {
            let numbers = (link.queue.get(), link.capacity.get(), link.number.get());
            assert_eq!(numbers, (1, 2, 3));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        parse(Accept::new(5).as_bytes()),
        Ok(Message::Accept(accept)) if accept.number == 5
    ));
    assert!(matches!(
        parse(Done::new(5, 1).as_bytes()),
        Ok(Message::Done(done)) if done.number == 5 && done.status == 1
    ));
}

#[test]
fn hello_of_other_versions_is_understood_as_such() {
    // Of any size that holds the versions, whatever else it holds.
    for (min, max, said) in [(3, 4, "3 to 4"), (1, 1, "1")] {
        let mut bytes = hello(min, max).to_bytes();
        bytes[12..].fill(0xff);
        for size in [12, 64, 128, 300] {
            bytes.resize(size, 0xff);
            bytes = resized(bytes);
            match parse(&bytes) {
                Ok(Message::ForeignHello(versions)) => {
                    assert_eq!(versions, Versions { min, max });
                    assert_eq!(versions.to_string(), said);
                }
                other => panic!("{size}: {other:?}"),
            }
        }
    }
    // One that speaks ours as well has to send ours.
    assert_eq!(parsed_hello(&hello(1, 9).to_bytes()).id, b"web");
}

#[test]
fn hello_of_a_later_program_is_understood_as_far_as_it_must_be() {
    // Unknown fields, before and behind the known one, and a flag: all may be ignored.
    let id = field(FIELD_ID, b"web");
    let may = field(0x1234, b"anything");
    let empty = field(0x0102, b"");
    for order in [
        [&id, &may, &empty],
        [&may, &id, &may],
        [&empty, &empty, &id],
    ] {
        let bytes = with_fields(&order.map(|field| field.as_slice()).concat());
        assert_eq!(parsed_hello(&bytes).id, b"web");
    }
    let mut bytes = hello(2, 2).to_bytes();
    bytes[30] = 0xff;
    assert_eq!(parsed_hello(&bytes).id, b"web");
    // A longer fixed part, and a reserved value of it.
    let mut bytes = hello(2, 2).to_bytes();
    bytes.splice(48..48, [9; 16]);
    bytes[44] = 64;
    bytes[46] = 7;
    assert_eq!(parsed_hello(&resized(bytes)).id, b"web");

    let refused = |bytes: &[u8]| parse(bytes).map(|message| message.name()).unwrap_err();
    let must = [id.clone(), field(0x9234, b"x")].concat();
    let error = refused(&with_fields(&must));
    assert!(error == WireError::Field(0x9234) && error.is_unknown());
    let mut bytes = hello(2, 2).to_bytes();
    bytes[29] = 1;
    let error = refused(&bytes);
    assert!(error == WireError::Flags(0x100) && error.is_unknown());
    assert_eq!(
        error.to_string(),
        "HELLO has flags 0x0100, which this port does not know and has to understand"
    );
}

#[test]
fn fields_that_are_wrong_are_refused() {
    let id = field(FIELD_ID, b"web");
    let refused = |bytes: &[u8]| parse(bytes).map(|message| message.name()).unwrap_err();
    let with = |fields: &[u8]| refused(&with_fields(fields));
    assert_eq!(with(&[]), WireError::NoField(FIELD_ID));
    assert_eq!(with(&id.repeat(2)), WireError::FieldTwice(FIELD_ID));
    assert_eq!(with(&id[..6]), WireError::FieldEnd);
    assert_eq!(
        with(&[id.as_slice(), &[0; 3]].concat()),
        WireError::FieldEnd
    );
    for head_size in [0, 47, 56, u16::MAX] {
        let mut bytes = hello(2, 2).to_bytes();
        bytes[44..46].copy_from_slice(&head_size.to_le_bytes());
        assert_eq!(refused(&bytes), WireError::HeadSize(head_size));
    }
}

#[test]
fn wire_guest_is_away_or_here() {
    for away in [false, true] {
        let bytes = Guest::new(away);
        assert_eq!(
            bytes.as_bytes(),
            [
                b"VIsg\x08\x80\x10\0",
                &[u8::from(away), 0, 0, 0, 0, 0, 0, 0][..]
            ]
            .concat()
        );
        let parsed = parse(bytes.as_bytes());
        assert!(matches!(parsed, Ok(Message::Guest(guest)) if guest.away() == away));
    }
    // A later program's.
    let bytes = Header::new(KIND_GUEST, 8);
    let parsed = parse(bytes.as_bytes());
    assert!(matches!(parsed, Ok(Message::Optional(KIND_GUEST))));
}

#[test]
fn wire_addresses_are_at_most_64() {
    let message = |count: usize, more: usize| {
        let size = 8 + 6 * count + more;
        let mut bytes = Header::new(KIND_ADDRESSES, size).as_bytes().to_vec();
        bytes.resize(size, 2);
        bytes
    };
    for count in [0, 1, 64] {
        let bytes = message(count, 0);
        let parsed = parse(&bytes);
        assert!(matches!(parsed, Ok(Message::Addresses(all)) if all == vec![[2; 6]; count]));
    }
    for bytes in [message(65, 0), message(3, 1)] {
        let parsed = parse(&bytes);
        assert!(matches!(parsed, Ok(Message::Optional(KIND_ADDRESSES))));
    }
}

#[test]
fn messages_that_may_be_skipped_are() {
    for size in [8, 9, MAX_SHORT] {
        let mut bytes = Header::new(0x8123, size).as_bytes().to_vec();
        bytes.resize(size, 7);
        assert!(matches!(parse(&bytes), Ok(Message::Optional(0x8123))));
    }
    let mut bytes = Header::new(0x8123, MAX_SHORT + 1).as_bytes().to_vec();
    bytes.resize(MAX_SHORT + 1, 7);
    assert!(matches!(parse(&bytes), Err(WireError::Size(..))));
}

#[test]
fn frames_have_a_bound() {
    let frame = |len: usize| {
        let mut bytes = Header::new(KIND_FRAME, 8 + len).as_bytes().to_vec();
        bytes.resize(8 + len, 7);
        matches!(parse(&bytes), Ok(Message::Frame(record)) if record.len() == len)
    };
    assert!(frame(1) && frame(MAX_FRAME));
    assert!(!frame(0) && !frame(MAX_FRAME + 1));
}

#[test]
fn wire_refuses_what_is_not_a_message() {
    let refused = |bytes: &[u8]| parse(bytes).map(|message| message.name()).unwrap_err();
    assert_eq!(refused(&[]), WireError::Short(0));
    assert_eq!(refused(&[0; 7]), WireError::Short(7));
    assert_eq!(refused(&[0; 8]), WireError::Magic(0));

    let mut bytes = Accept::new(1).as_bytes().to_vec();
    bytes.push(0);
    assert_eq!(refused(&bytes), WireError::SaidSize { said: 16, has: 17 });
    let error = refused(&resized(bytes));
    assert_eq!(error, WireError::Size(17, KIND_ACCEPT));
    assert_eq!(error.to_string(), "ACCEPT of 17 bytes");

    // Number 3 is a message of version 1.
    for kind in [0, 3, 9] {
        assert_eq!(
            refused(Header::new(kind, 8).as_bytes()),
            WireError::Kind(kind)
        );
    }
    for kind in [
        KIND_HELLO,
        KIND_REFUSE,
        KIND_LINK,
        KIND_ACCEPT,
        KIND_DONE,
        KIND_FRAME,
    ] {
        assert_eq!(
            refused(Header::new(kind, 8).as_bytes()),
            WireError::Size(8, kind)
        );
    }

    assert_eq!(refused(&hello(3, 2).to_bytes()), WireError::Versions(3, 2));
    let mut link = Link::new(0, 1 << 16, 1);
    link.reserved = 1.into();
    assert_eq!(refused(link.as_bytes()), WireError::Reserved(KIND_LINK));
    let mut done = Done::new(1, 0);
    done.reserved[2] = 1.into();
    assert_eq!(refused(done.as_bytes()), WireError::Reserved(KIND_DONE));
}

/// Bytes that are a HELLO up to a few changes.
fn almost_hello() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let fields = prop::collection::vec(
        (any::<u16>(), prop::collection::vec(any::<u8>(), 0..40)),
        0..6,
    );
    (changes, fields, any::<prop::sample::Index>()).prop_map(|(changes, fields, cut)| {
        let mut all = field(FIELD_ID, b"web");
        for (kind, value) in fields {
            all.extend(field(kind, &value));
        }
        let mut bytes = with_fields(&all);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        // Mostly whole.
        let cut = cut.index(2 * bytes.len());
        bytes.truncate(cut.max(8));
        resized(bytes)
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4096,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// No packet makes the parser panic, and what it accepts it has understood.
    #[test]
    fn parser_survives_anything(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes);
        let mut bytes = bytes;
        bytes.splice(0..0, *b"VIsg");
        if bytes.len() >= 8 {
            let _ = parse(&resized(bytes));
        }
    }

    #[test]
    fn parser_of_hello_accepts_only_what_can_be_written_again(bytes in almost_hello()) {
        if let Ok(Message::Hello(hello)) = parse(&bytes) {
            let again = hello.to_bytes();
            let parsed = parsed_hello(&again);
            prop_assert_eq!(&parsed.id, &hello.id);
            prop_assert_eq!(parsed.head.as_bytes()[8..44].to_vec(), bytes[8..44].to_vec());
            prop_assert!(parsed.head.must_flags == 0);
        }
    }
}

#[test]
fn text_of_a_refusal_is_cut_at_a_character() {
    let text = "é".repeat(100);
    let refuse = Refuse::new(1, None, &text);
    assert_eq!(refuse.text(), "é".repeat(86));
    // A length that lies stays within the field.
    let mut refuse = Refuse::new(1, None, "abc");
    refuse.text_len = u16::MAX.into();
    assert_eq!(refuse.text().len(), REFUSE_TEXT);
}
