//! Files of a control group hierarchy: who is in a group, and how it is removed.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// The kernel may take a moment to let go of a group that was just left.
const REMOVE_WITHIN: Duration = Duration::from_secs(5);

/// Removes a directory of groups and the groups in it; moves their processes to `home`. Tells of
/// what does not go.
pub(crate) fn remove(directory: &Path, home: &Path) {
    let start = Instant::now();
    while let Err(error) = try_remove(directory, home) {
        if start.elapsed() > REMOVE_WITHIN {
            log::warn!(
                "Removing the control group {}: {error}",
                directory.display()
            );
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn try_remove(directory: &Path, home: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            try_remove(&entry.path(), home)?;
        }
    }
    for pid in pids(directory)? {
        // It may have ended.
        let _ = fs::write(home.join("cgroup.procs"), pid.to_string());
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The processes of a group, without those of groups in it.
pub(crate) fn pids(group: &Path) -> io::Result<Vec<u32>> {
    let text = fs::read_to_string(group.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}
