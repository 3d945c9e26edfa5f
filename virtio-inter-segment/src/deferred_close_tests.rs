//! Tests of closing: what waits, whom it holds up, and what does not wait at all.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

/// A TCP socket that waits on close for data that nobody takes, until the taker is gone.
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (taker, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    while stream.write(&[0; 65_536]).is_ok() {}
    rustix::net::sockopt::set_socket_linger(&stream, Some(2 * PATIENCE)).unwrap();
    // Lingering is for blocking sockets.
    stream.set_nonblocking(false).unwrap();
    (stream.into(), taker)
}

fn owner(uid: u32) -> Owner {
    Owner {
        uid: Some(uid),
        pid: Some(uid + 1),
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        thread::yield_now();
    }
}

fn file() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

#[test]
fn deferred_close_that_blocks_holds_up_only_its_owner() {
    const BOUND: usize = 64;
    // Whatever this process may have.
    let closer = Closer {
        per_user: BOUND,
        total: 4 * BOUND,
        ..Closer::new()
    };
    let (stuck, taker) = lingering();
    let started = Instant::now();
    closer.close(stuck, owner(7));
    until("a thread to take it", || {
        lock(&closer.queues).users[&Some(7)].closing.is_some()
    });
    for _ in 0..=BOUND {
        closer.close(file(), owner(7));
        closer.close(file(), owner(8));
    }
    let text = format!(
        "{} descriptors of user 7 wait to be closed, behind one of process 8",
        BOUND + 2
    );
    assert_eq!(closer.overload(owner(7)).unwrap().to_string(), text);
    until("those of others to be closed", || {
        !lock(&closer.queues).users.contains_key(&Some(8))
    });
    assert_eq!(closer.overload(owner(8)), None);
    assert!(!closer.is_full());
    assert!(started.elapsed() < PATIENCE);
    // The peer resets the connection.
    drop(taker);
    until("all to be closed, and the threads to go", || {
        let queues = lock(&closer.queues);
        queues.users.is_empty() && queues.threads == 0 && queues.total == 0
    });
}

/// More users than threads: who is left without one is served by the first that gets free.
#[test]
fn deferred_close_threads_are_bounded() {
    let closer = Closer::new();
    let (stuck, takers): (Vec<_>, Vec<_>) = (0..4).map(|_| lingering()).unzip();
    for (fd, uid) in stuck.into_iter().zip(0..) {
        closer.close(fd, owner(uid));
    }
    for uid in 4..10 * MAX_USERS as u32 {
        closer.close(file(), owner(uid));
        assert!(lock(&closer.queues).threads <= MAX_USERS);
    }
    until("those of others to be closed", || {
        lock(&closer.queues).users.len() == 4
    });
    drop(takers);
    until("all to be closed", || lock(&closer.queues).threads == 0);
}

/// Connections in whose queues there are no descriptors are closed on the spot, whatever else is
/// there; the others are not.
#[test]
fn deferred_close_waits_only_for_queues_with_descriptors() {
    let closer = Closer::new();
    let null = file();
    let packets: [(&[&[u8]], bool, bool); 6] = [
        (&[], false, true),
        (&[b"one", b"two"], false, true),
        (&[b"", b"", b"one", b""], false, true),
        (&[b"one"], true, false),
        (&[b"", b"one"], true, false),
        (&[b"one", b""], true, false),
    ];
    for (bytes, descriptor, on_the_spot) in packets {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        for (i, packet) in bytes.iter().enumerate() {
            let fds = [null.as_fd()];
            let with = descriptor && i + 1 == bytes.len();
            socket::send(theirs.as_fd(), packet, if with { &fds } else { &[] }).unwrap();
        }
        // A thread would be at it until we let go of the lock.
        let queues = closer.clone();
        let held = lock(&queues.queues);
        let worker = thread::spawn({
            let closer = closer.clone();
            move || drop(DeferredFd::new(ours, owner(1), &closer))
        });
        if on_the_spot {
            until("the end without the lock", || worker.is_finished());
        }
        // The peer knows at once either way.
        until("the peer to know", || {
            rustix::net::send(&theirs, b"x", SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_err()
        });
        if !on_the_spot {
            thread::sleep(Duration::from_millis(20));
            assert!(!worker.is_finished(), "{bytes:?}");
        }
        drop(held);
        worker.join().unwrap();
    }
    until("all to be closed", || lock(&closer.queues).total == 0);
}
