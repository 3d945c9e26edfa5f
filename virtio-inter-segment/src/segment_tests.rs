use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use virtio_inter_common::MacAddr;
use virtio_inter_link::{Doorbell, MIN_CAPACITY, Region, SMALL_CAPACITY};
use zerocopy::IntoBytes;

use super::*;
use crate::deferred_close::Owner;
use crate::socket::{self, Received};
use crate::wire::{Link, MAX_MESSAGE};

fn local(id: &str, last: u8) -> LocalPort {
    let mac = MacAddr::new([2, 0, 0, 0, 0, last]);
    LocalPort {
        ring_capacity: MIN_CAPACITY,
        ..LocalPort::new(id.parse().unwrap(), mac)
    }
}

/// A port, and a connection that it has accepted and does not watch yet, on which the peer "a" has
/// sent HELLO; the peer's end comes last.
fn accepted(limits: Limits) -> (tempfile::TempDir, Segment, Connection, OwnedFd) {
    let directory = tempfile::tempdir().unwrap();
    let segment = Segment::join_with(directory.path(), local("m", 1), limits).unwrap();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (socket, peer) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let (key, now) = (PeerKey::next(), Instant::now());
    let (role, owner) = (Role::Acceptor, Owner::default());
    let connection = Connection::new(key, role, socket, owner, &segment.closer, now);
    let of_peer = Local {
        port: local("a", 2),
        incarnation: 1,
        pid: 1,
        away: false,
        addresses: Default::default(),
    };
    socket::send(peer.as_fd(), &of_peer.hello().to_bytes(), &[]).unwrap();
    (directory, segment, connection, peer)
}

/// Leaves no room for a further packet to the peer.
fn fill(connection: &Connection) {
    while socket::send(connection.fd(), &[0; 1024], &[]).is_ok() {}
    while socket::send(connection.fd(), &[0], &[]).is_ok() {}
}

/// A peer whose HELLO can neither be answered nor wait for room comes and goes.
#[test]
fn peer_goes_down_only_after_it_came_up() {
    let (_directory, mut segment, connection, _peer) = accepted(Limits::default());
    fill(&connection);
    let key = connection.key;
    segment.drive(connection, Instant::now());
    let events = segment.process();
    assert!(
        matches!(
            events.as_slice(),
            [SegmentEvent::Up(PeerInfo { key: up, .. }), SegmentEvent::Down(down, _)]
                if *up == key && *down == key
        ),
        "{events:?}"
    );
    assert_eq!((segment.stats().up, segment.stats().down), (1, 1));
}

/// Lets the peer in, with its connection watched; its key.
fn let_in(segment: &mut Segment, connection: Connection, peer: &OwnedFd) -> PeerKey {
    let key = connection.key;
    segment.poll.add(connection.fd(), key.get()).unwrap();
    segment.drive(connection, Instant::now());
    assert!(matches!(
        segment.process().as_slice(),
        [SegmentEvent::Up(_)]
    ));
    assert_eq!(read_all(peer), 1, "HELLO");
    key
}

/// Number of the packets that wait at the peer's end, which are thrown away.
fn read_all(peer: &OwnedFd) -> usize {
    let (mut buffer, mut fds) = ([0; MAX_MESSAGE], Vec::new());
    let mut count = 0;
    while let Received::Packet { .. } =
        socket::receive(peer.as_fd(), &mut buffer, &mut fds).unwrap()
    {
        count += 1;
    }
    count
}

fn is_ready(segment: &mut Segment, key: PeerKey) -> bool {
    segment.poll.ready().unwrap().contains(&key.get())
}

/// A connection of which this side reads nothing for a while, and to which it has something to
/// send, is ready for the latter alone, whichever of the two came first.
#[test]
fn connection_that_is_paused_still_waits_for_room_to_send() {
    for pause_first in [true, false] {
        let (_directory, mut segment, connection, peer) = accepted(Limits::default());
        let key = let_in(&mut segment, connection, &peer);
        let mut connection = segment.connections.remove(&key.get()).unwrap();
        let until = Instant::now() + Duration::from_secs(3600);
        if pause_first {
            segment.pause_connection(&mut connection, until);
        }
        fill(&connection);
        let fds = std::array::from_fn(|_| tempfile::tempfile().unwrap().into());
        connection.open_link(0, SMALL_CAPACITY, fds).unwrap();
        segment.flush(&mut connection).unwrap();
        if !pause_first {
            segment.pause_connection(&mut connection, until);
        }
        segment.connections.insert(key.get(), connection);
        socket::send(peer.as_fd(), b"input", &[]).unwrap();
        assert!(!is_ready(&mut segment, key), "paused first: {pause_first}");
        read_all(&peer);
        assert!(is_ready(&mut segment, key), "paused first: {pause_first}");
    }
}

/// The rings of the very connection by which a further one is offered count against the limit.
#[test]
fn ring_offered_counts_beside_those_of_its_own_connection() {
    let limits = Limits {
        max_rings: 1,
        ..Limits::default()
    };
    let (_directory, mut segment, connection, peer) = accepted(limits);
    let key = let_in(&mut segment, connection, &peer);
    for number in [1, 2] {
        let region = Region::create(SMALL_CAPACITY).unwrap();
        let doorbells = [Doorbell::new().unwrap(), Doorbell::new().unwrap()];
        let fds = [region.fd(), doorbells[0].as_fd(), doorbells[1].as_fd()];
        let link = Link::new(0, SMALL_CAPACITY, number);
        socket::send(peer.as_fd(), link.as_bytes(), &fds).unwrap();
    }
    let events = segment.process();
    assert!(
        matches!(events.as_slice(), [SegmentEvent::Link { peer, number: 1, .. }] if *peer == key),
        "{events:?}"
    );
    assert_eq!(
        read_all(&peer),
        2,
        "ACCEPT of the first, DONE of the second"
    );
}
