//! The page: the goals, the plots and every row, as Markdown; and the JSON of it.

use std::fmt::Write;
use std::io;

use serde::Serialize;

use crate::case::{Environment, Group, Place, Way};
use crate::distance::DistanceNote;
use crate::goals::Goal;
use crate::placement::Grouping;
use crate::results::{At, Results, Row};
use crate::stats::{Spread, number};
use crate::words::{INTRODUCTION, group_name, group_words, metric_name};

/// Stands where there is nothing.
const NONE: &str = "–";

/// Writes goals and all rows as one JSON object.
///
/// # Errors
///
/// The error of the write.
pub fn write_json(results: &Results, goals: &[Goal], mut to: impl io::Write) -> io::Result<()> {
    #[derive(Serialize)]
    struct Report<'a> {
        goals: &'a [Goal],
        #[serde(flatten)]
        results: &'a Results,
    }
    serde_json::to_writer_pretty(&mut to, &Report { goals, results })?;
    writeln!(to)
}

/// A table of the report, and a plot where its rows have several sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Where its values were measured.
    pub place: Place,
    /// The value's name.
    pub metric: String,
}

impl Table {
    /// The section of its values.
    pub fn at(&self) -> At<'_> {
        At {
            place: self.place,
            metric: &self.metric,
        }
    }

    /// The name of its plot's file.
    pub fn file(&self) -> String {
        format!("{}-{}.svg", self.place.id().replace('/', "-"), self.metric)
    }

    /// Its title.
    pub fn title(&self) -> String {
        let Place {
            group,
            environment,
            placement,
            grouping,
        } = self.place;
        let place = match environment {
            Environment::Host if group == Group::Scale => "no guests".to_owned(),
            Environment::Host => "two CPUs of the host".to_owned(),
            other => format!("{}, {}", other.name(), placement.name()),
        };
        // Where there is no other, it goes without saying.
        let grouped = match (environment, grouping) {
            (Environment::Host | Environment::Nested, Grouping::Session) => String::new(),
            _ => format!(", {}", grouping.name()),
        };
        format!("{}: {place}{grouped}", metric_name(&self.metric))
    }
}

/// Suffix of the name of a value that stands beside another in one table, and the title of its
/// column.
const COMPANIONS: [(&str, &str); 6] = [
    ("_p99", "99 %"),
    ("_p99_9", "99.9 %"),
    ("_loss", "lost, %"),
    ("_each", "ns each"),
    ("_wakeups", "wake-ups in 10 s"),
    ("_cpu", "ms of CPU in 10 s"),
];

fn is_companion(metric: &str) -> bool {
    COMPANIONS
        .iter()
        .any(|(suffix, _)| metric.ends_with(suffix))
}

/// The tables of a group, in the order of their first rows.
pub fn tables(results: &Results, group: Group) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    let of_group = |row: &&Row| row.place.group == group && !is_companion(&row.metric);
    for row in results.rows.iter().filter(of_group) {
        let table = Table {
            place: row.place,
            metric: row.metric.clone(),
        };
        if !tables.contains(&table) {
            tables.push(table);
        }
    }
    tables.sort_by_key(|Table { place, .. }| {
        (
            place.environment.id(),
            place.placement.id(),
            place.grouping.id(),
        )
    });
    tables
}

/// The ways of a table, in the order of their first rows.
pub fn ways(results: &Results, table: &Table) -> Vec<Way> {
    let mut ways = Vec::new();
    for row in rows(results, table) {
        if !ways.contains(&row.way) {
            ways.push(row.way);
        }
    }
    ways.sort_by_key(|way| *way as u8);
    ways
}

fn rows<'a>(results: &'a Results, table: &'a Table) -> impl Iterator<Item = &'a Row> {
    results
        .rows
        .iter()
        .filter(|row| row.place == table.place && row.metric == table.metric)
}

/// The page. Plots are linked where `has_plot` says so.
pub fn render(results: &Results, goals: &[Goal], has_plot: impl Fn(&Table) -> bool) -> String {
    let mut page = String::from(INTRODUCTION);
    goals_table(&mut page, goals);
    machine(&mut page, results);
    for group in Group::ALL {
        let tables = tables(results, group);
        let _ = writeln!(page, "\n## {}\n\n{}", group_name(group), group_words(group));
        if tables.is_empty() {
            let _ = writeln!(page, "\nNot measured.");
        }
        for table in &tables {
            section(&mut page, results, table, has_plot(table));
        }
    }
    let _ = writeln!(page, "\n## What did not run\n");
    for note in &results.not_run {
        let _ = writeln!(page, "- `{}`: {}", note.what, one_line(&note.why));
    }
    if results.not_run.is_empty() {
        page += "Nothing was left out.\n";
    }
    page
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn machine(page: &mut String, results: &Results) {
    page.push_str("\n## Where and when\n\n");
    if let Some(machine) = &results.machine {
        let _ = writeln!(page, "{}.\n", machine.describe());
    }
    page.push_str(
        "| begun (UTC) | commit | load before | `cargo xtask bench …` |\n|---|---|---|---|\n",
    );
    for run in &results.runs {
        let _ = writeln!(
            page,
            "| {} | {} | {:.2} | `{}` |",
            run.when, run.commit, run.load, run.arguments
        );
    }
    for run in &results.runs {
        if let Some(distance) = &run.distance {
            let _ = writeln!(page, "\n{}", apart(&run.when, distance));
        }
    }
}

/// The distance of the two CPUs of a run.
fn apart(when: &str, distance: &DistanceNote) -> String {
    let DistanceNote {
        least_ns,
        most_ns,
        waited,
        apart,
    } = distance;
    format!(
        "{when}: a cache line takes {least_ns} to {most_ns} ns from one CPU to the other. \
         Measurements with a CPU for each guest were taken while the CPUs were near each other. \
         Waiting and repetitions took {waited:.0} s, and {apart} measurements were taken while \
         the CPUs were apart."
    )
}

fn goals_table(page: &mut String, goals: &[Goal]) {
    page.push_str("## Goals\n\n| ratio | measured | goal | met | |\n|---|--:|--:|---|---|\n");
    for goal in goals {
        let value = goal.value.map_or_else(|| NONE.to_owned(), number);
        let met = match goal.met {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => NONE,
        };
        let _ = writeln!(
            page,
            "| {} | {value} | {} | {met} | {} |",
            goal.name,
            goal.goal,
            one_line(&goal.note)
        );
    }
}

fn section(page: &mut String, results: &Results, table: &Table, has_plot: bool) {
    let title = table.title();
    let _ = writeln!(page, "\n### {title}\n");
    if has_plot {
        let _ = writeln!(page, "![{title}](plots/{})\n", table.file());
    }
    let unit = rows(results, table)
        .next()
        .map_or("", |row| row.unit.as_str());
    let base = base(table);
    let against = base.map_or(NONE.to_owned(), |way| format!("÷ {}", way.name()));
    let companions: Vec<(String, &str)> = COMPANIONS
        .iter()
        .map(|(suffix, title)| (format!("{}{suffix}", table.metric), *title))
        .filter(|(metric, _)| !results.sizes(&at_metric(table, metric)).is_empty())
        .collect();
    let titles: String = companions
        .iter()
        .map(|(_, title)| format!(" {title} |"))
        .collect();
    // Where there is a plot, the figures are folded.
    if has_plot {
        page.push_str("<details><summary>Figures</summary>\n\n");
    }
    let _ = writeln!(
        page,
        "| {} | way | median, {unit} | min … max | rounds | {against} \
         |{titles} copies | processes | CPU s/GB |\n\
         |--:|---|--:|--:|--:|--:|{}--:|--:|--:|",
        size_name(table),
        "--:|".repeat(companions.len())
    );
    for size in results.sizes(&table.at()) {
        for way in ways(results, table) {
            let Some(row) = results.row(&table.at(), way, size) else {
                continue;
            };
            let Some(spread) = row.spread() else { continue };
            let shown = |value: Option<f64>| value.map_or_else(|| NONE.to_owned(), number);
            let against = base
                .filter(|base| *base != way)
                .and_then(|base| results.median(&table.at(), base, size))
                .filter(|base| *base != 0.0)
                .map(|base| spread.median / base);
            let beside: String = companions
                .iter()
                .map(|(metric, _)| results.median(&at_metric(table, metric), way, size))
                .map(|value| format!(" {} |", shown(value)))
                .collect();
            let cost = Spread::of(&row.cpu_seconds_per_gb).map(|cost| cost.median);
            let _ = writeln!(
                page,
                "| {size} | {} | {} | {} … {} | {} | {} |{beside} {} | {} | {} |",
                way.name(),
                number(spread.median),
                number(spread.min),
                number(spread.max),
                row.rounds.len(),
                shown(against),
                row.copies,
                row.processes,
                shown(cost)
            );
        }
    }
    if has_plot {
        page.push_str("\n</details>\n");
    }
}

/// Another value of the same place.
fn at_metric<'a>(table: &Table, metric: &'a str) -> At<'a> {
    At {
        place: table.place,
        metric,
    }
}

/// The way that the others are compared with.
fn base(table: &Table) -> Option<Way> {
    match (table.place.group, table.metric.as_str()) {
        (Group::Paper | Group::Latency | Group::Udp | Group::Busy, _) => Some(Way::Loopback),
        (Group::Peers, "forward") => Some(Way::NetVhost),
        (Group::Peers | Group::Link, _) => Some(Way::Memcpy),
        (Group::Uplink, "tcp_stream" | "tcp") => Some(Way::Inter),
        (Group::Uplink, _) | (Group::Scale, "pairs" | "all_to_one") => Some(Way::Tap),
        (Group::Scale, _) => None,
    }
}

fn size_name(table: &Table) -> &'static str {
    match (table.place.group, table.metric.as_str()) {
        (Group::Scale, _) => "ports",
        (Group::Peers, "forward") => "frame, B",
        (Group::Link | Group::Peers, _) => "record or call, B",
        (Group::Udp, _) => "payload, B",
        _ => "message, B",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::goals::goals;
    use crate::results::tests::row;

    fn some() -> Results {
        let mut results = Results::default();
        for size in [64, 65536] {
            results.add(row(Way::Loopback, size, &[10.0, 12.0, 11.0]));
            results.add(row(Way::Inter, size, &[5.0, 6.0, 5.5]));
        }
        results.note_not_run("paper/cloud-hypervisor", "no\nprogram");
        results
    }

    #[test]
    fn json_has_the_promised_shape() {
        let results = some();
        let mut text = Vec::new();
        write_json(&results, &goals(&results), &mut text).unwrap();
        let report: Value = serde_json::from_slice(&text).unwrap();
        let goals = report["goals"].as_array().unwrap();
        assert!(goals.len() >= 20, "{}", goals.len());
        for goal in goals {
            assert!(goal["name"].is_string() && goal["goal"].is_string());
            assert!(goal["value"].is_f64() || goal["value"].is_null());
            assert_eq!(goal["met"].is_null(), goal["value"].is_null());
        }
        assert_eq!(goals[0]["value"], 0.5);
        assert_eq!(goals[0]["met"], false);
        assert_eq!(report["rows"].as_array().unwrap().len(), 4);
        assert_eq!(report["rows"][0]["way"], "loopback");
        assert_eq!(report["rows"][0]["placement"], "one-cpu");
    }

    #[test]
    fn report_row_has_its_spread_ratio_and_cost() {
        let results = some();
        let page = render(&results, &goals(&results), |_| true);
        assert!(page.contains(
            "### netperf TCP_STREAM: User Mode Linux, all on one CPU, each in a group of its own"
        ));
        assert!(page.contains("(plots/paper-uml-one-cpu-groups-tcp_stream.svg)"));
        assert!(
            page.contains("| 64 | virtio-inter | 5.50 | 5.00 … 6.00 | 3 | 0.50 | 2 | 2 | 1.00 |"),
            "{page}"
        );
        assert!(page.contains("| 64 | loopback | 11.0 | 10.0 … 12.0 | 3 | – | 0 | 0 | 1.00 |"));
        assert!(page.contains("- `paper/cloud-hypervisor`: no program\n"));
        assert!(page.contains("## Many ports") && page.contains("Not measured."));
    }

    #[test]
    fn percentiles_stand_beside_their_median() {
        let mut results = Results::default();
        for (metric, value) in [("tcp", 10.0), ("tcp_p99", 20.0), ("tcp_p99_9", 30.0)] {
            let mut row = row(Way::Inter, 64, &[value]);
            (row.place.group, row.metric) = (Group::Latency, metric.to_owned());
            row.cpu_seconds_per_gb.clear();
            results.add(row);
        }
        assert_eq!(tables(&results, Group::Latency).len(), 1);
        let page = render(&results, &[], |_| false);
        assert!(page.contains("| ÷ loopback | 99 % | 99.9 % | copies |"));
        let line = "| 64 | virtio-inter | 10.0 | 10.0 … 10.0 | 1 | – | 20.0 | 30.0 | 2 | 2 | – |";
        assert!(page.contains(line), "{page}");
        assert!(!page.contains("<details>"));
    }
}
