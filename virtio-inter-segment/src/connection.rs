//! One connection to one peer: drives its handshake over the socket and collects the rings.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use virtio_inter_common::PortId;
use virtio_inter_link::{Doorbell, Receiver, Region, Sender};
use zerocopy::IntoBytes;

use crate::deferred_close::{Closer, DeferredFd, Owner};
use crate::fd_type;
use crate::handshake::{Candidate, Local, Refusal, RingSequence, Role, parse_id};
use crate::limits::Limits;
use crate::port::{DownReason, PeerInfo, PeerKey, PeerLink};
use crate::socket::{self, ReceiveError, Received};
use crate::wire::{self, MAX_MESSAGE, Message, Ring, Versions};

/// A connection, from the first byte to the end of the link.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) key: PeerKey,
    pub(crate) role: Role,
    /// When it was made.
    pub(crate) started: Instant,
    /// When the peer was let in.
    admitted: Option<Instant>,
    /// The kernel's word on the peer's process.
    pub(crate) owner: Owner,
    /// Whether the event loop listens for room to write.
    pub(crate) watches_write: bool,
    /// What the peer called itself, let in or not.
    claimed: Option<PortId>,
    socket: DeferredFd,
    closer: Closer,
    hello_sent: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The peer has not said who it is.
    Hello,
    /// The peer is let in, rings go both ways.
    Rings(Box<Exchange>),
    /// The link is up, since then.
    Up(Candidate, Instant),
}

#[derive(Debug)]
struct Exchange {
    peer: Candidate,
    sequence: RingSequence,
    senders: Vec<Sender>,
    /// Empty until they are made.
    receivers: Vec<OwnRing>,
    /// How many receivers there will be. The acceptor makes them when the connector's first ring is
    /// there: a process that connects and sends nothing costs no memory.
    wanted: u16,
    /// How many of the receivers' rings have been sent.
    sent: usize,
}

/// A ring that we receive on, as long as its descriptors are still to be sent.
#[derive(Debug)]
struct OwnRing {
    region: Region,
    data_doorbell: Doorbell,
    space_doorbell: Doorbell,
}

/// What came of looking at the socket.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing more to do now.
    Idle,
    /// A message was dealt with, look again.
    Progress,
    /// The peer has introduced itself: [`Connection::admit`] or [`Connection::refuse`] it.
    Introduced(Candidate),
    /// The link is up.
    Up(PeerLink),
    /// The connection is over: before the link was up, …
    Ended(End),
    /// … or after it was.
    Down(DownReason),
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
            admitted: None,
            owner,
            watches_write: false,
            claimed: None,
            socket: DeferredFd::new(socket, owner, closer),
            closer: closer.clone(),
            hello_sent: false,
            stage: Stage::Hello,
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The peer, once it has been let in.
    pub(crate) fn peer(&self) -> Option<&Candidate> {
        match &self.stage {
            Stage::Hello => None,
            Stage::Rings(exchange) => Some(&exchange.peer),
            Stage::Up(peer, _) => Some(peer),
        }
    }

    /// Since when the link is up, if it is.
    pub(crate) fn up_since(&self) -> Option<Instant> {
        match self.stage {
            Stage::Up(_, since) => Some(since),
            _ => None,
        }
    }

    /// How long the present part of the handshake may take, and when that has passed.
    pub(crate) fn deadline(&self, limits: &Limits) -> (Duration, Instant) {
        match self.admitted {
            None => (limits.hello_timeout, self.started + limits.hello_timeout),
            Some(at) => (limits.rings_timeout, at + limits.rings_timeout),
        }
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

    /// Whether the other side has closed, or, of a link that is up, has sent what it must not.
    pub(crate) fn has_ended(&self) -> bool {
        let mut wanted = PollFlags::RDHUP;
        if self.up_since().is_some() {
            wanted |= PollFlags::IN;
        }
        // Any flag that comes back ends it; HUP and ERR come unasked.
        self.has_any(wanted)
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
            let sent = match &self.stage {
                // The acceptor's HELLO says that it accepts the connector's.
                Stage::Hello if self.role == Role::Acceptor => return Ok(true),
                _ if !self.hello_sent => socket::send(self.fd(), local.hello().as_bytes(), &[]),
                Stage::Rings(exchange) if exchange.sent < exchange.receivers.len() => {
                    let ring = &exchange.receivers[exchange.sent];
                    let count = exchange.receivers.len() as u16;
                    let index = exchange.sent as u16;
                    let message = Ring::new(index, count, local.port.ring_capacity);
                    let fds = [
                        ring.region.fd(),
                        ring.data_doorbell.as_fd(),
                        ring.space_doorbell.as_fd(),
                    ];
                    socket::send(self.fd(), message.as_bytes(), &fds)
                }
                _ => return Ok(true),
            };
            match sent {
                Ok(()) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => continue,
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(true),
                // Among them ETOOMANYREFS: too many descriptors of this user are under way.
                Err(e) => return Err(Refusal::resources(std::io::Error::from(e))),
            }
            match &mut self.stage {
                Stage::Rings(exchange) if self.hello_sent => exchange.sent += 1,
                _ => self.hello_sent = true,
            }
        }
    }

    /// Reads and judges one message.
    pub(crate) fn step(&mut self, local: &Local, now: Instant) -> Step {
        if let Some(up) = self.finish(now) {
            return up;
        }
        let mut buffer = [0; MAX_MESSAGE];
        let mut fds = Vec::new();
        let received = socket::receive(self.socket.as_fd(), &mut buffer, &mut fds);
        let step = match (&self.stage, received) {
            (_, Ok(Received::Nothing)) => Step::Idle,
            (Stage::Up(..), received) => Step::Down(after_the_end(received, &buffer)),
            (_, Ok(Received::Closed)) => Step::Ended(End::Closed),
            (_, Ok(Received::Packet(len))) => self
                .judge(local, &buffer[..len], &mut fds)
                .unwrap_or_else(|refusal| Step::Ended(End::Refused(refusal))),
            (_, Err(ReceiveError::Socket(e))) => {
                log::debug!("Failed to read from {}: {e}", self.name());
                Step::Ended(End::Closed)
            }
            (_, Err(e)) => Step::Ended(End::Refused(Refusal::violation(e))),
        };
        // What nobody has found to be harmless.
        let owner = self.owner;
        fds.into_iter().for_each(|fd| self.closer.close(fd, owner));
        match step {
            // The last ring may have been the last thing to wait for: nothing else would wake us.
            Step::Progress => self.finish(now).unwrap_or(Step::Progress),
            step => step,
        }
    }

    /// Judges one message. Takes the descriptors out of `fds` if they are what they have to be.
    fn judge(
        &mut self,
        local: &Local,
        packet: &[u8],
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Step, Refusal> {
        let message = wire::parse(packet)?;
        let expects_fds = matches!((&self.stage, &message), (Stage::Rings(_), Message::Ring(_)));
        if !expects_fds && !fds.is_empty() {
            return Err(Refusal::Violation(format!(
                "{} with {} descriptors",
                message.name(),
                fds.len()
            )));
        }
        match (&mut self.stage, message) {
            (_, Message::Refuse(refuse)) => Ok(Step::Ended(End::RefusedByPeer {
                reason: refuse.reason.get(),
                text: refuse.text(),
                versions: refuse.versions(),
            })),
            (Stage::Hello, Message::ForeignHello(theirs)) => Err(Refusal::Version { theirs }),
            (Stage::Hello, Message::Hello(hello)) => {
                self.claimed = parse_id(&hello.id).ok();
                let candidate = local.judge(&self.role, &hello)?;
                Ok(Step::Introduced(candidate))
            }
            (Stage::Rings(exchange), Message::Ring(ring)) => {
                exchange.sequence.accept(&ring, fds.len())?;
                exchange.senders.push(open_ring(fds, ring.capacity.get())?);
                if exchange.receivers.is_empty() {
                    exchange.make_rings(local)?;
                }
                Ok(Step::Progress)
            }
            (stage, message) => Err(Refusal::Violation(format!(
                "{} instead of {}",
                message.name(),
                if matches!(stage, Stage::Hello) {
                    "HELLO"
                } else {
                    "RING"
                }
            ))),
        }
    }

    /// Whether the next message may be the one upon which rings are made: that takes a while.
    pub(crate) fn may_make_rings(&self) -> bool {
        match &self.stage {
            Stage::Hello => self.role != Role::Acceptor,
            Stage::Rings(exchange) => exchange.receivers.is_empty(),
            Stage::Up(..) => false,
        }
    }

    /// Lets the peer in. The connector makes the rings that the peer will send on.
    pub(crate) fn admit(
        &mut self,
        local: &Local,
        peer: Candidate,
        now: Instant,
    ) -> Result<(), Refusal> {
        let mut exchange = Box::new(Exchange {
            sequence: RingSequence::new(local.port.queues, peer.ring_capacity),
            senders: Vec::with_capacity(local.port.queues.into()),
            receivers: Vec::new(),
            wanted: peer.queues,
            sent: 0,
            peer,
        });
        if self.role != Role::Acceptor {
            exchange.make_rings(local)?;
        }
        self.stage = Stage::Rings(exchange);
        self.admitted = Some(now);
        Ok(())
    }

    /// Tells the peer why, if it listens. The connection is of no use afterwards.
    pub(crate) fn refuse(&self, refusal: &Refusal) {
        // Nothing is lost if it cannot be sent: the peer sees the connection end.
        let _ = socket::send(self.fd(), refusal.message().as_bytes(), &[]);
    }

    /// The link, once all rings have gone both ways.
    fn finish(&mut self, now: Instant) -> Option<Step> {
        let complete = matches!(&self.stage, Stage::Rings(exchange)
            if exchange.sequence.is_complete() && exchange.sent == usize::from(exchange.wanted));
        if !complete {
            return None;
        }
        let Stage::Rings(exchange) = std::mem::replace(&mut self.stage, Stage::Hello) else {
            return None;
        };
        let Exchange {
            peer,
            senders,
            receivers,
            ..
        } = *exchange;
        let receivers = receivers
            .into_iter()
            .map(|ring| Receiver::new(ring.region, ring.data_doorbell, ring.space_doorbell))
            .collect();
        let info = PeerInfo {
            key: self.key,
            id: peer.id.clone(),
            mac: peer.mac,
            mtu: peer.mtu,
            queues: peer.queues,
        };
        self.stage = Stage::Up(peer, now);
        Some(Step::Up(PeerLink {
            peer: info,
            senders,
            receivers,
        }))
    }
}

/// What to make of something that comes on the connection of a link that is up.
fn after_the_end(
    received: Result<Received, ReceiveError>,
    buffer: &[u8; MAX_MESSAGE],
) -> DownReason {
    match received {
        Ok(Received::Nothing | Received::Closed) => DownReason::Closed,
        Ok(Received::Packet(len)) => match wire::parse(&buffer[..len]) {
            Ok(Message::Refuse(refuse)) if refuse.may_pass() => {
                DownReason::NoResources(refuse.text())
            }
            Ok(Message::Refuse(refuse)) => DownReason::Refused(refuse.text()),
            _ => DownReason::UnexpectedData,
        },
        Err(ReceiveError::Socket(e)) => DownReason::Socket(e),
        Err(_) => DownReason::UnexpectedData,
    }
}

impl Exchange {
    fn make_rings(&mut self, local: &Local) -> Result<(), Refusal> {
        self.receivers = (0..self.wanted)
            .map(|_| make_ring(local.port.ring_capacity))
            .collect::<Result<_, _>>()?;
        Ok(())
    }
}

fn make_ring(capacity: u32) -> Result<OwnRing, Refusal> {
    Ok(OwnRing {
        region: Region::create(capacity).map_err(Refusal::resources)?,
        data_doorbell: Doorbell::new().map_err(Refusal::resources)?,
        space_doorbell: Doorbell::new().map_err(Refusal::resources)?,
    })
}

/// Takes the descriptors only once they are known to be of the right kinds: memfds and eventfds can
/// be looked at and closed without waiting for anybody.
fn open_ring(fds: &mut Vec<OwnedFd>, capacity: u32) -> Result<Sender, Refusal> {
    let wrong = |what: &str| Err(Refusal::Violation(format!("RING whose {what}")));
    let [region, data_doorbell, space_doorbell] = fds.as_slice() else {
        return wrong("descriptors are not three");
    };
    if !fd_type::is_memfd(region.as_fd()) {
        return wrong("first descriptor is not a memfd");
    }
    if ![data_doorbell, space_doorbell]
        .iter()
        .all(|doorbell| fd_type::may_be_eventfd(doorbell.as_fd()))
    {
        return wrong("second or third descriptor is not an eventfd");
    }
    let [region, data_doorbell, space_doorbell] = <[OwnedFd; 3]>::try_from(std::mem::take(fds))
        .map_err(|fds| Refusal::Violation(format!("RING with {} descriptors", fds.len())))?;
    Ok(Sender::new(
        Region::open(region, capacity).map_err(Refusal::violation)?,
        Doorbell::from_fd(data_doorbell).map_err(Refusal::violation)?,
        Doorbell::from_fd(space_doorbell).map_err(Refusal::violation)?,
    ))
}
