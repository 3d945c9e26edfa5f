//! One run: takes the cases of the plan in rounds, side by side, and notes what came of them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use virtio_inter_tests::{Testbed, stop_here_if_ending};

use crate::case::{Case, Environment, Group, Test, Way};
use crate::crowd::{self, Crowd};
use crate::guests::{self, Pair};
use crate::host::Host;
use crate::measured::Measured;
use crate::placement::Placement;
use crate::progress::Progress;
use crate::results::{Results, Row};
use crate::stats::{number, rotated};

/// The programs that a run starts.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `virtio-inter`; if none, what the environment names.
    pub port: Option<PathBuf>,
    /// `virtio-inter-bench`, which moves bytes between processes of the host.
    pub bench: PathBuf,
}

/// A run on its way.
pub struct Run {
    programs: Programs,
    cpus: Vec<usize>,
    progress: Progress,
    results: Results,
    /// Where the results are kept as they come, so that a run that is ended keeps its rounds.
    file: PathBuf,
    /// Cases and ways that failed: they are not tried again.
    broken: Vec<(String, Way)>,
}

impl Run {
    /// Begins a run of so many steps.
    pub fn new(
        programs: Programs,
        cpus: Vec<usize>,
        results: Results,
        file: PathBuf,
        steps: usize,
    ) -> Self {
        Self {
            programs,
            cpus,
            progress: Progress::new(steps),
            results,
            file,
            broken: Vec::new(),
        }
    }

    /// Ends the run.
    pub fn finish(self) -> Results {
        self.results
    }

    /// Measures all cases. What fails is noted, and the others go on.
    ///
    /// # Errors
    ///
    /// A result file that cannot be written.
    pub fn measure_all(&mut self, cases: &[Case]) -> Result<()> {
        for environment in [
            Environment::Uml,
            Environment::Qemu,
            Environment::CloudHypervisor,
        ] {
            let some = pick(cases, |case| {
                case.environment == environment && case.group != Group::Scale
            });
            if !some.is_empty() {
                self.measure_guests(environment, &some)?;
            }
        }
        let host = pick(cases, |case| {
            case.environment == Environment::Host && case.group != Group::Scale
        });
        if !host.is_empty() {
            self.measure_host(&host)?;
        }
        let crowd = pick(cases, |case| {
            case.group == Group::Scale && case.test != Test::Idle
        });
        if !crowd.is_empty() {
            self.measure_crowd(&crowd)?;
        }
        let idle = pick(cases, |case| case.test == Test::Idle);
        if !idle.is_empty() {
            let program = self.programs.port.clone();
            self.rounds(&idle, |_, _, size| crowd::idle(size, program.as_deref()))?;
        }
        Ok(())
    }

    /// Boots two guests and measures between them in each placement.
    fn measure_guests(&mut self, environment: Environment, cases: &[Case]) -> Result<()> {
        let name = environment.name();
        self.progress.begin(format!("{name}: booting two guests"));
        let bed = Testbed::new("the bench")?;
        let booted = guests::frontend(environment)
            .and_then(|kind| Pair::boot(&bed, kind, self.programs.port.as_deref()));
        let mut pair = match booted {
            Ok(pair) => pair,
            Err(error) => {
                bed.keep();
                return self.skip_all(cases, &format!("{error:#}"));
            }
        };
        self.progress
            .say(&format!("{name}, Linux {}: ready", pair.kernel_release()));
        for way in [Way::Loopback, Way::Inter, Way::Tap] {
            if let Ok(words) = pair.offloads(way) {
                self.progress.say(&format!("{}: {words}", way.name()));
            }
        }
        let gaps = self.broken.len();
        for placement in placements(cases) {
            let some = pick(cases, |case| case.placement == placement);
            let placed = match placement.cpus(&self.cpus) {
                Some(cpus) => pair.place(&cpus),
                None => Err(anyhow::anyhow!("Too few CPUs")),
            };
            if let Err(error) = placed {
                self.skip_all(&some, &format!("{error:#}"))?;
                continue;
            }
            self.rounds(&some, |case, way, size| pair.measure(case.test, way, size))?;
        }
        if self.broken.len() > gaps {
            bed.keep();
        }
        Ok(())
    }

    /// Measures between processes of the host.
    fn measure_host(&mut self, cases: &[Case]) -> Result<()> {
        let Some([near, far]) = self.cpus.last_chunk::<2>().copied() else {
            return self.skip_all(cases, "Too few CPUs");
        };
        let host = Host::new(self.programs.clone(), near, far);
        self.rounds(cases, |case, way, size| host.measure(case.test, way, size))
    }

    /// Boots many guests and measures between more and more of them.
    fn measure_crowd(&mut self, cases: &[Case]) -> Result<()> {
        let sizes = cases.iter().flat_map(|case| case.sizes.iter().copied());
        let ports = sizes.max().unwrap_or_default();
        self.progress.begin(format!("Booting {ports} guests"));
        let bed = Testbed::new("the bench")?;
        let mut crowd = match Crowd::boot(&bed, ports, self.programs.port.as_deref()) {
            Ok(crowd) => crowd,
            Err(error) => {
                bed.keep();
                return self.skip_all(cases, &format!("{error:#}"));
            }
        };
        self.progress.say(&format!("{ports} guests are ready"));
        self.rounds(cases, |case, way, size| crowd.measure(case.test, way, size))
    }

    /// Takes rounds of all cases; the ways of a case side by side and in another order each time.
    fn rounds(
        &mut self,
        cases: &[Case],
        mut measure: impl FnMut(&Case, Way, u32) -> Result<Measured>,
    ) -> Result<()> {
        let rounds = cases.iter().map(|case| case.rounds).max().unwrap_or(0);
        for round in 0..rounds {
            for case in cases.iter().filter(|case| round < case.rounds) {
                for (index, size) in case.sizes.iter().enumerate() {
                    for way in rotated(&case.ways, round as usize + index) {
                        self.step(case, way, *size, round, &mut measure);
                    }
                }
            }
            self.results.save(&self.file)?;
        }
        Ok(())
    }

    fn step(
        &mut self,
        case: &Case,
        way: Way,
        size: u32,
        round: u32,
        measure: &mut impl FnMut(&Case, Way, u32) -> Result<Measured>,
    ) {
        let id = case.id();
        if self.broken.contains(&(id.clone(), way)) {
            return self.progress.skip(1);
        }
        let what = format!("{id}, {size}, {}, round {}", way.name(), round + 1);
        self.progress.begin(what.clone());
        // Once more if it failed: a connection may stall for long on a busy machine.
        let outcome = measure(case, way, size).or_else(|error| {
            stop_here_if_ending();
            self.progress
                .say(&format!("{what}: once more after: {error:#}"));
            measure(case, way, size)
        });
        match outcome {
            Ok(measured) => {
                let first = measured.values.first();
                let shown = first.map_or_else(String::new, |value| {
                    format!("{} {}", number(value.value), value.unit)
                });
                self.progress.done(&format!("{what}: {shown}"));
                self.record(case, way, size, &measured);
            }
            Err(error) => {
                stop_here_if_ending();
                let why = format!("{error:#}");
                // A log at its end may end with line feeds, and be long.
                let why: String = why.trim_end().chars().take(500).collect();
                self.progress.skip(1);
                self.progress.say(&format!("FAILED {what}: {why}"));
                self.results
                    .note_not_run(&format!("{id}/{}", way.name()), &format!("failed: {why}"));
                self.broken.push((id, way));
            }
        }
    }

    fn record(&mut self, case: &Case, way: Way, size: u32, measured: &Measured) {
        for (index, value) in measured.values.iter().enumerate() {
            let cost = measured.cpu_seconds_per_gb().filter(|_| index == 0);
            self.results.add(Row {
                group: case.group,
                environment: case.environment,
                placement: case.placement,
                metric: value.metric.clone(),
                way,
                size,
                unit: value.unit.to_owned(),
                rounds: vec![value.value],
                cpu_seconds_per_gb: cost.into_iter().collect(),
                copies: way.copies(),
                processes: way.processes(),
            });
        }
    }

    /// Notes that cases cannot be run.
    fn skip_all(&mut self, cases: &[Case], why: &str) -> Result<()> {
        stop_here_if_ending();
        for case in cases {
            self.progress.skip(case.steps() * case.rounds as usize);
            self.progress.say(&format!("FAILED {}: {why}", case.id()));
            self.results
                .note_not_run(&case.id(), &format!("failed: {why}"));
            let ways = case.ways.iter().map(|way| (case.id(), *way));
            self.broken.extend(ways);
        }
        self.results.save(&self.file)
    }

    /// Fails if something did.
    ///
    /// # Errors
    ///
    /// How many ways of cases failed.
    pub fn verdict(&self) -> Result<()> {
        match self.broken.len() {
            0 => Ok(()),
            count => bail!("The bench is incomplete: {count} failed, named in the report"),
        }
    }
}

/// How long a host may be waited for before a case counts as failed, beside the time of its measurement.
pub const PATIENCE: Duration = Duration::from_secs(20);

fn pick(cases: &[Case], is_it: impl Fn(&Case) -> bool) -> Vec<Case> {
    cases.iter().filter(|case| is_it(case)).cloned().collect()
}

fn placements(cases: &[Case]) -> Vec<Placement> {
    let mut all: Vec<Placement> = Vec::new();
    for case in cases {
        if !all.contains(&case.placement) {
            all.push(case.placement);
        }
    }
    all
}
