//! The directory of a VM's sockets: beside its API socket, so that others find it, or a temporary one.
//!
//! Mode 0700, and this user's: whoever else could write there could put a socket in a port's place, and be handed the
//! guest's memory. Its lock, held as long as the supervisor lives, tells a live VM's directory from one that a killed
//! supervisor left, which is taken over.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use log::warn;
use rustix::fs::{FlockOperation, Mode, OFlags, fchmod, flock, open};
use rustix::io::Errno;
use rustix::process::geteuid;
use tempfile::TempDir;
use thiserror::Error;
use virtio_inter_args::absolute;

/// How often the directory may vanish between opening and locking it. Each time, another VM has just ended.
const LOCK_ATTEMPTS: usize = 8;

/// Why there is no directory.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// A live supervisor has it.
    #[error("{} is in use: another VM runs with this API socket", .0.display())]
    InUse(PathBuf),
    /// Another user made it, and could put sockets of their own into it.
    #[error(
        "{} belongs to user {owner}, not to this VM's; remove it, or take an --api-socket where only this VM's user can write",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
    },
    /// The file system refused.
    #[error("Cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The directory; what is in it goes with it.
#[derive(Debug)]
pub struct VmDirectory {
    path: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// Locked.
    BesideApiSocket(#[expect(dead_code, reason = "held for its lock")] File),
    Temporary(#[expect(dead_code, reason = "removed when dropped")] TempDir),
}

/// Where the directory of a VM with this API socket is.
pub fn beside(api_socket: &Path) -> PathBuf {
    let mut path = api_socket.as_os_str().to_owned();
    path.push(".inter-vm");
    path.into()
}

/// Where the supervisor of a VM with this API socket listens.
pub fn control_socket(api_socket: &Path) -> PathBuf {
    beside(api_socket).join("control")
}

impl VmDirectory {
    /// Makes the directory.
    ///
    /// # Errors
    ///
    /// When another VM has it, or it cannot be made.
    pub fn new(api_socket: Option<&Path>) -> Result<Self, DirectoryError> {
        match api_socket {
            Some(socket) => Self::take(beside(socket)),
            None => {
                let base = std::env::var_os("XDG_RUNTIME_DIR")
                    .map(PathBuf::from)
                    .filter(|path| path.is_absolute() && path.is_dir())
                    .unwrap_or_else(std::env::temp_dir);
                let directory = tempfile::Builder::new()
                    .prefix("inter-vm.")
                    .tempdir_in(&base)
                    .map_err(|source| DirectoryError::Io {
                        action: "make a directory in",
                        path: base,
                        source,
                    })?;
                Ok(Self {
                    path: directory.path().to_owned(),
                    place: Place::Temporary(directory),
                })
            }
        }
    }

    fn take(path: PathBuf) -> Result<Self, DirectoryError> {
        // In errors: who reads them may have another working directory.
        let shown = absolute(&path);
        let failed = |action| {
            let path = shown.clone();
            move |source: io::Error| DirectoryError::Io {
                action,
                path,
                source,
            }
        };
        for _ in 0..LOCK_ATTEMPTS {
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("make directory")(error));
                }
                _ => {}
            }
            // A link is not followed: what is in it is removed.
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
            let directory = match open(&path, flags, Mode::empty()) {
                Ok(directory) => File::from(directory),
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(failed("open directory")(error.into())),
            };
            let ours = directory.metadata().map_err(failed("examine"))?;
            if ours.uid() != geteuid().as_raw() {
                return Err(DirectoryError::Foreign {
                    path: shown,
                    owner: ours.uid(),
                });
            }
            match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(DirectoryError::InUse(shown)),
                Err(error) => return Err(failed("lock")(error.into())),
            }
            // One that its VM has removed meanwhile: that lock is worth nothing.
            let there = fs::symlink_metadata(&path).ok();
            if there.is_none_or(|there| (there.dev(), there.ino()) != (ours.dev(), ours.ino())) {
                continue;
            }
            // Before it is cleared, so that nothing of others comes in after that.
            fchmod(&directory, Mode::RWXU).map_err(|e| failed("set the mode of")(e.into()))?;
            for entry in fs::read_dir(&path).map_err(failed("list"))? {
                let file = entry.map_err(failed("list"))?.path();
                fs::remove_file(&file).map_err(failed("clear"))?;
            }
            return Ok(Self {
                path,
                place: Place::BesideApiSocket(directory),
            });
        }
        Err(DirectoryError::InUse(shown))
    }

    /// A file in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether others find it by the API socket.
    pub fn is_beside_api_socket(&self) -> bool {
        matches!(self.place, Place::BesideApiSocket(_))
    }
}

impl Drop for VmDirectory {
    fn drop(&mut self) {
        if self.is_beside_api_socket()
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            warn!("Cannot remove {}: {error}", absolute(&self.path).display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn has_a_mode_of_its_own_and_goes() {
        let temp = TempDir::new().unwrap();
        let api = temp.path().join("api");
        let directory = VmDirectory::new(Some(&api)).unwrap();
        let path = beside(&api);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o700
        );
        fs::write(directory.join("x"), "").unwrap();
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn one_at_a_time() {
        let temp = TempDir::new().unwrap();
        let api = temp.path().join("api");
        let first = VmDirectory::new(Some(&api)).unwrap();
        fs::write(first.join("x"), "").unwrap();
        let error = VmDirectory::new(Some(&api)).unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
        assert!(first.join("x").exists());
    }

    #[test]
    fn what_a_killed_one_left_is_taken_over() {
        let temp = TempDir::new().unwrap();
        let api = temp.path().join("api");
        fs::create_dir(beside(&api)).unwrap();
        fs::write(beside(&api).join("stale"), "").unwrap();
        let directory = VmDirectory::new(Some(&api)).unwrap();
        assert!(!directory.join("stale").exists());
    }

    #[test]
    fn a_link_is_not_followed() {
        let temp = TempDir::new().unwrap();
        let api = temp.path().join("api");
        let elsewhere = temp.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("precious"), "").unwrap();
        std::os::unix::fs::symlink(&elsewhere, beside(&api)).unwrap();
        VmDirectory::new(Some(&api)).unwrap_err();
        assert!(elsewhere.join("precious").exists());
    }

    #[test]
    fn one_that_others_could_write_to_is_closed_to_them() {
        let temp = TempDir::new().unwrap();
        let api = temp.path().join("api");
        fs::create_dir(beside(&api)).unwrap();
        fs::set_permissions(beside(&api), fs::Permissions::from_mode(0o777)).unwrap();
        let _directory = VmDirectory::new(Some(&api)).unwrap();
        let mode = fs::metadata(beside(&api)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn another_users_is_refused() {
        let temp = TempDir::new().unwrap();
        // `/proc/1` is root's; root itself can give a directory away.
        let api = if geteuid().is_root() {
            let api = temp.path().join("api");
            fs::create_dir(beside(&api)).unwrap();
            std::os::unix::fs::chown(beside(&api), Some(65534), None).unwrap();
            beside(&api)
        } else {
            PathBuf::from("/proc/1")
        };
        let error = VmDirectory::take(api).unwrap_err();
        assert!(matches!(error, DirectoryError::Foreign { .. }), "{error}");
    }

    #[test]
    fn vms_that_come_and_go_at_once_have_it_one_at_a_time() {
        let temp = TempDir::new().unwrap();
        let api = temp.path().join("api");
        let come_and_go = || {
            for _ in 0..300 {
                match VmDirectory::new(Some(&api)) {
                    // Of the one that has it, nobody takes anything away.
                    Ok(directory) => {
                        fs::write(directory.join("x"), "").unwrap();
                        assert!(fs::exists(directory.join("x")).unwrap());
                    }
                    Err(error) => assert!(matches!(error, DirectoryError::InUse(_)), "{error:?}"),
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(come_and_go);
            }
        });
        assert!(!beside(&api).exists());
    }
}
