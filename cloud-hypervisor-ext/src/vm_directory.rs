//! The directory of a VM's sockets: beside its API socket, so that others find it, or a temporary one.
//!
//! Mode 0700. Its lock, held as long as the supervisor lives, tells a live VM's directory from one that a killed
//! supervisor left, which is taken over.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use log::warn;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use tempfile::TempDir;
use thiserror::Error;

/// Why there is no directory.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// A live supervisor has it.
    #[error("{} is in use: another VM runs with this API socket", .0.display())]
    InUse(PathBuf),
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
        let failed = |action| {
            let path = path.clone();
            move |source: io::Error| DirectoryError::Io {
                action,
                path,
                source,
            }
        };
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make directory")(error));
            }
            _ => {}
        }
        // A link is not followed: what is in it is removed.
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let directory = open(&path, flags, Mode::empty())
            .map_err(|e| failed("open directory")(e.into()))
            .map(File::from)?;
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(DirectoryError::InUse(path)),
            Err(error) => return Err(failed("lock")(error.into())),
        }
        for entry in fs::read_dir(&path).map_err(failed("list"))? {
            let file = entry.map_err(failed("list"))?.path();
            fs::remove_file(&file).map_err(failed("clear"))?;
        }
        Ok(Self {
            path,
            place: Place::BesideApiSocket(directory),
        })
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
            warn!("Cannot remove {}: {error}", self.path.display());
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
}
