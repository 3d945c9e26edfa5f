//! Rings are made when frames are to be sent, replaced by larger ones, given back and made again,
//! without a frame being lost or overtaken; multicast goes without them.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use virtio_inter_common::MacAddr;
use virtio_inter_device::{LinkEvent, PortEvent};
use virtio_inter_link::{
    Doorbell, MIN_CAPACITY, Receiver, ReceiverPage, Region, SMALL_CAPACITY, Sender, pair,
};
use virtio_inter_segment::PeerKey;

use crate::driver::{Node, PATIENCE, Packet, Spec, info, mac, until, wait_readable};

/// What the links want, waiting for it.
#[track_caller]
fn link_events(node: &mut Node) -> Vec<LinkEvent> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let is_readable = wait_readable(node.port.events_fd(), deadline);
        assert!(is_readable, "The links want nothing");
        let others = node.port.events();
        let is_drop = |event: &PortEvent| matches!(event, PortEvent::Dropped);
        assert!(others.iter().all(is_drop), "{others:?}");
        let events = node.port.link_events().unwrap();
        if !events.is_empty() {
            return events;
        }
    }
}

/// The request for a ring to a peer.
#[track_caller]
fn wanted(node: &mut Node, expected: PeerKey) -> u32 {
    match link_events(node)[..] {
        [
            LinkEvent::Wanted {
                peer,
                queue: 0,
                capacity,
            },
        ] if peer == expected => capacity,
        ref other => panic!("{other:?}"),
    }
}

/// A node and the keys of its peers, numbered from 1, to which there are no rings.
fn node_with_peers(count: usize) -> (Node, Vec<PeerKey>) {
    let mut node = Node::new(0, Spec::default());
    let peers = (1..=count).map(|number| {
        let peer = info(number, &Spec::default());
        node.port.add_peer(&peer).unwrap();
        peer.key
    });
    let peers = peers.collect();
    // From here on the floods are watched.
    node.port.events();
    assert!(node.port.link_events().unwrap().is_empty());
    (node, peers)
}

/// Makes the ring that was asked for.
fn make(node: &mut Node, peer: PeerKey, number: u64, capacity: u32) -> Receiver {
    let (sender, receiver) = pair(capacity).unwrap();
    node.port.set_ring(peer, 0, number, sender).unwrap();
    receiver
}

#[track_caller]
fn next(receiver: &mut Receiver) -> Packet {
    until("a record comes", || !receiver.is_empty().unwrap());
    let record = receiver.peek().unwrap().unwrap();
    let mut bytes = vec![0; record.slice().len()];
    record.slice().copy_to(&mut bytes[..]);
    record.consume();
    receiver.release().unwrap();
    Packet::from_bytes(&bytes)
}

fn packet(to: usize, seed: u64) -> Packet {
    Packet::new(mac(0), mac(to), 1000, seed)
}

#[test]
fn ring_is_made_for_the_first_frame_which_waits_for_it() {
    let (mut node, peers) = node_with_peers(2);
    for seed in 0..20 {
        node.guest.tx[0].send(&packet(1, seed));
    }
    assert_eq!(wanted(&mut node, peers[0]), SMALL_CAPACITY);
    let mut receiver = make(&mut node, peers[0], 1, SMALL_CAPACITY);
    for seed in 0..20 {
        assert_eq!(next(&mut receiver), packet(1, seed));
    }
    assert!(node.drops().is_empty(), "{:?}", node.drops());
    node.guest.tx[0].finish();
    assert!(node.port.link_events().unwrap().is_empty(), "asked again");
}

/// While one peer's ring is being made for long, frames for others go on.
#[test]
fn ring_that_is_not_made_yet_holds_up_others_for_a_moment_only() {
    let (mut node, peers) = node_with_peers(2);
    node.guest.tx[0].send(&packet(2, 0));
    wanted(&mut node, peers[1]);
    let mut other = make(&mut node, peers[1], 1, SMALL_CAPACITY);
    assert_eq!(next(&mut other), packet(2, 0));
    for seed in 0..10 {
        node.guest.tx[0].send(&packet(1, seed));
        node.guest.tx[0].send(&packet(2, seed));
    }
    wanted(&mut node, peers[0]);
    for seed in 0..10 {
        assert_eq!(next(&mut other), packet(2, seed));
    }
    let mut receiver = make(&mut node, peers[0], 1, SMALL_CAPACITY);
    for seed in 0..10 {
        assert_eq!(next(&mut receiver), packet(1, seed));
    }
    assert!(node.drops().is_empty(), "{:?}", node.drops());
}

#[test]
fn ring_that_cannot_be_made_costs_its_peer_only() {
    let (mut node, peers) = node_with_peers(2);
    node.guest.tx[0].send(&packet(1, 0));
    wanted(&mut node, peers[0]);
    node.port.set_no_ring(peers[0], 0).unwrap();
    until("the frame to be dropped", || {
        node.counters().tx_no_link.get() == 1
    });
    node.guest.tx[0].send(&packet(2, 1));
    wanted(&mut node, peers[1]);
    let mut other = make(&mut node, peers[1], 1, SMALL_CAPACITY);
    assert_eq!(next(&mut other), packet(2, 1));
    // It is tried again later.
    std::thread::sleep(Duration::from_millis(150));
    node.guest.tx[0].send(&packet(1, 2));
    wanted(&mut node, peers[0]);
    let mut receiver = make(&mut node, peers[0], 1, SMALL_CAPACITY);
    assert_eq!(next(&mut receiver), packet(1, 2));
}

/// The peer goes between the request and the ring.
#[test]
fn ring_for_a_peer_that_has_gone_is_not_used() {
    let (mut node, peers) = node_with_peers(2);
    node.guest.tx[0].send(&packet(1, 0));
    wanted(&mut node, peers[0]);
    node.port.remove_peer(peers[0]).unwrap();
    let mut receiver = make(&mut node, peers[0], 1, SMALL_CAPACITY);
    node.guest.tx[0].finish();
    assert!(receiver.is_empty().unwrap());
    node.guest.tx[0].send(&packet(2, 1));
    wanted(&mut node, peers[1]);
    let mut other = make(&mut node, peers[1], 1, SMALL_CAPACITY);
    assert_eq!(next(&mut other), packet(2, 1));
}

#[test]
fn ring_that_was_full_is_replaced_by_a_larger_one_in_order() {
    let (mut node, peers) = node_with_peers(1);
    let count = 2 * SMALL_CAPACITY as usize / 1088;
    let mut sent = 0;
    while sent < 50 {
        node.guest.tx[0].send(&packet(1, sent));
        sent += 1;
    }
    wanted(&mut node, peers[0]);
    let mut small = make(&mut node, peers[0], 1, SMALL_CAPACITY);
    while sent < count as u64 {
        node.guest.tx[0].send(&packet(1, sent));
        sent += 1;
    }
    assert_eq!(wanted(&mut node, peers[0]), u32::MAX);
    let mut large = make(&mut node, peers[0], 2, MIN_CAPACITY);
    let mut seed = 0;
    until("the small ring to end", || {
        while !small.is_empty().unwrap() {
            assert_eq!(next(&mut small), packet(1, seed));
            seed += 1;
        }
        small.is_finished()
    });
    while seed < sent {
        assert_eq!(next(&mut large), packet(1, seed));
        seed += 1;
    }
    assert!(node.drops().is_empty(), "{:?}", node.drops());
}

/// A ring as it is before its receiver has answered, and the answer.
fn unanswered(capacity: u32) -> (Sender, Receiver, ReceiverPage) {
    let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
    let region = Region::create(capacity).unwrap();
    let page = ReceiverPage::create().unwrap();
    let theirs = Region::open(copy(region.fd()), capacity).unwrap();
    let answer = ReceiverPage::open(copy(page.fd())).unwrap();
    let (data, space) = (Doorbell::new().unwrap(), Doorbell::new().unwrap());
    let clone = |doorbell: &Doorbell| doorbell.try_clone().unwrap();
    let sender = Sender::new(region, clone(&data), clone(&space));
    (sender, Receiver::new(theirs, page, data, space), answer)
}

/// The peer reads a ring at once, sleeps on it, and its answer comes when the ring has been
/// replaced. Nobody can have woken it before.
#[test]
fn ring_that_was_replaced_before_its_peer_had_answered_wakes_the_peer() {
    for answer in [true, false] {
        let (mut node, peers) = node_with_peers(1);
        node.guest.tx[0].send(&packet(1, 0));
        wanted(&mut node, peers[0]);
        let (sender, mut small, page) = unanswered(SMALL_CAPACITY);
        node.port.set_ring(peers[0], 0, 1, sender).unwrap();
        assert_eq!(next(&mut small), packet(1, 0));
        assert_eq!(small.arm_data_doorbell(), Ok(true), "there is nothing more");
        let long = Packet::new(mac(0), mac(1), 40_000, 1);
        node.guest.tx[0].send(&long);
        assert_eq!(wanted(&mut node, peers[0]), u32::MAX);
        let mut large = make(&mut node, peers[0], 2, MIN_CAPACITY);
        assert_eq!(next(&mut large), long);
        if answer {
            node.port.attach(peers[0], 0, 1, page).unwrap();
            let deadline = Instant::now() + PATIENCE;
            let is_woken = wait_readable(small.data_doorbell(), deadline);
            assert!(is_woken, "The peer sleeps on");
            assert!(small.is_empty().unwrap() && small.is_finished());
        } else {
            node.port.set_declined(peers[0], 0, 1).unwrap();
        }
        // The other one is still used.
        node.guest.tx[0].send(&packet(1, 2));
        assert_eq!(next(&mut large), packet(1, 2));
        // Who declines a ring has read nothing of it.
        let lost = u64::from(!answer);
        assert_eq!(node.counters().tx_no_link.get(), lost);
    }
}

/// A frame that is too long for a small ring.
#[test]
fn ring_that_is_too_small_for_a_frame_is_replaced() {
    let (mut node, peers) = node_with_peers(1);
    node.guest.tx[0].send(&packet(1, 0));
    wanted(&mut node, peers[0]);
    let mut small = make(&mut node, peers[0], 1, SMALL_CAPACITY);
    assert_eq!(next(&mut small), packet(1, 0));
    let long = Packet::new(mac(0), mac(1), 40_000, 1);
    node.guest.tx[0].send(&long);
    assert_eq!(wanted(&mut node, peers[0]), u32::MAX);
    let mut large = make(&mut node, peers[0], 2, MIN_CAPACITY);
    assert_eq!(next(&mut large), long);
    assert!(small.is_empty().unwrap() && small.is_finished());
}

#[test]
fn ring_that_is_quiet_is_given_back_and_made_again() {
    let (mut node, peers) = node_with_peers(1);
    for round in 1..=3 {
        node.guest.tx[0].send(&packet(1, round));
        assert_eq!(wanted(&mut node, peers[0]), SMALL_CAPACITY);
        let mut receiver = make(&mut node, peers[0], round, SMALL_CAPACITY);
        until("the frame that waited to be in it", || {
            !receiver.is_empty().unwrap()
        });
        assert!(node.port.close_quiet().unwrap(), "it is used");
        // Not read yet: it stays, however long.
        for _ in 0..5 {
            assert!(node.port.close_quiet().unwrap(), "something is in it");
        }
        assert_eq!(next(&mut receiver), packet(1, round));
        node.guest.tx[0].send(&packet(1, 100));
        assert_eq!(next(&mut receiver), packet(1, 100));
        assert!(node.port.close_quiet().unwrap(), "it was used");
        assert!(node.port.close_quiet().unwrap(), "for a while");
        assert!(!node.port.close_quiet().unwrap());
        assert!(receiver.is_empty().unwrap() && receiver.is_finished());
        node.port.events();
        assert!(node.port.link_events().unwrap().is_empty());
    }
    assert!(node.drops().is_empty(), "{:?}", node.drops());
}

#[test]
fn ring_that_is_declined_is_asked_for_again_later() {
    let (mut node, peers) = node_with_peers(1);
    node.guest.tx[0].send(&packet(1, 0));
    wanted(&mut node, peers[0]);
    let mut receiver = make(&mut node, peers[0], 1, SMALL_CAPACITY);
    node.guest.tx[0].send(&packet(1, 1));
    until("both frames to be there", || {
        node.counters().tx_frames.get() == 2 && !receiver.is_empty().unwrap()
    });
    drop(receiver);
    node.port.set_declined(peers[0], 0, 1).unwrap();
    let lost = node.counters().tx_no_link.get();
    assert_eq!(lost, 2, "what was in the ring");
    node.guest.tx[0].send(&packet(1, 1));
    until("the frame to be dropped", || {
        node.counters().tx_no_link.get() == 3
    });
    std::thread::sleep(Duration::from_millis(1100));
    node.guest.tx[0].send(&packet(1, 2));
    wanted(&mut node, peers[0]);
    let mut receiver = make(&mut node, peers[0], 2, SMALL_CAPACITY);
    assert_eq!(next(&mut receiver), packet(1, 2));
}

#[test]
fn multicast_reaches_each_peer_once_with_and_without_a_ring() {
    let (mut node, peers) = node_with_peers(3);
    node.guest.tx[0].send(&packet(2, 0));
    wanted(&mut node, peers[1]);
    let mut receiver = make(&mut node, peers[1], 1, SMALL_CAPACITY);
    assert_eq!(next(&mut receiver), packet(2, 0));
    for seed in 0..5 {
        let all = Packet::new(mac(0), MacAddr::BROADCAST, 60, seed);
        node.guest.tx[0].send(&all);
        let events = link_events(&mut node);
        let [
            LinkEvent::Flood {
                peers: to, record, ..
            },
        ] = &events[..]
        else {
            panic!("{events:?}");
        };
        assert_eq!(to[..], [peers[0], peers[2]]);
        assert_eq!(Packet::from_bytes(record), all);
        assert_eq!(next(&mut receiver), all);
    }
    // Too long for a message: it waits for a ring.
    let (mut node, peers) = node_with_peers(1);
    let all = Packet::new(mac(0), MacAddr::BROADCAST, 20_000, 9);
    node.guest.tx[0].send(&all);
    assert_eq!(wanted(&mut node, peers[0]), SMALL_CAPACITY);
    let mut receiver = make(&mut node, peers[0], 1, SMALL_CAPACITY);
    assert_eq!(next(&mut receiver), all);
}

#[test]
fn multicast_that_is_too_much_is_counted() {
    let (mut node, _peers) = node_with_peers(1);
    let count = 200;
    for seed in 0..count {
        let all = Packet::new(mac(0), MacAddr::BROADCAST, 1000, seed);
        node.guest.tx[0].send(&all);
    }
    node.guest.tx[0].finish();
    // 64 KiB wait.
    let lost = node.counters().tx_flood_lost.get();
    assert!(lost > 130, "{lost}");
    let mut taken = 0;
    while taken + lost < count {
        taken += link_events(&mut node).len() as u64;
    }
    assert_eq!(taken + lost, count);
}

#[test]
fn multicast_of_peers_without_a_ring_is_delivered_if_it_is_theirs() {
    let (mut node, peers) = node_with_peers(2);
    let theirs = Packet::new(mac(1), MacAddr::BROADCAST, 100, 1);
    node.port.deliver(peers[0], &theirs.bytes());
    assert_eq!(node.guest.rx[0].receive(), theirs.clone().in_buffers(1));
    // Another's address, no frame at all, nobody's peer.
    node.port.deliver(peers[1], &theirs.bytes());
    node.port.deliver(peers[0], &[0; 10]);
    node.port.deliver(PeerKey::next(), &theirs.bytes());
    assert_eq!(node.counters().rx_flood_lost.get(), 3);
    let last = Packet::new(mac(2), MacAddr::BROADCAST, 100, 2);
    node.port.deliver(peers[1], &last.bytes());
    assert_eq!(node.guest.rx[0].receive(), last.in_buffers(1));
}

#[test]
fn ring_of_a_peer_is_read_after_the_one_before() {
    let (mut node, peers) = node_with_peers(1);
    let theirs = |seed| Packet::new(mac(1), mac(0), 500, seed);
    let mut number = 0;
    for round in 0..3 {
        // The second one is there before the first is closed, or after.
        let mut senders = Vec::new();
        for _ in 0..2 {
            number += 1;
            let (sender, receiver) = pair(SMALL_CAPACITY).unwrap();
            let port = &mut node.port;
            port.add_receiver(peers[0], 0, number, receiver).unwrap();
            senders.push(sender);
        }
        for (i, sender) in senders.iter_mut().enumerate().rev() {
            let bytes = theirs(10 * round + i as u64).bytes();
            let slot = sender.reserve(bytes.len()).unwrap().unwrap();
            slot.slice().copy_from(&bytes);
            slot.commit();
            sender.publish().unwrap();
        }
        let [first, second] = &mut senders[..] else {
            panic!("two");
        };
        let received = node.guest.rx[0].receive();
        assert_eq!(received, theirs(10 * round).in_buffers(1));
        node.guest.rx[0].expect_nothing();
        first.close().unwrap();
        let received = node.guest.rx[0].receive();
        assert_eq!(received, theirs(10 * round + 1).in_buffers(1));
        second.close().unwrap();
        let mut finished = Vec::new();
        while finished.len() < 2 {
            for event in link_events(&mut node) {
                let LinkEvent::Finished { peer, number } = event else {
                    panic!("{event:?}");
                };
                assert_eq!(peer, peers[0]);
                finished.push(number);
            }
        }
        assert_eq!(finished, [number - 1, number]);
    }
}
