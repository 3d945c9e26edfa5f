//! One connection to one peer: drives its handshake over the socket, and exchanges rings.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use virtio_inter_common::{MacAddr, PortId};
use virtio_inter_link::{Doorbell, Receiver, ReceiverPage, Region, RingCost, Violation};
use zerocopy::IntoBytes;

use crate::deferred_close::{Closer, DeferredFd, Owner};
use crate::fd_type;
use crate::handshake::{Candidate, Local, Refusal, Role, parse_id};
use crate::limits::Limits;
use crate::message::{self, Message};
use crate::poll::Interest;
use crate::port::{DownReason, PeerKey};
use crate::quota::{Quota, UserQuota};
use crate::rings::Rings;
use crate::socket::{self, ReceiveError, Received};
use crate::wire::{
    Accept, DONE_DECLINED, DONE_DRAINED, Done, Guest, Header, KIND_ADDRESSES, KIND_FRAME, Link,
    MAX_FRAME, MAX_MESSAGE, Versions,
};

/// Bytes that the kernel keeps of what a peer does not read: small, as there is one such buffer for
/// each peer. The kernel doubles it for what it needs itself.
const SEND_BUFFER: usize = 64 << 10;

/// A connection, from the first byte to the end of the link.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) key: PeerKey,
    pub(crate) role: Role,
    /// When it was made.
    pub(crate) started: Instant,
    /// The kernel's word on the peer's process.
    pub(crate) owner: Owner,
    /// Which events the event loop waits for.
    pub(crate) interest: Interest,
    /// What the peer called itself, let in or not.
    claimed: Option<PortId>,
    socket: DeferredFd,
    closer: Closer,
    hello_sent: bool,
    /// What the peer knows of this side's guest.
    said_away: bool,
    /// The same of its addresses, if it is a trunk.
    said_addresses: Arc<[MacAddr]>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The peer has not said who it is.
    Hello,
    /// The peer is let in.
    Up(Box<Up>),
}

#[derive(Debug)]
struct Up {
    peer: Candidate,
    since: Instant,
    rings: Rings,
    quota: Quota,
    /// How long it takes to ring the doorbells of its rings.
    ring_cost: Arc<RingCost>,
    /// Messages that are still to be sent, with their descriptors.
    outgoing: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// The send buffer has got its size.
    has_send_buffer: bool,
}

/// What came of looking at the socket.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing more to do now.
    Idle,
    /// A message was dealt with, look again.
    Progress,
    /// The peer sends too much: look again at that time.
    Pause(Instant),
    /// The peer has introduced itself: [`Connection::admit`] or [`Connection::refuse`] it.
    Introduced(Candidate),
    /// The peer opens a ring: [`Connection::accept_link`] or [`Connection::decline_link`].
    Offered(OfferedLink),
    /// The peer has accepted a ring of this side.
    Accepted {
        queue: u16,
        number: u64,
        page: ReceiverPage,
    },
    /// The peer does not read a ring of this side any more.
    Done {
        queue: u16,
        number: u64,
        declined: bool,
    },
    /// A record that the peer sends without a ring.
    Frame(Box<[u8]>),
    /// The peer's guest has come, or has gone (true).
    Guest(bool),
    /// The addresses that a trunk's guest uses.
    Addresses(Vec<MacAddr>),
    /// The connection is over: before the link was up, …
    Ended(End),
    /// … or after it was.
    Down(DownReason),
}

/// A ring that the peer opens.
#[derive(Debug)]
pub(crate) struct OfferedLink {
    pub(crate) number: u64,
    pub(crate) queue: u16,
    capacity: u32,
    /// None: this process had no room for them.
    fds: Option<[OwnedFd; 3]>,
}

/// How a handshake ended without a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The peer closed, or the socket failed.
    Closed,
    /// The peer said why it does not want the link.
    RefusedByPeer {
        /// The code in REFUSE.
        reason: u16,
        /// In its words. Print it with `{:?}`.
        text: String,
        /// What it speaks.
        versions: Versions,
    },
    /// We do not want the link.
    Refused(Refusal),
}

impl Connection {
    pub(crate) fn new(
        key: PeerKey,
        role: Role,
        socket: OwnedFd,
        owner: Owner,
        closer: &Closer,
        now: Instant,
    ) -> Connection {
        Connection {
            key,
            role,
            started: now,
            owner,
            interest: Interest::READ,
            claimed: None,
            socket: DeferredFd::new(socket, owner, closer),
            closer: closer.clone(),
            hello_sent: false,
            said_away: false,
            said_addresses: Arc::default(),
            stage: Stage::Hello,
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn up(&self) -> Option<&Up> {
        match &self.stage {
            Stage::Hello => None,
            Stage::Up(up) => Some(up),
        }
    }

    fn up_mut(&mut self) -> Option<&mut Up> {
        match &mut self.stage {
            Stage::Hello => None,
            Stage::Up(up) => Some(up),
        }
    }

    /// The peer, once it has been let in.
    pub(crate) fn peer(&self) -> Option<&Candidate> {
        self.up().map(|up| &up.peer)
    }

    /// Since when the link is up, if it is.
    pub(crate) fn up_since(&self) -> Option<Instant> {
        self.up().map(|up| up.since)
    }

    /// Number of rings that are open, both directions.
    pub(crate) fn ring_count(&self) -> usize {
        self.up().map_or(0, |up| up.rings.count())
    }

    /// Bytes of the rings that this side has made for the peer.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.up().map_or(0, |up| up.rings.sent_bytes())
    }

    /// How long the handshake may take, and when that has passed.
    pub(crate) fn deadline(&self, limits: &Limits) -> (Duration, Instant) {
        (limits.hello_timeout, self.started + limits.hello_timeout)
    }

    /// How long the link has been up.
    pub(crate) fn lived(&self, now: Instant) -> Duration {
        let since = self.up_since();
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// The peer's name, as far as it is known.
    pub(crate) fn id(&self) -> Option<&PortId> {
        match (&self.claimed, &self.role) {
            (Some(id), _) | (None, Role::Connector(id)) => Some(id),
            (None, Role::Acceptor) => None,
        }
    }

    /// The peer's process, as far as it is known.
    pub(crate) fn pid(&self) -> Option<u32> {
        let said = self.peer().map(|peer| peer.pid);
        self.owner.pid.or(said)
    }

    /// What to call the peer in the log.
    pub(crate) fn name(&self) -> String {
        let id = self.id().map_or("(unnamed)", PortId::as_str);
        match self.pid() {
            Some(pid) => format!("{id} (process {pid})"),
            None => id.to_owned(),
        }
    }

    /// Whether something of the other side waits to be read.
    pub(crate) fn has_input(&self) -> bool {
        self.has_any(PollFlags::IN)
    }

    /// Whether the other side has closed.
    pub(crate) fn has_ended(&self) -> bool {
        // HUP and ERR come unasked.
        self.has_any(PollFlags::RDHUP)
    }

    fn has_any(&self, wanted: PollFlags) -> bool {
        let mut fds = [PollFd::new(&self.socket, wanted)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(n) if n > 0)
    }

    /// Sends what is to be sent; `Ok(false)` if the rest has to wait for room.
    ///
    /// A peer that has closed is not an error here: what it said last is still to be read.
    pub(crate) fn flush(&mut self, local: &Local) -> Result<bool, Refusal> {
        loop {
            self.push_news(local);
            let sent = if !self.hello_sent {
                if self.role == Role::Acceptor && self.up().is_none() {
                    // The connector speaks first.
                    return Ok(true);
                }
                socket::send(self.fd(), &local.hello().to_bytes(), &[])
            } else {
                let next = self.up().and_then(|up| up.outgoing.front());
                let Some((bytes, fds)) = next else {
                    return Ok(true);
                };
                let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                socket::send(self.fd(), bytes, &fds)
            };
            match sent {
                Ok(()) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => continue,
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(true),
                // Among them ETOOMANYREFS: too many descriptors of this user are under way.
                Err(e) => return Err(Refusal::resources(std::io::Error::from(e))),
            }
            if !self.hello_sent {
                (self.hello_sent, self.said_away) = (true, local.away);
            } else if let Some(up) = self.up_mut() {
                up.outgoing.pop_front();
            }
        }
    }

    /// Reads and checks one message.
    pub(crate) fn step(&mut self, local: &Local, now: Instant) -> Step {
        if let Some(up) = self.up_mut()
            && let Err(until) = up.quota.check(now)
        {
            return Step::Pause(until);
        }
        let mut buffer = [0; MAX_MESSAGE];
        let mut fds = Vec::new();
        let received = socket::receive(self.socket.as_fd(), &mut buffer, &mut fds);
        let step = match received {
            Ok(Received::Nothing) => Ok(Step::Idle),
            Ok(Received::Closed) => Ok(self.closed(DownReason::Closed)),
            Ok(Received::Packet { len, lost_fds }) => {
                self.handle(local, &buffer[..len], &mut fds, lost_fds)
            }
            Err(ReceiveError::Socket(e)) => {
                log::debug!("Failed to read from {}: {e}", self.name());
                Ok(self.closed(DownReason::Socket(e)))
            }
            Err(e) => Err(Refusal::violation(e)),
        };
        // What nobody has found to be harmless.
        let owner = self.owner;
        fds.into_iter().for_each(|fd| self.closer.close(fd, owner));
        step.unwrap_or_else(|refusal| Step::Ended(End::Refused(refusal)))
    }

    fn closed(&self, reason: DownReason) -> Step {
        match self.stage {
            Stage::Hello => Step::Ended(End::Closed),
            Stage::Up(_) => Step::Down(reason),
        }
    }

    /// Handles one message. Takes the descriptors out of `fds` if they are what they have to be.
    fn handle(
        &mut self,
        local: &Local,
        packet: &[u8],
        fds: &mut Vec<OwnedFd>,
        lost_fds: bool,
    ) -> Result<Step, Refusal> {
        let message = message::parse(packet)?;
        let expected = match self.stage {
            Stage::Hello => 0,
            Stage::Up(_) => message.fds(),
        };
        // Descriptors that were lost were sent besides those that arrived.
        let is_right_number = if lost_fds {
            fds.len() < expected
        } else {
            fds.len() == expected
        };
        if !is_right_number {
            let more = if lost_fds { "more than " } else { "" };
            return Err(Refusal::Violation(format!(
                "{} with {more}{} descriptors",
                message.name(),
                fds.len()
            )));
        }
        match (&mut self.stage, message) {
            (stage, Message::Refuse(refuse)) => Ok(match stage {
                Stage::Hello => Step::Ended(End::RefusedByPeer {
                    reason: refuse.reason.get(),
                    text: refuse.text(),
                    versions: refuse.versions(),
                }),
                Stage::Up(_) if refuse.may_pass() => {
                    Step::Down(DownReason::NoResources(refuse.text()))
                }
                Stage::Up(_) => Step::Down(DownReason::Refused(refuse.text())),
            }),
            (Stage::Hello, Message::ForeignHello(theirs)) => Err(Refusal::Version { theirs }),
            (Stage::Hello, Message::Hello(hello)) => {
                self.claimed = parse_id(&hello.id).ok();
                let candidate = local.judge(&self.role, &hello)?;
                Ok(Step::Introduced(candidate))
            }
            (Stage::Up(up), Message::Link(link)) => {
                up.quota.spend_on_link();
                up.rings
                    .offered(&link, &up.peer, local.port.ring_capacity)?;
                let fds = if lost_fds {
                    None
                } else {
                    Some(take_link_fds(fds)?)
                };
                Ok(Step::Offered(OfferedLink {
                    number: link.number.get(),
                    queue: link.queue.get(),
                    capacity: link.capacity.get(),
                    fds,
                }))
            }
            (Stage::Up(up), Message::Accept(accept)) => {
                let number = accept.number.get();
                let queue = up.rings.accepted(number)?;
                let page = take_page_fd(fds)?;
                let page = ReceiverPage::open(page).map_err(region_refusal)?;
                Ok(Step::Accepted {
                    queue,
                    number,
                    page,
                })
            }
            (Stage::Up(up), Message::Done(done)) => {
                let (queue, declined) = up.rings.done(&done)?;
                let number = done.number.get();
                Ok(Step::Done {
                    queue,
                    number,
                    declined,
                })
            }
            (Stage::Up(up), Message::Frame(record)) => {
                up.quota.spend_on_frame();
                Ok(Step::Frame(record.into()))
            }
            (Stage::Up(up), Message::Guest(guest)) => {
                // It changes how all workers of this side forward.
                up.quota.spend_on_link();
                let away = guest.away();
                Ok(match std::mem::replace(&mut up.peer.away, away) {
                    before if before == away => Step::Progress,
                    _ => Step::Guest(away),
                })
            }
            (Stage::Up(up), Message::Addresses(addresses)) => {
                up.quota.spend_on_link();
                let addresses = addresses.iter().copied().map(MacAddr::new);
                let usable = addresses.filter(|address| address.check_port().is_ok());
                Ok(if up.peer.trunk {
                    Step::Addresses(usable.collect())
                } else {
                    Step::Progress
                })
            }
            (Stage::Up(up), Message::Optional(kind)) => {
                up.quota.spend_on_frame();
                log::debug!("Skipped a message of kind {kind:#06x} from {}", self.name());
                Ok(Step::Progress)
            }
            (Stage::Hello, message) => Err(Refusal::Violation(format!(
                "{} instead of HELLO",
                message.name()
            ))),
            (Stage::Up(_), message) => Err(Refusal::Violation(format!(
                "{} on a connection that is up",
                message.name()
            ))),
        }
    }

    /// Lets the peer in.
    pub(crate) fn admit(
        &mut self,
        peer: Candidate,
        user: UserQuota,
        ring_cost: Arc<RingCost>,
        now: Instant,
    ) {
        self.stage = Stage::Up(Box::new(Up {
            peer,
            since: now,
            rings: Rings::default(),
            quota: Quota::new(user, now),
            ring_cost,
            outgoing: VecDeque::new(),
            has_send_buffer: false,
        }));
    }

    /// Opens a ring for a queue pair of this side, to be sent with the next flush; its number.
    /// None: there are two already, or no peer.
    pub(crate) fn open_link(
        &mut self,
        queue: u16,
        capacity: u32,
        fds: [OwnedFd; 3],
    ) -> Option<u64> {
        let up = self.up_mut()?;
        let number = up.rings.open(queue, capacity)?;
        let link = Link::new(queue, capacity, number);
        up.outgoing
            .push_back((link.as_bytes().to_vec(), fds.into()));
        Some(number)
    }

    /// Opens the region that the peer has made and answers with a page of its own, with the next
    /// flush.
    ///
    /// # Errors
    ///
    /// A violation ends the connection, a want of resources only this ring:
    /// [`Connection::decline_link`].
    pub(crate) fn accept_link(&mut self, link: OfferedLink) -> Result<Receiver, Refusal> {
        let no_room = || Refusal::Full("no descriptors are left for its ring".to_owned());
        let [region, data_doorbell, space_doorbell] = link.fds.ok_or_else(no_room)?;
        let region = Region::open(region, link.capacity).map_err(region_refusal)?;
        let cost = self.ring_cost();
        let doorbell = |fd| Doorbell::from_peer(fd, &cost).map_err(Refusal::violation);
        let (data_doorbell, space_doorbell) = (doorbell(data_doorbell)?, doorbell(space_doorbell)?);
        // They were rung in this thread.
        if cost.is_exceeded() {
            return Err(Refusal::violation(Violation::SlowDoorbell));
        }
        let page = ReceiverPage::create().map_err(Refusal::resources)?;
        let answer = page.fd().try_clone_to_owned().map_err(Refusal::resources)?;
        if let Some(up) = self.up_mut() {
            let accept = Accept::new(link.number);
            up.outgoing
                .push_back((accept.as_bytes().to_vec(), vec![answer]));
        }
        Ok(Receiver::new(region, page, data_doorbell, space_doorbell))
    }

    /// What rings of the peer's doorbells cost.
    pub(crate) fn ring_cost(&self) -> Arc<RingCost> {
        let up = self.up();
        up.map_or_else(Arc::default, |up| Arc::clone(&up.ring_cost))
    }

    /// Does not take a ring.
    pub(crate) fn decline_link(&mut self, number: u64) {
        self.push_done(number, DONE_DECLINED);
    }

    /// Does not read a ring any more that was closed and drained.
    pub(crate) fn finish_link(&mut self, number: u64) {
        self.push_done(number, DONE_DRAINED);
    }

    fn push_done(&mut self, number: u64, status: u16) {
        if let Some(up) = self.up_mut()
            && up.rings.finish(number)
        {
            let done = Done::new(number, status);
            up.outgoing
                .push_back((done.as_bytes().to_vec(), Vec::new()));
        }
    }

    /// Has the peer hear what it does not know of this side yet.
    fn push_news(&mut self, local: &Local) {
        let Stage::Up(up) = &mut self.stage else {
            return;
        };
        // HELLO says the first of it.
        if !self.hello_sent {
            return;
        }
        if self.said_away != local.away {
            self.said_away = local.away;
            let guest = Guest::new(local.away).as_bytes().to_vec();
            up.outgoing.push_back((guest, Vec::new()));
        }
        if self.said_addresses != local.addresses {
            self.said_addresses.clone_from(&local.addresses);
            let bytes = local.addresses.iter().flat_map(|address| address.octets());
            let bytes: Vec<u8> = bytes.collect();
            let header = Header::new(KIND_ADDRESSES, size_of::<Header>() + bytes.len());
            let message = [header.as_bytes(), &bytes].concat();
            up.outgoing.push_back((message, Vec::new()));
        }
    }

    /// Sends a record without a ring. False: there is no room for it, or it is too long.
    pub(crate) fn send_frame(&mut self, record: &[u8]) -> bool {
        if record.is_empty() || record.len() > MAX_FRAME || !self.hello_sent {
            return false;
        }
        let fd = self.socket.as_fd();
        let Stage::Up(up) = &mut self.stage else {
            return false;
        };
        if !up.outgoing.is_empty() {
            return false;
        }
        if !std::mem::replace(&mut up.has_send_buffer, true) {
            // With the default size the kernel would keep more for a peer that does not read.
            let _ = rustix::net::sockopt::set_socket_send_buffer_size(fd, SEND_BUFFER);
        }
        let header = Header::new(KIND_FRAME, size_of::<Header>() + record.len());
        socket::send_pieces(fd, [header.as_bytes(), record], &[]).is_ok()
    }

    /// Tells the peer why it is not wanted. The connection is to be dropped afterwards.
    pub(crate) fn refuse(&self, refusal: &Refusal) {
        // Nothing is lost if it cannot be sent: the peer sees the connection end.
        let _ = socket::send(self.fd(), refusal.message().as_bytes(), &[]);
    }
}

/// A region that cannot be mapped for want of resources is not the peer's fault.
fn region_refusal(error: virtio_inter_link::RegionError) -> Refusal {
    match error {
        virtio_inter_link::RegionError::Map(_) => Refusal::resources(error),
        error => Refusal::violation(error),
    }
}

/// Takes the descriptor of an ACCEPT only once it is known to be a memfd. There is none
/// only if this process had no room for it.
fn take_page_fd(fds: &mut Vec<OwnedFd>) -> Result<OwnedFd, Refusal> {
    match fds.pop() {
        Some(page) if fd_type::is_memfd(page.as_fd()) => Ok(page),
        Some(other) => {
            fds.push(other);
            let text = "ACCEPT whose descriptor is not a memfd".to_owned();
            Err(Refusal::Violation(text))
        }
        None => {
            let text = "no descriptor is left for a ring that was accepted".to_owned();
            Err(Refusal::Resources(text))
        }
    }
}

/// Takes the descriptors only once they are known to be of the right kinds: memfds and eventfds can
/// be inspected and closed without waiting for anybody.
fn take_link_fds(fds: &mut Vec<OwnedFd>) -> Result<[OwnedFd; 3], Refusal> {
    let wrong = |what: &str| Err(Refusal::Violation(format!("LINK whose {what}")));
    let [region, data_doorbell, space_doorbell] = fds.as_slice() else {
        return wrong("descriptors are not three");
    };
    if !fd_type::is_memfd(region.as_fd()) {
        return wrong("first descriptor is not a memfd");
    }
    if ![data_doorbell, space_doorbell]
        .iter()
        .all(|doorbell| fd_type::is_eventfd(doorbell.as_fd()))
    {
        return wrong("second or third descriptor is not an eventfd");
    }
    <[OwnedFd; 3]>::try_from(std::mem::take(fds))
        .map_err(|fds| Refusal::Violation(format!("LINK with {} descriptors", fds.len())))
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
