//! What the tests of several crates share: programs that they start (`process`), attacks from
//! inside a sandbox (`inside`, `attacks`), refused system calls, random numbers, and reports of a
//! test beside its result, past the capture of test output and to `cargo xtask test` by files that
//! it names in variables.

pub mod attacks;
pub mod epoll_watches;
pub mod inside;
pub mod process;
mod refused_call;
mod rng;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::{env, thread};

pub use refused_call::refuse;
pub use rng::Rng;

/// Writes a line to standard error, past the capture of test output.
pub fn tell(line: &str) {
    // With a closed standard error nobody can read the report.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Reports that the running test is skipped, with the reason.
///
/// # Panics
///
/// When the file that `VIRTIO_INTER_SKIPS` names cannot be written: the test would look like a
/// pass.
pub fn skip(reason: &str) {
    with_name(|name| {
        tell(&format!("SKIPPED {name}: {reason}"));
        report("VIRTIO_INTER_SKIPS", name, reason);
    });
}

/// Reports a note of the running test.
///
/// # Panics
///
/// When the file that `VIRTIO_INTER_NOTES` names cannot be written.
pub fn note(text: &str) {
    with_name(|name| {
        tell(&format!("{name}: {text}"));
        report("VIRTIO_INTER_NOTES", name, text);
    });
}

/// The Cloud Hypervisor that `CLOUD_HYPERVISOR` names, for tests that boot no guest; `None` if the
/// running test was skipped.
///
/// # Panics
///
/// As [`skip`].
pub fn stock_cloud_hypervisor() -> Option<PathBuf> {
    let program = env::var_os("CLOUD_HYPERVISOR")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    // Cloud Hypervisor opens it before it reads its devices.
    let kvm = || OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if program.is_none() {
        skip("CLOUD_HYPERVISOR names no Cloud Hypervisor");
        None
    } else if kvm().is_err() {
        skip("there is no /dev/kvm that can be opened");
        None
    } else {
        program
    }
}

fn with_name(tell: impl FnOnce(&str)) {
    tell(thread::current().name().unwrap_or("test"));
}

/// Adds a line to the file that a variable names.
fn report(variable: &str, name: &str, text: &str) {
    if let Some(path) = env::var_os(variable) {
        let file = OpenOptions::new().create(true).append(true).open(&path);
        // One write: other tests report to the same file.
        let line = format!("{name}\t{text}\n");
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .unwrap_or_else(|error| panic!("Writing {}: {error}", path.display()));
    }
}
