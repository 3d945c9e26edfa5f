//! What is told when a wait has failed, while all that it waited for is still there: each port's
//! status, and the ends of all consoles and logs.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtio_inter_test_support::tell;

/// How long a port is waited for; it may be what stands still.
const STATUS_LIMIT: Duration = Duration::from_secs(2);
/// Last lines of each log.
const LINES: usize = 25;
/// Directories below the testbed that are searched: a launcher has one of its own, in that of its
/// host.
const DEPTH: u32 = 3;
/// Failed waits of a process that are told of in full: what follows from the first tells nothing
/// new.
const DUMPS: u32 = 3;

static DUMPED: AtomicU32 = AtomicU32::new(0);
/// The directories of the testbeds that there are.
static BEDS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn beds() -> MutexGuard<'static, Vec<PathBuf>> {
    BEDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A testbed begins.
pub(crate) fn add(directory: &Path) {
    beds().push(directory.to_path_buf());
}

/// A testbed ends.
pub(crate) fn remove(directory: &Path) {
    beds().retain(|bed| bed != directory);
}

/// Tells how things stand now that something did not happen in time.
pub(crate) fn tell_all(what: &str) {
    let beds = beds().clone();
    if beds.is_empty() || DUMPED.fetch_add(1, Ordering::Relaxed) >= DUMPS {
        return;
    }
    tell(&format!("STALLED {what}"));
    for bed in beds {
        tell(text(&bed).trim_end());
    }
}

/// All that a testbed's directory tells.
fn text(bed: &Path) -> String {
    let mut files = Vec::new();
    find(bed, DEPTH, &mut files);
    files.sort();
    let mut text = String::new();
    for path in files {
        let name = path.strip_prefix(bed).unwrap_or(&path).display();
        // Writing into a string does not fail.
        if name.to_string().ends_with("status") {
            let status = status(&path).unwrap_or_else(|error| format!("does not answer: {error}"));
            let _ = writeln!(text, "--- {name}\n{}", status.trim_end());
        } else {
            let log = fs::read(&path).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().map(str::trim_end).collect();
            let end = lines[lines.len().saturating_sub(LINES)..].join("\n");
            let _ = writeln!(text, "--- {name}\n{end}");
        }
    }
    text
}

/// Sockets of statuses, consoles and logs.
fn find(directory: &Path, depth: u32, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let is_status = kind.is_socket() && name.ends_with("status");
        let is_log = kind.is_file() && (name.ends_with(".log") || name.ends_with(".console"));
        if is_status || is_log {
            found.push(path);
        } else if kind.is_dir() && depth > 0 {
            find(&path, depth - 1, found);
        }
    }
}

fn status(path: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(STATUS_LIMIT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn stall_shows_each_ports_status_and_each_console() {
        let bed = tempfile::tempdir().unwrap();
        let inner = bed.path().join("host").join("vm.api.inter-vm");
        fs::create_dir_all(&inner).unwrap();
        fs::write(bed.path().join("vm-a.console"), "Kernel panic\n").unwrap();
        fs::write(bed.path().join("port-a.log"), "Frontend disconnected\n").unwrap();
        fs::write(bed.path().join("machine.cpio"), "not to be shown").unwrap();
        let listeners = [bed.path().join("a.status"), inner.join("net0.status")]
            .map(|path| UnixListener::bind(path).unwrap());
        let _dead = UnixListener::bind(bed.path().join("dead.status")).unwrap();
        drop(_dead);
        let servers = listeners.map(|listener| {
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(b"{\"queues_running\":2}\n").unwrap();
            })
        });
        let text = text(bed.path());
        for server in servers {
            server.join().unwrap();
        }
        for expected in [
            "--- a.status\n{\"queues_running\":2}\n",
            "--- dead.status\ndoes not answer",
            "--- host/vm.api.inter-vm/net0.status\n{\"queues_running\":2}\n",
            "--- port-a.log\nFrontend disconnected\n",
            "--- vm-a.console\nKernel panic\n",
        ] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
        assert!(!text.contains("not to be shown"), "{text}");
    }
}
