//! The result file: rows of rounds, the runs that made them, and the cases left out; runs can be
//! merged.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::case::{Place, Way};
use crate::distance::DistanceNote;
use crate::machine::Machine;
use crate::stats::Spread;

/// One value of one case, on one way, with one size, in all rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Where it is reported, and what its parties ran on.
    #[serde(flatten)]
    pub place: Place,
    /// What the value is.
    pub metric: String,
    /// The way.
    pub way: Way,
    /// The size, whose meaning is the test's.
    pub size: u32,
    /// The unit of `rounds`.
    pub unit: String,
    /// The values, in the order of measuring.
    pub rounds: Vec<f64>,
    /// Processor seconds that all parties spent on 10^9 bytes, in each round; empty where bytes are
    /// not the point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpu_seconds_per_gb: Vec<f64>,
    /// Copies by the host between the ends.
    pub copies: u8,
    /// Processes of the host between the ends.
    pub processes: u8,
}

impl Row {
    fn is_like(&self, other: &Self) -> bool {
        self.place == other.place
            && (self.way, self.size) == (other.way, other.size)
            && self.metric == other.metric
    }

    /// Median, least and greatest value; none without rounds.
    pub fn spread(&self) -> Option<Spread> {
        Spread::of(&self.rounds)
    }
}

/// Something that this machine could not do, or that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotRun {
    /// The case, or what begins its name.
    pub what: String,
    /// The reason.
    pub why: String,
}

/// One call of the command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunNote {
    /// When it began, in UTC.
    pub when: String,
    /// The commit, with a mark if files were changed.
    pub commit: String,
    /// Its command line.
    pub arguments: String,
    /// Load average of the machine before it.
    pub load: f64,
    /// The distance of its two CPUs; none where no case used two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<DistanceNote>,
}

/// All that is known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// The machine.
    pub machine: Option<Machine>,
    /// The runs whose rows are here.
    pub runs: Vec<RunNote>,
    /// The cases left out.
    pub not_run: Vec<NotRun>,
    /// The rows.
    pub rows: Vec<Row>,
}

impl Results {
    /// Reads a result file. One that is not there is empty.
    ///
    /// # Errors
    ///
    /// A file that is not one of results.
    pub fn load(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let text =
            fs::read_to_string(path).with_context(|| format!("Reading {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is no result file: remove it", path.display()))
    }

    /// Writes the result file, a line a row, in one step.
    ///
    /// # Errors
    ///
    /// A place that cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let draft = path.with_extension("json.new");
        let write = || -> Result<()> {
            let mut file = fs::File::create(&draft)?;
            writeln!(
                file,
                "{{\"machine\": {},",
                serde_json::to_string(&self.machine)?
            )?;
            let mut lines = |name: &str, lines: Vec<String>, end: &str| -> Result<()> {
                let text = lines.join(",\n  ");
                Ok(writeln!(file, " \"{name}\": [\n  {text}\n ]{end}")?)
            };
            let text = |rows: Vec<serde_json::Result<String>>| {
                rows.into_iter().collect::<serde_json::Result<Vec<_>>>()
            };
            lines(
                "runs",
                text(self.runs.iter().map(serde_json::to_string).collect())?,
                ",",
            )?;
            let not_run = self.not_run.iter().map(serde_json::to_string);
            lines("not_run", text(not_run.collect())?, ",")?;
            lines(
                "rows",
                text(self.rows.iter().map(serde_json::to_string).collect())?,
                "}",
            )?;
            fs::rename(&draft, path)?;
            Ok(())
        };
        write().with_context(|| format!("Writing {}", path.display()))
    }

    /// Adds the rounds of `row` to the row that is like it, or the row if there is none.
    pub fn add(&mut self, row: Row) {
        match self.rows.iter_mut().find(|known| known.is_like(&row)) {
            Some(known) => {
                known.rounds.extend(row.rounds);
                known.cpu_seconds_per_gb.extend(row.cpu_seconds_per_gb);
            }
            None => self.rows.push(row),
        }
    }

    /// Forgets the rows for which this holds.
    pub fn forget(&mut self, is_gone: impl Fn(&Row) -> bool) {
        self.rows.retain(|row| !is_gone(row));
    }

    /// Notes once that something was not run.
    pub fn note_not_run(&mut self, what: &str, why: &str) {
        self.not_run.retain(|note| note.what != what);
        self.not_run.push(NotRun {
            what: what.to_owned(),
            why: why.to_owned(),
        });
    }

    /// The row of these, if it was measured.
    pub fn row(&self, at: &At, way: Way, size: u32) -> Option<&Row> {
        self.rows.iter().find(|row| {
            row.place == at.place && row.metric == at.metric && (row.way, row.size) == (way, size)
        })
    }

    /// The median of these.
    pub fn median(&self, at: &At, way: Way, size: u32) -> Option<f64> {
        Some(self.row(at, way, size)?.spread()?.median)
    }

    /// The sizes at which these were measured, in order.
    pub fn sizes(&self, at: &At) -> Vec<u32> {
        let mut sizes: Vec<u32> = self
            .rows
            .iter()
            .filter(|row| row.place == at.place && row.metric == at.metric)
            .map(|row| row.size)
            .collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }
}

/// The key of a value, without way and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At<'a> {
    /// What its parties ran on.
    pub place: Place,
    /// The value's name.
    pub metric: &'a str,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::case::{Environment, Group};
    use crate::placement::{Grouping, Placement};

    pub(crate) const PLACE: Place = Place {
        group: Group::Paper,
        environment: Environment::Uml,
        placement: Placement::OneCpu,
        grouping: Grouping::Groups,
    };

    pub(crate) fn row(way: Way, size: u32, rounds: &[f64]) -> Row {
        Row {
            place: PLACE,
            metric: "tcp_stream".to_owned(),
            way,
            size,
            unit: "Gbit/s".to_owned(),
            rounds: rounds.to_vec(),
            cpu_seconds_per_gb: vec![1.0; rounds.len()],
            copies: way.copies(),
            processes: way.processes(),
        }
    }

    pub(crate) const STREAM: At<'static> = At {
        place: PLACE,
        metric: "tcp_stream",
    };

    #[test]
    fn rounds_of_the_same_row_are_merged_and_others_kept() {
        let mut results = Results::default();
        results.add(row(Way::Inter, 64, &[1.0]));
        results.add(row(Way::Tap, 64, &[5.0]));
        results.add(row(Way::Inter, 64, &[3.0, 2.0]));
        assert_eq!(results.rows.len(), 2);
        assert_eq!(results.median(&STREAM, Way::Inter, 64), Some(2.0));
        assert_eq!(results.rows[0].cpu_seconds_per_gb.len(), 3);
        assert_eq!(results.median(&STREAM, Way::Inter, 128), None);
        results.forget(|row| row.way == Way::Inter);
        assert_eq!(results.median(&STREAM, Way::Inter, 64), None);
        assert_eq!(results.sizes(&STREAM), [64]);
    }

    #[test]
    fn rows_from_before_there_were_groups_are_of_one_session() {
        let mut line = serde_json::to_value(row(Way::Inter, 64, &[1.0])).unwrap();
        assert_eq!(line["grouping"], "groups");
        line.as_object_mut().unwrap().remove("grouping");
        let row: Row = serde_json::from_value(line).unwrap();
        assert_eq!(row.place.grouping, Grouping::Session);
    }

    #[test]
    fn file_of_results_is_read_as_it_was_written() {
        let path = std::env::temp_dir().join(format!("results-{}.json", std::process::id()));
        let mut results = Results::default();
        results.add(row(Way::Loopback, 64, &[1.5]));
        results.note_not_run("paper/cloud-hypervisor", "no program");
        results.note_not_run("paper/cloud-hypervisor", "no program here");
        results.save(&path).unwrap();
        let read = Results::load(&path).unwrap();
        assert_eq!(read, results);
        assert_eq!(read.not_run.len(), 1);
        fs::write(&path, "{").unwrap();
        assert!(Results::load(&path).is_err());
        fs::remove_file(&path).unwrap();
        assert_eq!(Results::load(&path).unwrap(), Results::default());
    }
}
