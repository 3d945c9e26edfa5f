//! Tests of the judgement of messages.

use virtio_inter_common::MacError;
use virtio_inter_link::{DEFAULT_CAPACITY, MAX_CAPACITY};

use super::*;

fn local(id: &str, last_byte: u8) -> Local {
    let port = LocalPort {
        id: id.parse().unwrap(),
        mac: MacAddr::new([0x52, 0x54, 0, 0, 0, last_byte]),
        mtu: 1500,
        queues: 2,
        ring_capacity: DEFAULT_CAPACITY,
    };
    Local {
        port,
        incarnation: 7,
        pid: 42,
    }
}

#[test]
fn two_ports_that_fit() {
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
    assert_eq!(b.judge(&Role::Acceptor, &a.hello()).unwrap().id, a.port.id);
    assert_eq!(a.link_fds(&seen), 13);
    assert_eq!(a.link_bytes(&seen), 4 * u64::from(DEFAULT_CAPACITY));
    // The longest id leaves no room for padding.
    let long = local(&"z".repeat(64), 3);
    let role = Role::Connector(long.port.id.clone());
    assert_eq!(a.judge(&role, &long.hello()).unwrap().id, long.port.id);
}

#[test]
fn each_misfit_is_named() {
    let local_b = local("b", 2);
    let judge = |role: Role, change: &dyn Fn(&mut Hello)| {
        let mut hello = local("a", 1).hello();
        change(&mut hello);
        local_b.judge(&role, &hello).unwrap_err()
    };
    let acceptor = |change: &dyn Fn(&mut Hello)| judge(Role::Acceptor, change);
    let with_id = |text: &'static [u8]| {
        move |hello: &mut Hello| {
            hello.id = [0; MAX_ID_LEN];
            hello.id[..text.len()].copy_from_slice(text);
        }
    };

    let error = acceptor(&|h| h.region_version = 9.into());
    assert_eq!(
        error.to_string(),
        "Peer has region format 9, this port has 1"
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
    assert_eq!(acceptor(&with_id(b"a\0b")), Refusal::IdEncoding);
    assert_eq!(acceptor(&with_id(b"a\xff")), Refusal::IdEncoding);
    assert!(matches!(acceptor(&with_id(b"b")), Refusal::OwnId(_)));
    let error = judge(Role::Connector("c".parse().unwrap()), &|_| ());
    assert_eq!(
        error.to_string(),
        "Peer says that it is a, but its socket is that of c"
    );
    assert!(matches!(acceptor(&|h| h.mac[5] = 2), Refusal::OwnMac(_)));
    let error = acceptor(&|h| h.mac[0] |= 1);
    assert!(matches!(
        error,
        Refusal::Parameters(PortError::Mac(MacError::Multicast(_)))
    ));
    let error = acceptor(&|h| h.mac = [0; 6]);
    assert!(matches!(
        error,
        Refusal::Parameters(PortError::Mac(MacError::Zero(_)))
    ));
    let error = acceptor(&|h| h.mtu = 67.into());
    assert_eq!(error.to_string(), "MTU is 67, allowed are 68 to 65535");
    for queues in [0, 65, u16::MAX] {
        let error = acceptor(&|h| h.queues = queues.into());
        assert_eq!(error, Refusal::Parameters(PortError::Queues(queues)));
    }
    for capacity in [0, 4096, DEFAULT_CAPACITY + 1, MAX_CAPACITY * 2, u32::MAX] {
        let error = acceptor(&|h| h.ring_capacity = capacity.into());
        assert_eq!(
            error,
            Refusal::Parameters(PortError::RingCapacity(capacity))
        );
    }
}

#[test]
fn a_refusal_says_both_versions_and_all_causes() {
    let refusal = Refusal::Version {
        theirs: Versions { min: 2, max: 3 },
    };
    let message = refusal.message();
    let text = "Peer speaks version 2 to 3 of the segment protocol, this port speaks 1";
    assert_eq!(message.text(), text);
    assert_eq!(
        [
            message.seen_min.get(),
            message.seen_max.get(),
            message.reason.get()
        ],
        [2, 3, 1]
    );
    assert_eq!(message.versions(), Versions::OURS);
    let refusal = Refusal::BadId(PortIdError::Empty);
    assert_eq!(
        refusal.message().text(),
        "Peer's id is not valid: Port id is empty"
    );
}

#[test]
fn rings_come_in_order_each_once_with_three_descriptors() {
    let ring = |index| Ring::new(index, 2, 4096);
    let mut sequence = RingSequence::new(2, 4096);
    let wrong = [
        (ring(1), 3, "RING index is 1 instead of 0"),
        (Ring::new(0, 3, 4096), 3, "RING count is 3 instead of 2"),
        (
            Ring::new(0, 2, 8192),
            3,
            "RING capacity is 8192 instead of 4096",
        ),
        (ring(0), 2, "RING number of descriptors is 2 instead of 3"),
        (ring(0), 4, "RING number of descriptors is 4 instead of 3"),
        (ring(0), 0, "RING number of descriptors is 0 instead of 3"),
    ];
    for (ring, fds, message) in wrong {
        assert_eq!(
            sequence.accept(&ring, fds).unwrap_err().to_string(),
            message
        );
    }
    sequence.accept(&ring(0), 3).unwrap();
    assert!(!sequence.is_complete());
    let error = sequence.accept(&ring(0), 3).unwrap_err();
    assert_eq!(error.to_string(), "RING index is 0 instead of 1");
    sequence.accept(&ring(1), 3).unwrap();
    assert!(sequence.is_complete());
    let error = sequence.accept(&ring(2), 3).unwrap_err();
    assert_eq!(error.to_string(), "RING after the last of 2");
}
