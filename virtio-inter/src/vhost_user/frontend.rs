//! A connected frontend: reads requests from its connection, has its session handle them, replies.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use log::Level;
use thiserror::Error;
use virtio_inter_common::{ErrorChain, LogLimit, log_limited, peer_pid};
use virtio_inter_device::Device;

use super::connection::{Connection, Received, encode_reply};
use super::error::{MessageError, RequestError, request_name};
use super::reply::{Reply, acknowledgement, has_own_reply};
use super::request::Request;
use super::session::{Action, Session, SessionLimits};
use super::session_state::{SessionState, StateFile};

/// Maximum number of requests handled before other events of the port.
const BATCH: usize = 64;

/// Minimum time for which the connection of a refused frontend stays open, unless it hangs up.
const MIN_REFUSED_TIME: Duration = Duration::from_secs(1);

/// Limits the log lines about requests that a frontend can repeat.
static REFUSALS: LogLimit = LogLimit::new(Duration::from_secs(1), 20);

/// Why a frontend is no longer served.
#[derive(Debug, Error)]
pub enum Disconnect {
    /// The frontend closed the connection.
    #[error("Frontend disconnected")]
    HungUp,
    /// The frontend has sent no request, and another one waits.
    #[error("Frontend gave way to another, having sent nothing")]
    SentNothing,
    /// The frontend was refused, and the time for which its connection stays open is over.
    #[error("Frontend that was refused is disconnected")]
    RefusedBefore,
    /// The frontend sent a message that is not valid vhost-user.
    #[error("Frontend sent an invalid message")]
    InvalidMessage(#[from] MessageError),
    /// A request failed, and the frontend did not ask for an acknowledgement.
    #[error("Frontend cannot be served")]
    Refused(#[from] RequestError),
    /// A request failed that has a reply of its own, in which no failure can be reported.
    #[error("Frontend cannot be served")]
    Unanswered(#[source] RequestError),
    /// The frontend continues a session that a former process began and whose queues this process
    /// does not know.
    #[error("Frontend is asked to connect again, as its queues were set up with a former process")]
    NeedsReconnect,
    /// A reply cannot be sent.
    #[error("Cannot answer {}", request_name(*.code))]
    Reply {
        /// The request's number.
        code: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The state for the next process cannot be written.
    #[error("Cannot note the state of the session")]
    SaveState(#[source] io::Error),
    /// The connection cannot be used.
    #[error("Cannot use the connection")]
    Connection(#[source] io::Error),
}

/// A frontend being served.
#[derive(Debug)]
pub struct Frontend {
    connection: Connection,
    session: Session,
    sent_request: bool,
    /// The session's state for the next process. `None`: there was no memory for it.
    state_file: Option<StateFile>,
    /// Whether a part of the reply in that file is still to be sent.
    unsent_reply: bool,
    /// A request that waits while another frontend has the device. No other is read meanwhile.
    deferred: Option<PendingRequest>,
    /// When the frontend was refused: its queries are answered, nothing else is handled.
    refused: Option<Instant>,
}

/// A decoded request that was not handled yet.
#[derive(Debug)]
struct PendingRequest {
    code: u32,
    need_reply: bool,
    action: Action,
}

impl Frontend {
    /// Begins to serve an accepted connection.
    ///
    /// # Errors
    ///
    /// When it cannot be used.
    pub fn new(
        socket: UnixStream,
        limits: SessionLimits,
        device: &dyn Device,
    ) -> Result<Self, Disconnect> {
        let pid = peer_pid(socket.as_fd()).ok().flatten();
        Ok(Self {
            connection: Connection::new(socket).map_err(Disconnect::Connection)?,
            session: Session::new(limits, pid, device),
            sent_request: false,
            state_file: StateFile::new().ok(),
            unsent_reply: false,
            deferred: None,
            refused: None,
        })
    }

    /// Resumes a connection of a former process, which saved in `state_file` what the frontend has
    /// set up.
    ///
    /// # Errors
    ///
    /// [`Disconnect::NeedsReconnect`] when the frontend has queues that it considers running, or
    /// waits for a reply that only the former process could give: the connection is shut down then.
    /// Others when the connection cannot be used.
    pub fn resume(
        socket: UnixStream,
        state_file: StateFile,
        limits: SessionLimits,
        device: &dyn Device,
    ) -> Result<Self, Disconnect> {
        let former = state_file.read();
        let unsent_reply = state_file.unsent().is_ok_and(|unsent| unsent > 0);
        let mut frontend = Self {
            sent_request: true,
            state_file: Some(state_file),
            ..Self::new(socket, limits, device)?
        };
        // The unread request may stop the queues, so it must be handled; or the next one may, which
        // follows when the frontend has the reply for which it waits.
        let can_resume = |former: &SessionState| {
            former.set_up & former.enabled == 0 || unsent_reply || frontend.connection.is_readable()
        };
        let Some(former) = former.filter(can_resume) else {
            frontend.connection.shut_down();
            return Err(Disconnect::NeedsReconnect);
        };
        frontend.session.resume(&former);
        if unsent_reply {
            frontend.send_former_reply()?;
        }
        Ok(frontend)
    }

    /// Sends the reply that the former process saved and did not send any more.
    fn send_former_reply(&mut self) -> Result<(), Disconnect> {
        let file = self.state_file.as_ref();
        let sent = file.map(|file| file.send_reply(&self.connection));
        if !matches!(sent, Some(Ok(true))) || self.session.needs_reconnect() {
            self.connection.shut_down();
            return Err(Disconnect::NeedsReconnect);
        }
        self.save_state()
    }

    /// The session's state for the next process; `None` if there was no memory for it.
    pub fn state_file(&self) -> Option<&StateFile> {
        self.state_file.as_ref()
    }

    /// Whether it has ever sent a request. If not, it may be disconnected in favour of another.
    pub fn has_sent_request(&self) -> bool {
        self.sent_request
    }

    /// Releases the device for good but keeps the connection open: QEMU, for one, would connect
    /// again as often as its `reconnect-ms` says, and its guest would see its link go down and up
    /// each time.
    pub fn refuse(&mut self, device: &mut dyn Device) {
        self.refused = Some(Instant::now());
        self.deferred = None;
        self.session.release_all(device);
    }

    /// Whether it was refused. Then it may be disconnected in favour of another.
    pub fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// Its session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Its session.
    pub fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Whether the socket's buffer is full of replies. No request is read until the frontend has
    /// read them.
    pub fn is_sending(&self) -> bool {
        self.unsent_reply || self.connection.is_sending()
    }

    /// Whether a request waits for the device, which another frontend has, until that one stops its
    /// queues or one of the two hangs up.
    pub fn is_deferred(&self) -> bool {
        self.deferred.is_some()
    }

    /// Handles requests that have come. Non-blocking, bounded work per call. `other` is the other
    /// connected frontend: if it has the device and none of its queues runs, it loses the device to
    /// this one where a request needs that.
    ///
    /// # Errors
    ///
    /// When the frontend cannot be served any longer. The caller then calls [`Frontend::end`].
    pub fn process(
        &mut self,
        device: &mut dyn Device,
        other: Option<&mut Frontend>,
    ) -> Result<(), Disconnect> {
        self.serve_batch(device, other)?;
        if self.session.needs_reconnect() {
            return Err(Disconnect::NeedsReconnect);
        }
        let answered = !self.is_deferred() && !self.is_sending();
        if answered && self.connection.is_between_messages() {
            self.save_state()?;
        }
        Ok(())
    }

    /// Marks the saved state: only this process can send the reply for which the frontend waits.
    fn mark_busy(&self) -> Result<(), Disconnect> {
        let result = self.state_file.as_ref().map(StateFile::begin);
        result.unwrap_or(Ok(())).map_err(Disconnect::SaveState)
    }

    /// Saves what the frontend has set up. It has all its replies.
    fn save_state(&self) -> Result<(), Disconnect> {
        // A refused frontend has to connect again and set everything up with the next process.
        let file = self.state_file.as_ref().filter(|_| !self.is_refused());
        let result = file.map(|file| file.write(&self.session.state()));
        result.unwrap_or(Ok(())).map_err(Disconnect::SaveState)
    }

    fn serve_batch(
        &mut self,
        device: &mut dyn Device,
        mut other: Option<&mut Frontend>,
    ) -> Result<(), Disconnect> {
        self.flush().map_err(Disconnect::Connection)?;
        if let Some(since) = self.refused {
            return self.answer_queries(since, device);
        }
        for _ in 0..BATCH {
            if self.is_sending() {
                break;
            }
            let pending = match self.deferred.take() {
                Some(pending) => pending,
                None => match self.receive()? {
                    Some(pending) => pending,
                    None => break,
                },
            };
            if self.session.needs_device_for(&pending.action)
                && !self.acquire_device(device, other.as_deref_mut())?
            {
                self.deferred = Some(pending);
                if self.connection.is_hung_up() {
                    return Err(Disconnect::HungUp);
                }
                break;
            }
            self.serve(pending, device)?;
        }
        Ok(())
    }

    /// Answers a refused frontend's queries, as it waits for the replies, and drops other requests.
    ///
    /// # Errors
    ///
    /// When it hangs up, sends a request that must have a reply, or stops its queues: the guest
    /// reboots then, as a rule, and its next driver may be one that can be served.
    fn answer_queries(
        &mut self,
        since: Instant,
        device: &mut dyn Device,
    ) -> Result<(), Disconnect> {
        for _ in 0..BATCH {
            if self.is_sending() {
                break;
            }
            let message = match self.connection.receive()? {
                Received::Message(message) => message,
                Received::Pending => break,
                Received::HungUp => return Err(Disconnect::HungUp),
            };
            let (code, need_reply) = (message.code, message.need_reply);
            let request = Request::decode(message)?;
            let stops = matches!(request, Request::GetVringBase { .. });
            if stops && since.elapsed() >= MIN_REFUSED_TIME {
                return Err(Disconnect::RefusedBefore);
            }
            if request.is_query() {
                let pending = PendingRequest {
                    code,
                    need_reply,
                    action: request.into(),
                };
                self.serve(pending, device)?;
            } else if has_own_reply(code) {
                return Err(Disconnect::RefusedBefore);
            } else if need_reply && self.session.acknowledges() {
                self.connection
                    .reply(&encode_reply(code, &acknowledgement(1)))
                    .map_err(|source| Disconnect::Reply { code, source })?;
            }
        }
        Ok(())
    }

    /// The next request, if it is complete.
    fn receive(&mut self) -> Result<Option<PendingRequest>, Disconnect> {
        if !self.connection.is_readable() {
            return Ok(None);
        }
        self.mark_busy()?;
        match self.connection.receive()? {
            Received::Message(message) => {
                let (code, need_reply) = (message.code, message.need_reply);
                let request = Request::decode(message)?;
                self.sent_request = true;
                Ok(Some(PendingRequest {
                    code,
                    need_reply,
                    action: request.into(),
                }))
            }
            Received::Pending => Ok(None),
            Received::HungUp => Err(Disconnect::HungUp),
        }
    }

    /// Acquires the device, from the other frontend if that is idle. Returns whether this one has
    /// it.
    fn acquire_device(
        &mut self,
        device: &mut dyn Device,
        other: Option<&mut Frontend>,
    ) -> Result<bool, RequestError> {
        if self.session.holds_device() {
            return Ok(true);
        }
        if let Some(other) = other.filter(|other| other.session.holds_device()) {
            if !other.session.is_idle() {
                return Ok(false);
            }
            other.session.release_device(device)?;
        }
        self.session.acquire_device(device)?;
        Ok(true)
    }

    fn serve(
        &mut self,
        pending: PendingRequest,
        device: &mut dyn Device,
    ) -> Result<(), Disconnect> {
        let PendingRequest {
            code,
            need_reply,
            action,
        } = pending;
        let result = self.session.handle(action, device);
        // Evaluated after the request: User Mode Linux sets the flag on the very request that
        // negotiates REPLY_ACK.
        let acknowledge = need_reply && self.session.acknowledges();
        let payload = match result {
            Ok(Reply::Done) if !acknowledge => return Ok(()),
            Ok(reply) => reply.payload().unwrap_or_else(|| acknowledgement(0)),
            // The frontend waits for a reply that does not exist.
            Err(refusal) if has_own_reply(code) => return Err(Disconnect::Unanswered(refusal)),
            Err(refusal) if acknowledge => {
                let name = request_name(code);
                log_limited!(
                    REFUSALS,
                    Level::Warn,
                    "{name} refused: {}",
                    ErrorChain(&refusal)
                );
                acknowledgement(1)
            }
            Err(
                refusal @ (RequestError::Unsupported(_)
                | RequestError::ReadOnly
                | RequestError::Address { .. }),
            ) => {
                let name = request_name(code);
                log_limited!(
                    REFUSALS,
                    Level::Warn,
                    "{name} ignored: {}",
                    ErrorChain(&refusal)
                );
                return Ok(());
            }
            Err(refusal) => return Err(refusal.into()),
        };
        let reply = encode_reply(code, &payload);
        if self.reply_from_file(code, &reply)? {
            return Ok(());
        }
        // Before the reply, not after it: this process may be killed when the reply wakes the
        // frontend.
        self.save_state()?;
        self.connection
            .reply(&reply)
            .map_err(|source| Disconnect::Reply { code, source })?;
        if self.is_sending() {
            self.mark_busy()?;
        }
        Ok(())
    }

    /// Saves state and reply, and sends the reply so that the next process knows whether it was
    /// sent. False: that cannot be done.
    fn reply_from_file(&mut self, code: u32, reply: &[u8]) -> Result<bool, Disconnect> {
        let Some(file) = self.state_file.as_ref().filter(|_| !self.is_refused()) else {
            return Ok(false);
        };
        // No frontend known to us asks before it has read the reply to what it asked before.
        if self.connection.has_unread_replies() {
            return Ok(false);
        }
        file.write_with_reply(&self.session.state(), reply)
            .map_err(Disconnect::SaveState)?;
        match file.send_reply(&self.connection) {
            Ok(sent) => self.unsent_reply = !sent,
            // For example by a kernel that cannot send from a memfd to a Unix socket.
            Err(error) if is_not_possible(error.kind()) => return Ok(false),
            Err(source) => return Err(Disconnect::Reply { code, source }),
        }
        Ok(true)
    }

    /// Sends the rest of the replies, as far as the socket takes it.
    fn flush(&mut self) -> io::Result<()> {
        if self.unsent_reply {
            let file = self.state_file.as_ref();
            let sent = file.map(|file| file.send_reply(&self.connection));
            self.unsent_reply = !sent.unwrap_or(Ok(true))?;
        }
        self.connection.flush()
    }

    /// Ends the session and shuts the connection down, even if the supervisor stores it.
    pub fn end(self, device: &mut dyn Device) {
        // In this order: a frontend that sees the end may set its queues up on a new connection.
        self.session.close(device);
        self.connection.shut_down();
    }

    /// Ends the session, and the connection unless the supervisor stores it for the next process.
    pub fn close(self, device: &mut dyn Device) {
        self.session.close(device);
    }
}

fn is_not_possible(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
    )
}

impl AsFd for Frontend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
