//! Progress of a demo or bench: a bar on a terminal, else a line for each step; both on standard
//! error.
#![allow(clippy::print_stderr, reason = "talks to the person who runs it")]

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

const TEMPLATE: &str = "{spinner} [{bar:20}] {pos}/{len} {elapsed} (left: {eta}) {wide_msg}";
/// Interval at which the spinner turns and the clock is updated.
const TICK: Duration = Duration::from_millis(100);

/// The steps of a run.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Shows no step of `steps` done.
    pub fn new(steps: usize) -> Self {
        let bar = ProgressBar::new(steps as u64);
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(TICK);
        Self { bar }
    }

    /// Tells what is being done now.
    pub fn begin(&self, what: String) {
        self.bar.set_message(what);
    }

    /// Reports the end of a step and its result.
    pub fn done(&self, what: &str) {
        self.bar.inc(1);
        let (done, all) = (self.bar.position(), self.bar.length().unwrap_or_default());
        self.say(&format!("[{done:>2}/{all}] {what}"));
    }

    /// Counts steps of which nothing came.
    pub fn skip(&self, steps: usize) {
        self.bar.inc(steps as u64);
    }

    /// Tells something beside the steps.
    pub fn say(&self, what: &str) {
        // Not println of the bar's: that writes nothing where the bar is hidden.
        self.bar.suspend(|| eprintln!("{what}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
