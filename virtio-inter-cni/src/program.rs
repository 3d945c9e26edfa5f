//! Programs by their names: in the directories of a list, such as the one in `PATH`.

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where programs are if `PATH` is not set.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The value of `PATH`.
pub(crate) fn path() -> std::ffi::OsString {
    env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into())
}

/// A program by its path, or by its name in a directory of `PATH`.
pub(crate) fn find_program(name: &OsStr) -> Option<PathBuf> {
    if name.as_encoded_bytes().contains(&b'/') {
        return Some(virtio_inter_args::absolute(Path::new(name))).filter(|path| is_program(path));
    }
    find_in(&path(), name)
}

/// A program by its name in the directories of a list.
pub(crate) fn find_in(directories: &OsStr, name: &OsStr) -> Option<PathBuf> {
    env::split_paths(directories)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    let metadata = path.metadata();
    metadata.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
