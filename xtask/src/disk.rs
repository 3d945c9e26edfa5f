//! Free space of the file system that holds `target/`, asked for before a long run.

use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::statvfs;

const MIB: u64 = 1 << 20;

/// Checks that `directory`'s file system has room for what a run writes there.
///
/// # Errors
///
/// When fewer than `need` MiB are free for the user who asks, with both numbers.
pub(crate) fn has_room(directory: &Path, need: u64) -> Result<()> {
    let stat = statvfs(directory)
        .with_context(|| format!("Cannot ask for the free space of {}", directory.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize) / MIB;
    if free < need {
        bail!(
            "{} has {free} MiB free, and this run needs {need}: make room there",
            directory.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::has_room;
    use crate::root::root;

    #[test]
    fn disk_with_too_little_room_is_refused_with_both_numbers() {
        has_room(&root(), 0).unwrap();
        let error = has_room(&root(), u64::MAX).unwrap_err().to_string();
        assert!(error.contains(&u64::MAX.to_string()), "{error}");
        assert!(error.contains("MiB free"), "{error}");
    }
}
