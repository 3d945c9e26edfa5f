//! Runs the commands that the host asks for, any number at once.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::process::{Pid, Signal, kill_process_group};
use rustix::termios::{OptionalActions, isatty, tcgetattr, tcsetattr};
use virtio_inter_agent::{Frame, FrameReader, HEADER_LEN, Kind, MAX_PAYLOAD, write_frame};

type Channel = Arc<Mutex<File>>;
type Jobs = Arc<Mutex<HashMap<u32, Job>>>;

/// The input of a command, and the process that a signal for it reaches.
struct Job {
    group: Pid,
    /// Feeds the command from a thread of its own: one that does not read must not hold up the
    /// others.
    stdin: Option<Sender<Vec<u8>>>,
}

/// Says that the guest is ready on `device` and serves until the device's end.
pub(crate) fn serve(device: &str) -> io::Result<()> {
    let device = OpenOptions::new().read(true).write(true).open(device)?;
    if isatty(&device) {
        let mut settings = tcgetattr(&device)?;
        settings.make_raw();
        tcsetattr(&device, OptionalActions::Now, &settings)?;
    }
    let mut reader = FrameReader::new(device.try_clone()?);
    let channel = Arc::new(Mutex::new(device));
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    send(&channel, Kind::Ready, 0, release.trim().as_bytes())?;
    let jobs = Jobs::default();
    while let Some(Frame { kind, job, payload }) = reader.next_frame()? {
        let taken = (HEADER_LEN + payload.len()) as u32;
        send(&channel, Kind::Taken, 0, &taken.to_le_bytes())?;
        match kind {
            Kind::Spawn => {
                if let Err(error) = spawn(&channel, &jobs, job, &payload) {
                    send(
                        &channel,
                        Kind::SpawnFailed,
                        job,
                        error.to_string().as_bytes(),
                    )?;
                }
            }
            Kind::Stdin => {
                if let Some(known) = lock(&jobs).get_mut(&job) {
                    if payload.is_empty() {
                        known.stdin = None;
                    } else if let Some(stdin) = &known.stdin {
                        // The command may have closed its input, or ended: the host learns of it
                        // from its exit.
                        let _ = stdin.send(payload);
                    }
                }
            }
            Kind::Signal => {
                let signal = payload.try_into().ok().map(i32::from_le_bytes);
                let signal = signal.and_then(Signal::from_named_raw);
                if let (Some(known), Some(signal)) = (lock(&jobs).get(&job), signal) {
                    // No such process: the command has ended meanwhile, which its exit reports.
                    let _ = kill_process_group(known.group, signal);
                }
            }
            Kind::Ready
            | Kind::Stdout
            | Kind::Stderr
            | Kind::Exit
            | Kind::SpawnFailed
            | Kind::Taken => {}
        }
    }
    Ok(())
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(channel: &Channel, kind: Kind, job: u32, payload: &[u8]) -> io::Result<()> {
    write_frame(&mut *lock(channel), kind, job, payload)
}

fn spawn(channel: &Channel, jobs: &Jobs, job: u32, arguments: &[u8]) -> io::Result<()> {
    let arguments = arguments.strip_suffix(b"\0").unwrap_or(arguments);
    let mut arguments = arguments.split(|byte| *byte == 0).map(OsStr::from_bytes);
    let program = arguments.next().unwrap_or_default();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let group = Pid::from_child(&child);
    let stdin = child.stdin.take().map(feed);
    let outputs = [
        child
            .stdout
            .take()
            .map(|pipe| copy(channel, Kind::Stdout, job, pipe)),
        child
            .stderr
            .take()
            .map(|pipe| copy(channel, Kind::Stderr, job, pipe)),
    ];
    lock(jobs).insert(job, Job { group, stdin });
    let (channel, jobs) = (Arc::clone(channel), Arc::clone(jobs));
    thread::spawn(move || {
        let status = report(&mut child);
        lock(&jobs).remove(&job);
        // All output comes before the exit. A background child that keeps a pipe open delays it, as
        // in a shell.
        for output in outputs.into_iter().flatten() {
            let _ = output.join();
        }
        // If the channel is gone nobody can receive the report.
        let _ = send(&channel, Kind::Exit, job, &status);
    });
    Ok(())
}

fn report(child: &mut Child) -> [u8; 8] {
    let (code, signal) = match child.wait() {
        Ok(status) => (status.code().unwrap_or(-1), status.signal().unwrap_or(0)),
        Err(_) => (-1, 0),
    };
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&code.to_le_bytes());
    bytes[4..].copy_from_slice(&signal.to_le_bytes());
    bytes
}

fn feed(mut pipe: ChildStdin) -> Sender<Vec<u8>> {
    let (sender, receiver) = channel::<Vec<u8>>();
    thread::spawn(move || {
        for bytes in receiver {
            if pipe.write_all(&bytes).is_err() {
                break;
            }
        }
    });
    sender
}

fn copy(
    channel: &Channel,
    kind: Kind,
    job: u32,
    mut pipe: impl Read + Send + 'static,
) -> thread::JoinHandle<()> {
    let channel = Arc::clone(channel);
    thread::spawn(move || {
        let mut buffer = [0; MAX_PAYLOAD];
        loop {
            match pipe.read(&mut buffer) {
                Ok(len) if len > 0 => {
                    if send(&channel, kind, job, &buffer[..len]).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    })
}
