//! Errors as the runtime gets them: a code of the CNI specification or of this plug-in, and texts.

use std::fmt::Display;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

/// The configuration's version of CNI is not supported.
pub(crate) const INCOMPATIBLE_VERSION: u32 = 1;
/// An environment variable is missing or not valid.
pub(crate) const ENVIRONMENT: u32 = 4;
/// A file cannot be read or written.
pub(crate) const IO: u32 = 5;
/// Not JSON, or not of the expected form.
pub(crate) const DECODE: u32 = 6;
/// The network configuration is not valid.
pub(crate) const CONFIG: u32 = 7;
/// STATUS: the plug-in cannot attach anything at present.
pub(crate) const NOT_AVAILABLE: u32 = 50;
/// The port does not start or end.
pub(crate) const PORT: u32 = 100;
/// The IPAM plug-in cannot be run, or its answer is of no use. An error of its own keeps its code.
pub(crate) const IPAM: u32 = 101;
/// Kata's file has not what is needed.
pub(crate) const DAN: u32 = 102;
/// The interface is attached already.
pub(crate) const ATTACHED: u32 = 103;

/// Why a call failed.
#[derive(Debug)]
pub(crate) struct Error {
    pub(crate) code: u32,
    message: String,
    details: Vec<String>,
}

impl Error {
    pub(crate) fn new(code: u32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: Vec::new(),
        }
    }

    /// A failed operation on a file.
    pub(crate) fn io(what: &str, error: io::Error) -> Self {
        Self::new(IO, format!("{what}: {error}"))
    }

    /// Makes the error of an action on a path.
    pub(crate) fn of_path(action: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let what = format!("Cannot {action} {}", path.display());
        move |error| Self::io(&what, error)
    }

    /// Adds lines that explain more, if there are any.
    pub(crate) fn detail(mut self, detail: impl Display) -> Self {
        let detail = detail.to_string();
        if !detail.is_empty() {
            self.details.push(detail);
        }
        self
    }

    /// Adds to this error what failed after it, as its consequence or while it was undone.
    pub(crate) fn and(self, others: Vec<Self>) -> Self {
        others.into_iter().fold(self, |all, other| {
            let more = other.details;
            let all = all.detail(other.message);
            more.into_iter().fold(all, Self::detail)
        })
    }

    /// All of several errors as one; `Ok` if there is none.
    pub(crate) fn all(errors: Vec<Self>) -> Result<(), Self> {
        let mut errors = errors.into_iter();
        match errors.next() {
            Some(first) => Err(first.and(errors.collect())),
            None => Ok(()),
        }
    }

    /// The document for the runtime.
    pub(crate) fn document(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "code": self.code,
            "msg": self.message,
            "details": self.details.join("\n"),
        })
    }
}
