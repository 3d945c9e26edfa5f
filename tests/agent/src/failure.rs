//! The error of a command.

/// The error, as one line.
pub(crate) type Failure = Box<dyn std::error::Error>;
