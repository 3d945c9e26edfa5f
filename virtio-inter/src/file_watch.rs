//! Notices that other programs remove or replace the port's files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Stat, fstat, stat};
use virtio_inter_common::DirNotify;

use crate::socket::Listener;

/// Readable after a file of a watched directory was removed or renamed.
#[derive(Debug)]
pub(crate) struct FileWatch {
    notify: DirNotify,
    /// What [`DirNotify::watch`] returned for each directory.
    directories: BTreeMap<PathBuf, OwnedFd>,
}

impl FileWatch {
    /// Watches nothing yet. Only the calling thread is notified.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for it.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            notify: DirNotify::new()?,
            directories: BTreeMap::new(),
        })
    }

    /// Watches the directories of a socket and its lock file. Returns false if that fails, or if
    /// one of the files is gone already.
    pub(crate) fn add_files_of(&mut self, listener: &Listener) -> bool {
        // The lock file is beside the socket.
        let path = listener.path();
        if let Err(error) = self.add(path) {
            log::debug!("Cannot watch the directory of {}: {error}", path.display());
            return false;
        }
        listener.is_in_place()
    }

    /// Watches the directory in which a file is.
    fn add(&mut self, file: &Path) -> io::Result<()> {
        let path = match file.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        if let Some(watched) = self.directories.get(path)
            && inode(fstat(watched)?) == inode(stat(path)?)
        {
            return Ok(());
        }
        let watch = DirNotify::watch(File::open(path)?.as_fd())?;
        self.directories.insert(path.to_owned(), watch);
        Ok(())
    }

    /// Forgets the changes so far.
    pub(crate) fn clear(&self) {
        self.notify.clear();
    }
}

fn inode(stat: Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

impl AsFd for FileWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notify.as_fd()
    }
}
