//! The directory of a VM's sockets: beside its API socket, so that other programs find it, or a
//! temporary one.
//!
//! It has mode 0700 and belongs to this user: another user who could write there could put a socket
//! in the place of a port's, and would get the guest's memory. The supervisor locks it as long as
//! it lives. So a VM can take over the directory that a killed supervisor left.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::warn;
use rustix::fs::{FlockOperation, Mode, OFlags, fchmod, flock, open};
use rustix::io::Errno;
use rustix::net::SocketType;
use rustix::process::geteuid;
use thiserror::Error;
use virtio_inter_args::absolute;
use virtio_inter_common::liveness::{Listening, listening};

/// Name of the supervisor's socket.
const CONTROL: &str = "control";

/// How often the directory may disappear between opening and locking it: each time another VM has
/// just ended.
const LOCK_ATTEMPTS: usize = 8;

/// Maximum time for a killed supervisor and its ports to exit.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// Attempts in a row that must find a running VM: one that was just killed may look alive for a
/// moment.
const CONFIRMATIONS: usize = 3;

/// Why the VM cannot have its directory.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// A running supervisor has it.
    #[error("{} is in use: another VM runs with this API socket", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Whether that supervisor keeps running: false if it was killed, exits or starts.
        stays: bool,
    },
    /// It belongs to another user, who could put their own sockets into it.
    #[error(
        "{} belongs to user {owner}, not to this VM's; remove it, or take an --api-socket where \
         only this VM's user can write",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
    },
    /// An operation on a file failed.
    #[error("Cannot {action} {}", path.display())]
    Io {
        /// The operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The directory. It and its files are removed when it is dropped.
#[derive(Debug)]
pub struct VmDirectory {
    path: PathBuf,
    /// Locked, if it is beside an API socket.
    directory: File,
    api_socket: Option<PathBuf>,
}

/// The path of the directory of the VM with this API socket.
pub fn beside(api_socket: &Path) -> PathBuf {
    let mut path = api_socket.as_os_str().to_owned();
    path.push(".inter-vm");
    path.into()
}

/// The path of the control socket of the VM with this API socket.
pub fn control_socket(api_socket: &Path) -> PathBuf {
    beside(api_socket).join(CONTROL)
}

impl VmDirectory {
    /// Makes the directory.
    ///
    /// # Errors
    ///
    /// When another VM has it, or it cannot be made.
    pub fn new(api_socket: Option<&Path>) -> Result<Self, DirectoryError> {
        let Some(api_socket) = api_socket else {
            return Self::temporary();
        };
        let path = beside(api_socket);
        let started = Instant::now();
        let mut confirmations = 0;
        let directory = loop {
            match take(&path, api_socket) {
                Err(DirectoryError::InUse { stays: true, .. })
                    if confirmations + 1 < CONFIRMATIONS =>
                {
                    confirmations += 1;
                }
                Err(DirectoryError::InUse { stays: false, .. }) if started.elapsed() < TIMEOUT => {
                    confirmations = 0;
                }
                result => break result?,
            }
            std::thread::sleep(RETRY_INTERVAL);
        };
        // The ports of a killed supervisor exit by themselves. Then their names are free.
        while has_locked_files(&path) && started.elapsed() < TIMEOUT {
            std::thread::sleep(RETRY_INTERVAL);
        }
        clear(&path)?;
        Ok(Self {
            path,
            directory,
            api_socket: Some(api_socket.to_owned()),
        })
    }

    fn temporary() -> Result<Self, DirectoryError> {
        let base = std::env::var_os("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute() && path.is_dir())
            .unwrap_or_else(std::env::temp_dir);
        let path = tempfile::Builder::new()
            .prefix("inter-vm.")
            .tempdir_in(&base)
            .map_err(failed("make a directory in", &base))?
            .keep();
        Ok(Self {
            directory: open_own(&path)?,
            path,
            api_socket: None,
        })
    }

    /// Restores the directory if something has removed it. Returns whether it did.
    ///
    /// # Errors
    ///
    /// When it cannot be made, or another VM has it.
    pub fn restore(&mut self) -> Result<bool, DirectoryError> {
        if is_at(&self.path, &self.directory) {
            return Ok(false);
        }
        self.directory = match &self.api_socket {
            // The API socket is not checked: this VM's own VMM listens there.
            Some(_) => lock(&self.path)?,
            None => make(&self.path)?,
        };
        Ok(true)
    }

    /// The open directory.
    pub fn as_file(&self) -> &File {
        &self.directory
    }

    /// The path of a file in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether other programs can find it by the API socket.
    pub fn is_beside_api_socket(&self) -> bool {
        self.api_socket.is_some()
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> DirectoryError {
    // The reader of the error may have another working directory.
    let path = absolute(path);
    move |source: io::Error| DirectoryError::Io {
        action,
        path: path.clone(),
        source,
    }
}

/// Makes and locks the directory of a VM, unless another VM uses the API socket.
fn take(path: &Path, api_socket: &Path) -> Result<File, DirectoryError> {
    let directory = lock(path)?;
    // Something may have removed the directory of a running VM. If the API socket cannot be probed,
    // the VMM will report it.
    match listening(api_socket, SocketType::STREAM) {
        Ok(Some(Listening { stays, .. })) => Err(DirectoryError::InUse {
            path: absolute(path),
            stays,
        }),
        _ => Ok(directory),
    }
}

/// Makes or opens a directory, and locks it.
fn lock(path: &Path) -> Result<File, DirectoryError> {
    let in_use = |stays| DirectoryError::InUse {
        path: absolute(path),
        stays,
    };
    for _ in 0..LOCK_ATTEMPTS {
        let directory = match make(path) {
            Err(DirectoryError::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound
                    && path.parent().is_some_and(Path::exists) =>
            {
                continue;
            }
            result => result?,
        };
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let control = listening(&path.join(CONTROL), SocketType::STREAM);
                return Err(in_use(match control {
                    Ok(listening) => listening.is_some_and(|listening| listening.stays),
                    Err(_) => true,
                }));
            }
            Err(error) => return Err(failed("lock", path)(error.into())),
        }
        // If its VM has removed it meanwhile, the lock is worthless.
        if is_at(path, &directory) {
            return Ok(directory);
        }
    }
    Err(in_use(false))
}

/// Makes a directory, or opens one of this user, with mode 0700.
fn make(path: &Path) -> Result<File, DirectoryError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("make directory", path)(error));
        }
        _ => {}
    }
    open_own(path)
}

fn open_own(path: &Path) -> Result<File, DirectoryError> {
    // Links are not followed, since the files in the directory are removed.
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let directory = open(path, flags, Mode::empty())
        .map(File::from)
        .map_err(|e| failed("open directory", path)(e.into()))?;
    let owner = directory.metadata().map_err(failed("examine", path))?.uid();
    if owner != geteuid().as_raw() {
        return Err(DirectoryError::Foreign {
            path: absolute(path),
            owner,
        });
    }
    // Before it is cleared, so that nobody else can add files after that.
    fchmod(&directory, Mode::RWXU).map_err(|e| failed("set the mode of", path)(e.into()))?;
    Ok(directory)
}

/// Whether a path names this open directory.
fn is_at(path: &Path, directory: &File) -> bool {
    let file = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let there = fs::symlink_metadata(path).map(file).ok();
    there.is_some() && there == directory.metadata().map(file).ok()
}

/// Whether a running port has its lock file in the directory.
fn has_locked_files(path: &Path) -> bool {
    let locks = fs::read_dir(path).into_iter().flatten().flatten();
    locks
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "lock")
        })
        .filter_map(|path| {
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::RDONLY | OFlags::CLOEXEC;
            open(path, flags, Mode::empty()).ok()
        })
        .any(|file| flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK))
}

fn clear(path: &Path) -> Result<(), DirectoryError> {
    for entry in fs::read_dir(path).map_err(failed("list", path))? {
        let file = entry.map_err(failed("list", path))?.path();
        match fs::remove_file(&file) {
            // A port that has just exited removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(failed("clear", &file))?,
        }
    }
    Ok(())
}

impl Drop for VmDirectory {
    fn drop(&mut self) {
        // Another VM may have made its own directory at this path.
        if is_at(&self.path, &self.directory)
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            warn!("Cannot remove {}: {error}", absolute(&self.path).display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn vm_directory_has_mode_0700_and_is_removed() {
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
    fn vm_directory_belongs_to_one_vm_at_a_time() {
        let temp = TempDir::new().unwrap();
        let api = temp.path().join("api");
        let first = VmDirectory::new(Some(&api)).unwrap();
        fs::write(first.join("x"), "").unwrap();
        let _control = UnixListener::bind(first.join("control")).unwrap();
        let error = VmDirectory::new(Some(&api)).unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
        assert!(first.join("x").exists());
    }

    #[test]
    fn vm_directory_of_a_killed_vm_is_taken_over() {
        let temp = TempDir::new().unwrap();
        let api = temp.path().join("api");
        fs::create_dir(beside(&api)).unwrap();
        fs::write(beside(&api).join("stale"), "").unwrap();
        let directory = VmDirectory::new(Some(&api)).unwrap();
        assert!(!directory.join("stale").exists());
    }

    #[test]
    fn vm_directory_that_is_a_link_is_refused() {
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
    fn vm_directory_that_others_could_write_to_is_closed_to_them() {
        let temp = TempDir::new().unwrap();
        let api = temp.path().join("api");
        fs::create_dir(beside(&api)).unwrap();
        fs::set_permissions(beside(&api), fs::Permissions::from_mode(0o777)).unwrap();
        let _directory = VmDirectory::new(Some(&api)).unwrap();
        let mode = fs::metadata(beside(&api)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn vm_directory_of_another_user_is_refused() {
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
        let error = make(&api).unwrap_err();
        assert!(matches!(error, DirectoryError::Foreign { .. }), "{error}");
    }

    #[test]
    fn vms_that_come_and_go_at_once_have_it_one_at_a_time() {
        let temp = TempDir::new().unwrap();
        let api = temp.path().join("api");
        let come_and_go = || {
            for _ in 0..50 {
                match VmDirectory::new(Some(&api)) {
                    // No other VM removes files of the one that has it.
                    Ok(directory) => {
                        fs::write(directory.join("x"), "").unwrap();
                        assert!(fs::exists(directory.join("x")).unwrap());
                    }
                    Err(error) => {
                        assert!(matches!(error, DirectoryError::InUse { .. }), "{error:?}");
                    }
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
