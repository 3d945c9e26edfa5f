//! Messages that are not valid vhost-user: the connection ends, nothing is left behind.

use std::os::fd::AsFd;

use crate::rig::*;

/// Every request with a payload of a fixed size, and that size.
pub(crate) const FIXED: [(u32, usize); 22] = [
    (GET_FEATURES, 0),
    (SET_FEATURES, 8),
    (SET_OWNER, 0),
    (RESET_OWNER, 0),
    (SET_VRING_NUM, 8),
    (SET_VRING_ADDR, 40),
    (SET_VRING_BASE, 8),
    (GET_VRING_BASE, 8),
    (SET_VRING_KICK, 8),
    (SET_VRING_CALL, 8),
    (SET_VRING_ERR, 8),
    (GET_PROTOCOL_FEATURES, 0),
    (SET_PROTOCOL_FEATURES, 8),
    (GET_QUEUE_NUM, 0),
    (SET_VRING_ENABLE, 8),
    (NET_SET_MTU, 8),
    (SET_BACKEND_REQ_FD, 0),
    (RESET_DEVICE, 0),
    (GET_MAX_MEM_SLOTS, 0),
    (ADD_MEM_REG, 40),
    (REM_MEM_REG, 40),
    (SET_MEM_TABLE, 40),
];

#[test]
fn wrong_sizes_end_the_connection() {
    for (code, size) in FIXED {
        for wrong in [size.wrapping_sub(1), size + 1, 4096] {
            if wrong > 4096 {
                continue;
            }
            let mut body = vec![0; wrong];
            if code == SET_MEM_TABLE && wrong >= 4 {
                body[0] = 1;
            }
            let text = Rig::new(2).offend(code, &body, &[]);
            assert!(
                text.contains("cannot be") || text.contains("descriptors"),
                "{text}"
            );
        }
    }
}

#[test]
fn wrong_configuration_ranges_end_the_connection() {
    for body in [
        words(&[0, 0, 0]),
        words(&[0, 4097, 0]),
        words(&[u32::MAX, 1, 0]),
        words(&[0, 4, 8]),
        words(&[0, 4, 0, 0, 0]),
        words(&[0, 4]),
    ] {
        Rig::new(2).offend(GET_CONFIG, &body, &[]);
        Rig::new(2).offend(SET_CONFIG, &body, &[]);
    }
}

#[test]
fn wrong_fields_end_the_connection() {
    for (code, body, reason) in [
        (
            SET_VRING_ENABLE,
            state(0, 2),
            "SET_VRING_ENABLE has state 0x2",
        ),
        (
            SET_VRING_BASE,
            state(0, 65536),
            "SET_VRING_BASE has base 0x10000",
        ),
        (
            SET_VRING_CALL,
            number(0x200).to_vec(),
            "SET_VRING_CALL has index 0x200",
        ),
    ] {
        let text = Rig::new(2).offend(code, &body, &[]);
        assert!(text.contains(reason), "{text}");
    }
    let mut flagged = addresses(0, USER);
    flagged[4] = 2;
    let text = Rig::new(2).offend(SET_VRING_ADDR, &flagged, &[]);
    assert!(text.contains("SET_VRING_ADDR has flags 0x2"), "{text}");
}

#[test]
fn wrong_descriptors_end_the_connection() {
    let fd = event();
    for (code, size) in FIXED {
        let takes_one = matches!(
            code,
            SET_VRING_KICK
                | SET_VRING_CALL
                | SET_VRING_ERR
                | SET_BACKEND_REQ_FD
                | ADD_MEM_REG
                | SET_MEM_TABLE
        );
        // REM_MEM_REG may have one that it does not need.
        let tolerated = usize::from(takes_one || code == REM_MEM_REG);
        let mut body = vec![0; size];
        if code == SET_MEM_TABLE {
            body[0] = 1;
        }
        let fds = vec![fd.as_fd(); tolerated + 1];
        let text = Rig::new(2).offend(code, &body, &fds);
        assert!(text.contains("file descriptors instead of"), "{text}");
        if takes_one {
            let text = Rig::new(2).offend(code, &body, &[]);
            assert!(text.contains("0 file descriptors instead of 1"), "{text}");
        }
    }
    // The flag says that there is none.
    let text = Rig::new(2).offend(SET_VRING_CALL, &number(0x100), &[fd.as_fd()]);
    assert!(text.contains("1 file descriptors instead of 0"), "{text}");
}

#[test]
fn message_has_a_limited_number_of_descriptors() {
    let fd = event();
    let text = Rig::new(2).offend(SET_MEM_TABLE, &table(&[]), &[fd.as_fd(); 33]);
    assert!(text.contains("More than 32 file descriptors"), "{text}");
    // Also if they come byte by byte.
    let mut rig = Rig::new(2);
    rig.send_bytes(&words(&[SET_MEM_TABLE]), &[fd.as_fd(); 20]);
    rig.process().unwrap();
    rig.send_bytes(&words(&[VERSION]), &[fd.as_fd(); 20]);
    rig.process().unwrap_err();
}

#[test]
fn headers_are_checked() {
    let header = |code: u32, flags: u32, size: u32| words(&[code, flags, size]);
    for (bytes, reason) in [
        (header(GET_FEATURES, 0, 0), "header flags 0x0"),
        (header(GET_FEATURES, 2, 0), "header flags 0x2"),
        (header(GET_FEATURES, VERSION | REPLY, 0), "header flags 0x5"),
        (header(GET_FEATURES, VERSION | 16, 0), "header flags 0x11"),
        (
            header(SET_MEM_TABLE, VERSION, 4097),
            "SET_MEM_TABLE is 4097 bytes long",
        ),
        (
            header(999, VERSION, u32::MAX),
            "request 999 is 4294967295 bytes long",
        ),
        (
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            "Not a vhost-user request",
        ),
    ] {
        let mut rig = Rig::new(2);
        rig.send_bytes(&bytes, &[]);
        let text = chain(&rig.process().unwrap_err());
        assert!(text.contains(reason), "{text}");
    }
}

#[test]
fn messages_may_come_in_pieces() {
    let mut rig = Rig::new(2);
    let fd = event();
    let mut bytes = words(&[SET_VRING_CALL, VERSION, 8]);
    bytes.extend(number(1));
    rig.send_bytes(&bytes[..1], &[fd.as_fd()]);
    rig.process().unwrap();
    for byte in &bytes[1..] {
        rig.send_bytes(&[*byte], &[]);
        rig.process().unwrap();
    }
    // And several at once.
    let ask = words(&[GET_QUEUE_NUM, VERSION, 0]);
    rig.send_bytes(&[ask.clone(), ask].concat(), &[]);
    rig.process().unwrap();
    for _ in 0..2 {
        assert_eq!(number_of(&rig.reply().unwrap().2), 2);
    }
}

#[test]
fn end_within_a_message_is_told_from_an_end() {
    let mut rig = Rig::new(2);
    rig.send_bytes(&words(&[GET_FEATURES, VERSION]), &[]);
    rig.socket.shutdown(std::net::Shutdown::Both).unwrap();
    let text = chain(&rig.process().unwrap_err());
    assert!(text.contains("in the middle of a message"), "{text}");
}

#[test]
fn frontend_that_does_not_read_its_replies_is_not_served_on() {
    let mut rig = Rig::new(2);
    let ask = words(&[GET_FEATURES, VERSION, 0]).repeat(64);
    let mut asked = 0u32;
    loop {
        rig.process().unwrap();
        if rig.frontend.as_ref().unwrap().is_sending() {
            break;
        }
        rig.send_bytes(&ask, &[]);
        asked += 64;
        assert!(asked < 1_000_000, "replies go somewhere");
    }
    // Once it reads, all are answered.
    let mut answered = 0;
    while answered < asked {
        match rig.reply() {
            Some(_) => answered += 1,
            None => rig.process().unwrap(),
        }
    }
    assert_eq!(answered, asked);
}
