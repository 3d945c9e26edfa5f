//! Errors of the command line that only a command itself finds.

use anyhow::Error;
use thiserror::Error as ThisError;
use virtio_inter_args::SegmentArgError;

use crate::place::PlaceError;

/// The command line is wrong.
#[derive(Debug, ThisError)]
#[error("{0}")]
pub(crate) struct UsageError(String);

/// The same for an error of another kind.
pub(crate) fn usage(error: impl ToString) -> UsageError {
    UsageError(error.to_string())
}

/// Whether a command failed because its command line is wrong.
pub fn is_usage_error(error: &Error) -> bool {
    error.is::<UsageError>()
        || error.is::<SegmentArgError>()
        || matches!(error.downcast_ref(), Some(PlaceError::Value(_)))
}
