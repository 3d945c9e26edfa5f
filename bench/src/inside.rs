//! The bench within the nested machine: takes the cases that it is given and writes the results.

use std::io::Write;

use anyhow::{Context, Result};
use clap::Args;

use crate::case::Case;
use crate::placement::allowed_cpus;
use crate::programs::Programs;
use crate::results::Results;
use crate::run::Run;

/// The arguments of `virtio-inter-bench guests`.
#[derive(Args)]
pub struct Line {
    /// The cases, as JSON
    #[arg(long)]
    cases: String,
}

/// Measures the cases on the machine that this process runs on, and writes the results to `out` as
/// JSON.
///
/// # Errors
///
/// Arguments that are no cases, a place that cannot be written.
pub fn run(line: &Line, mut out: impl Write) -> Result<()> {
    let cases: Vec<Case> = serde_json::from_str(&line.cases).context("Reading the cases")?;
    let programs = Programs {
        port: None,
        bench: std::env::current_exe().context("Finding this program")?,
        open_vswitch: None,
    };
    let steps = cases
        .iter()
        .map(|case| case.steps() * case.rounds as usize)
        .sum();
    let file = std::env::temp_dir().join("results.json");
    let mut run = Run::new(
        programs,
        allowed_cpus()?,
        None,
        Results::default(),
        file,
        steps,
    );
    run.measure_all(&cases)?;
    serde_json::to_writer(&mut out, &run.finish()?)?;
    writeln!(out)?;
    Ok(())
}
