//! Tests of the message formats.

use std::mem::offset_of;

use super::*;

fn hello(min: u16, max: u16) -> Hello {
    Hello {
        header: Header::new(KIND_HELLO, size_of::<Hello>()),
        version_min: min.into(),
        version_max: max.into(),
        region_version: 1.into(),
        queues: 2.into(),
        incarnation: 0x0102_0304_0506_0708.into(),
        ring_capacity: (1 << 20).into(),
        flags: 0.into(),
        pid: 77.into(),
        mtu: 1500.into(),
        mac: [0x52, 0x54, 0, 1, 2, 3],
        id: [b'x'; MAX_ID_LEN],
        reserved: [0; 20],
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
        offset_of!(Hello, version_min),
        offset_of!(Hello, version_max),
        offset_of!(Hello, region_version),
        offset_of!(Hello, queues),
        offset_of!(Hello, incarnation),
        offset_of!(Hello, ring_capacity),
        offset_of!(Hello, flags),
        offset_of!(Hello, pid),
        offset_of!(Hello, mtu),
        offset_of!(Hello, mac),
        offset_of!(Hello, id),
        offset_of!(Hello, reserved),
    ];
    assert_eq!(hello, [8, 10, 12, 14, 16, 24, 28, 32, 36, 38, 44, 108]);
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
    assert_eq!(
        [
            offset_of!(Ring, index),
            offset_of!(Ring, count),
            offset_of!(Ring, capacity)
        ],
        [8, 10, 12]
    );
}

#[test]
fn bytes_are_little_endian() {
    let bytes = Ring::new(0x0102, 0x0304, 0x0506_0708);
    assert_eq!(
        bytes.as_bytes(),
        [b'V', b'I', b's', b'g', 3, 0, 16, 0, 2, 1, 4, 3, 8, 7, 6, 5].as_slice()
    );
}

#[test]
fn parses_what_it_writes() {
    match parse(hello(1, 1).as_bytes()).unwrap() {
        Message::Hello(parsed) => assert_eq!(parsed.as_bytes(), hello(1, 1).as_bytes()),
        other => panic!("{other:?}"),
    }
    let refuse = Refuse::new(7, Some(Versions { min: 2, max: 3 }), "No");
    match parse(refuse.as_bytes()).unwrap() {
        Message::Refuse(parsed) => {
            assert_eq!(parsed.text(), "No");
            assert_eq!(parsed.versions(), Versions::OURS);
            assert_eq!([parsed.seen_min.get(), parsed.seen_max.get()], [2, 3]);
            assert_eq!(parsed.reason.get(), 7);
        }
        other => panic!("{other:?}"),
    }
    match parse(Ring::new(1, 2, 3).as_bytes()).unwrap() {
        Message::Ring(ring) => {
            assert_eq!([ring.index.get(), ring.count.get()], [1, 2]);
            assert_eq!(ring.capacity.get(), 3);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hello_of_other_versions_is_understood_as_such() {
    // Of any size that holds the versions, whatever else it holds.
    let mut bytes = hello(2, 4).as_bytes().to_vec();
    bytes[12..].fill(0xff);
    for size in [12, 64, 128, 300] {
        bytes.resize(size, 0xff);
        bytes[6..8].copy_from_slice(&(size as u16).to_le_bytes());
        match parse(&bytes) {
            Ok(Message::ForeignHello(versions)) => {
                assert_eq!(versions, Versions { min: 2, max: 4 });
                assert_eq!(versions.to_string(), "2 to 4");
            }
            other => panic!("{size}: {other:?}"),
        }
        bytes.resize(128, 0xff);
    }
    // One that speaks ours as well has to send ours.
    assert!(matches!(
        parse(hello(1, 9).as_bytes()),
        Ok(Message::Hello(_))
    ));
}

#[test]
fn refuses_what_is_not_a_message() {
    assert_eq!(parse(&[]).unwrap_err(), WireError::Short(0));
    assert_eq!(parse(&[0; 7]).unwrap_err(), WireError::Short(7));
    assert_eq!(parse(&[0; 8]).unwrap_err(), WireError::Magic(0));

    let mut bytes = hello(1, 1).as_bytes().to_vec();
    bytes.push(0);
    assert_eq!(
        parse(&bytes).unwrap_err(),
        WireError::SaidSize {
            said: 128,
            has: 129
        }
    );
    bytes[6] = 129;
    assert_eq!(parse(&bytes).unwrap_err(), WireError::Size(129, KIND_HELLO));
    assert_eq!(parse(&bytes).unwrap_err().to_string(), "HELLO of 129 bytes");

    let header = Header::new(9, 8);
    assert_eq!(parse(header.as_bytes()).unwrap_err(), WireError::Kind(9));
    for kind in [KIND_HELLO, KIND_REFUSE, KIND_RING] {
        let header = Header::new(kind, 8);
        assert_eq!(
            parse(header.as_bytes()).unwrap_err(),
            WireError::Size(8, kind)
        );
    }

    assert_eq!(
        parse(hello(3, 2).as_bytes()).unwrap_err(),
        WireError::Versions(3, 2)
    );
    for offset in [28, 31, 108, 127] {
        let mut bytes = hello(1, 1).as_bytes().to_vec();
        bytes[offset] = 1;
        assert_eq!(
            parse(&bytes).unwrap_err(),
            WireError::Reserved,
            "offset {offset}"
        );
    }
}

/// No packet whatever makes the parser panic: each prefix and each single-byte change of a HELLO.
#[test]
fn survives_mutations() {
    let good = hello(1, 1).as_bytes().to_vec();
    for len in 0..good.len() {
        assert!(parse(&good[..len]).is_err());
    }
    for offset in 0..good.len() {
        for value in 0..=255 {
            let mut bytes = good.clone();
            bytes[offset] = value;
            let _ = parse(&bytes);
        }
    }
}

#[test]
fn the_text_of_a_refusal_is_cut_at_a_character() {
    let text = "é".repeat(100);
    let refuse = Refuse::new(1, None, &text);
    assert_eq!(refuse.text(), "é".repeat(86));
    // A length that lies stays within the field.
    let mut refuse = Refuse::new(1, None, "abc");
    refuse.text_len = u16::MAX.into();
    assert_eq!(refuse.text().len(), REFUSE_TEXT);
}
