//! A failure that may last for many rounds of the same work, and is logged once.

use std::sync::{Mutex, PoisonError};

/// The failure that was logged last, if the work has not succeeded since.
#[derive(Default)]
pub(crate) struct LastingFailure(Mutex<Option<String>>);

impl LastingFailure {
    /// Logs a failure, if it is another one than the last time.
    pub(crate) fn log(&self, failure: &str) {
        if self.is_new(failure) {
            log::warn!("{failure}");
        }
    }

    /// The work has succeeded: if it fails in the same way again, that is logged.
    pub(crate) fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn is_new(&self, failure: &str) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.replace(failure.to_owned()).as_deref() != Some(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_that_lasts_is_new_once() {
        let failure = LastingFailure::default();
        let texts = ["no right", "no right", "no memory", "no memory", "no right"];
        let is_new = texts.map(|text| failure.is_new(text));
        assert_eq!(is_new, [true, false, true, false, true]);
        failure.end();
        assert!(failure.is_new("no right"));
    }
}
