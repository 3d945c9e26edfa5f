//! An error and its causes on one line, for logs.

use std::error::Error;
use std::fmt;

/// Displays an error and its causes: "Cannot do this: because of that: and that of another".
#[derive(Debug)]
pub struct ErrorChain<'a>(pub &'a (dyn Error + 'a));

impl<'a> ErrorChain<'a> {
    /// The error, then its cause, then the cause of that.
    pub fn errors(&self) -> impl Iterator<Item = &'a (dyn Error + 'a)> + use<'a> {
        std::iter::successors(Some(self.0), |&error| error.source())
    }
}

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, error) in self.errors().enumerate() {
            let separator = if depth == 0 { "" } else { ": " };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use thiserror::Error;

    use super::*;

    #[derive(Debug, Error)]
    #[error("Cannot open the file")]
    struct Outer(#[source] io::Error);

    #[test]
    fn error_chain_is_one_line_with_all_causes() {
        let outer = Outer(io::Error::other("the disk is gone"));
        let line = ErrorChain(&outer).to_string();
        assert_eq!(line, "Cannot open the file: the disk is gone");
        let alone = io::Error::other("no cause");
        assert_eq!(ErrorChain(&alone).to_string(), "no cause");
    }
}
