//! Measurements between guests of Cloud Hypervisor where this machine has no KVM for them:
//! `virtio-inter-bench` goes into the nested machine with the cases, takes the rounds there
//! (`inside`), and writes the results.
//!
//! The processor there is emulated, so only ratios within it are figures.
//!
//! See decision 0051.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use virtio_inter_tests::{Machine, Supplies, Testbed, port_program};

use crate::case::{Case, Way};
use crate::programs::Programs;
use crate::results::{At, Results};

/// Time limit of booting guests on an emulated processor …
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// … and one measurement.
const STEP_LIMIT: Duration = Duration::from_secs(15);

/// Boots a nested machine and has it take the cases.
///
/// # Errors
///
/// Names the missing programs, or a machine that hung or ended, as an emulated one may.
pub fn measure(programs: &Programs, cases: &[Case]) -> Result<Results> {
    let bed = Testbed::new("the nested machine")?;
    let port = match &programs.port {
        Some(port) => port.clone(),
        None => port_program()?,
    };
    let outcome = in_machine(&bed, &programs.bench, &port, cases);
    if outcome.is_err() {
        bed.keep();
    }
    outcome
}

fn in_machine(bed: &Testbed, program: &Path, port: &Path, cases: &[Case]) -> Result<Results> {
    let machine = Machine::boot(bed, &Supplies::new(program, port)?)?;
    let steps: usize = cases
        .iter()
        .map(|case| case.steps() * case.rounds as usize)
        .sum();
    let limit = BOOT_LIMIT + STEP_LIMIT * u32::try_from(steps).context("Too many steps")?;
    let cases = serde_json::to_string(cases)?;
    let output = machine
        .run(&["guests", "--cases", &cases], limit, false)?
        .with_context(|| format!("Nothing was measured within {limit:?}"))?;
    ensure!(output.success(), "The bench failed in the nested machine");
    serde_json::from_str(output.stdout.trim())
        .with_context(|| format!("The nested machine wrote: {}", output.stdout))
}

/// How many rounds of the cases have all their rows.
pub fn whole_rounds(cases: &[Case], results: &Results) -> usize {
    let rounds = |case: &Case, way: Way, size: u32| {
        let metric = case.test.id();
        let at = At {
            place: case.place,
            metric: &metric,
        };
        results
            .row(&at, way, size)
            .map_or(0, |row| row.rounds.len())
    };
    cases
        .iter()
        .flat_map(|case| {
            let sizes = case.sizes.iter();
            sizes.flat_map(move |size| case.ways.iter().map(move |way| rounds(case, *way, *size)))
        })
        .min()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Test;
    use crate::results::tests::{PLACE, row};

    #[test]
    fn round_is_whole_when_no_way_lacks_it() {
        let case = Case {
            place: PLACE,
            test: Test::TcpStream,
            ways: vec![Way::Inter, Way::Tap],
            sizes: vec![64],
            rounds: 3,
        };
        let mut results = Results::default();
        results.add(row(Way::Inter, 64, &[1.0, 2.0]));
        assert_eq!(whole_rounds(std::slice::from_ref(&case), &results), 0);
        results.add(row(Way::Tap, 64, &[1.0]));
        assert_eq!(whole_rounds(std::slice::from_ref(&case), &results), 1);
        let text = serde_json::to_string(&case).unwrap();
        let read: Case = serde_json::from_str(&text).unwrap();
        assert_eq!(format!("{read:?}"), format!("{case:?}"));
    }
}
