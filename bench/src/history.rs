//! Results of several machines and commits side by side: a file of results for each, and a page
//! with their ratios.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::case::{Environment, Group, Place, Way};
use crate::goals::goals;
use crate::placement::{Grouping, Placement};
use crate::results::{At, Results};
use crate::stats::{Spread, number};

/// Stands where there is nothing.
const NONE: &str = "–";

/// Results that were kept.
#[derive(Debug)]
pub struct Entry {
    /// The name of their file.
    pub file: String,
    /// The results.
    pub results: Results,
}

/// Name of the file of results: machine, day and commit of the last run.
pub fn file_name(results: &Results) -> Option<String> {
    let machine = results.machine.as_ref()?;
    let run = results.runs.last()?;
    let day = run.when.split(' ').next().unwrap_or_default();
    let name = format!("{} {}cpu {day} {}", machine.cpu, machine.cpus, run.commit);
    let words: Vec<String> = name
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    Some(format!("{}.json", words.join("-")))
}

/// Keeps results in `directory`, in place of those of the same machine, day and commit. Returns the
/// file.
///
/// # Errors
///
/// Results without a run, a place that cannot be written.
pub fn keep(results: &Results, directory: &Path) -> Result<PathBuf> {
    let name = file_name(results).context("There are no results of a run to keep")?;
    fs::create_dir_all(directory).with_context(|| format!("Making {}", directory.display()))?;
    let path = directory.join(name);
    results.save(&path)?;
    Ok(path)
}

/// All results in `directory`, the oldest first.
///
/// # Errors
///
/// A directory that cannot be listed, a file that is none of results.
pub fn load(directory: &Path) -> Result<Vec<Entry>> {
    let listing = || format!("Listing {}", directory.display());
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory).with_context(listing)? {
        let path = entry.with_context(listing)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            entries.push(Entry {
                file: path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                results: Results::load(&path)?,
            });
        }
    }
    let when = |entry: &Entry| entry.results.runs.last().map(|run| run.when.clone());
    entries.sort_by_key(|entry| (when(entry), entry.file.clone()));
    Ok(entries)
}

/// Writes the page of `directory`, `machines.md`. Without a directory there is none.
///
/// # Errors
///
/// Those of [`load`], a page that cannot be written.
pub fn write_page(directory: &Path) -> Result<()> {
    if !directory.is_dir() {
        return Ok(());
    }
    let path = directory.join("machines.md");
    fs::write(&path, page(&load(directory)?)).with_context(|| format!("Writing {}", path.display()))
}

/// The page: which results there are, and their ratios in columns.
pub fn page(entries: &[Entry]) -> String {
    let mut page = String::from(INTRODUCTION);
    page.push_str("| | machine | CPUs | kernel | control groups | begun (UTC) | commit | file |\n");
    page.push_str("|--:|---|--:|---|---|---|---|---|\n");
    for (number, Entry { file, results }) in (1..).zip(entries) {
        let run = results.runs.last();
        let of_run = |text: fn(&crate::results::RunNote) -> &str| run.map_or(NONE, text);
        let (cpu, cpus, kernel, groups) = match &results.machine {
            Some(machine) => (
                machine.cpu.as_str(),
                machine.cpus.to_string(),
                machine.kernel.as_str(),
                machine
                    .control_groups
                    .map_or(NONE.to_owned(), |version| format!("v{version}")),
            ),
            None => (NONE, NONE.to_owned(), NONE, NONE.to_owned()),
        };
        let _ = writeln!(
            page,
            "| {number} | {cpu} | {cpus} | {kernel} | {groups} | {} | {} | [{file}]({file}) |",
            of_run(|run| &run.when),
            of_run(|run| &run.commit),
        );
    }
    let columns: Vec<Vec<Ratio>> = entries.iter().map(|entry| ratios(&entry.results)).collect();
    let numbers: String = (1..=entries.len())
        .map(|number| format!(" {number} |"))
        .collect();
    let _ = writeln!(
        page,
        "\n| ratio |{numbers}\n|---|{}",
        "--:|".repeat(entries.len())
    );
    // All results have the same ratios in the same order.
    let names = columns
        .first()
        .into_iter()
        .flatten()
        .map(|ratio| &ratio.name);
    for (row, name) in names.enumerate() {
        let values: Vec<Option<f64>> = columns.iter().map(|column| column[row].value).collect();
        if values.iter().all(Option::is_none) {
            continue;
        }
        let cells: String = values
            .into_iter()
            .map(|value| format!(" {} |", value.map_or_else(|| NONE.to_owned(), number)))
            .collect();
        let _ = writeln!(page, "| {name} |{cells}");
    }
    page
}

struct Ratio {
    name: String,
    value: Option<f64>,
}

/// The ratios of User Mode Linux guests in both groupings, and what else is a goal.
fn ratios(results: &Results) -> Vec<Ratio> {
    let mut all = Vec::new();
    for grouping in Grouping::ALL {
        for placement in [
            Placement::OneCpu,
            Placement::PerGuest,
            Placement::PerProcess,
        ] {
            let place = |group| Place {
                group,
                environment: Environment::Uml,
                placement,
                grouping,
            };
            let words = format!("UML, {}, {}", placement.name(), grouping.name());
            of_guests(results, &words, place, &mut all);
        }
    }
    // Those of User Mode Linux between two guests are above, and a count of sizes is no ratio.
    const LEFT_OUT: [&str; 3] = ["UML ", "CPU seconds per GB", "message sizes"];
    let others = goals(results)
        .into_iter()
        .filter(|goal| !LEFT_OUT.iter().any(|start| goal.name.starts_with(start)));
    all.extend(others.map(|goal| Ratio {
        name: goal.name,
        value: goal.value,
    }));
    all
}

fn of_guests(results: &Results, words: &str, place: impl Fn(Group) -> Place, all: &mut Vec<Ratio>) {
    const TAP: (Way, &str) = (Way::Tap, "tap + bridge");
    const LOOPBACK: (Way, &str) = (Way::Loopback, "loopback");
    for (group, metric, size, what, to) in [
        (Group::Paper, "tcp_stream", 65536, "TCP stream", LOOPBACK),
        (Group::Paper, "tcp_stream", 65536, "TCP stream", TAP),
        (Group::Paper, "tcp_stream", 2048, "TCP stream of 2 KiB", TAP),
        (Group::Latency, "tcp", 64, "half round trip", LOOPBACK),
        (Group::Latency, "tcp", 64, "half round trip", TAP),
        (Group::Latency, "tcp_p99", 64, "half round trip, p99", TAP),
        (
            Group::Busy,
            "tcp_stream",
            65536,
            "busy neighbour: TCP stream",
            TAP,
        ),
        (
            Group::Busy,
            "tcp",
            64,
            "busy neighbour: half round trip, p50",
            TAP,
        ),
        (
            Group::Busy,
            "tcp_p99",
            64,
            "busy neighbour: half round trip, p99",
            TAP,
        ),
    ] {
        let at = At {
            place: place(group),
            metric,
        };
        let median = |way| results.median(&at, way, size);
        all.push(Ratio {
            name: format!("{words}: {what} ÷ {}", to.1),
            value: median(Way::Inter)
                .zip(median(to.0))
                .map(|(inter, other)| inter / other),
        });
    }
    let at = At {
        place: place(Group::Paper),
        metric: "tcp_stream",
    };
    let cost = |way| -> Option<f64> {
        let row = results.row(&at, way, 65536)?;
        Some(Spread::of(&row.cpu_seconds_per_gb)?.median)
    };
    all.push(Ratio {
        name: format!("{words}: CPU seconds per GB ÷ tap + bridge"),
        value: cost(Way::Inter)
            .zip(cost(Way::Tap))
            .map(|(inter, tap)| inter / tap),
    });
}

const INTRODUCTION: &str = "\
# Results of several machines

Written by `cargo xtask bench`. Each file has the results of one machine, day and commit, in the
form of `results.json`; `cargo xtask bench --keep` adds those that are there. A column of the
second table is one file. Ratios are of medians, virtio-inter to the other way, within one run.
Compare them between columns; absolute values belong to their machine. Streams: more is better;
times and CPU: less. Results from before the dimension *group* are those of one session.

";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::results::RunNote;
    use crate::results::tests::row;

    fn results(when: &str, cpu: &str, rate: f64, grouping: Grouping) -> Results {
        let mut results = Results {
            machine: Some(Machine {
                cpu: cpu.to_owned(),
                cpus: 2,
                memory_mib: 1024,
                kernel: "6.12".to_owned(),
                governor: None,
                is_virtual: true,
                has_kvm: false,
                control_groups: Some(1),
            }),
            runs: vec![RunNote {
                when: when.to_owned(),
                commit: "abc1234-dirty".to_owned(),
                arguments: String::new(),
                load: 0.0,
                distance: None,
            }],
            ..Results::default()
        };
        for (way, rate) in [(Way::Inter, rate), (Way::Tap, 10.0)] {
            let mut row = row(way, 65536, &[rate]);
            row.place.grouping = grouping;
            results.add(row);
        }
        results
    }

    #[test]
    fn history_has_a_file_for_each_machine_day_and_commit() {
        let directory = std::env::temp_dir().join(format!("history-{}", std::process::id()));
        let intel = results(
            "2026-11-28 10:00",
            "Intel(R) Xeon(R)",
            5.0,
            Grouping::Groups,
        );
        let amd = results("2026-11-27 10:00", "AMD EPYC 9B45", 8.0, Grouping::Session);
        let path = keep(&intel, &directory).unwrap();
        assert_eq!(
            path.file_name().unwrap(),
            "intel-r-xeon-r-2cpu-2026-11-28-abc1234-dirty.json"
        );
        keep(&amd, &directory).unwrap();
        // The same once more is no other file.
        keep(&amd, &directory).unwrap();
        write_page(&directory).unwrap();
        let entries = load(&directory).unwrap();
        assert_eq!(entries.len(), 2);
        // The oldest first.
        assert_eq!(entries[0].results, amd);
        let page = fs::read_to_string(directory.join("machines.md")).unwrap();
        let line = "| 1 | AMD EPYC 9B45 | 2 | 6.12 | v1 | 2026-11-27 10:00 | abc1234-dirty |";
        assert!(page.contains(line), "{page}");
        let stream = "UML, all on one CPU, each in a group of its own: TCP stream ÷ tap + bridge";
        assert!(page.contains(&format!("| {stream} | – | 0.50 |")), "{page}");
        let stream = "UML, all on one CPU, in one session: TCP stream ÷ tap + bridge";
        assert!(page.contains(&format!("| {stream} | 0.80 | – |")), "{page}");
        // What nobody measured has no row.
        assert!(!page.contains("busy neighbour"), "{page}");
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn history_of_nothing_is_not_kept() {
        let directory = std::env::temp_dir().join("no-such-history");
        keep(&Results::default(), &directory).unwrap_err();
        assert!(!directory.exists());
        write_page(&directory).unwrap();
    }
}
