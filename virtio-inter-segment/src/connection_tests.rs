use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use virtio_inter_common::MacAddr;
use virtio_inter_link::MIN_CAPACITY;

use super::*;
use crate::port::LocalPort;

fn local() -> Local {
    let mac = MacAddr::new([2, 0, 0, 0, 0, 1]);
    Local {
        port: LocalPort {
            ring_capacity: MIN_CAPACITY,
            ..LocalPort::new("m".parse().unwrap(), mac)
        },
        incarnation: 1,
        pid: 1,
        away: false,
        addresses: Default::default(),
    }
}

/// A connection that is up, with one ring of this side, and the peer's end of it.
fn up() -> (Connection, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (socket, peer) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let (owner, now) = (Owner::default(), Instant::now());
    let closer = Closer::new();
    let mut connection =
        Connection::new(PeerKey::next(), Role::Acceptor, socket, owner, &closer, now);
    let candidate = Candidate {
        id: "a".parse().unwrap(),
        mac: MacAddr::new([2, 0, 0, 0, 0, 2]),
        mtu: 1500,
        queues: 1,
        ring_capacity: MIN_CAPACITY,
        uplinks: Default::default(),
        allowed: Default::default(),
        guard: Default::default(),
        incarnation: 1,
        pid: 1,
        away: false,
        trunk: false,
        barred: Default::default(),
    };
    connection.admit(candidate, UserQuota::new(now), Arc::default(), now);
    let fds = [pipe(), pipe(), pipe()];
    assert_eq!(connection.open_link(0, MIN_CAPACITY, fds), Some(1));
    (connection, peer)
}

fn pipe() -> OwnedFd {
    pipe_with(PipeFlags::CLOEXEC).unwrap().0
}

fn page() -> OwnedFd {
    let page = ReceiverPage::create().unwrap();
    page.fd().try_clone_to_owned().unwrap()
}

/// What an ACCEPT with these descriptors comes to, and how many of them are left to be closed with
/// care.
fn accept(mut fds: Vec<OwnedFd>, lost_fds: bool) -> (Result<Step, Refusal>, usize) {
    let (mut connection, _peer) = up();
    let accept = Accept::new(1);
    let step = connection.handle(&local(), accept.as_bytes(), &mut fds, lost_fds);
    (step, fds.len())
}

/// A peer that sends more descriptors than there is room for in this process does not get one of
/// them opened that nobody has looked at.
#[test]
fn accept_opens_no_descriptor_that_is_not_checked() {
    let violation = |fds: Vec<OwnedFd>, lost_fds, text: &str| {
        let count = fds.len();
        let (step, left) = accept(fds, lost_fds);
        assert_eq!(step.unwrap_err(), Refusal::Violation(text.to_owned()));
        assert_eq!(left, count);
    };
    let not_memfd = "ACCEPT whose descriptor is not a memfd";
    violation(vec![pipe()], false, not_memfd);
    violation(vec![], false, "ACCEPT with 0 descriptors");
    violation(vec![page(), pipe()], false, "ACCEPT with 2 descriptors");
    let (step, left) = accept(vec![page()], false);
    assert!(
        matches!(step, Ok(Step::Accepted { number: 1, .. })),
        "{step:?}"
    );
    assert_eq!(left, 0);
    // The kernel says that some were lost: the peer had sent more than these.
    violation(vec![page()], true, "ACCEPT with more than 1 descriptors");
    violation(
        vec![page(), pipe()],
        true,
        "ACCEPT with more than 2 descriptors",
    );
}

/// That is no fault of the peer's.
#[test]
fn accept_whose_descriptor_was_lost_is_a_want_of_resources() {
    let (step, _) = accept(vec![], true);
    assert!(matches!(step, Err(Refusal::Resources(_))), "{step:?}");
}

#[test]
fn link_whose_descriptors_were_lost_can_be_declined_and_one_with_too_many_cannot() {
    let link = |count, lost_fds| {
        let (mut connection, _peer) = up();
        let mut fds: Vec<OwnedFd> = (0..count).map(|_| pipe()).collect();
        let link = Link::new(0, MIN_CAPACITY, 1);
        connection.handle(&local(), link.as_bytes(), &mut fds, lost_fds)
    };
    for count in 0..3 {
        let step = link(count, true);
        assert!(
            matches!(step, Ok(Step::Offered(OfferedLink { fds: None, .. }))),
            "{count}: {step:?}"
        );
        let text = format!("LINK with {count} descriptors");
        assert_eq!(link(count, false).unwrap_err(), Refusal::Violation(text));
    }
    let text = "LINK with more than 3 descriptors".to_owned();
    assert_eq!(link(3, true).unwrap_err(), Refusal::Violation(text));
}
