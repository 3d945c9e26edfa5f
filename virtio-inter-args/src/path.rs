//! Paths as they are shown.

use std::path::{Path, PathBuf};

/// The path from the root directory, links not resolved. If the working directory is gone: the path
/// as it is.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
