//! Parts of one test that are reported by their own names: cells of a matrix on guests that boot
//! once.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::thread;
use std::time::Instant;

use anyhow::ensure;

use crate::Result;

/// Runs a test's parts, one after another, also those behind one that fails.
#[derive(Debug, Default)]
pub struct Parts {
    failed: Vec<String>,
}

impl Parts {
    /// Runs a part, and reports it to `cargo xtask test` in the file that `VIRTIO_INTER_PARTS`
    /// names. A failure is an error, not a panic, so that the next part runs.
    pub fn run(&mut self, name: &str, part: impl FnOnce() -> Result<()>) {
        let start = Instant::now();
        let outcome = part();
        let ending = match &outcome {
            Ok(()) => "ok",
            Err(_) => "failed",
        };
        report(name, ending, start.elapsed().as_millis());
        if let Err(error) = outcome {
            self.failed.push(format!("{name}: {error:#}"));
        }
    }

    /// The end of the test.
    ///
    /// # Errors
    ///
    /// The failed parts, by name.
    pub fn finish(self) -> Result<()> {
        ensure!(self.failed.is_empty(), "{}", self.failed.join("\n"));
        Ok(())
    }
}

/// One line: the test, the part, how it ended, and its milliseconds, with tabs between.
fn report(part: &str, ending: &str, took: u128) {
    let Some(path) = env::var_os("VIRTIO_INTER_PARTS") else {
        return;
    };
    let thread = thread::current();
    let line = format!(
        "{}\t{part}\t{ending}\t{took}\n",
        thread.name().unwrap_or("test")
    );
    // One write: other tests report to the same file.
    let file = OpenOptions::new().create(true).append(true).open(&path);
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        log::warn!("Writing {}: {error}", path.display());
    }
}
