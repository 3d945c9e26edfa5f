//! Compares virtio-inter with other ways between guests and between processes of the host, and
//! reports it.
//!
//! `cargo xtask bench` does the set-up and calls [`run()`]. A [`plan()`] is a list of cases
//! ([`case`]); [`run::Run`] takes them in rounds, all ways of a case side by side; [`results`]
//! keeps each round; [`goals`], [`report`] and [`plots`] present the results. `README.md` beside
//! the manifest says how to add a case.
#![forbid(unsafe_code)]

pub mod case;
pub mod crowd;
pub mod distance;
pub mod goals;
pub mod guests;
pub mod history;
pub mod host;
pub mod host_side;
pub mod idle;
pub mod inside;
pub mod machine;
pub mod measured;
pub mod mesh;
pub mod mock_guest;
pub mod neighbour;
pub mod nested;
pub mod open_vswitch;
pub mod options;
pub mod parties;
pub mod placement;
pub mod plan;
pub mod plots;
pub mod programs;
pub mod progress;
pub mod report;
pub mod rescue;
pub mod results;
pub mod run;
mod selection;
pub mod stats;
pub mod testpmd;
mod words;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use virtio_inter_tests::ControlGroups;

use crate::case::{Case, Group, is_asked_for};
use crate::machine::{Machine, load_average, told};
use crate::options::Options;
use crate::plan::{Facts, Plan, plan};
use crate::programs::Programs;
use crate::results::{NotRun, Results, Row, RunNote};
use crate::run::Run;

/// Measures the cases that the options select, and writes the result file, the report and its plots
/// into `output`.
///
/// # Errors
///
/// A result file that is not one, a place that cannot be written, or the number of failed
/// measurements; all else is in the report.
pub fn run(options: &Options, programs: Programs, has_kvm: bool, output: &Path) -> Result<()> {
    fs::create_dir_all(output).with_context(|| format!("Making {}", output.display()))?;
    let file = output.join("results.json");
    let mut results = Results::load(&file)?;
    let mut verdict = Ok(());
    let mut measured = Vec::new();
    if !options.report {
        let cpus = placement::allowed_cpus()?;
        let groups = ControlGroups::new();
        let facts = Facts {
            cpus: cpus.len(),
            has_testpmd: testpmd::is_there(),
            has_open_vswitch: programs.open_vswitch.is_some(),
            has_host_tools: host_side::has_tools(),
            has_cloud_hypervisor: virtio_inter_tests::cloud_hypervisor_program().is_some(),
            has_kvm,
            no_groups: groups.as_ref().err().map(|error| format!("{error:#}")),
        };
        let groups = groups.ok();
        let plan = plan(options, &facts);
        check_filters(options, &plan)?;
        begin(&mut results, options, &plan.cases);
        let version = groups.as_ref().map(ControlGroups::version);
        results.machine = Some(Machine::of_this_host(cpus.len(), has_kvm, version));
        for note in &plan.not_run {
            results.note_not_run(&note.what, &note.why);
        }
        let steps = plan
            .cases
            .iter()
            .map(|case| case.steps() * case.rounds as usize)
            .sum();
        let mut run = Run::new(programs, cpus, groups, results, file, steps);
        if options.quick {
            run.hurry();
        }
        run.watch_distance(&plan.cases, options.quick)?;
        run.measure_all(&plan.cases)?;
        verdict = run.verdict();
        results = run.finish()?;
        measured = plan.cases;
    }
    tell(options, &results, output)?;
    let kept = output.join("history");
    if options.keep {
        history::keep(&of_last_run(&results, &measured), &kept)?;
    }
    history::write_page(&kept)?;
    verdict
}

/// A name that stands for nothing would measure nothing, and that would look like a pass.
fn check_filters(options: &Options, plan: &Plan) -> Result<()> {
    for filter in &options.only {
        let only = std::slice::from_ref(filter);
        let is_case = plan.cases.iter().any(|case| is_asked_for(&case.id(), only));
        let is_note = |note: &NotRun| {
            is_asked_for(&note.what, only) || is_asked_for(filter, std::slice::from_ref(&note.what))
        };
        if !is_case && !plan.not_run.iter().any(is_note) {
            let group = filter.split('/').next().unwrap_or_default().to_owned();
            let mut places = plan.places.clone();
            places.retain(|id| is_asked_for(id, std::slice::from_ref(&group)));
            bail!(
                "--only {filter}: nothing has this name; there are {}",
                places.join(", ")
            );
        }
    }
    Ok(())
}

/// Makes room for what is to be measured, and notes the run.
fn begin(results: &mut Results, options: &Options, cases: &[Case]) {
    if options.only.is_empty() && !options.add {
        *results = Results::default();
    }
    if !options.add {
        results.forget(|row| cases.iter().any(|case| belongs(row, case)));
    }
    results.not_run.retain(|note| {
        let is_part = |filter: &String| filter.starts_with(&note.what);
        !(is_asked_for(&note.what, &options.only) || options.only.iter().any(is_part))
    });
    let mut arguments = Vec::new();
    if options.quick {
        arguments.push("--quick".to_owned());
    }
    if !options.only.is_empty() {
        arguments.push(format!("--only {}", options.only.join(",")));
    }
    if let Some(rounds) = options.rounds {
        arguments.push(format!("--rounds {rounds}"));
    }
    if options.add {
        arguments.push("--add".to_owned());
    }
    results.runs.push(RunNote {
        when: told("date", &["-u", "+%F %H:%M"]),
        commit: told("git", &["describe", "--always", "--dirty"]),
        arguments: arguments.join(" "),
        load: load_average(),
        distance: None,
    });
}

/// Whether the case made the row.
fn belongs(row: &Row, case: &Case) -> bool {
    row.place == case.place && case.test.has_value(&row.metric)
}

/// The results without the rows that other runs measured. All of them if there was no run.
fn of_last_run(results: &Results, cases: &[Case]) -> Results {
    let mut of_run = results.clone();
    if !cases.is_empty() {
        of_run.forget(|row| !cases.iter().any(|case| belongs(row, case)));
        let others = of_run.runs.len().saturating_sub(1);
        of_run.runs.drain(..others);
    }
    of_run
}

/// Writes the report, its plots and the JSON.
fn tell(options: &Options, results: &Results, output: &Path) -> Result<()> {
    let goals = goals::goals(results);
    let plots = output.join("plots");
    if plots.exists() {
        fs::remove_dir_all(&plots).context("Removing the former plots")?;
    }
    fs::create_dir_all(&plots).with_context(|| format!("Making {}", plots.display()))?;
    let mut drawn = Vec::new();
    for group in Group::ALL {
        for table in report::tables(results, group) {
            if plots::draw(results, &table, &plots.join(table.file()))? {
                drawn.push(table);
            }
        }
    }
    let page = report::render(results, &goals, |table| drawn.contains(table));
    let path = output.join("REPORT.md");
    fs::write(&path, page).with_context(|| format!("Writing {}", path.display()))?;
    if let Some(path) = &options.json {
        fs::File::create(path)
            .and_then(|file| report::write_json(results, &goals, file))
            .with_context(|| format!("Writing {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Test, Way};
    use crate::options::tests::parse;
    use crate::results::tests::row;

    fn results() -> Results {
        let mut results = Results::default();
        results.add(row(Way::Inter, 64, &[1.0]));
        let mut other = row(Way::Inter, 64, &[1.0]);
        other.metric = "tcp_rr".to_owned();
        results.add(other);
        results.note_not_run("paper/uml/one-cpu/groups/tcp_stream/tap", "failed");
        results.note_not_run("udp/qemu", "failed");
        results
    }

    fn after(arguments: &[&str]) -> Results {
        let options = parse(arguments).unwrap();
        let mut results = results();
        begin(
            &mut results,
            &options,
            &plan(&options, &Facts::TWO_CPUS).cases,
        );
        results
    }

    #[test]
    fn name_that_stands_for_nothing_is_an_error() {
        let check = |only: &str| {
            let options = parse(&["--only", only]).unwrap();
            check_filters(&options, &plan(&options, &Facts::TWO_CPUS))
        };
        for only in [
            "paper",
            "paper/uml/one-cpu/session",
            "busy,udp/qemu",
            "paper/uml/per-process",
        ] {
            check(only).unwrap();
        }
        let error = check("paper/uml/one-cpu/tcp_stream")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("paper/uml/one-cpu/groups, paper/uml/one-cpu/session"),
            "{error}"
        );
        assert!(!error.contains("udp"), "{error}");
        check("paper,busy/uml/two-cpus").unwrap_err();
    }

    #[test]
    fn results_are_replaced_where_measured_again_and_kept_elsewhere() {
        let metrics = |results: &Results| -> Vec<String> {
            let rows = results.rows.iter();
            rows.map(|row| row.metric.clone()).collect()
        };
        let some = after(&["--only", "paper/uml/one-cpu/groups/tcp_stream"]);
        assert_eq!(metrics(&some), ["tcp_rr"]);
        assert_eq!(some.not_run.len(), 1);
        assert_eq!(
            some.runs[0].arguments,
            "--only paper/uml/one-cpu/groups/tcp_stream"
        );
        let added = after(&["--only", "paper", "--add"]);
        assert_eq!(metrics(&added), ["tcp_stream", "tcp_rr"]);
        assert!(metrics(&after(&[])).is_empty());
        assert!(metrics(&after(&["--only", "link"])).len() == 2);

        // All values of a case go with it, whatever their names add to its own.
        let options = parse(&["--only", "scale/host"]).unwrap();
        let cases = plan(&options, &Facts::TWO_CPUS).cases;
        let mesh = cases.iter().find(|case| case.test == Test::Mesh).unwrap();
        let mut results = Results::default();
        for metric in ["mesh", "mesh_join_work", "mesh_pair_files", "mesh_sparse"] {
            let mut row = row(Way::Inter, 64, &[1.0]);
            (row.place, row.metric) = (mesh.place, metric.to_owned());
            results.add(row);
        }
        begin(&mut results, &options, &cases);
        assert_eq!(metrics(&results), [""; 0]);
    }

    #[test]
    fn rows_of_other_runs_are_not_kept() {
        let mut results = results();
        let options = parse(&["--only", "paper/uml/one-cpu/groups/tcp_rr"]).unwrap();
        let cases = plan(&options, &Facts::TWO_CPUS).cases;
        for _ in 0..2 {
            begin(&mut results, &parse(&["--add"]).unwrap(), &[]);
        }
        let kept = of_last_run(&results, &cases);
        let metrics: Vec<&str> = kept.rows.iter().map(|row| &*row.metric).collect();
        assert_eq!(metrics, ["tcp_rr"]);
        assert_eq!(kept.runs, results.runs[1..]);
        assert_eq!(of_last_run(&results, &[]), results);
    }

    #[test]
    fn row_belongs_to_one_test() {
        let cases = plan(&parse(&[]).unwrap(), &Facts::TWO_CPUS).cases;
        for of in &cases {
            for suffix in ["", "_p99", "_memory"] {
                let metric = of.test.id() + suffix;
                for case in &cases {
                    let is_own = case.test.id() == of.test.id();
                    assert_eq!(case.test.has_value(&metric), is_own, "{metric} of {case:?}");
                }
            }
        }
    }
}
