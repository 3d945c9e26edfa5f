//! A connected frontend: its connection and its session, request by request.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use log::Level;
use thiserror::Error;
use virtio_inter_common::{ErrorChain, LogLimit, log_limited, peer_pid};
use virtio_inter_device::Device;

use super::connection::{Connection, Received, request_name};
use super::error::{Malformed, Refusal};
use super::record::{RecordFile, SessionRecord};
use super::reply::{Reply, acknowledgement, has_own_reply};
use super::request::Request;
use super::session::{Limits, Session};

/// Requests served before others get their turn.
const BATCH: usize = 64;

/// How long the connection of a refused frontend is kept in any case, unless it hangs up.
const REFUSED_LEAST: Duration = Duration::from_secs(1);

/// What a frontend is told, which it can ask for again and again.
static REFUSALS: LogLimit = LogLimit::new(Duration::from_secs(1), 20);

/// Why a frontend is no longer served.
#[derive(Debug, Error)]
pub enum Ended {
    /// It closed the connection.
    #[error("Frontend disconnected")]
    HungUp,
    /// It has asked for nothing, and another waits.
    #[error("Frontend gave way to another, having sent nothing")]
    Silent,
    /// It was refused, and its connection was kept for a while.
    #[error("Frontend that was refused is disconnected")]
    RefusedBefore,
    /// It does not speak vhost-user.
    #[error("Frontend is not understood")]
    Malformed(#[from] Malformed),
    /// It cannot have what it asked for, and did not ask to be told.
    #[error("Frontend cannot be served")]
    Refused(#[from] Refusal),
    /// It cannot have what it asked for, and waits for an answer that there is not.
    #[error("Frontend cannot be served")]
    Unanswered(#[source] Refusal),
    /// It goes on with what it set up with a former process, of which this one knows nothing.
    #[error("Frontend is asked to connect again, as its queues were set up with a former process")]
    SetUpAgain,
    /// It cannot be answered.
    #[error("Cannot answer {}", request_name(*.code))]
    Reply {
        /// The request's number.
        code: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The next process could not be told.
    #[error("Cannot note the state of the session")]
    Record(#[source] io::Error),
    /// The connection cannot be used.
    #[error("Cannot use the connection")]
    Connection(#[source] io::Error),
}

/// A frontend being served.
#[derive(Debug)]
pub struct Frontend {
    connection: Connection,
    session: Session,
    spoken: bool,
    /// What the next process will want to know. None: there was no memory for it.
    record: Option<RecordFile>,
    /// What it asks for and cannot have while another has the device. Nothing more is read meanwhile.
    held: Option<Asked>,
    /// What it asked for cannot be done, and nothing more is.
    refused: Option<Instant>,
}

/// A request, and what is to be answered.
#[derive(Debug)]
struct Asked {
    code: u32,
    need_reply: bool,
    request: Request,
}

impl Frontend {
    /// Begins to serve an accepted connection.
    ///
    /// # Errors
    ///
    /// When it cannot be used.
    pub fn new(socket: UnixStream, limits: Limits, device: &dyn Device) -> Result<Self, Ended> {
        let pid = peer_pid(socket.as_fd()).ok().flatten();
        Ok(Self {
            connection: Connection::new(socket).map_err(Ended::Connection)?,
            session: Session::new(limits, pid, device),
            spoken: false,
            record: RecordFile::new().ok(),
            held: None,
            refused: None,
        })
    }

    /// Goes on serving a connection of a former process, which noted in `record` what the frontend
    /// has set up.
    ///
    /// # Errors
    ///
    /// [`Ended::SetUpAgain`] when the frontend has queues that run, as it believes, or waits for an
    /// answer that only the former process could give: the connection has ended then. Others when
    /// it cannot be used.
    pub fn take_over(
        socket: UnixStream,
        record: RecordFile,
        limits: Limits,
        device: &dyn Device,
    ) -> Result<Self, Ended> {
        let former = record.read();
        let mut frontend = Self {
            spoken: true,
            record: Some(record),
            ..Self::new(socket, limits, device)?
        };
        // What it asks of queues that run may be that they stop, which it is not to be refused.
        let can_go_on = |former: &SessionRecord| {
            former.set_up & former.enabled == 0 || frontend.connection.is_readable()
        };
        let Some(former) = former.filter(can_go_on) else {
            frontend.connection.shut_down();
            return Err(Ended::SetUpAgain);
        };
        frontend.session.inherit(&former);
        Ok(frontend)
    }

    /// What the next process will want to know; None: it could not be noted.
    pub fn record(&self) -> Option<&RecordFile> {
        self.record.as_ref()
    }

    /// Whether it has ever sent a request. One that has not can be given up for another.
    pub fn has_spoken(&self) -> bool {
        self.spoken
    }

    /// Gives the device up for good but keeps the connection: QEMU, for one, is back as often as
    /// its `reconnect-ms` says, and its guest sees its link go down and up each time.
    pub fn refuse(&mut self, device: &mut dyn Device) {
        self.refused = Some(Instant::now());
        self.held = None;
        self.session.give_all_up(device);
    }

    /// Whether only its connection is left. It can be given up for another.
    pub fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// What it has set up.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// What it has set up.
    pub fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Whether it is to be waited for until it reads its replies; no request is taken until then.
    pub fn is_sending(&self) -> bool {
        self.connection.is_sending()
    }

    /// Whether it waits for the device, which another has. Only the end of that other's queues, or of either of them,
    /// changes that.
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Serves what the frontend has sent, as far as that goes without waiting and without end. `rival` is another that
    /// is served: it may have the device, and gives it up when none of its queues runs.
    ///
    /// # Errors
    ///
    /// When it is to be served no longer; [`Frontend::close`] is to follow.
    pub fn process(
        &mut self,
        device: &mut dyn Device,
        rival: Option<&mut Frontend>,
    ) -> Result<(), Ended> {
        self.serve_batch(device, rival)?;
        if self.session.lacks_inheritance() {
            return Err(Ended::SetUpAgain);
        }
        let answered = !self.is_held() && !self.is_sending();
        if answered && self.connection.is_between_messages() {
            self.note_answered()?;
        }
        Ok(())
    }

    /// Notes that only this process can answer what the frontend waits for.
    fn note_busy(&self) -> Result<(), Ended> {
        let note = self.record.as_ref().map(RecordFile::begin);
        note.unwrap_or(Ok(())).map_err(Ended::Record)
    }

    /// Notes that the frontend has all its answers, and what it has set up.
    fn note_answered(&self) -> Result<(), Ended> {
        // A frontend that is refused had better ask the next process for all of it again.
        let record = self.record.as_ref().filter(|_| !self.is_refused());
        let note = record.map(|record| record.write(&self.session.record()));
        note.unwrap_or(Ok(())).map_err(Ended::Record)
    }

    fn serve_batch(
        &mut self,
        device: &mut dyn Device,
        mut rival: Option<&mut Frontend>,
    ) -> Result<(), Ended> {
        self.connection.flush().map_err(Ended::Connection)?;
        if let Some(since) = self.refused {
            return self.pass_over(since, device);
        }
        for _ in 0..BATCH {
            if self.connection.is_sending() {
                break;
            }
            let asked = match self.held.take() {
                Some(asked) => asked,
                None => match self.receive()? {
                    Some(asked) => asked,
                    None => break,
                },
            };
            if self.session.needs_device_for(&asked.request)
                && !self.has_device(device, rival.as_deref_mut())?
            {
                self.held = Some(asked);
                if self.connection.is_hung_up() {
                    return Err(Ended::HungUp);
                }
                break;
            }
            self.serve(asked, device)?;
        }
        Ok(())
    }

    /// Answers a refused frontend's questions, as it waits for the answers, and carries nothing out.
    ///
    /// # Errors
    ///
    /// When it hangs up, asks what cannot be answered, or stops its queues: the guest reboots, as a
    /// rule, and the next session may suit its next driver.
    fn pass_over(&mut self, since: Instant, device: &mut dyn Device) -> Result<(), Ended> {
        for _ in 0..BATCH {
            if self.connection.is_sending() {
                break;
            }
            let message = match self.connection.receive()? {
                Received::Message(message) => message,
                Received::Pending => break,
                Received::HungUp => return Err(Ended::HungUp),
            };
            let (code, need_reply) = (message.code, message.need_reply);
            let request = Request::decode(message)?;
            let stops = matches!(request, Request::GetVringBase { .. });
            if stops && since.elapsed() >= REFUSED_LEAST {
                return Err(Ended::RefusedBefore);
            }
            if request.is_question() {
                let asked = Asked {
                    code,
                    need_reply,
                    request,
                };
                self.serve(asked, device)?;
            } else if has_own_reply(code) {
                return Err(Ended::RefusedBefore);
            } else if need_reply && self.session.acknowledges() {
                self.connection
                    .reply(code, &acknowledgement(1))
                    .map_err(|source| Ended::Reply { code, source })?;
            }
        }
        Ok(())
    }

    /// The next request, if all of it has come.
    fn receive(&mut self) -> Result<Option<Asked>, Ended> {
        if !self.connection.is_readable() {
            return Ok(None);
        }
        self.note_busy()?;
        match self.connection.receive()? {
            Received::Message(message) => {
                let (code, need_reply) = (message.code, message.need_reply);
                let request = Request::decode(message)?;
                self.spoken = true;
                Ok(Some(Asked {
                    code,
                    need_reply,
                    request,
                }))
            }
            Received::Pending => Ok(None),
            Received::HungUp => Err(Ended::HungUp),
        }
    }

    /// Whether it has the device now, taken from the rival where that has no use for it.
    fn has_device(
        &mut self,
        device: &mut dyn Device,
        rival: Option<&mut Frontend>,
    ) -> Result<bool, Refusal> {
        if self.session.holds_device() {
            return Ok(true);
        }
        if let Some(rival) = rival.filter(|rival| rival.session.holds_device()) {
            if !rival.session.is_idle() {
                return Ok(false);
            }
            rival.session.give_device_up(device)?;
        }
        self.session.take_device(device)?;
        Ok(true)
    }

    fn serve(&mut self, asked: Asked, device: &mut dyn Device) -> Result<(), Ended> {
        let Asked {
            code,
            need_reply,
            request,
        } = asked;
        let result = self.session.handle(request, device);
        // Asked for only now: User Mode Linux sets the flag on the very request that negotiates it.
        let acknowledge = need_reply && self.session.acknowledges();
        let payload = match result {
            Ok(Reply::Done) if !acknowledge => return Ok(()),
            Ok(reply) => reply.payload().unwrap_or_else(|| acknowledgement(0)),
            // Its frontend waits for an answer that there is not.
            Err(refusal) if has_own_reply(code) => return Err(Ended::Unanswered(refusal)),
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
                refusal @ (Refusal::Unsupported(_) | Refusal::ReadOnly | Refusal::Address { .. }),
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
        // Before, not after it: this process may be killed while it makes way for the frontend that
        // it wakes.
        self.note_answered()?;
        self.connection
            .reply(code, &payload)
            .map_err(|source| Ended::Reply { code, source })?;
        if self.is_sending() {
            self.note_busy()?;
        }
        Ok(())
    }

    /// Ends the session and the connection, whoever keeps that.
    pub fn end(self, device: &mut dyn Device) {
        // In this order: a frontend that sees the end may set its queues up again.
        self.session.close(device);
        self.connection.shut_down();
    }

    /// Ends the session, and the connection unless it is kept for the next process.
    pub fn close(self, device: &mut dyn Device) {
        self.session.close(device);
    }
}

impl AsFd for Frontend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
