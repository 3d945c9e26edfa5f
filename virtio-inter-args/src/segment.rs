//! Segments: by name, or by directory.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::path::absolute;

/// Directory of the segments that are given by name.
pub const SEGMENTS: &str = "/run/virtio-inter";

/// Why a value does not stand for a segment.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum SegmentArgError {
    /// Nothing was given.
    #[error("the value is empty; give a name, for a directory of {SEGMENTS}, or a path")]
    Empty,
    /// `.` or `..`: neither a name nor recognizable as a path.
    #[error(
        "'{0}' is neither a name, for a directory of {SEGMENTS}, nor a path with a '/' in it; \
         for the directory write '{0}/'"
    )]
    Dots(String),
}

/// The directory of a segment, absolute. A value without a '/' is a name: a directory of
/// [`SEGMENTS`]. A value with one is a path.
///
/// # Errors
///
/// When it can be neither.
pub fn segment_directory(value: &OsStr) -> Result<PathBuf, SegmentArgError> {
    let bytes = value.as_encoded_bytes();
    match bytes {
        b"" => Err(SegmentArgError::Empty),
        b"." | b".." => Err(SegmentArgError::Dots(value.display().to_string())),
        _ if bytes.contains(&b'/') => Ok(absolute(Path::new(value))),
        _ => Ok(Path::new(SEGMENTS).join(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_without_a_slash_is_a_name_and_with_one_a_path() {
        let directory = |value: &str| segment_directory(OsStr::new(value)).unwrap();
        let here = std::env::current_dir().unwrap();
        assert_eq!(directory("web"), Path::new("/run/virtio-inter/web"));
        assert_eq!(directory("..web"), Path::new("/run/virtio-inter/..web"));
        assert_eq!(directory("/srv/web"), Path::new("/srv/web"));
        assert_eq!(directory("./web"), here.join("web"));
        assert_eq!(directory("net/web"), here.join("net/web"));
    }

    #[test]
    fn segment_that_is_empty_or_dots_is_refused() {
        for value in ["", ".", ".."] {
            segment_directory(OsStr::new(value)).unwrap_err();
        }
        let error = segment_directory(OsStr::new("..")).unwrap_err();
        assert!(error.to_string().contains("write '../'"), "{error}");
    }
}
