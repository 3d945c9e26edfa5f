//! Reports errors in the format of Cloud Hypervisor, whose errors appear beside them.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use log::Level;
use virtio_inter_common::ErrorChain;

/// Exit status of a wrong command line.
pub const USAGE: u8 = 2;

/// Exit status of all other failures.
pub const FAILURE: u8 = 1;

/// The exit status to pass on from a program that this one ran for the user.
#[must_use]
pub fn status(ended: std::process::ExitStatus) -> u8 {
    ended
        .code()
        .and_then(|code| code.try_into().ok())
        .unwrap_or(FAILURE)
}

/// Writes to standard output. A reader that closes the pipe early, such as head(1), is no error.
///
/// # Errors
///
/// When it cannot be written.
pub fn print(text: &str) -> std::io::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// An error with its exit status.
#[derive(Debug)]
pub struct Failure {
    /// The exit status.
    pub status: u8,
    /// The error.
    pub error: anyhow::Error,
}

impl Failure {
    /// A wrong command line.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self {
            status: USAGE,
            error: error.into(),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            status: FAILURE,
            error: error.into(),
        }
    }
}

impl Failure {
    /// Writes the error to standard error. Returns the exit status. Waits only briefly for a
    /// reader.
    pub fn report(&self, program: &str) -> ExitCode {
        virtio_inter_log::say(Level::Error, &describe(program, self.error.as_ref()));
        virtio_inter_log::flush();
        ExitCode::from(self.status)
    }
}

/// The error and its causes, one per line.
pub fn describe(program: &str, error: &(dyn Error + 'static)) -> String {
    let lines = error_lines(error);
    match &lines[..] {
        [one] => format!("Error: {program} exited with the following error:\n  {one}\n"),
        many => {
            let mut text = format!("Error: {program} exited with the following chain of errors:\n");
            for (level, line) in many.iter().enumerate() {
                text.push_str(&format!("  {level}: {line}\n"));
            }
            text
        }
    }
}

/// The texts of an error and its causes, the cause last.
pub fn error_lines(error: &(dyn Error + 'static)) -> Vec<String> {
    ErrorChain(error)
        .errors()
        .map(ToString::to_string)
        .collect()
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn error_report_is_one_line_or_a_chain() {
        let error = anyhow!("no");
        assert_eq!(
            describe("x", error.as_ref()),
            "Error: x exited with the following error:\n  no\n"
        );
        let error = error.context("Cannot");
        assert_eq!(
            describe("x", error.as_ref()),
            "Error: x exited with the following chain of errors:\n  0: Cannot\n  1: no\n"
        );
    }
}
