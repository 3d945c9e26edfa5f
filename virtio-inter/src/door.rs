//! The door: frontends on one listening socket, one of which has the device.
//!
//! A second may connect meanwhile and negotiate; it has the device as soon as none of the first's queues runs, or the first
//! hangs up. So a guest moves between two VMMs on one port (QEMU's destination asks for features before anything
//! is moved), and a restarted VMM may be back before its old connection's end has been seen. A third waits for
//! one of them to hang up. A connection over which nothing has ever been asked does not keep another waiting.
//!
//! See decision 0013.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use log::{Level, debug, info};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use virtio_inter_common::{ErrorChain, LogLimit, log_limited, peer_pid};
use virtio_inter_device::Device;

use crate::kept::{Keeper, KeptConnection};
use crate::socket::{Listener, SocketError, SocketLock};
use crate::vhost_user::frontend::{Ended, Frontend};
use crate::vhost_user::session::Limits;
use virtio_inter_common::{Epoll, Events, Timeout};

const LISTENER: u64 = 0;
const PAUSE: u64 = 1;
const REFUSED: u64 = 2;
/// Of the first seat; the others' follow.
const FRONTEND: u64 = 3;

/// Frontends served at a time: both ends of a migration.
const SEATS: usize = 2;

/// How long nothing is accepted after that failed, in seconds: descriptors do not come back at once.
const PAUSE_SECONDS: i64 = 1;

/// How long the connection of a frontend that was refused is kept, in seconds: many are back at
/// once, with the same request.
const REFUSED_SECONDS: i64 = 10;

/// Coming and going, which anybody with access to the socket can repeat.
static CONNECTIONS: LogLimit = LogLimit::new(Duration::from_secs(10), 20);

/// Who is being served.
#[derive(Debug)]
pub struct FrontendState {
    /// Its process; None: one of another process namespace.
    pub pid: Option<u32>,
    /// Queues that run.
    pub queues_running: usize,
    /// The features with which they do.
    pub features: Option<u64>,
}

/// The socket, and who is there.
#[derive(Debug)]
pub struct Door {
    poll: Epoll,
    listener: Listener,
    limits: Limits,
    keeper: Keeper,
    seats: [Option<Frontend>; SEATS],
    /// Of each seat, whether its connection is kept for the next process.
    kept: [bool; SEATS],
    waiting: Option<UnixStream>,
    /// Whether the listener is polled: not while somebody waits already, nor after a failure.
    accepting: bool,
    pause: OwnedFd,
    /// When connections of frontends that were refused end.
    refused: OwnedFd,
    /// Whose refusal the log tells of already, and its text.
    told: Option<(Option<u32>, String)>,
}

impl Door {
    /// Opens the door.
    ///
    /// # Errors
    ///
    /// When there are no descriptors for it.
    pub fn new(listener: Listener, limits: Limits, keeper: Keeper) -> io::Result<Self> {
        let poll = Epoll::new()?;
        let (pause, refused) = (timer()?, timer()?);
        poll.add(&listener, LISTENER)?;
        poll.add(&pause, PAUSE)?;
        poll.add(&refused, REFUSED)?;
        Ok(Self {
            poll,
            listener,
            limits,
            keeper,
            seats: [None, None],
            kept: [false; SEATS],
            waiting: None,
            accepting: true,
            pause,
            refused,
            told: None,
        })
    }

    /// Goes on with connections of a former process.
    ///
    /// # Errors
    ///
    /// When the kernel cannot watch descriptors.
    pub fn take_over(
        &mut self,
        connections: Vec<KeptConnection>,
        device: &mut dyn Device,
    ) -> io::Result<()> {
        for kept in connections {
            let number = kept.number;
            if number >= SEATS {
                continue;
            }
            let process = describe_peer(&kept.socket);
            match Frontend::take_over(kept.socket, kept.record, self.limits, device) {
                Ok(frontend) => {
                    self.poll.add(&frontend, FRONTEND + number as u64)?;
                    self.seats[number] = Some(frontend);
                    self.kept[number] = true;
                    info!("Frontend continues on its former connection, {process}");
                }
                Err(ended) => info!("{}, {process}", ErrorChain(&ended)),
            }
        }
        for number in 0..SEATS {
            if !self.kept[number] {
                self.keeper.forget(number);
            }
        }
        Ok(())
    }

    /// Does what there is to do. Does not block, and does not go on for ever.
    ///
    /// # Errors
    ///
    /// When the kernel cannot watch descriptors any more.
    pub fn process(&mut self, device: &mut dyn Device) -> io::Result<()> {
        let ready: Vec<u64> = self.poll.wait::<16>(Timeout::Now)?.collect();
        // First, so that a connection that has ended makes room for one that came at the same time.
        for seat in 0..SEATS {
            if ready.contains(&(FRONTEND + seat as u64)) {
                self.serve(seat, device)?;
            }
        }
        // What the one waits for may be what the other has just done.
        for seat in 0..SEATS {
            if self.seats[seat].as_ref().is_some_and(Frontend::is_held) {
                self.serve(seat, device)?;
            }
        }
        if ready.contains(&PAUSE) {
            // Only to empty it.
            let _ = rustix::io::read(&self.pause, &mut [0; 8]);
        }
        if ready.contains(&REFUSED) {
            let _ = rustix::io::read(&self.refused, &mut [0; 8]);
            for seat in 0..SEATS {
                if let Some(frontend) = self.seats[seat].take_if(|f| f.is_refused()) {
                    self.end(seat, frontend, &Ended::RefusedBefore, device)?;
                }
            }
        }
        if ready.contains(&LISTENER) {
            self.accept()?;
        }
        self.admit(device)?;
        let accepting = self.waiting.is_none() && !is_running(&self.pause);
        if accepting != self.accepting {
            if accepting {
                self.poll.add(&self.listener, LISTENER)?;
            } else {
                self.poll.remove(&self.listener)?;
            }
            self.accepting = accepting;
        }
        Ok(())
    }

    /// Who has the device, or is about to, if anybody.
    pub fn frontend(&self) -> Option<FrontendState> {
        let holds_device = |frontend: &&Frontend| frontend.session().holds_device();
        let mut frontends = self.seats.iter().flatten();
        let frontend = frontends
            .clone()
            .find(holds_device)
            .or_else(|| frontends.next())?;
        Some(FrontendState {
            pid: peer_pid(frontend.as_fd()).ok().flatten(),
            queues_running: frontend.session().queues_running(),
            features: frontend.session().features_in_use(),
        })
    }

    /// Why the guest of who has the device cannot be heard, if its memory is not shared.
    pub fn unshared_memory(&self) -> Option<&str> {
        let mut sessions = self.seats.iter().flatten().map(Frontend::session);
        sessions
            .find(|session| session.holds_device())?
            .unshared_memory()
    }

    /// The device found that queue `index` is kicked while its ring is blank.
    pub fn suspect_memory(&mut self, index: u16) {
        let sessions = self.seats.iter_mut().flatten().map(Frontend::session_mut);
        for session in sessions.filter(|session| session.holds_device()) {
            session.suspect_memory(index);
        }
    }

    /// The socket and its files.
    pub fn listener(&self) -> &Listener {
        &self.listener
    }

    /// Makes again what something else has removed of the socket's files.
    ///
    /// # Errors
    ///
    /// When that cannot be done.
    pub fn restore(&mut self, device: &mut dyn Device) -> Result<(), SocketError> {
        let path = self.listener.path().to_owned();
        let failed = |source| SocketError::Io {
            action: "watch socket",
            path: path.clone(),
            source,
        };
        // Whoever came before it was gone.
        self.process(device).map_err(failed)?;
        if self.accepting {
            self.poll.remove(&self.listener).map_err(failed)?;
        }
        let result = self.listener.restore();
        if self.accepting {
            self.poll.add(&self.listener, LISTENER).map_err(failed)?;
        }
        result
    }

    /// Listens no more, and has `then` done before the sessions end. The socket goes first: a
    /// frontend that sees its connection end and tries again at once is to find nobody, not a
    /// connection that is reset. Returns the lock of the socket's path, which is nobody else's
    /// until it is dropped.
    pub fn close(self, device: &mut dyn Device, then: impl FnOnce()) -> SocketLock {
        let lock = self.listener.stop();
        then();
        for frontend in self.seats.into_iter().flatten() {
            frontend.close(device);
        }
        lock
    }

    fn serve(&mut self, seat: usize, device: &mut dyn Device) -> io::Result<()> {
        let Some(mut frontend) = self.seats[seat].take() else {
            return Ok(());
        };
        // Before it gets an answer with which it could go on while this process ends.
        if let Some(record) = frontend.record()
            && !self.kept[seat]
        {
            self.kept[seat] = self.keeper.keep(seat, frontend.as_fd(), record);
        }
        let before = interest(&frontend);
        let rival = self.seats[1 - seat].as_mut();
        let result = frontend.process(device, rival);
        let now = interest(&frontend);
        match result {
            Err(refused @ Ended::Refused(_)) => {
                return self.refuse(seat, frontend, &refused, device);
            }
            Err(ended) => return self.end(seat, frontend, &ended, device),
            Ok(()) => {}
        }
        if now != before {
            self.poll.modify(&frontend, now, FRONTEND + seat as u64)?;
        }
        if now == Events::empty()
            && before != now
            && let Some(rival) = &self.seats[1 - seat]
        {
            log_limited!(
                CONNECTIONS,
                Level::Info,
                "Frontend {} waits until {} stops its queues or hangs up",
                describe_peer(&frontend),
                describe_peer(rival)
            );
        }
        self.seats[seat] = Some(frontend);
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        match self.listener.accept() {
            Ok(Some(stream)) if self.waiting.is_none() => {
                if self.free_seat().is_none() {
                    log_limited!(
                        CONNECTIONS,
                        Level::Info,
                        "Another frontend, {}, waits until one of {SEATS} hangs up",
                        describe_peer(&stream)
                    );
                }
                self.waiting = Some(stream);
            }
            // Not asked for (see `accepting`), so nothing of value.
            Ok(_) => {}
            Err(error) => {
                log_limited!(
                    CONNECTIONS,
                    Level::Warn,
                    "Cannot accept a frontend: {error}"
                );
                start(&self.pause, PAUSE_SECONDS)?;
            }
        }
        Ok(())
    }

    /// A seat that nobody has, or one whose frontend has never said anything: that one first, as it
    /// may be a probe. Or one whose frontend was refused.
    fn free_seat(&self) -> Option<usize> {
        let silent =
            |seat: &Option<Frontend>| seat.as_ref().is_some_and(|frontend| !frontend.has_spoken());
        let refused = |seat: &Option<Frontend>| seat.as_ref().is_some_and(Frontend::is_refused);
        let place = |is: &dyn Fn(&Option<Frontend>) -> bool| self.seats.iter().position(is);
        place(&silent)
            .or_else(|| place(&Option::is_none))
            .or_else(|| place(&refused))
    }

    /// Begins to serve who waits, if there is a seat.
    fn admit(&mut self, device: &mut dyn Device) -> io::Result<()> {
        if self.waiting.is_none() {
            return Ok(());
        }
        let Some(seat) = self.free_seat() else {
            return Ok(());
        };
        if let Some(former) = self.seats[seat].take() {
            let why = if former.is_refused() {
                Ended::RefusedBefore
            } else {
                Ended::Silent
            };
            self.end(seat, former, &why, device)?;
        }
        let Some(stream) = self.waiting.take() else {
            return Ok(());
        };
        let process = describe_peer(&stream);
        let pid = peer_pid(stream.as_fd()).ok().flatten();
        // One that was refused before is expected to come again, and again.
        let returns = self
            .told
            .as_ref()
            .is_some_and(|(refused, _)| *refused == pid);
        // That there are no descriptors or watches left for one connection is no reason to serve none.
        let welcomed = Frontend::new(stream, self.limits, device).and_then(|frontend| {
            self.poll
                .add(&frontend, FRONTEND + seat as u64)
                .map_err(Ended::Connection)?;
            Ok(frontend)
        });
        match welcomed {
            Ok(frontend) => {
                if returns {
                    debug!("Frontend connected again, {process}");
                } else {
                    log_limited!(CONNECTIONS, Level::Info, "Frontend connected, {process}");
                }
                self.seats[seat] = Some(frontend);
            }
            Err(error) => {
                log_limited!(
                    CONNECTIONS,
                    Level::Warn,
                    "Cannot serve {process}: {}",
                    ErrorChain(&error)
                );
            }
        }
        Ok(())
    }

    /// Stops serving a frontend that would only ask for the same again, but keeps its connection
    /// for a while. The log tells of it once.
    fn refuse(
        &mut self,
        seat: usize,
        mut frontend: Frontend,
        why: &Ended,
        device: &mut dyn Device,
    ) -> io::Result<()> {
        let told = Some((
            peer_pid(frontend.as_fd()).ok().flatten(),
            ErrorChain(why).to_string(),
        ));
        if told == self.told {
            debug!("The same frontend is refused again");
        } else {
            log_limited!(
                CONNECTIONS,
                Level::Warn,
                "{}; it is disconnected in {REFUSED_SECONDS} s (told once)",
                ErrorChain(why)
            );
            self.told = told;
        }
        frontend.refuse(device);
        self.poll
            .modify(&frontend, interest(&frontend), FRONTEND + seat as u64)?;
        self.seats[seat] = Some(frontend);
        // Not later on account of another one: that would keep the first for ever.
        if !is_running(&self.refused) {
            start(&self.refused, REFUSED_SECONDS)?;
        }
        Ok(())
    }

    fn end(
        &mut self,
        seat: usize,
        frontend: Frontend,
        why: &Ended,
        device: &mut dyn Device,
    ) -> io::Result<()> {
        let level = match why {
            _ if frontend.is_refused() => Level::Debug,
            Ended::HungUp | Ended::SetUpAgain => Level::Info,
            _ => Level::Warn,
        };
        if frontend.session().features_in_use().is_some() {
            // It was served meanwhile.
            self.told = None;
        }
        if level == Level::Debug {
            debug!("{}", ErrorChain(why));
        } else {
            log_limited!(CONNECTIONS, level, "{}", ErrorChain(why));
        }
        self.poll.remove(&frontend)?;
        frontend.end(device);
        if std::mem::take(&mut self.kept[seat]) {
            self.keeper.forget(seat);
        }
        Ok(())
    }
}

/// A timer that does not run yet.
fn timer() -> io::Result<OwnedFd> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    Ok(timerfd_create(TimerfdClockId::Monotonic, flags)?)
}

fn is_running(timer: &OwnedFd) -> bool {
    rustix::time::timerfd_gettime(timer)
        .is_ok_and(|left| (left.it_value.tv_sec, left.it_value.tv_nsec) != (0, 0))
}

/// Makes a timer readable once, so many seconds from now.
fn start(timer: &OwnedFd, seconds: i64) -> io::Result<()> {
    let after = |tv_sec| Timespec { tv_sec, tv_nsec: 0 };
    let once = Itimerspec {
        it_interval: after(0),
        it_value: after(seconds),
    };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
    Ok(())
}

/// What is waited for from a frontend.
fn interest(frontend: &Frontend) -> Events {
    if frontend.is_sending() {
        Events::EPOLLOUT
    } else if frontend.is_held() {
        Events::empty()
    } else {
        Events::EPOLLIN
    }
}

/// Who is at the other end, for logs.
fn describe_peer(socket: impl AsFd) -> String {
    match peer_pid(socket.as_fd()) {
        Ok(Some(pid)) => format!("process {pid}"),
        // A VMM in a container, say.
        Ok(None) => "a process of another process namespace".to_owned(),
        Err(error) => format!("a process unknown: {error}"),
    }
}

impl AsFd for Door {
    /// Readable when [`Door::process`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }
}
