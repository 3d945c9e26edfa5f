//! Whether the process behind a socket or a lock file is there to stay.
//!
//! A process that was killed holds its locks and sockets until the kernel has torn it down, which
//! takes a while on a busy machine. A supervisor may have started its successor by then. So a
//! process that finds something in use has to tell a holder that lives from one that is about to be
//! gone.
//!
//! See decision 0017.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, test_kill_process};

use crate::peer_credentials::peer_pid;

/// In the flags of `/proc/PID/stat`: the process is being torn down (`PF_EXITING`).
const EXITING: u64 = 0x4;
/// SIGKILL in the masks of `/proc/PID/status`.
const KILL_BIT: u64 = 1 << (9 - 1);

/// What becomes of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It runs, or is stopped.
    Alive,
    /// It was killed, or it ends of itself.
    Ending,
    /// There is none of that number.
    Gone,
}

/// Who listens on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// The process; `None` if it has no number in this process namespace, or cannot be told.
    pub pid: Option<u32>,
    /// Whether it is there to stay: false if it was killed and is about to be gone.
    pub stays: bool,
}

/// Connects to a socket, to find out who listens there; `None` if there is no socket, or nobody
/// listens on it. Does not wait: a full queue means somebody, too.
///
/// # Errors
///
/// When it cannot be told, as without permission to connect.
pub fn listening(socket: &Path, kind: SocketType) -> io::Result<Option<Listening>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    match rustix::net::connect(&probe, &SocketAddrUnix::new(socket)?) {
        Ok(()) => {
            let pid = peer_pid(probe.as_fd())?;
            let stays = pid.is_none_or(|pid| fate(pid) == Fate::Alive);
            Ok(Some(Listening { pid, stays }))
        }
        Err(Errno::AGAIN | Errno::PROTOTYPE) => Ok(Some(Listening {
            pid: None,
            stays: true,
        })),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether the process that holds the lock of a socket is there to stay, by the process id in the
/// lock file. One whose socket is not there begins or ends just now.
pub fn lock_holder_stays(socket: &Path, kind: SocketType, pid: Option<u32>) -> bool {
    match pid.map_or(Fate::Gone, fate) {
        Fate::Alive => fs::symlink_metadata(socket).is_ok(),
        Fate::Ending => false,
        // Not written yet, of a predecessor, or of another process namespace.
        Fate::Gone => match listening(socket, kind) {
            Ok(listening) => listening.is_some_and(|listening| listening.stays),
            Err(_) => true,
        },
    }
}

fn fate(pid: u32) -> Fate {
    let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Fate::Gone;
    };
    if test_kill_process(process) == Err(Errno::SRCH) {
        return Fate::Gone;
    }
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    // What cannot be read says nothing: another user's process may be hidden.
    if is_exiting(&read("stat")) || is_killed(&read("status")) {
        Fate::Ending
    } else {
        Fate::Alive
    }
}

/// By proc_pid_stat(5): state and flags are the first and the seventh field after the name, which
/// may contain anything.
fn is_exiting(stat: &str) -> bool {
    let Some((_, fields)) = stat.rsplit_once(") ") else {
        return false;
    };
    let mut fields = fields.split(' ');
    let state = fields.next().unwrap_or_default();
    let flags: u64 = fields
        .nth(5)
        .and_then(|text| text.parse().ok())
        .unwrap_or_default();
    matches!(state, "Z" | "X" | "x") || flags & EXITING != 0
}

/// By proc_pid_status(5): a SIGKILL that the process has not got around to yet. The kernel gives it
/// to each thread of a process that ends, whatever it ends of.
fn is_killed(status: &str) -> bool {
    status
        .lines()
        .filter_map(|line| {
            line.strip_prefix("SigPnd:")
                .or(line.strip_prefix("ShdPnd:"))
        })
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & KILL_BIT != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep")
            .arg("600")
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    #[test]
    fn liveness_of_processes_is_told() {
        assert_eq!(fate(std::process::id()), Fate::Alive);
        let mut child = sleeper();
        assert_eq!(fate(child.id()), Fate::Alive);
        let pid = Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        assert_eq!(fate(child.id()), Fate::Alive);
        // From the signal on, and until its parent knows.
        child.kill().unwrap();
        for _ in 0..100 {
            assert_eq!(fate(child.id()), Fate::Ending);
        }
        child.wait().unwrap();
        assert_eq!(fate(child.id()), Fate::Gone);
        assert_eq!(fate(0), Fate::Gone);
        assert_eq!(fate(u32::MAX), Fate::Gone);
    }

    #[test]
    fn liveness_is_read_from_proc() {
        let stat = |name: &str, state: &str, flags: u64| {
            format!("12 ({name}) {state} 1 12 12 0 -1 {flags} 95 0 0 0 0 0\n")
        };
        assert!(!is_exiting(&stat("sh", "S", 0x0040_0100)));
        assert!(is_exiting(&stat("sh", "R", 0x0040_0104)));
        assert!(is_exiting(&stat("sh", "Z", 0x0040_0100)));
        assert!(is_exiting(&stat("a) Z (b", "D", 0x4)));
        assert!(!is_exiting(&stat("a) Z 1 1 1 1 1 4 (b", "D", 0)));
        assert!(!is_exiting(""));
        assert!(is_killed("Name:\tsh\nSigPnd:\t0000000000000100\n"));
        assert!(is_killed("ShdPnd:\t0000000000004100\nSigCgt:\t0\n"));
        assert!(!is_killed(
            "SigPnd:\t0000000000004000\nSigCgt:\t0000000000000100\n"
        ));
        assert!(!is_killed(""));
    }

    #[test]
    fn liveness_of_who_listens_is_told() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a");
        let ask = || listening(&path, SocketType::STREAM).unwrap();
        let stays = |pid| lock_holder_stays(&path, SocketType::STREAM, pid);
        let own = Some(std::process::id());
        assert_eq!(ask(), None);
        // It holds the lock, and is not there yet or not any more.
        assert!(!stays(own) && !stays(None));
        let listener = UnixListener::bind(&path).unwrap();
        let here = Listening {
            pid: own,
            stays: true,
        };
        assert_eq!(ask(), Some(here));
        assert!(stays(own) && stays(None) && stays(Some(u32::MAX)));
        let other = Some(Listening {
            pid: None,
            stays: true,
        });
        assert_eq!(listening(&path, SocketType::SEQPACKET).unwrap(), other);
        let mut child = sleeper();
        let (id, pid) = (Some(child.id()), Pid::from_child(&child));
        assert!(stays(id));
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        assert!(!stays(id));
        child.wait().unwrap();
        drop(listener);
        assert_eq!(ask(), None);
        assert!(!stays(None));
    }
}
