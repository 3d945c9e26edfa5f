//! Descriptors where none belong, and such as do not close.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use virtio_inter_link::{Doorbell, Region};
use virtio_inter_segment::Limits;
use virtio_inter_test_support::epoll_watches::watch;
use virtio_inter_test_support::skip;

use crate::common::raw;
use crate::common::{Net, PATIENCE, limits, local};
use crate::{MIB, check_unharmed, net, provoke};

#[test]
fn descriptors_where_none_belong() {
    let mut net = net();
    let hello = raw::hello("a", 1);
    let fd = net.directory.path().to_owned();
    let file = std::fs::File::open(fd).unwrap();
    let many = [file.as_fd(); 64];
    for count in [1, 3, 64] {
        let refusal = provoke(&mut net, &[(&hello, &many[..count])]).unwrap();
        assert_eq!(refusal.text, format!("HELLO with {count} descriptors"));
    }
    check_unharmed(&mut net);
}

/// A TCP socket that waits on close for data that nobody takes (`SO_LINGER`).
fn lingering_socket() -> (OwnedFd, std::net::TcpStream) {
    use std::io::Write;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (taker, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    while stream.write(&[0; 65_536]).is_ok() {}
    stream.set_nonblocking(false).unwrap();
    rustix::net::sockopt::set_socket_linger(&stream, Some(PATIENCE)).unwrap();
    (stream.into(), taker)
}

/// Closing a descriptor can take as long as who sent it likes. It must not take us with it,
/// wherever the descriptor is met: in a message, beside one, or in a queue that nobody has read.
#[test]
fn descriptors_that_do_not_close() {
    let mut net = net();
    let region = Region::create(MIB / 4).unwrap();
    let doorbell = Doorbell::new().unwrap();
    let mut takers = Vec::new();
    let mut slow = || {
        let (socket, taker) = lingering_socket();
        takers.push(taker);
        socket
    };
    let hello = raw::hello("a", 1);
    let ring = raw::link(0, MIB / 4, 1);
    let started = Instant::now();
    {
        let socket = raw::connect(&net, "m");
        raw::try_send(&socket, &hello, &[slow().as_fd()]).unwrap();
        raw::until_closed(&mut net, &socket);
    }
    {
        let socket = raw::connect(&net, "m");
        raw::send(&socket, &hello);
        let bad = slow();
        raw::try_send(
            &socket,
            &ring,
            &[region.fd(), doorbell.as_fd(), bad.as_fd()],
        )
        .unwrap();
        drop(bad);
        raw::until_closed(&mut net, &socket);
    }
    {
        let socket = raw::connect(&net, "m");
        raw::send(&socket, &hello);
        let bad = slow();
        raw::try_send(
            &socket,
            &ring,
            &[bad.as_fd(), doorbell.as_fd(), doorbell.as_fd()],
        )
        .unwrap();
        drop(bad);
        raw::until_closed(&mut net, &socket);
    }
    {
        let socket = raw::connect(&net, "m");
        let many = [slow(), slow(), slow(), slow(), slow(), slow()];
        let fds: Vec<BorrowedFd<'_>> = many.iter().map(AsFd::as_fd).collect();
        raw::try_send(&socket, &ring, &fds).unwrap();
        drop(many);
        raw::until_closed(&mut net, &socket);
    }
    {
        let socket = raw::connect(&net, "m");
        raw::send(&socket, b"garbage");
        raw::try_send(&socket, &ring, &[slow().as_fd()]).unwrap();
        raw::until_closed(&mut net, &socket);
    }
    {
        // In the queue of the listener when the port leaves.
        let socket = raw::connect(&net, "m");
        raw::try_send(&socket, &ring, &[slow().as_fd()]).unwrap();
        check_unharmed(&mut net);
        net.leave("m");
    }
    net.join("m");
    net.until_meshed();
    assert!(started.elapsed() < PATIENCE / 4, "{:?}", started.elapsed());
}

/// Joins m with the rate at which a port serves connections unless options say otherwise.
fn join_with_default_rate(net: &mut Net) {
    let limits = Limits {
        connect_burst: 1024,
        connects_per_second: 128,
        ..limits()
    };
    net.join_with(local("m"), limits).unwrap();
}

/// Connects to m as port a with so many queue pairs, and offers a ring for each.
fn offer_rings(net: &Net, queues: u8, fds: &[BorrowedFd<'_>]) -> OwnedFd {
    let socket = raw::connect(net, "m");
    let mut hello = raw::hello("a", 1);
    hello[14] = queues;
    raw::send(&socket, &hello);
    for queue in 0..u16::from(queues) {
        let link = raw::link(queue, MIB / 4, u64::from(queue) + 1);
        // m may have closed already.
        let _ = raw::try_send(&socket, &link, fds);
    }
    socket
}

/// The control thread rings a peer's doorbells when it takes a ring: those that take long are a
/// violation, and the peer's user has to wait before it may do so again.
#[test]
fn doorbells_with_many_watches_end_the_connection() {
    let mut net = Net::new();
    join_with_default_rate(&mut net);
    let region = Region::create(MIB / 4).unwrap();
    let doorbell = Doorbell::new().unwrap();
    let _watches = match watch(doorbell.as_fd(), 400) {
        Ok(watches) => watches,
        Err(why) => return skip(&why),
    };
    let fds = [region.fd(), doorbell.as_fd(), doorbell.as_fd()];
    let attack = |net: &mut Net| {
        let socket = offer_rings(net, 32, &fds);
        raw::until_closed(net, &socket).unwrap()
    };
    for _ in 0..2 {
        let refusal = attack(&mut net);
        assert!(refusal.text.contains("doorbells takes more"), "{refusal:?}");
        let taken = net.ports["m"].segment.stats();
        assert_eq!(taken.up, taken.down);
    }
    let refusal = attack(&mut net);
    assert!(refusal.text.contains("connections a second"), "{refusal:?}");
}

/// A peer that leaves before its slow doorbells are a violation, again and again, uses up what its
/// user has. Peers of that user that are up lose nothing.
#[test]
fn doorbells_with_many_watches_count_after_their_peer_has_left() {
    let mut net = Net::new();
    join_with_default_rate(&mut net);
    net.join("n");
    net.until_meshed();
    let region = Region::create(MIB / 4).unwrap();
    let doorbell = Doorbell::new().unwrap();
    let _watches = match watch(doorbell.as_fd(), 400) {
        Ok(watches) => watches,
        Err(why) => return skip(&why),
    };
    let fds = [region.fd(), doorbell.as_fd(), doorbell.as_fd()];
    let is_refused = |net: &mut Net| {
        let socket = offer_rings(net, 3, &fds);
        let (mut accepted, mut refusal) = (0, None);
        net.until("an answer", |_| {
            while let Ok(Some(packet)) = raw::try_receive(&socket) {
                match u16::from(packet[4]) {
                    raw::ACCEPT => accepted += 1,
                    raw::REFUSE => refusal = Some(raw::Refusal::parse(&packet)),
                    _ => {}
                }
            }
            accepted == 3 || refusal.is_some()
        });
        drop(socket);
        net.until("the peer to be gone", |net| net.ports["m"].peers() == ["n"]);
        if let Some(refusal) = &refusal {
            assert!(refusal.text.contains("connections a second"), "{refusal:?}");
        }
        refusal.is_some()
    };
    let refused = (0..10).position(|_| is_refused(&mut net));
    // Each has six slow rings, or a few less.
    assert!(refused.is_some_and(|count| count >= 2), "{refused:?}");
    check_unharmed(&mut net);
}
