//! `virtio-inter capture`: the frames of ports, into a pcapng file (decision 0099).
//!
//! `session` is the capture of one port, `protocol` what it says to the port, `filter` chooses
//! among the frames, `file` writes them; `extcap` beside it is what Wireshark starts. Nobody wakes
//! this process: it looks for frames by itself, so that a capture costs ports no system call.

mod file;
pub(crate) mod filter;
pub mod protocol;
mod session;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::{register, register_conditional_shutdown};

use crate::args::{CaptureArgs, Places};
use crate::place;
use crate::usage_error::usage;
use file::{Output, Statistics, WriteError};
use filter::Filter;
use protocol::{Request, VERSION};
use session::{Frame, Session};

/// Time between two looks for frames while there are few.
const PAUSE: Duration = Duration::from_millis(10);
/// Frames of a look from which on the next one follows at once.
const MANY: usize = 256;
/// Age from which on a frame is written: frames of other queues, which may have come before it,
/// are there then.
const SETTLED: Duration = Duration::from_millis(20);
/// Bytes of each frame that a filter gets at least.
const FILTER_BYTES: u32 = 256;
/// Exit status after a second signal.
const KILLED: i32 = 130;

/// Captures until SIGINT, SIGTERM or SIGHUP, or until so many frames are there as are wanted, or
/// until nobody is left who could send any.
///
/// # Errors
///
/// When a port cannot be captured or goes away, or the file cannot be written.
pub fn run(arguments: &CaptureArgs) -> Result<()> {
    if file::is_terminal(&arguments.write) {
        let why = "Standard output is a terminal: name a file with -w, or a program with |";
        return Err(usage(why).into());
    }
    let filter = arguments.filter.as_deref().map(Filter::new).transpose();
    let filter = filter.map_err(usage)?;
    let places = place::find(&Places {
        places: arguments.ports.clone(),
    })?;
    let places = session::single_ports(places).map_err(usage)?;
    place::check_readable(&places)?;
    let stop = stop_by_signal().context("Cannot catch signals")?;
    let snaplen = match filter {
        Some(_) => arguments.snaplen.max(FILTER_BYTES),
        None => arguments.snaplen,
    };
    let request = Request {
        version: VERSION,
        snaplen,
        transmit: arguments.direction.has_transmit(),
        receive: arguments.direction.has_receive(),
        losses_only: arguments.drops,
    };
    let start = now();
    let sessions: Result<Vec<Session>> = (0..)
        .zip(&places)
        .map(|(number, place)| Session::start(place, number, &request))
        .collect();
    let sessions = sessions?;
    let mut output = Output::open(&arguments.write, arguments.snaplen)?;
    for session in &sessions {
        output.add_port(&session.about, arguments.filter.as_deref())?;
        log::info!("Capturing frames of port {}", session.about.name);
    }
    Capture {
        accepted: vec![0; sessions.len()],
        sessions,
        output,
        filter,
        left: arguments.count.unwrap_or(u64::MAX),
        pending: Vec::new(),
        start,
    }
    .run(&stop)
}

/// Set by a signal; a second one ends the process.
fn stop_by_signal() -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        register_conditional_shutdown(signal, KILLED, Arc::clone(&stop))?;
        register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

struct Capture {
    sessions: Vec<Session>,
    output: Output,
    filter: Option<Filter>,
    /// Frames of each port that the filter accepted.
    accepted: Vec<u64>,
    /// Frames that are still wanted.
    left: u64,
    /// Frames that were read and not written yet, by their time.
    pending: Vec<Frame>,
    /// Nanoseconds since 1970.
    start: u64,
}

impl Capture {
    fn run(mut self, stop: &AtomicBool) -> Result<()> {
        match self.capture(stop).and_then(|()| self.finish()) {
            Ok(()) => {}
            Err(error) => match error.downcast::<WriteError>() {
                Ok(error) if error.is_reader_gone() => {
                    log::info!("Nobody reads {} any more: the capture ends", error.name());
                }
                Ok(error) => return Err(error.into()),
                Err(error) => return Err(error),
            },
        }
        for (session, accepted) in self.sessions.iter().zip(&self.accepted) {
            let (name, (read, missed)) = (&session.about.name, session.counts());
            log::info!("Port {name}: {accepted} frames of {read}; {missed} more were missed");
        }
        let failures = self.sessions.iter_mut().filter_map(Session::take_failure);
        let mut failures: Vec<_> = failures.collect();
        match failures.len() {
            0 => Ok(()),
            1 => Err(failures.remove(0)),
            _ => {
                let all = failures.iter().map(|failure| format!("{failure:#}"));
                Err(anyhow::anyhow!("{}", all.collect::<Vec<_>>().join("; ")))
            }
        }
    }

    fn capture(&mut self, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) && self.left != 0 {
            let is_over = self.sessions.iter().all(Session::is_over);
            let read = self.read();
            if is_over && read == 0 {
                break;
            }
            self.write(now().saturating_sub(SETTLED.as_nanos() as u64))?;
            self.output.flush()?;
            if read < MANY && self.wait()? {
                break;
            }
        }
        Ok(())
    }

    /// Ends all captures, and writes what they have left.
    fn finish(&mut self) -> Result<()> {
        self.sessions.iter_mut().for_each(Session::stop);
        while self.left != 0 && self.read() != 0 {}
        self.write(u64::MAX)?;
        let end = now();
        for (number, (session, accepted)) in (0..).zip(self.sessions.iter().zip(&self.accepted)) {
            let (read, missed) = session.counts();
            let statistics = Statistics {
                start: self.start,
                end,
                read,
                missed,
                accepted: *accepted,
                is_filtered: self.filter.is_some(),
            };
            self.output.add_statistics(number, &statistics)?;
        }
        self.output.flush()?;
        Ok(())
    }

    /// Reads frames. Returns how many.
    fn read(&mut self) -> usize {
        let pending = &mut self.pending;
        let sessions = self.sessions.iter_mut();
        sessions.map(|session| session.read(pending)).sum()
    }

    /// Writes the frames up to this time, in its order.
    fn write(&mut self, until: u64) -> Result<()> {
        self.pending.sort_by_key(|frame| frame.time);
        let count = self.pending.partition_point(|frame| frame.time <= until);
        for frame in self.pending.drain(..count) {
            let filter = self.filter.as_ref();
            if self.left == 0 || !filter.is_none_or(|it| it.accepts(&frame.bytes, frame.len)) {
                continue;
            }
            self.left -= 1;
            self.accepted[frame.port as usize] += 1;
            self.output.add_frame(&frame)?;
        }
        Ok(())
    }

    /// Waits for a moment, or until a port ends its capture. True: nobody reads the output.
    fn wait(&mut self) -> Result<bool> {
        let mut fds = vec![PollFd::new(&self.output, PollFlags::empty())];
        let open: Vec<usize> = (0..self.sessions.len())
            .filter(|at| !self.sessions[*at].is_over())
            .collect();
        for at in &open {
            if let Some(connection) = self.sessions[*at].connection() {
                fds.push(PollFd::from_borrowed_fd(connection, PollFlags::IN));
            }
        }
        let pause = Timespec::try_from(PAUSE).ok();
        match poll(&mut fds, pause.as_ref()) {
            Err(rustix::io::Errno::INTR) | Ok(0) => return Ok(false),
            Err(error) => return Err(error).context("Cannot wait for frames"),
            Ok(_) => {}
        }
        let is_reader_gone = !fds[0].revents().is_empty();
        let ready: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
        for (at, _) in open.into_iter().zip(ready).filter(|(_, ready)| *ready) {
            self.sessions[at].end_by_port();
        }
        Ok(is_reader_gone)
    }
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}
