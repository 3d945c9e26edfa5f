//! Tests of the judgement of messages.

use virtio_inter_common::MacError;
use virtio_inter_link::{DEFAULT_CAPACITY, MAX_CAPACITY};

use super::*;

fn local(id: &str, last_byte: u8) -> Local {
    let mac = MacAddr::new([0x52, 0x54, 0, 0, 0, last_byte]);
    let port = LocalPort {
        queues: 2,
        ..LocalPort::new(id.parse().unwrap(), mac)
    };
    Local {
        port,
        incarnation: 7,
        pid: 42,
        away: false,
        addresses: Default::default(),
    }
}

#[test]
fn handshake_of_ports_that_fit_succeeds() {
    let (a, b) = (local("a", 1), local("b", 2));
    let seen = a
        .judge(&Role::Connector("b".parse().unwrap()), &b.hello())
        .unwrap();
    assert_eq!(seen.id, b.port.id);
    assert_eq!((seen.mac, seen.mtu, seen.queues), (b.port.mac, 1500, 2));
    assert_eq!(
        (seen.ring_capacity, seen.incarnation, seen.pid),
        (DEFAULT_CAPACITY, 7, 42)
    );
    assert!(!seen.away);
    let away = Local { away: true, ..b };
    let role = Role::Connector("b".parse().unwrap());
    assert!(a.judge(&role, &away.hello()).unwrap().away);
    let mut b = local("b", 2);
    b.port.trunk = true;
    let seen = a.judge(&role, &b.hello()).unwrap();
    assert!(seen.trunk && !seen.away);
    b.port.trunk = false;
    assert_eq!(b.judge(&Role::Acceptor, &a.hello()).unwrap().id, a.port.id);
    let long = local(&"z".repeat(64), 3);
    let role = Role::Connector(long.port.id.clone());
    assert_eq!(a.judge(&role, &long.hello()).unwrap().id, long.port.id);
}

#[test]
fn handshake_checks_uplinks() {
    let (a, mut b) = (local("a", 1), local("b", 2));
    b.port.uplinks = Uplinks {
        network: Some("lan".parse().unwrap()),
        shared: Some(7),
    };
    let judge = |hello: &Hello| a.judge(&Role::Acceptor, hello);
    assert_eq!(judge(&b.hello()).unwrap().uplinks, b.port.uplinks);
    let mut hello = b.hello();
    hello.network = Some(b"a/b".to_vec());
    let error = judge(&hello).unwrap_err();
    assert!(matches!(error, Refusal::BadNetwork(_)), "{error}");
    assert_eq!(error.reason(), 5);
}

#[test]
fn handshake_checks_secondary_addresses() {
    let (a, mut b) = (local("a", 1), local("b", 2));
    let judge = |hello: &Hello| a.judge(&Role::Acceptor, hello);
    assert!(judge(&b.hello()).unwrap().allowed.is_empty());
    b.port.allowed = "00:00:5e:00:01:*,02:00:00:00:00:07".parse().unwrap();
    let mut hello = b.hello();
    assert_eq!(judge(&hello).unwrap().allowed, b.port.allowed);
    // As documented, to the byte.
    let entries = [5, 0, 0, 0x5e, 0, 1, 0, 6, 2, 0, 0, 0, 0, 7];
    assert_eq!(hello.addresses.as_deref(), Some(&entries[..]));
    let mut error = |value: &[u8]| {
        hello.addresses = Some(value.to_vec());
        let error = judge(&hello).unwrap_err();
        assert_eq!(error.reason(), 5);
        ErrorChain(&error).to_string()
    };
    for (value, text) in [
        (
            &entries[..13],
            "List of the peer's further MAC addresses has 13 bytes",
        ),
        (&[6, 1, 0, 0x5e, 0, 0, 1], "a multicast address"),
        (&[6, 0, 0, 0, 0, 0, 0], "is zero"),
        (
            &[3, 0x33, 0x33, 0, 0, 0, 0],
            "33:33:00:* is a set of multicast",
        ),
        (
            &[2, 2, 0, 0, 0, 0, 0],
            "Prefix of 2 bytes, allowed are 3 to 6",
        ),
        (
            &entries[..7].repeat(65),
            "65 addresses and prefixes are listed",
        ),
    ] {
        assert!(error(value).contains(text), "{}", error(value));
    }
    hello.addresses = Some(entries[..7].repeat(64));
    assert_eq!(
        judge(&hello).unwrap().allowed.to_string(),
        "00:00:5e:00:01:*"
    );
}

#[test]
fn handshake_checks_the_guard() {
    let (a, mut b) = (local("a", 1), local("b", 2));
    let judge = |hello: &Hello| a.judge(&Role::Acceptor, hello);
    assert!(judge(&b.hello()).unwrap().guard.is_off());
    b.port.guard.no_dhcp_server = true;
    assert_eq!(b.hello().guard.as_deref(), Some(&[1, 0][..]));
    b.port.guard.ips = "10.1.0.0/16,fd00::7".parse().unwrap();
    let mut hello = b.hello();
    assert_eq!(judge(&hello).unwrap().guard, b.port.guard);
    // As documented, to the byte.
    let mut field = vec![1, 0, 4, 16, 10, 1];
    field.resize(2 + 18, 0);
    field.extend([6, 128, 0xfd, 0]);
    field.resize(2 + 2 * 18 - 1, 0);
    field.push(7);
    assert_eq!(hello.guard.as_ref(), Some(&field));
    let mut error = |value: &[u8]| {
        hello.guard = Some(value.to_vec());
        let error = judge(&hello).unwrap_err();
        assert_eq!(error.reason(), 5);
        ErrorChain(&error).to_string()
    };
    let entry = |version: u8, prefix: u8, first: u8| {
        let mut field = vec![0, 0, version, prefix, first];
        field.resize(20, 0);
        field
    };
    let many = [&[0, 0][..], &field[2..20].repeat(17)].concat();
    for (value, text) in [
        (&field[..19], "Guard of the peer has 19 bytes"),
        (&field[..1], "Guard of the peer has 1 bytes"),
        (&[], "Guard of the peer has 0 bytes"),
        (&entry(5, 8, 10), "an address of IP version 5"),
        (&entry(4, 33, 10), "/33 is longer than the address 10.0.0.0"),
        (&entry(4, 4, 10), "bits behind its prefix"),
        (&entry(6, 8, 0xff), "not a unicast address"),
        (&many, "17 IP addresses and prefixes are listed"),
    ] {
        assert!(error(value).contains(text), "{}", error(value));
    }
}

#[test]
fn handshake_names_each_misfit() {
    let local_b = local("b", 2);
    let judge = |role: Role, change: &dyn Fn(&mut Hello)| {
        let mut hello = local("a", 1).hello();
        change(&mut hello);
        local_b.judge(&role, &hello).unwrap_err()
    };
    let acceptor = |change: &dyn Fn(&mut Hello)| judge(Role::Acceptor, change);
    let with_id = |text: &'static [u8]| {
        move |hello: &mut Hello| {
            hello.id = text.to_vec();
        }
    };

    let error = acceptor(&|h| h.head.region_version = 9.into());
    assert_eq!(
        error.to_string(),
        "Peer has region format 9, this port has 2"
    );
    assert!(matches!(
        acceptor(&with_id(b"")),
        Refusal::BadId(PortIdError::Empty)
    ));
    assert!(matches!(
        acceptor(&with_id(b"a/b")),
        Refusal::BadId(PortIdError::Character { .. })
    ));
    assert!(matches!(
        acceptor(&with_id(b"../a")),
        Refusal::BadId(PortIdError::LeadingDot(_))
    ));
    assert_eq!(acceptor(&with_id(b"\xc3")), Refusal::IdEncoding);
    assert_eq!(acceptor(&with_id(b"a\xff")), Refusal::IdEncoding);
    assert!(matches!(acceptor(&with_id(b"b")), Refusal::OwnId(_)));
    let error = judge(Role::Connector("c".parse().unwrap()), &|_| ());
    assert_eq!(
        error.to_string(),
        "Peer says that it is a, but its socket is that of c"
    );
    assert!(matches!(
        acceptor(&|h| h.head.mac[5] = 2),
        Refusal::OwnMac(_)
    ));
    let error = acceptor(&|h| h.head.mac[0] |= 1);
    assert!(matches!(
        error,
        Refusal::Parameters(PortError::Mac(MacError::Multicast(_)))
    ));
    let error = acceptor(&|h| h.head.mac = [0; 6]);
    assert!(matches!(
        error,
        Refusal::Parameters(PortError::Mac(MacError::Zero(_)))
    ));
    let error = acceptor(&|h| h.head.mtu = 67.into());
    assert_eq!(error.to_string(), "MTU is 67, allowed are 68 to 65535");
    for queues in [0, 65, u16::MAX] {
        let error = acceptor(&|h| h.head.queues = queues.into());
        assert_eq!(error, Refusal::Parameters(PortError::Queues(queues)));
    }
    for capacity in [0, 4096, DEFAULT_CAPACITY + 1, MAX_CAPACITY * 2, u32::MAX] {
        let error = acceptor(&|h| h.head.ring_capacity = capacity.into());
        assert_eq!(
            error,
            Refusal::Parameters(PortError::RingCapacity(capacity))
        );
    }
}

#[test]
fn handshake_refusal_names_both_versions_and_all_causes() {
    let refusal = Refusal::Version {
        theirs: Versions { min: 3, max: 4 },
    };
    let message = refusal.message();
    let text = "Peer speaks version 3 to 4 of the segment protocol, this port speaks 2";
    assert_eq!(message.text(), text);
    assert_eq!(
        [
            message.seen_min.get(),
            message.seen_max.get(),
            message.reason.get()
        ],
        [3, 4, 1]
    );
    assert_eq!(message.versions(), Versions::OURS);
    let refusal = Refusal::BadId(PortIdError::Empty);
    assert_eq!(
        refusal.message().text(),
        "Peer's id is not valid: Port id is empty"
    );
}
