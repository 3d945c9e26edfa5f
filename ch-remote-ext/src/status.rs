//! A port's own word on what it does (docs/port-status.md).

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// A port answers at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// Longest document, in bytes: more than 1024 peers and 64 queue pairs need.
const MAX_DOCUMENT: u64 = 4 << 20;

/// Asks a port.
///
/// # Errors
///
/// When it does not answer.
pub(crate) fn read(socket: &Path) -> io::Result<Value> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    let mut text = String::new();
    stream.take(MAX_DOCUMENT).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}
