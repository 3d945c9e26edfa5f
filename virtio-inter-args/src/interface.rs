//! Names of network interfaces.

use thiserror::Error;

/// Length of the longest name in bytes (`IFNAMSIZ` without the zero at its end).
const MAX_INTERFACE_NAME: usize = 15;

/// Why a text cannot be the name of an interface.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum InterfaceNameError {
    /// It is empty or too long.
    #[error("the name of an interface has 1 to {MAX_INTERFACE_NAME} bytes")]
    Length,
    /// Linux takes no such name.
    #[error("'{0}' is no name of an interface")]
    NotAName(String),
}

/// Checks that Linux takes a text as the name of an interface.
///
/// # Errors
///
/// When it is empty, too long, `.` or `..`, or has a slash, a colon, a space or a control
/// character.
pub fn check_interface_name(name: &str) -> Result<(), InterfaceNameError> {
    let is_bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > MAX_INTERFACE_NAME {
        return Err(InterfaceNameError::Length);
    }
    if name == "." || name == ".." || name.contains(is_bad) {
        return Err(InterfaceNameError::NotAName(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_name_is_one_that_linux_takes() {
        for name in ["eth0", "a.b@c", "fifteen-letters"] {
            assert_eq!(check_interface_name(name), Ok(()), "{name}");
        }
        for name in ["", "sixteen-letters-"] {
            let refused = Err(InterfaceNameError::Length);
            assert_eq!(check_interface_name(name), refused, "{name}");
        }
        for name in [".", "..", "a/b", "a:b", "a b", "a\n"] {
            let refused = Err(InterfaceNameError::NotAName(name.to_owned()));
            assert_eq!(check_interface_name(name), refused, "{name}");
        }
    }
}
