//! What a port can be kept from having: room on its disk, descriptors, address space, memory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::cleanup::{Action, Registration};
use crate::{Process, Result};

/// Most empty files that take up the inodes of a file system: only a small one is to be filled.
const MAX_FILES: u32 = 16384;
/// Bytes that a port may still take when its address space or its group's memory is limited.
const LEFT: u64 = 64 * 1024;

/// Files that fill a small file system, removed when dropped.
#[derive(Debug)]
pub(super) struct FullDisk {
    directory: PathBuf,
}

impl FullDisk {
    /// Takes up all bytes, then all inodes, of the file system of `directory`, which is not there
    /// yet.
    pub(super) fn fill(directory: &Path) -> Result<Self> {
        fs::create_dir(directory).context("Making a directory to fill")?;
        let disk = Self {
            directory: directory.to_owned(),
        };
        let mut file = File::create(directory.join("bytes"))?;
        for size in [1 << 20, 1 << 12] {
            let zeros = vec![0; size];
            while full(file.write_all(&zeros))? {}
        }
        for number in 0..MAX_FILES {
            if !full(File::create(directory.join(number.to_string())))? {
                break;
            }
        }
        Ok(disk)
    }
}

/// Whether there was room.
fn full<T>(result: io::Result<T>) -> Result<bool> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(false),
        result => Ok(result.map(|_| true)?),
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            log::warn!("Removing {}: {error}", self.directory.display());
        }
    }
}

/// Leaves a process no descriptor beyond those that it has.
pub(super) fn limit_descriptors(process: &Process) -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(process.open_files()? as u64);
    set(process, Resource::Nofile, Rlimit { current, maximum })
}

/// Leaves a process little address space beyond that which it has.
pub(super) fn limit_address_space(process: &Process) -> Result<()> {
    let path = format!("/proc/{}/status", process.pid());
    let text = fs::read_to_string(&path).with_context(|| format!("Reading {path}"))?;
    let size = text.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kib = size.and_then(|size| size.trim().strip_suffix(" kB"));
    let kib: u64 = kib.context("No VmSize in a process's status")?.parse()?;
    let maximum = getrlimit(Resource::As).maximum;
    let current = Some(1024 * kib + LEFT);
    set(process, Resource::As, Rlimit { current, maximum })
}

/// Takes both limits away.
pub(super) fn unlimit(process: &Process) -> Result<()> {
    // A port raises the first one to its maximum itself.
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = maximum;
    set(process, Resource::Nofile, Rlimit { current, maximum })?;
    set(process, Resource::As, getrlimit(Resource::As))
}

fn set(process: &Process, resource: Resource, limit: Rlimit) -> Result<()> {
    let pid = Pid::from_raw(process.pid().cast_signed()).context("No process")?;
    prlimit(Some(pid), resource, limit)
        .map(drop)
        .with_context(|| format!("Limiting {resource:?} of process {pid:?}"))
}

/// A control group with a limit on its memory, removed when dropped. For one process: the limit of
/// a group that holds more cannot be lowered.
#[derive(Debug)]
pub(super) struct MemoryGroup {
    directory: PathBuf,
    limit: &'static str,
    unlimited: &'static str,
    _registration: Registration,
}

impl MemoryGroup {
    /// Makes a group; `None` where that cannot be.
    pub(super) fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let hierarchies = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "-1"),
            ("/sys/fs/cgroup", "memory.max", "max"),
        ];
        hierarchies
            .into_iter()
            .find_map(|(home, limit, unlimited)| {
                let home = Path::new(home);
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                let name = format!("virtio-inter-soak-{}-{number}", std::process::id());
                let directory = home.join(name);
                fs::create_dir(&directory).ok()?;
                let group = Self {
                    directory: directory.clone(),
                    limit,
                    unlimited,
                    _registration: Registration::new(Action::RemoveGroup {
                        directory: directory.clone(),
                        home: home.to_owned(),
                    }),
                };
                directory.join(limit).exists().then_some(group)
            })
    }

    /// Moves a process into the group, which then has little room for what it takes from now on.
    pub(super) fn limit(&self, process: &Process) -> Result<()> {
        self.write("cgroup.procs", &process.pid().to_string())?;
        self.write(self.limit, &LEFT.to_string())
    }

    /// Takes the limit away.
    pub(super) fn unlimit(&self) -> Result<()> {
        self.write(self.limit, self.unlimited)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, text).with_context(|| format!("Writing {text} to {}", path.display()))
    }
}
