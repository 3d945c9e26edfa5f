//! The id of a port on its segment, which is also the stem of its files in the segment's directory,
//! and bounds that all ports share.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Longest id in bytes; all of its characters are ASCII.
pub const MAX_ID_LEN: usize = 64;

/// Most queue pairs of a port. Bounds what a peer can make another port create.
pub const MAX_QUEUE_PAIRS: u16 = 64;

/// The id of a port, unique on its segment: 1 to 64 of `A-Z a-z 0-9 . _ -`, the first no dot.
///
/// Ordered bytewise: of two ports the one with the smaller id makes the connection.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(String);

/// Why a text is not the id of a port.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PortIdError {
    /// No characters.
    #[error("Port id is empty")]
    Empty,
    /// More than [`MAX_ID_LEN`] bytes.
    #[error("Port id has {0} bytes, at most {MAX_ID_LEN} are allowed")]
    TooLong(usize),
    /// A leading dot would hide the port's files, and is kept for files under construction.
    #[error("Port id {0:?} starts with a dot")]
    LeadingDot(String),
    /// A character outside of the set.
    #[error("Port id {id:?} contains {character:?}, allowed are letters, digits, '.', '_' and '-'")]
    Character {
        /// The whole text.
        id: String,
        /// The first character that is not allowed.
        character: char,
    },
}

impl PortId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PortId {
    type Err = PortIdError;

    fn from_str(text: &str) -> Result<PortId, PortIdError> {
        if text.is_empty() {
            return Err(PortIdError::Empty);
        }
        // Length first: the errors below quote the text.
        if text.len() > MAX_ID_LEN {
            return Err(PortIdError::TooLong(text.len()));
        }
        if text.starts_with('.') {
            return Err(PortIdError::LeadingDot(text.to_owned()));
        }
        let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        match text.chars().find(|c| !allowed(c)) {
            Some(character) => Err(PortIdError::Character {
                id: text.to_owned(),
                character,
            }),
            None => Ok(PortId(text.to_owned())),
        }
    }
}

impl Borrow<str> for PortId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_id_is_what_makes_a_file_name() {
        for text in ["a", "web-1", "A.b_c-9", "-", "_", &"x".repeat(64)] {
            assert_eq!(text.parse::<PortId>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn port_id_that_makes_no_file_name_is_refused() {
        let cases = [
            ("", "Port id is empty"),
            (".hidden", "Port id \".hidden\" starts with a dot"),
            ("..", "Port id \"..\" starts with a dot"),
            (
                "a/b",
                "Port id \"a/b\" contains '/', allowed are letters, digits, '.', '_' and '-'",
            ),
            (
                "a\0b",
                "Port id \"a\\0b\" contains '\\0', allowed are letters, digits, '.', '_' and '-'",
            ),
            (
                "é",
                "Port id \"é\" contains 'é', allowed are letters, digits, '.', '_' and '-'",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(text.parse::<PortId>().unwrap_err().to_string(), message);
        }
        let long = "x".repeat(65).parse::<PortId>().unwrap_err();
        assert_eq!(
            long.to_string(),
            "Port id has 65 bytes, at most 64 are allowed"
        );
    }

    #[test]
    fn port_ids_order_bytewise() {
        let id = |text: &str| text.parse::<PortId>().unwrap();
        assert!(id("B") < id("a"));
        assert!(id("a") < id("a0"));
        assert!(id("port10") < id("port2"));
    }
}
