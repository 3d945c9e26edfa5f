//! Faults in the middle of making a ring or giving it back: a side that has no descriptors left, or
//! dies, or does the same as the other at the same moment. Each test needs a process of its own, as
//! nextest gives it, since some change the limit of descriptors.

mod common;

use std::os::fd::{AsFd, AsRawFd};

use common::raw::{self, LINK};
use common::{Net, local, open_fds, receive, send};
use rustix::process::{Resource, getrlimit, setrlimit};
use virtio_inter_link::{Doorbell, MIN_CAPACITY, Region};
use virtio_inter_segment::{LinkError, OpenedLink, PeerKey};

/// These ports, linked, without rings.
fn net(ids: &[&str]) -> Net {
    let mut net = Net::new();
    for id in ids {
        net.join(id);
        net.ports.get_mut(*id).unwrap().queues = 0;
    }
    until_connected(&mut net);
    net
}

fn until_connected(net: &mut Net) {
    net.until("connections", |net| {
        let others = net.ports.len() - 1;
        net.ports.values().all(|port| port.links.len() == others)
    });
}

fn key(net: &Net, of: &str, peer: &str) -> PeerKey {
    net.ports[of].links[peer].peer.key
}

fn open(net: &mut Net, from: &str, to: &str) -> Result<OpenedLink, LinkError> {
    let key = key(net, from, to);
    let port = net.ports.get_mut(from).unwrap();
    port.segment.open_link(key, 0, u32::MAX)
}

/// Opens a ring, and keeps it with the link.
fn open_and_keep(net: &mut Net, from: &str, to: &str) {
    let opened = open(net, from, to).unwrap();
    let port = net.ports.get_mut(from).unwrap();
    let link = port.links.get_mut(to).unwrap();
    link.accepted = 0;
    link.senders = vec![(opened.number, opened.sender)];
}

/// Leaves this process so many descriptors besides those that it has.
fn leave_descriptors(count: u64) {
    // The kernel hands out the smallest number that is free.
    let free = std::fs::File::open("/dev/null").unwrap();
    set_limit(u64::try_from(free.as_raw_fd()).unwrap() + count);
}

fn set_limit(count: u64) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(count);
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Sends a record without a ring, which has to arrive.
fn check_frame(net: &mut Net, from: &str, to: &str) {
    let to_key = key(net, from, to);
    let sender = net.ports.get_mut(from).unwrap();
    assert!(sender.segment.send_frame(to_key, b"a frame"));
    net.until("the frame", |net| {
        let frames = &mut net.ports.get_mut(to).unwrap().frames;
        frames.pop().is_some_and(|(_, frame)| frame == b"a frame")
    });
}

fn check_no_link_was_lost(net: &Net) {
    for port in net.ports.values() {
        assert_eq!(port.downs, []);
        assert_eq!(port.segment.stats().refused_by_peer, 0);
    }
}

/// The side that sends has too few descriptors for a ring: it gets an error, keeps the connection,
/// and makes the ring when it has enough.
#[test]
fn descriptor_limit_of_the_sender_costs_the_ring_alone() {
    let mut net = net(&["a", "m"]);
    let before = open_fds();
    let enough = getrlimit(Resource::Nofile).current.unwrap();
    for left in 0..6 {
        leave_descriptors(left);
        let result = open(&mut net, "m", "a");
        check_frame(&mut net, "m", "a");
        set_limit(enough);
        assert!(
            matches!(result, Err(LinkError::Region(_) | LinkError::Doorbell(_))),
            "{left} left: {result:?}"
        );
        assert_eq!(open_fds(), before, "{left} left");
    }
    open_and_keep(&mut net, "m", "a");
    net.until("the ring", |net| net.ports["m"].links["a"].accepted == 1);
    check_no_link_was_lost(&net);
}

/// The side that receives has too few descriptors, for those that come with LINK or for its own
/// page: it declines the ring, and takes the next one when it has enough.
#[test]
fn descriptor_limit_of_the_receiver_declines_the_ring_alone() {
    let mut net = net(&["a", "m"]);
    let enough = getrlimit(Resource::Nofile).current.unwrap();
    for left in 0..5 {
        let before = open_fds();
        let opened = open(&mut net, "m", "a").unwrap();
        leave_descriptors(left);
        net.ports.get_mut("a").unwrap().process();
        set_limit(enough);
        net.until("the ring to be declined", |net| {
            net.ports["m"].done.contains(&(opened.number, true))
        });
        check_frame(&mut net, "m", "a");
        drop(opened);
        net.until("all to be closed", |_| open_fds() == before);
    }
    open_and_keep(&mut net, "m", "a");
    net.until("the ring", |net| {
        net.ports["a"].links["m"].receivers.len() == 1 && net.ports["m"].links["a"].accepted == 1
    });
    check_no_link_was_lost(&net);
}

/// The side that sends has no descriptor for ACCEPT: the ring is of no use to it, and the
/// connection cannot tell so. Both find each other again.
#[test]
fn descriptor_limit_at_accept_ends_the_connection_which_comes_back() {
    for (sender, receiver) in [("a", "m"), ("m", "a")] {
        let mut net = net(&["a", "m", "z"]);
        let enough = getrlimit(Resource::Nofile).current.unwrap();
        open_and_keep(&mut net, sender, receiver);
        net.ports.get_mut(receiver).unwrap().process();
        leave_descriptors(0);
        net.ports.get_mut(sender).unwrap().process();
        set_limit(enough);
        let downs = &net.ports[sender].downs;
        let [(_, reason)] = downs.as_slice() else {
            panic!("{downs:?}");
        };
        assert_eq!(
            reason,
            "Out of resources: no descriptor is left for a ring that was accepted"
        );
        until_connected(&mut net);
        net.until("the end at the other side", |net| {
            net.ports[receiver].downs.len() == 1
        });
        until_connected(&mut net);
        assert_eq!(net.ports["z"].downs, []);
        open_and_keep(&mut net, sender, receiver);
        net.until("the ring", |net| {
            net.ports[sender].links[receiver].accepted == 1
        });
    }
}

/// Each side opens a ring before it has read that the other does.
#[test]
fn rings_that_both_sides_open_at_once_are_both_made() {
    let mut net = net(&["a", "m"]);
    open_and_keep(&mut net, "a", "m");
    open_and_keep(&mut net, "m", "a");
    net.until_meshed();
    net.check_flow();
    check_no_link_was_lost(&net);
}

/// A ring is closed while a record is in it, and its successor already has the next one; both sides
/// do that at the same time, again and again. Everything arrives, in order.
#[test]
fn ring_given_back_while_a_frame_comes_loses_nothing() {
    const ROUNDS: u32 = 200;
    let sides = [("a", "m"), ("m", "a")];
    let mut net = net(&["a", "m"]);
    for (from, to) in sides {
        open_and_keep(&mut net, from, to);
    }
    net.until_meshed();
    for round in 0..ROUNDS {
        let mut old = Vec::new();
        for (from, to) in sides {
            let port = net.ports.get_mut(from).unwrap();
            let (number, mut sender) = port.links.get_mut(to).unwrap().senders.remove(0);
            send(&mut sender, format!("{round}, last").as_bytes());
            sender.close().unwrap();
            old.push((number, sender));
            open_and_keep(&mut net, from, to);
            let port = net.ports.get_mut(from).unwrap();
            let link = port.links.get_mut(to).unwrap();
            send(&mut link.senders[0].1, format!("{round}, first").as_bytes());
        }
        for (from, to) in sides {
            net.until("the successor", |net| {
                net.ports[to].links[from].receivers.len() == 2
            });
            let port = net.ports.get_mut(to).unwrap();
            let link = port.links.get_mut(from).unwrap();
            let (number, mut receiver) = link.receivers.remove(0);
            let last = receive(&mut receiver).unwrap();
            assert_eq!(last, format!("{round}, last").into_bytes());
            assert!(receive(&mut receiver).is_none() && receiver.is_finished());
            drop(receiver);
            let first = receive(&mut link.receivers[0].1).unwrap();
            assert_eq!(first, format!("{round}, first").into_bytes());
            let peer = link.peer.key;
            port.segment.finish_link(peer, number);
        }
        for ((from, to), (number, _)) in sides.into_iter().zip(&old) {
            net.until("the end of the former ring", |net| {
                net.ports[from].done.contains(&(*number, false))
                    && net.ports[from].links[to].accepted == 1
            });
        }
    }
    check_no_link_was_lost(&net);
}

/// A peer dies after it was offered a ring and before it has answered, or after it has asked for
/// one and before it has got the answer. It is a peer like any other when it comes back.
#[test]
fn peer_that_dies_between_link_and_accept_leaves_nothing() {
    let mut net = Net::new();
    net.join("m");
    net.join("n");
    net.until_meshed();
    let region = Region::create(MIN_CAPACITY).unwrap();
    let doorbell = Doorbell::new().unwrap();
    let before = open_fds();
    for asks in [false, true, false, true] {
        let peer = raw::connect(&net, "m");
        raw::send(&peer, &raw::hello("a", 1));
        net.until(
            "LINK",
            |_| matches!(raw::try_receive(&peer), Ok(Some(p)) if p[4] == LINK as u8),
        );
        if asks {
            let fds = [region.fd(), doorbell.as_fd(), doorbell.as_fd()];
            let link = raw::link(0, MIN_CAPACITY, 1);
            raw::try_send(&peer, &link, &fds).unwrap();
        }
        drop(peer);
        net.until("its end", |net| !net.ports["m"].links.contains_key("a"));
        let (_, reason) = net.ports.get_mut("m").unwrap().downs.pop().unwrap();
        assert_eq!(reason, "Peer closed the connection", "asks: {asks}");
        net.until("all to be closed", |_| open_fds() == before);
    }
    check_no_link_was_lost(&net);
    net.join_as(local("a")).unwrap();
    net.until_meshed();
    net.check_flow();
}
