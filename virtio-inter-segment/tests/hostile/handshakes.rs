//! Handshakes that are wrong: packets, rings, identities and versions.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::EventfdFlags;
use rustix::pipe::PipeFlags;
use virtio_inter_link::{Doorbell, ReceiverPage, Region};
use virtio_inter_segment::Limits;

use crate::common::raw::{self, ACCEPT, REFUSE};
use crate::common::{self, Net, PATIENCE, capture_log, local, logged};
use crate::{MIB, check_unharmed, expect_hello, net, provoke};

#[test]
fn packets_that_are_no_hello() {
    let mut net = net();
    let mut seed = 1u64;
    let mut noise = |len: usize| -> Vec<u8> {
        let byte = |seed: &mut u64| {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (*seed >> 56) as u8
        };
        (0..len).map(|_| byte(&mut seed)).collect()
    };
    let hello = raw::hello("a", 1);
    let mut packets: Vec<Vec<u8>> = vec![
        noise(1),
        noise(8),
        noise(128),
        noise(1024),
        noise(1025),
        noise(60_000),
        hello[..52].to_vec(),
        [hello.as_slice(), &[0]].concat(),
        raw::header(3, 8),
        raw::link(0, MIB, 1),
        raw::accept(1),
        raw::done(1, 0),
        raw::frame(&[0; 100]),
        raw::header(99, 8),
    ];
    // Whatever one byte is changed to, the outcome is an answer or silence, never harm.
    for at in [
        0, 3, 4, 6, 7, 8, 12, 14, 15, 24, 27, 28, 38, 44, 45, 48, 49, 50, 51, 52,
    ] {
        let mut packet = hello.clone();
        packet[at] ^= 0xff;
        packets.push(packet);
    }
    for packet in packets {
        let refusal = provoke(&mut net, &[(&packet, &[])]);
        let refusal = refusal.unwrap_or_else(|| panic!("not told why: {packet:?}"));
        assert_eq!(refusal.versions, [2, 2]);
        assert!(!refusal.text.is_empty());
    }
    // Nothing comes before HELLO, not even what may be skipped behind it.
    let refusal = provoke(&mut net, &[(&raw::header(0x8063, 8), &[])]).unwrap();
    assert!(
        refusal.text.contains("instead of HELLO"),
        "{}",
        refusal.text
    );
    // An empty packet cannot be told from the end.
    provoke(&mut net, &[(&[], &[])]);
    // A REFUSE is believed.
    let mut refuse = raw::header(REFUSE, 192);
    refuse.resize(192, 0xff);
    assert!(provoke(&mut net, &[(&refuse, &[])]).is_none());
    check_unharmed(&mut net);
}

/// What a peer that is up may do wrong with rings: each ends its connection, and nothing else.
#[test]
fn links_that_are_not_right() {
    let mut net = net();
    let hello = raw::hello("a", 1);
    let region = Region::create(MIB).unwrap();
    let small = Region::create(MIB / 2).unwrap();
    let page = ReceiverPage::create().unwrap();
    let doorbell = Doorbell::new().unwrap();
    let (pipe, _other) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    let unsealed = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&unsealed, region_size(&region)).unwrap();
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
    let semaphore = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();

    let (r, b, p) = (region.fd(), doorbell.as_fd(), page.fd());
    let good = raw::link(0, MIB, 1);
    // The port's own LINK, number 1, comes first: it can be accepted.
    let cases: Vec<(&str, Vec<u8>, Vec<BorrowedFd<'_>>)> = vec![
        ("no descriptors", good.clone(), vec![]),
        ("two descriptors", good.clone(), vec![r, b]),
        ("four descriptors", good.clone(), vec![r, b, b, b]),
        ("sixty descriptors", good.clone(), vec![r; 60]),
        ("queue pair", raw::link(1, MIB, 1), vec![r, b, b]),
        ("number 0", raw::link(0, MIB, 0), vec![r, b, b]),
        ("number 2", raw::link(0, MIB, 2), vec![r, b, b]),
        (
            "a larger ring than the port takes",
            raw::link(0, MIB, 1),
            vec![r, b, b],
        ),
        (
            "a capacity that lies",
            raw::link(0, MIB / 4, 1),
            vec![small.fd(), b, b],
        ),
        (
            "an unsealed region",
            raw::link(0, MIB / 4, 1),
            vec![unsealed.as_fd(), b, b],
        ),
        ("a pipe as region", good.clone(), vec![pipe.as_fd(), b, b]),
        ("a pipe as doorbell", good.clone(), vec![r, pipe.as_fd(), b]),
        (
            "an epoll as doorbell",
            good.clone(),
            vec![r, b, epoll.as_fd()],
        ),
        ("a region as doorbell", good.clone(), vec![r, b, r]),
        ("swapped", good.clone(), vec![b, r, b]),
        ("HELLO again", hello.clone(), vec![]),
        ("no message", vec![1, 2, 3], vec![r, b, b]),
        ("ACCEPT of no ring", raw::accept(7), vec![p]),
        ("ACCEPT with nothing", raw::accept(1), vec![]),
        ("ACCEPT with a doorbell", raw::accept(1), vec![b]),
        ("ACCEPT with a region", raw::accept(1), vec![r]),
        ("ACCEPT with two pages", raw::accept(1), vec![p, p]),
        ("DONE of no ring", raw::done(7, 1), vec![]),
        ("DONE before ACCEPT", raw::done(1, 0), vec![]),
        ("DONE with another status", raw::done(1, 2), vec![]),
        ("DONE with a descriptor", raw::done(1, 1), vec![b]),
        ("FRAME with a descriptor", raw::frame(&[0; 64]), vec![b]),
        ("an empty FRAME", raw::header(7, 8), vec![]),
        ("a FRAME that is too long", raw::frame(&[0; 16385]), vec![]),
        ("an unknown message", raw::header(99, 8), vec![]),
    ];
    let count = cases.len();
    for (what, packet, fds) in cases {
        let refusal = provoke(&mut net, &[(&hello, &[]), (&packet, &fds)]);
        let refusal = refusal.unwrap_or_else(|| panic!("{what}: not told why"));
        assert_eq!(refusal.reason, 8, "{what}: {}", refusal.text);
    }
    let port = net.ports.get_mut("m").unwrap();
    assert_eq!(port.downs.len(), count);
    port.downs.clear();
    port.done.clear();
    check_unharmed(&mut net);

    // The right thing, by hand, is accepted, beside what may be skipped.
    let socket = raw::connect(&net, "m");
    raw::send(
        &socket,
        &raw::hello_with("a", 1, &raw::field(0x77, b"later")),
    );
    let region = Region::create(MIB / 4).unwrap();
    let fds = [region.fd(), b, semaphore.as_fd()];
    raw::send(&socket, &raw::header(0x8011, 8));
    raw::try_send(&socket, &raw::link(0, MIB / 4, 1), &fds).unwrap();
    raw::send(&socket, &raw::frame(b"a record"));
    net.until("the ring", |net| {
        let link = net.ports["m"].links.get("a");
        link.is_some_and(|link| link.receivers.len() == 1)
    });
    net.until(
        "ACCEPT",
        |_| matches!(raw::try_receive(&socket), Ok(Some(p)) if p[4] == ACCEPT as u8),
    );
    net.until("the record", |net| !net.ports["m"].frames.is_empty());
    assert_eq!(net.ports["m"].frames[0].1, b"a record");
    // The port's own ring may be declined.
    raw::send(&socket, &raw::done(1, 1));
    net.until("DONE", |net| net.ports["m"].done == [(1, true)]);
    drop(socket);
    net.until("its end", |net| !net.ports["m"].links.contains_key("a"));
}

/// A peer that opens ring after ring for one queue pair is held to its bound.
#[test]
fn links_of_one_queue_pair_are_two_at_most() {
    let mut net = net();
    let socket = raw::connect(&net, "m");
    raw::send(&socket, &raw::hello("a", 1));
    let (region, doorbell) = (Region::create(MIB / 4).unwrap(), Doorbell::new().unwrap());
    let fds = [region.fd(), doorbell.as_fd(), doorbell.as_fd()];
    for number in 1..=2 {
        raw::try_send(&socket, &raw::link(0, MIB / 4, number), &fds).unwrap();
    }
    net.until("the rings", |net| {
        let link = net.ports["m"].links.get("a");
        link.is_some_and(|link| link.receivers.len() == 2)
    });
    raw::try_send(&socket, &raw::link(0, MIB / 4, 3), &fds).unwrap();
    let refusal = raw::until_closed(&mut net, &socket).unwrap();
    assert_eq!(refusal.text, "LINK for queue pair 0, which has 2 rings");
}

fn region_size(region: &Region) -> u64 {
    rustix::fs::fstat(region.fd())
        .unwrap()
        .st_size
        .cast_unsigned()
}

#[test]
fn identities_that_are_not_the_callers() {
    let mut net = net();
    let cases = [
        (raw::hello("m", 1), "Peer has this port's own id m"),
        (
            raw::hello("../x", 1),
            "Peer's id is not valid: Port id \"../x\" starts with a dot",
        ),
    ];
    for (hello, text) in cases {
        let refusal = provoke(&mut net, &[(&hello, &[])]).unwrap();
        assert_eq!((refusal.reason, refusal.text.as_str()), (3, text));
    }
    let mut clash = raw::hello("a", 1);
    clash[38..44].copy_from_slice(&local("n").mac.octets());
    let refusal = provoke(&mut net, &[(&clash, &[])]).unwrap();
    assert_eq!(
        refusal.text,
        format!("MAC address {} belongs to n", local("n").mac)
    );

    // An id with a live link is refused; once that link's other end has closed, it is let in, even
    // if both are seen at the same moment.
    net.join("a");
    net.until_meshed();
    let refusal = provoke(&mut net, &[(&raw::hello("a", 1), &[])]).unwrap();
    assert_eq!(refusal.text, "Id a has a live link");
    assert_eq!(net.ports["m"].peers(), ["a", "n"]);
    net.leave("a");
    let socket = raw::connect(&net, "m");
    raw::send(&socket, &raw::hello("a", 1));
    expect_hello(&mut net, &socket);
    net.until("a peer", |net| net.ports["m"].links.contains_key("a"));
    assert_eq!(net.ports["m"].downs.len(), 1);
}

#[test]
fn peer_of_another_version_is_refused_by_both() {
    capture_log();
    let mut net = Net::new();
    let listener = raw::listen(net.path(), "ver-z");
    net.join("ver-m");
    // It connects to us …
    let mut hello = raw::hello("ver-a", 1);
    hello[8..12].copy_from_slice(&[3, 0, 4, 0]);
    hello.truncate(40);
    hello[6] = 40;
    let socket = raw::connect(&net, "ver-m");
    raw::send(&socket, &hello);
    let refusal = raw::until_closed(&mut net, &socket).unwrap();
    let text = "Peer speaks version 3 to 4 of the segment protocol, this port speaks 2";
    assert_eq!(refusal.text, text);
    assert_eq!(
        (refusal.versions, refusal.seen, refusal.reason),
        ([2, 2], [3, 4], 1)
    );
    let lines = logged(&["Port ver-m", "refused", text]);
    assert_eq!(lines.len(), 1, "{lines:?}");

    // … or we connect to it, and it refuses.
    net.until("a connection", |_| {
        common::readable(&listener, Duration::ZERO)
    });
    let socket = rustix::net::accept(&listener).unwrap();
    let mut refuse = raw::header(REFUSE, 192);
    refuse.extend([3, 0, 4, 0, 2, 0, 2, 0, 1, 0, 10, 0]);
    refuse.extend(b"I speak 3\n");
    refuse.resize(192, 0);
    raw::send(&socket, &refuse);
    net.until("a log line", |_| {
        !logged(&["Port ver-m", "refused by ver-z"]).is_empty()
    });
    let lines = logged(&["Port ver-m: refused by ver-z"]);
    // What the peer wrote is quoted: it cannot forge lines of the log.
    assert!(
        lines[0].ends_with("\"I speak 3\\n\", speaks version 3 to 4"),
        "{lines:?}"
    );
    drop(socket);

    // The connector tries a refused peer again, rarely.
    net.until("a second connection", |_| {
        common::readable(&listener, Duration::ZERO)
    });
}

/// A peer that is full, or let the time run out, or is busy, is tried again soon and without a
/// warning at first; one that refuses for good, rarely.
#[test]
fn refusal_that_may_pass_is_followed_by_a_call_soon() {
    capture_log();
    for (reason, soon) in [(7u16, true), (9, true), (10, true), (4, false)] {
        let mut net = Net::new();
        let patient = Limits {
            slow_retry: Duration::from_secs(3600),
            ..common::limits()
        };
        let id = format!("pass-{reason}");
        let listener = raw::listen(net.path(), "z");
        net.join_with(local(&id), patient).unwrap();
        let accept = |net: &mut Net| {
            net.until("a connection", |_| {
                common::readable(&listener, Duration::ZERO)
            });
            rustix::net::accept(&listener).unwrap()
        };
        let mut refuse = raw::header(REFUSE, 192);
        refuse.extend([2, 0, 2, 0, 0, 0, 0, 0]);
        refuse.extend(reason.to_le_bytes());
        refuse.resize(192, 0);
        let refused = accept(&mut net);
        raw::send(&refused, &refuse);
        net.until("it is heard", |net| {
            net.ports[&id].segment.stats().refused_by_peer == 1
        });
        let warned = !logged(&["WARN", &format!("Port {id}: refused by z")]).is_empty();
        assert_eq!(warned, !soon, "reason {reason}");
        if soon {
            accept(&mut net);
        }
    }
}

#[test]
fn region_of_another_format_is_refused() {
    let mut net = net();
    let mut hello = raw::hello("a", 1);
    hello[12] = 9;
    let refusal = provoke(&mut net, &[(&hello, &[])]).unwrap();
    assert_eq!(refusal.text, "Peer has region format 9, this port has 2");
    assert_eq!(refusal.reason, 2);
}

/// Conversations thrown together at random from good and bad packets: the healthy link stays, and
/// nothing stays open.
#[test]
fn handshake_survives_random_conversations() {
    // With the default time limit: the speed of the machine is to decide little.
    let mut net = Net::new();
    net.join("m");
    net.join("n");
    net.until_meshed();
    let region = Region::create(MIB / 4).unwrap();
    let doorbell = Doorbell::new().unwrap();
    let (r, b) = (region.fd(), doorbell.as_fd());
    let mut refuse = raw::header(REFUSE, 192);
    refuse.resize(192, 0);
    let ring = raw::link(0, MIB / 4, 1);
    let page = ReceiverPage::create().unwrap();
    let packets: Vec<(Vec<u8>, Vec<BorrowedFd<'_>>)> = vec![
        (raw::hello("a", 1), vec![]),
        (raw::hello("b", 2), vec![]),
        (raw::hello("a", 1), vec![b]),
        (ring.clone(), vec![r, b, b]),
        (ring.clone(), vec![b, r, b]),
        (ring, vec![]),
        (raw::accept(1), vec![page.fd()]),
        (raw::done(1, 1), vec![]),
        (raw::frame(&[7; 1000]), vec![]),
        (raw::header(0x8001, 8), vec![]),
        (refuse, vec![]),
        (vec![0; 40], vec![r]),
    ];
    let mut seed = 42u32;
    let mut next = move |below: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 16) as usize % below
    };
    let mut open: Vec<OwnedFd> = Vec::new();
    // So much that the port may take breaks; enough conversations have to get through all the same.
    let (mut left, started) = (20_000, Instant::now());
    while left > 0 || net.ports["m"].segment.stats().up <= 10 {
        left = i32::max(left - 1, 0);
        assert!(
            started.elapsed() < PATIENCE,
            "{:?}",
            net.ports["m"].segment.stats()
        );
        match next(8) {
            0 | 1 if open.len() < 20 => open.extend(raw::try_connect(&net, "m")),
            2 if !open.is_empty() => drop(open.swap_remove(next(open.len()))),
            3 => net.run_once(Duration::ZERO),
            _ if !open.is_empty() => {
                // A good start is likely: deeper states are reached.
                let (bytes, fds) = &packets[[0, 3, next(packets.len())][next(3)]];
                let _ = raw::try_send(&open[next(open.len())], bytes, fds);
            }
            _ => {}
        }
    }
    drop(open);
    net.until("the guests to be gone", |net| {
        net.ports["m"].peers() == ["n"]
    });
    net.check_flow();
    assert_eq!(net.ports["n"].downs, []);
}

/// A port of version 1 gets a refusal that names both versions, in whichever direction the
/// connection was made, and this port shows it.
#[test]
fn peer_of_version_1_is_refused_by_name() {
    let mut net = Net::new();
    let listener = raw::listen(net.path(), "z");
    net.join("m");
    let text = "Peer speaks version 1 of the segment protocol, this port speaks 2";
    let refusal = provoke(&mut net, &[(&raw::hello_of_version_1("a", 1), &[])]).unwrap();
    assert_eq!(refusal.text, text);
    assert_eq!(
        (refusal.versions, refusal.seen, refusal.reason),
        ([2, 2], [1, 1], 1)
    );
    net.until("a connection", |_| {
        common::readable(&listener, Duration::ZERO)
    });
    let socket = rustix::net::accept(&listener).unwrap();
    raw::send(&socket, &raw::hello_of_version_1("z", 2));
    let refusal = raw::until_closed(&mut net, &socket).unwrap();
    assert_eq!((refusal.text.as_str(), refusal.seen), (text, [1, 1]));
    net.until("both to be shown", |net| {
        let refused = net.ports["m"].segment.refused();
        refused.iter().filter(|peer| peer.reason == text).count() == 2
    });
}

/// A field that has to be understood and is not is refused by a reason of its own.
#[test]
fn hello_that_must_be_understood_is_refused() {
    let mut net = net();
    let hello = raw::hello_with("a", 1, &raw::field(0x8077, b"later"));
    let refusal = provoke(&mut net, &[(&hello, &[])]).unwrap();
    assert_eq!(refusal.reason, 12);
    assert_eq!(
        refusal.text,
        "HELLO has a field of type 0x8077, which this port does not know and has to understand"
    );
    check_unharmed(&mut net);
}
