//! Reads the status of a port from its status socket (docs/port-status.md).

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// Timeout: a port answers at once.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Maximum size of the document in bytes: more than 1024 peers and 64 queue pairs need.
const MAX_DOCUMENT: u64 = 4 << 20;

/// Reads the status of a port.
///
/// # Errors
///
/// When it does not answer.
pub(crate) fn read(socket: &Path) -> io::Result<Value> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut text = String::new();
    stream.take(MAX_DOCUMENT).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}
