//! Standard output, whose reader may have gone, as `head` does.

use std::io::{self, Write};

use anyhow::{Context, Result};

/// Prints this, at once. Returns whether anybody reads it.
///
/// # Errors
///
/// When it cannot be written, as to a full disk.
pub fn print(text: &str) -> Result<bool> {
    let mut output = io::stdout().lock();
    let written = output.write_all(text.as_bytes());
    match written.and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written
            .map(|()| true)
            .context("Cannot write to standard output"),
    }
}
