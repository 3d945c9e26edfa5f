//! The view of all ports of a host: the commands `list`, `show`, `check`, `top`, `ping`, `events`,
//! `exporter` and `capture` of `virtio-inter`, and `segment`, which makes and removes segments.
//!
//! There is no daemon: each port and uplink serves its status in its segment's directory
//! (`docs/port-status.md`), and these commands read all of them. Only `segment` changes anything;
//! `capture` has ports copy frames while it runs.
//!
//! `place` finds segments and ports, `reader` asks the ports, `document` is what they answer.
//! A port may belong to another user and be hostile: its answer is bounded in time and size, and
//! `text` makes it safe for a terminal.
#![forbid(unsafe_code)]

pub mod args;
pub mod capture;
mod check;
mod document;
pub mod events;
pub mod exporter;
mod extcap;
mod lasting_failure;
mod list;
pub mod listen_addr;
mod metrics;
pub mod output;
#[cfg(test)]
mod picture;
pub mod ping;
mod place;
mod rates;
mod reader;
mod screen;
pub mod segment;
mod segment_mode;
mod show;
mod text;
pub mod top;
mod usage_error;

use anyhow::Result;

pub use crate::extcap::extcap;
pub use crate::usage_error::is_usage_error;

use crate::args::{CheckArgs, ListArgs, ShowArgs};

/// Runs `virtio-inter list`. Returns what goes to standard output.
///
/// # Errors
///
/// When there is no such segment or port, or /run/virtio-inter cannot be read.
pub fn list(arguments: &ListArgs) -> Result<String> {
    let places = place::find(&arguments.places)?;
    if arguments.json {
        return text::json(&reader::entries(&places, &reader::read(&places)));
    }
    Ok(list::read_twice(&places))
}

/// Runs `virtio-inter show`. Returns what goes to standard output.
///
/// # Errors
///
/// As [`list()`].
pub fn show(arguments: &ShowArgs) -> Result<String> {
    let places = place::find(&arguments.places)?;
    let ports = reader::read(&places);
    if arguments.json {
        return text::json(&reader::entries(&places, &ports));
    }
    Ok(show::tree(&places, &ports))
}

/// Runs `virtio-inter check`. Returns what goes to standard output, and whether nothing was found.
///
/// # Errors
///
/// As [`list()`].
pub fn check(arguments: &CheckArgs) -> Result<(String, bool)> {
    let places = place::find(&arguments.places)?;
    let ports = reader::read(&places);
    let findings = check::findings(&places, &ports);
    let text = if arguments.json {
        text::json(&findings)?
    } else {
        check::lines(&findings, &places, &ports)
    };
    Ok((text, findings.is_empty()))
}
