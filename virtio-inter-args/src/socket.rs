//! Paths of Unix sockets.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Longest path of a Unix socket in bytes: `sun_path` without its terminating zero (unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;

/// Why a path cannot be that of a socket.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum SocketPathError {
    /// Nothing was given.
    #[error("the socket path is empty")]
    Empty,
    /// Other programs take a leading '@' for an abstract socket, which has no file and no owner.
    #[error(
        "{} looks like an abstract socket: those are not supported, as any user of the host may \
         connect; for a file of this name write ./{}",
        .0.display(), .0.display()
    )]
    Abstract(PathBuf),
    /// It does not fit a socket's address.
    #[error(
        "socket path {} has {} bytes, a Unix socket's has at most {MAX_SOCKET_PATH}",
        .0.display(), .0.as_os_str().len()
    )]
    TooLong(PathBuf),
}

/// Checks the path of a socket that is to be made or connected to.
///
/// # Errors
///
/// When it is empty, too long, or begins with '@'.
pub fn check_socket_path(path: &Path) -> Result<(), SocketPathError> {
    match path.as_os_str().as_encoded_bytes() {
        [] => Err(SocketPathError::Empty),
        [b'@', ..] => Err(SocketPathError::Abstract(path.to_owned())),
        bytes if bytes.len() > MAX_SOCKET_PATH => Err(SocketPathError::TooLong(path.to_owned())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_path_is_neither_empty_nor_abstract_nor_too_long() {
        let check = |path: &str| check_socket_path(Path::new(path));
        for path in ["/run/a.sock", "a.sock", "./@a", "/tmp/@a", &"x".repeat(107)] {
            assert_eq!(check(path), Ok(()), "{path}");
        }
        assert_eq!(check(""), Err(SocketPathError::Empty));
        for path in ["@", "@a"] {
            assert_eq!(check(path), Err(SocketPathError::Abstract(path.into())));
        }
        let long = check(&"x".repeat(108)).unwrap_err().to_string();
        assert!(
            long.contains("has 108 bytes") && long.contains("at most 107"),
            "{long}"
        );
        let abstracted = check("@a").unwrap_err().to_string();
        assert!(abstracted.ends_with("write ./@a"), "{abstracted}");
    }
}
