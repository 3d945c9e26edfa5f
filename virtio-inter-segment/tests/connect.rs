//! Who connects to whom: the later port to the earlier one, and whatever crosses comes to one link.

mod common;

use std::os::fd::OwnedFd;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use common::raw::{self, HELLO, REFUSE, Refusal};
use common::{Net, Port, capture_log, limits, local, logged, readable};
use virtio_inter_link::{Doorbell, Region};
use virtio_inter_segment::{JoinError, Limits, Segment};

const MIB: u32 = 1 << 20;

/// Accepts the connection that a port makes to a socket.
fn accept(net: &mut Net, listener: &OwnedFd) -> OwnedFd {
    net.until("a connection", |_| readable(listener, Duration::ZERO));
    rustix::net::accept_with(
        listener,
        rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC,
    )
    .unwrap()
}

/// The next message on a connection.
fn message(net: &mut Net, socket: &OwnedFd) -> Vec<u8> {
    let mut packet = None;
    net.until("a message", |_| match raw::try_receive(socket) {
        Ok(received) => {
            packet = Some(received.expect("closed instead of a message"));
            true
        }
        Err(()) => false,
    });
    packet.unwrap()
}

/// Performs the rest of a handshake after HELLO in both directions.
fn link_up(net: &mut Net, socket: &OwnedFd, id: &str) {
    let (region, doorbell) = (Region::create(MIB / 4).unwrap(), Doorbell::new().unwrap());
    let fds = [
        region.fd(),
        std::os::fd::AsFd::as_fd(&doorbell),
        std::os::fd::AsFd::as_fd(&doorbell),
    ];
    raw::try_send(socket, &raw::link(0, MIB / 4, 1), &fds).unwrap();
    net.until("a link", |net| net.ports["m"].links.contains_key(id));
}

/// A HELLO of another run of the same port.
fn another_incarnation(id: &str) -> Vec<u8> {
    let mut hello = raw::hello(id, 1);
    hello[16] ^= 1;
    hello
}

/// Each sees the other, or only one of them does; there is one link in any case, without a word of
/// trouble.
#[test]
fn connect_of_two_that_join_at_once_makes_one_link() {
    capture_log();
    for round in 0..200 {
        let mut net = Net::new();
        let barrier = Barrier::new(2);
        let joined = std::thread::scope(|scope| {
            let join = |id: &'static str| {
                let (path, barrier) = (net.path(), &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    Segment::join_with(path, local(id), limits()).unwrap()
                })
            };
            let threads = [("a", join("a")), ("b", join("b"))];
            threads.map(|(id, thread)| (id, thread.join().unwrap()))
        });
        for (id, segment) in joined {
            net.ports.insert(id.to_owned(), Port::new(segment));
        }
        net.until_meshed();
        net.check_flow();
        for port in net.ports.values() {
            let stats = port.segment.stats();
            let refused = stats.refused + stats.refused_by_peer;
            assert_eq!((stats.up, refused), (1, 0), "round {round}: {stats:?}");
            assert!(port.downs.is_empty() && port.segment.refused().is_empty());
        }
    }
    assert_eq!(logged(&["WARN"]), [""; 0]);
}

/// The attempt of the smaller id is used: m gives up its own.
#[test]
fn connect_that_crosses_one_of_a_smaller_id_is_given_up() {
    let mut net = Net::new();
    let listener = raw::listen(net.path(), "a");
    net.join("m");
    let from_m = accept(&mut net, &listener);
    assert_eq!(message(&mut net, &from_m)[4], HELLO as u8);
    let to_m = raw::connect(&net, "m");
    raw::send(&to_m, &raw::hello("a", 1));
    assert!(
        raw::until_closed(&mut net, &from_m).is_none(),
        "not quietly"
    );
    assert_eq!(message(&mut net, &to_m)[4], HELLO as u8);
    link_up(&mut net, &to_m, "a");
    let stats = net.ports["m"].segment.stats();
    assert_eq!((stats.refused, stats.refused_by_peer), (0, 0));
    // Neither does it try again while there is that link, nor does anybody else get the name.
    net.run_once(Duration::from_millis(400));
    assert!(!readable(&listener, Duration::ZERO));
    for (hello, reason) in [(raw::hello("a", 1), 11), (another_incarnation("a"), 3)] {
        let again = raw::connect(&net, "m");
        raw::send(&again, &hello);
        let refusal = raw::until_closed(&mut net, &again).unwrap();
        assert_eq!(refusal.reason, reason, "{}", refusal.text);
    }
    assert_eq!(net.ports["m"].peers(), ["a"]);
    // With the end of the link it is for m, too, to look for the peer.
    drop(to_m);
    drop(accept(&mut net, &listener));
}

/// The attempt of the smaller id is used: the peer's is refused, not worth a word.
#[test]
fn connect_that_crosses_one_of_a_larger_id_is_kept() {
    capture_log();
    let mut net = Net::new();
    let listener = raw::listen(net.path(), "z");
    net.join("m");
    let from_m = accept(&mut net, &listener);
    let to_m = raw::connect(&net, "m");
    raw::send(&to_m, &raw::hello("z", 1));
    let refusal = raw::until_closed(&mut net, &to_m).unwrap();
    assert_eq!(refusal.reason, 11, "{}", refusal.text);
    assert_eq!(message(&mut net, &from_m)[4], HELLO as u8);
    raw::send(&from_m, &raw::hello("z", 1));
    link_up(&mut net, &from_m, "z");
    let port = &net.ports["m"].segment;
    assert_eq!((port.stats().refused, port.refused().len()), (0, 0));
    assert_eq!(logged(&["WARN"]), [""; 0]);
}

/// The peer says that it connects itself. If it does, well; if not, m comes again, after a while.
#[test]
fn connect_that_the_peer_calls_a_duplicate_is_made_again_if_need_be() {
    capture_log();
    let mut net = Net::new();
    let listener = raw::listen(net.path(), "a");
    net.join("m");
    let mut refuse = raw::header(REFUSE, 192);
    refuse.extend([1, 0, 1, 0, 0, 0, 0, 0, 11, 0]);
    refuse.resize(192, 0);
    assert_eq!(Refusal::parse(&refuse).reason, 11);
    let first = accept(&mut net, &listener);
    raw::send(&first, &refuse);
    let refused = Instant::now();
    assert!(raw::until_closed(&mut net, &first).is_none());
    let second = accept(&mut net, &listener);
    assert!(refused.elapsed() >= Duration::from_secs(2), "too soon");
    raw::send(&second, &refuse);
    raw::until_closed(&mut net, &second);
    let to_m = raw::connect(&net, "m");
    raw::send(&to_m, &raw::hello("a", 1));
    assert_eq!(message(&mut net, &to_m)[4], HELLO as u8);
    link_up(&mut net, &to_m, "a");
    let port = &net.ports["m"].segment;
    assert_eq!((port.stats().refused_by_peer, port.refused().len()), (0, 0));
    assert_eq!(logged(&["WARN"]), [""; 0]);
}

/// The acceptor decides: it says who it is only to a peer that it accepts.
#[test]
fn connect_is_answered_after_the_peer_is_accepted() {
    let mut net = Net::new();
    net.join("m");
    net.join("n");
    net.until_meshed();
    let silent = raw::connect(&net, "m");
    net.run_once(Duration::from_millis(100));
    assert!(matches!(raw::try_receive(&silent), Err(())));
    let clash = raw::connect(&net, "m");
    let mut hello = raw::hello("x", 1);
    hello[38..44].copy_from_slice(&local("n").mac.octets());
    raw::send(&clash, &hello);
    assert_eq!(message(&mut net, &clash)[4], REFUSE as u8);
    raw::send(&silent, &raw::hello("z", 2));
    assert_eq!(message(&mut net, &silent)[4], HELLO as u8);
}

/// Three ports that want one id, again and again, beside peers of a smaller and a larger one: never
/// two at a time, and the one that has it is linked.
#[test]
fn connect_follows_the_port_that_has_the_id() {
    let mut net = Net::new();
    net.join("a");
    net.join("z");
    net.until_meshed();
    for _ in 0..20 {
        let path = net.path();
        let attempts: Vec<Option<Segment>> = std::thread::scope(|scope| {
            let join = || match Segment::join_with(path, local("m"), limits()) {
                Ok(segment) => Some(segment),
                Err(JoinError::IdTaken { .. }) => None,
                Err(error) => panic!("{error:?}"),
            };
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(join)).collect();
            let threads = threads.into_iter();
            threads.map(|thread| thread.join().unwrap()).collect()
        });
        let mut winners: Vec<Segment> = attempts.into_iter().flatten().collect();
        assert!(winners.len() <= 1, "{winners:?}");
        if let Some(winner) = winners.pop() {
            net.ports.insert("m".to_owned(), Port::new(winner));
            net.until_meshed();
            net.leave("m");
        }
        // Seen at some time; the next one may come before that.
        net.run_once(Duration::ZERO);
    }
    net.join("m");
    net.until_meshed();
    net.check_flow();
}

/// `EAGAIN`: the kernel keeps so many connections for who does not accept, and refuses the next.
#[test]
fn connect_to_a_full_queue_is_tried_again() {
    capture_log();
    let mut net = Net::new();
    let listener = raw::listen(net.path(), "z");
    let mut queue = Vec::new();
    while let Some(socket) = raw::try_connect(&net, "z") {
        queue.push(socket);
    }
    net.join("m");
    net.run_once(Duration::from_millis(50));
    let from_m = loop {
        let connection = accept(&mut net, &listener);
        if matches!(raw::try_receive(&connection), Ok(Some(packet)) if packet[4] == HELLO as u8) {
            break connection;
        }
    };
    raw::send(&from_m, &raw::hello("z", 1));
    link_up(&mut net, &from_m, "z");
    assert_eq!(logged(&["WARN"]), [""; 0]);
}

/// A port that is full lets the next one in as soon as there is room, not when that tries again.
#[test]
fn connect_comes_from_a_full_port_when_it_has_room() {
    let mut net = Net::new();
    let patient = |max_peers| Limits {
        slow_retry: Duration::from_secs(3600),
        max_peers,
        ..limits()
    };
    net.join_with(local("m"), patient(1)).unwrap();
    net.join_with(local("a"), patient(9)).unwrap();
    net.until_meshed();
    net.join_with(local("b"), patient(9)).unwrap();
    // Refused so often that b makes its next attempt after 3.2 s at the earliest.
    net.until("b to be refused", |net| {
        net.ports["m"].segment.stats().refused >= 6
    });
    let freed = Instant::now();
    net.leave("a");
    net.until_meshed();
    assert!(freed.elapsed() < Duration::from_secs(3));
}
