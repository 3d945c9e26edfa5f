//! Control groups with a CPU weight each, as services have (decision 0053): cgroup v2 where it has
//! the `cpu` controller, else v1.
//!
//! Groups are made below one directory of this process, `virtio-inter-…`, which is locked
//! (flock(2)) as long as [`ControlGroups`] lives. They are removed when dropped, and when a signal
//! ends the process. A run that was killed leaves its directory behind, unlocked: the next run
//! removes it. Processes in a group that is removed are moved to the group of this process.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail, ensure};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use crate::cgroupfs::{pids, remove};
use crate::cleanup::{Action, Registration};
use crate::process::family;
use crate::{Process, Result};

/// How the directories of runs are named; the process's number and another one follow.
const PREFIX: &str = "virtio-inter-";

/// How often another run may take a directory away before it is locked.
const ATTEMPTS: usize = 8;

/// How often a family is looked at until no new child was started meanwhile.
const MOVES: usize = 50;

/// The hierarchy that has the `cpu` controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// cgroup v1 or v2.
    pub version: u8,
    /// The directory below which groups can be made.
    base: PathBuf,
    /// The group of this process.
    home: PathBuf,
}

impl Hierarchy {
    /// The one of this machine.
    ///
    /// # Errors
    ///
    /// Why there is none that can be used.
    pub fn find() -> Result<Self> {
        let mounts =
            fs::read_to_string("/proc/self/mountinfo").context("Reading /proc/self/mountinfo")?;
        let groups =
            fs::read_to_string("/proc/self/cgroup").context("Reading /proc/self/cgroup")?;
        let has_cpu = |mount: &Path| {
            fs::read_to_string(mount.join("cgroup.controllers"))
                .is_ok_and(|controllers| controllers.split_whitespace().any(|name| name == "cpu"))
        };
        locate(&mounts, &groups, has_cpu)
            .context("No control group hierarchy with the cpu controller is mounted")
    }
}

/// Reads a hierarchy from the texts of /proc/self/mountinfo (proc_pid_mountinfo(5)) and
/// /proc/self/cgroup (cgroups(7)).
fn locate(mounts: &str, groups: &str, has_cpu: impl Fn(&Path) -> bool) -> Option<Hierarchy> {
    let own = |is_it: &dyn Fn(&str) -> bool| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            is_it(controllers).then_some(path)
        })
    };
    let mut v1 = None;
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let before: Vec<&str> = before.split(' ').collect();
        let after: Vec<&str> = after.split(' ').collect();
        let (Some(root), Some(mount), Some(kind)) = (before.get(3), before.get(4), after.first())
        else {
            continue;
        };
        let mount = Path::new(*mount);
        let home = |own: &str| {
            // Where only a part of the hierarchy is mounted, paths begin with that part's.
            let inner = match *root {
                "/" => own,
                root => own.strip_prefix(root).unwrap_or_default(),
            };
            mount.join(inner.trim_start_matches('/'))
        };
        match *kind {
            "cgroup2" if has_cpu(mount) => {
                return Some(Hierarchy {
                    version: 2,
                    // A group with processes in it cannot have children with controllers, but for
                    // the root.
                    base: mount.to_owned(),
                    home: home(own(&str::is_empty)?),
                });
            }
            "cgroup"
                if after
                    .get(2)
                    .is_some_and(|options| options.split(',').any(|option| option == "cpu")) =>
            {
                let own = own(&|controllers| controllers.split(',').any(|name| name == "cpu"))?;
                v1 = v1.or(Some(Hierarchy {
                    version: 1,
                    base: home(own),
                    home: home(own),
                }));
            }
            _ => {}
        }
    }
    v1
}

/// The directory of this run's groups. Its groups are to be dropped first.
#[derive(Debug)]
pub struct ControlGroups {
    hierarchy: Hierarchy,
    directory: PathBuf,
    next: AtomicU32,
    _registration: Registration,
    /// Locked, and released last.
    _lock: File,
}

impl ControlGroups {
    /// Makes the directory, and removes those that killed runs left behind.
    ///
    /// # Errors
    ///
    /// Why there can be no groups on this machine: no hierarchy, or no permission.
    pub fn new() -> Result<Self> {
        let hierarchy = Hierarchy::find()?;
        remove_stale(&hierarchy);
        if hierarchy.version == 2 {
            enable_cpu(&hierarchy.base)?;
        }
        let mut attempts = 0;
        let (directory, lock) = loop {
            match make_locked(&hierarchy.base) {
                Ok(made) => break made,
                // Another run may have taken it for one that was left behind, before it was locked.
                Err(_) if attempts < ATTEMPTS => attempts += 1,
                Err(error) => {
                    let base = hierarchy.base.display();
                    return Err(error).with_context(|| format!("Making a control group in {base}"));
                }
            }
        };
        let registration = Registration::new(Action::RemoveGroup {
            directory: directory.clone(),
            home: hierarchy.home.clone(),
        });
        if hierarchy.version == 2 {
            enable_cpu(&directory)?;
        }
        Ok(Self {
            hierarchy,
            directory,
            next: AtomicU32::new(0),
            _registration: registration,
            _lock: lock,
        })
    }

    /// cgroup v1 or v2.
    pub fn version(&self) -> u8 {
        self.hierarchy.version
    }

    /// Where the groups are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes a group. All have the same CPU weight, the kernel's default.
    ///
    /// # Errors
    ///
    /// A kernel that refuses.
    pub fn make(&self, name: &str) -> Result<ControlGroup> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.join(format!("{name}-{number}"));
        fs::create_dir(&path)
            .with_context(|| format!("Making the control group {}", path.display()))?;
        let group = ControlGroup {
            path,
            home: self.hierarchy.home.clone(),
        };
        let (file, weight) = match self.hierarchy.version {
            2 => ("cpu.weight", "100"),
            _ => ("cpu.shares", "1024"),
        };
        let file = group.path.join(file);
        fs::write(&file, weight).with_context(|| format!("Writing {}", file.display()))?;
        Ok(group)
    }
}

/// A group; removed when dropped, its processes moved back.
#[derive(Debug)]
pub struct ControlGroup {
    path: PathBuf,
    home: PathBuf,
}

impl ControlGroup {
    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves a process into the group, with all its threads and all that it started. Later children
    /// are born there.
    ///
    /// # Errors
    ///
    /// A process that is gone; one that starts children faster than they can be moved.
    pub fn add(&self, process: &Process) -> Result<()> {
        let procs = self.path.join("cgroup.procs");
        for _ in 0..MOVES {
            let inside = pids(&self.path).context("Listing a control group's processes")?;
            let outside: Vec<u32> = family(process.pid())
                .into_iter()
                .filter(|pid| !inside.contains(pid))
                .collect();
            if outside.is_empty() {
                return Ok(());
            }
            for pid in outside {
                let moved = fs::write(&procs, pid.to_string());
                // One of its children may have ended.
                if moved.is_err() && pid == process.pid() {
                    moved
                        .with_context(|| format!("Moving process {pid} to {}", procs.display()))?;
                }
            }
        }
        bail!("Process {} starts too many others", process.pid())
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        remove(&self.path, &self.home);
    }
}

/// Makes a directory for the groups of this run.
fn make_locked(base: &Path) -> io::Result<(PathBuf, File)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let directory = base.join(format!("{PREFIX}{}-{number}", std::process::id()));
    fs::create_dir(&directory)?;
    let lock = open_directory(&directory)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    Ok((directory, lock))
}

/// Removes the directories of runs that do not live any more.
fn remove_stale(hierarchy: &Hierarchy) {
    let entries = fs::read_dir(&hierarchy.base).into_iter().flatten();
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let is_stale = open_directory(&entry.path())
            .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
        if is_stale {
            remove(&entry.path(), &hierarchy.home);
        }
    }
}

fn open_directory(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(File::from(open(path, flags, Mode::empty())?))
}

/// Has the children of a group of cgroup v2 take part in the distribution of CPU time.
fn enable_cpu(group: &Path) -> Result<()> {
    let file = group.join("cgroup.subtree_control");
    let enabled =
        || fs::read_to_string(&file).is_ok_and(|text| text.split_whitespace().any(|c| c == "cpu"));
    if enabled() {
        return Ok(());
    }
    fs::write(&file, "+cpu").with_context(|| format!("Writing {}", file.display()))?;
    ensure!(
        enabled(),
        "{} does not take the cpu controller",
        group.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
30 20 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:13 - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/cpuset rw shared:14 - cgroup cgroup rw,cpuset
";

    #[test]
    fn hierarchy_of_version_1_is_found_below_the_own_group() {
        let groups = "9:cpuset:/\n4:cpu,cpuacct:/user.slice\n0::/x\n";
        let found = locate(V1, groups, |_| false).unwrap();
        assert_eq!(found.version, 1);
        assert_eq!(
            found.base,
            Path::new("/sys/fs/cgroup/cpu,cpuacct/user.slice")
        );
        assert_eq!(found.home, found.base);
    }

    #[test]
    fn hierarchy_of_version_1_in_a_container_is_found_where_it_is_mounted() {
        let mounts = "33 30 0:29 /docker/ab /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        for (groups, base) in [
            ("4:cpu:/docker/ab\n", "/sys/fs/cgroup/cpu"),
            ("4:cpu:/docker/ab/c\n", "/sys/fs/cgroup/cpu/c"),
        ] {
            let found = locate(mounts, groups, |_| false).unwrap();
            assert_eq!(found.base, Path::new(base));
        }
    }

    #[test]
    fn hierarchy_of_version_2_is_taken_where_it_has_the_controller() {
        let mounts = "25 20 0:22 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let groups = "0::/user.slice/session-1.scope\n";
        let found = locate(mounts, groups, |_| true).unwrap();
        assert_eq!(found.version, 2);
        assert_eq!(found.base, Path::new("/sys/fs/cgroup"));
        assert_eq!(
            found.home,
            Path::new("/sys/fs/cgroup/user.slice/session-1.scope")
        );
        assert_eq!(locate(mounts, groups, |_| false), None);
    }
}
