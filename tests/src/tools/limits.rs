//! Limits of time that the tools share.

use std::time::Duration;

/// Time that starting, connecting and ending may add to a tool's own time.
pub(super) const MARGIN: Duration = Duration::from_secs(60);
/// How long a server may take to listen.
pub(super) const LISTEN_LIMIT: Duration = Duration::from_secs(30);
