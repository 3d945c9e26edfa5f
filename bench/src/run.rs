//! One run: takes the cases of the plan in rounds, side by side, and records results and failures.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use virtio_inter_tests::{ControlGroups, Testbed, is_inside, stop_here_if_ending, tools};

use crate::case::{Case, Environment, Group, Place, Test, Way};
use crate::crowd::Crowd;
use crate::distance::Distance;
use crate::guests::Attached;
use crate::host::Host;
use crate::idle;
use crate::measured::Measured;
use crate::mesh;
use crate::neighbour::Neighbour;
use crate::nested;
use crate::placement::{Grouping, Placement, Seat};
use crate::programs::Programs;
use crate::progress::Progress;
use crate::rescue::RescuedPair;
use crate::results::{Results, Row};
use crate::selection::{pick, seats, ways};
use crate::stats::{number, rotated};

/// A run on its way.
pub struct Run {
    programs: Programs,
    cpus: Vec<usize>,
    /// None where there can be no control groups.
    groups: Option<Arc<ControlGroups>>,
    progress: Progress,
    results: Results,
    /// The file that keeps the results as they come, so that a run that is ended keeps its rounds.
    file: PathBuf,
    /// Cases and ways that failed: they are not tried again.
    broken: Vec<(String, Way)>,
    /// Cases and ways that lose a datagram which the case cannot do without: they are not repeated,
    /// and named, but the bench did its part.
    lossy: Vec<(String, Way)>,
    /// No further nested machine is booted after this time.
    nested_limit: Duration,
    /// Of the two CPUs that are measured on, where two are.
    distance: Option<Distance>,
}

impl Run {
    /// Begins a run of so many steps.
    pub fn new(
        programs: Programs,
        cpus: Vec<usize>,
        groups: Option<ControlGroups>,
        results: Results,
        file: PathBuf,
        steps: usize,
    ) -> Self {
        Self {
            programs,
            cpus,
            groups: groups.map(Arc::new),
            progress: Progress::new(steps),
            results,
            file,
            broken: Vec::new(),
            lossy: Vec::new(),
            nested_limit: NESTED_LIMIT,
            distance: None,
        }
    }

    /// Gives up a nested machine that fails for no other one.
    pub fn hurry(&mut self) {
        self.nested_limit = Duration::ZERO;
    }

    /// Measures with two CPUs only while they are near each other, if any of these cases does.
    /// `quick`: with a short time limit for that.
    ///
    /// # Errors
    ///
    /// CPUs that this process may not use.
    pub fn watch_distance(&mut self, cases: &[Case], quick: bool) -> Result<()> {
        if let Some(cpus) = self.cpus.last_chunk::<2>()
            && cases.iter().any(uses_two_cpus)
        {
            let limit = if quick { QUICK_SETTLING } else { SETTLING };
            self.distance = Some(Distance::new(*cpus, limit)?);
        }
        Ok(())
    }

    /// Ends the run.
    ///
    /// # Errors
    ///
    /// A result file that cannot be written.
    pub fn finish(mut self) -> Result<Results> {
        if let (Some(distance), Some(run)) = (&self.distance, self.results.runs.last_mut()) {
            run.distance = Some(distance.note());
        }
        self.results.save(&self.file)?;
        Ok(self.results)
    }

    /// Measures all cases. A case that fails is recorded, and the others continue.
    ///
    /// # Errors
    ///
    /// A result file that cannot be written.
    pub fn measure_all(&mut self, cases: &[Case]) -> Result<()> {
        for environment in [
            Environment::Uml,
            Environment::Qemu,
            Environment::CloudHypervisor,
            Environment::Nested,
        ] {
            // Those with uplinks have guests of their own, so that others are as they were.
            for attached in [Attached::Usual, Attached::Uplinks] {
                let some = pick(cases, |case| {
                    let Place {
                        environment: of,
                        group,
                        ..
                    } = case.place;
                    let has_uplinks = group == Group::Uplink;
                    of == environment
                        && group != Group::Scale
                        && has_uplinks == (attached == Attached::Uplinks)
                });
                if some.is_empty() {
                    continue;
                }
                if environment == Environment::Nested && !is_inside() {
                    self.measure_nested(&some)?;
                } else {
                    self.measure_guests(environment, attached, &some)?;
                }
            }
        }
        let host = pick(cases, |case| {
            case.place.environment == Environment::Host && case.place.group != Group::Scale
        });
        if !host.is_empty() {
            self.measure_host(&host)?;
        }
        let crowd = pick(cases, |case| {
            case.place.group == Group::Scale && case.place.environment != Environment::Host
        });
        if !crowd.is_empty() {
            self.measure_crowd(&crowd)?;
        }
        let alone = pick(cases, |case| {
            case.place.group == Group::Scale && case.place.environment == Environment::Host
        });
        if !alone.is_empty() {
            let program = self.programs.port.clone();
            self.rounds(&alone, |case, _, size| match case.test {
                Test::Mesh => mesh::measure(size, program.as_deref()),
                test => idle::measure(test, size, program.as_deref()),
            })?;
        }
        Ok(())
    }

    /// Boots two guests and measures between them in each placement.
    fn measure_guests(
        &mut self,
        environment: Environment,
        attached: Attached,
        cases: &[Case],
    ) -> Result<()> {
        let name = environment.name();
        self.progress.begin(format!("{name}: booting two guests"));
        let mut guests = match RescuedPair::boot(environment, attached, self.programs.port.clone())
        {
            Ok(guests) => guests,
            Err(error) => return self.skip_all(cases, &format!("{error:#}")),
        };
        let pair = guests.pair();
        self.progress
            .say(&format!("{name}, Linux {}: ready", pair.kernel_release()));
        for way in ways(cases) {
            if let Ok(words) = pair.offloads(way) {
                self.progress.say(&format!("{}: {words}", way.name()));
            }
        }
        let gaps = self.broken.len();
        for (placement, grouping) in seats(cases) {
            let some = pick(cases, |case| {
                (case.place.placement, case.place.grouping) == (placement, grouping)
            });
            let placed = self
                .seat(placement, grouping)
                .and_then(|seat| guests.pair().place(&seat).map(|()| seat));
            let seat = match placed {
                Ok(seat) => seat,
                Err(error) => {
                    self.skip_all(&some, &format!("{error:#}"))?;
                    continue;
                }
            };
            if environment == Environment::Nested {
                // Untimed: what runs for the first time is slow there.
                for way in [Way::Loopback, Way::Inter, Way::Tap] {
                    if let Err(error) = guests.pair().measure(Test::TcpStream, way, 65536) {
                        self.progress.say(&format!("{}: {error:#}", way.name()));
                    }
                }
            }
            let (spinner, cpus) = (self.programs.bench.clone(), self.cpus.clone());
            self.rounds(&some, |case, way, size| {
                let _neighbour = (case.place.group == Group::Busy)
                    .then(|| Neighbour::start(&spinner, &cpus, seat.groups.as_deref()))
                    .transpose()?;
                guests.measure(case, way, size, &seat)
            })?;
        }
        if self.broken.len() > gaps {
            guests.keep();
        }
        for (id, way) in guests.into_hangs() {
            let what = format!("{id}/{}: hang", way.name());
            self.results
                .note_not_run(&what, "guests hung, or their port ended");
            // Nobody says that it was not ours.
            if way.is_ours() && !self.broken.contains(&(id.clone(), way)) {
                self.broken.push((id, way));
            }
        }
        Ok(())
    }

    /// The CPUs of a placement, and groups for it.
    fn seat(&self, placement: Placement, grouping: Grouping) -> Result<Seat> {
        Ok(Seat {
            cpus: placement.cpus(&self.cpus).context("Too few CPUs")?,
            groups: self.groups_for(grouping)?,
        })
    }

    fn groups_for(&self, grouping: Grouping) -> Result<Option<Arc<ControlGroups>>> {
        match grouping {
            Grouping::Session => Ok(None),
            Grouping::Groups => {
                let groups = self.groups.clone();
                groups.context("No control groups").map(Some)
            }
        }
    }

    /// Has a nested machine take the measurements. A machine that hangs or stops is replaced; its
    /// measurements are kept.
    fn measure_nested(&mut self, cases: &[Case]) -> Result<()> {
        let mut why = String::new();
        let mut left = cases.to_vec();
        let start = Instant::now();
        let mut attempt = 0;
        while attempt == 0 || attempt < MACHINES && start.elapsed() < self.nested_limit {
            attempt += 1;
            self.progress
                .begin(format!("Booting nested machine {attempt} of {MACHINES}"));
            match nested::measure(&self.programs, &left) {
                Ok(results) => {
                    if let Some(note) = results.not_run.first() {
                        why = format!("{}: {}", note.what, note.why);
                    }
                    self.take_whole_rounds(&mut left, results);
                    self.results.save(&self.file)?;
                }
                Err(error) => why = format!("{error:#}"),
            }
            stop_here_if_ending();
            if left.is_empty() {
                return Ok(());
            }
            self.progress
                .say(&format!("Nested machine {attempt} is given up: {why}"));
        }
        self.skip_all(&left, &format!("{attempt} nested machines failed: {why}"))
    }

    /// Takes over the rounds of which nothing is missing, and strikes them off what is left to do.
    fn take_whole_rounds(&mut self, left: &mut Vec<Case>, results: Results) {
        let whole = nested::whole_rounds(left, &results);
        if whole > 0 {
            for row in &results.rows {
                let mut row = row.clone();
                row.rounds.truncate(whole);
                row.cpu_seconds_per_gb.truncate(whole);
                self.results.add(row);
            }
        }
        for case in left.iter_mut() {
            self.progress.skip(case.steps() * whole);
            let done = u32::try_from(whole).unwrap_or(u32::MAX);
            case.rounds = case.rounds.saturating_sub(done);
        }
        left.retain(|case| case.rounds > 0);
    }

    /// Measures between processes of the host.
    fn measure_host(&mut self, cases: &[Case]) -> Result<()> {
        let Some([near, far]) = self.cpus.last_chunk::<2>().copied() else {
            return self.skip_all(cases, "Too few CPUs");
        };
        let host = Host::new(self.programs.clone(), near, far);
        let groups = self.groups.clone();
        self.rounds(cases, |case, way, size| {
            let groups = groups
                .as_deref()
                .filter(|_| case.place.grouping == Grouping::Groups);
            host.measure(case.test, way, size, groups)
        })
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
        for (_, grouping) in seats(cases) {
            let some = pick(cases, |case| case.place.grouping == grouping);
            let groups = self.groups_for(grouping)?;
            crowd.group(groups.as_deref())?;
            self.rounds(&some, |case, way, size| crowd.measure(case.test, way, size))?;
        }
        Ok(())
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
                    let ways = rotated(&case.ways, round as usize + index);
                    for way in ways.into_iter().filter(|way| way.takes(*size)) {
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
        // In a nested machine the first failure is most often the machine's: a new one is quicker.
        let is_lost = is_inside() && !self.broken.is_empty();
        let is_known = |known: &[_]| known.contains(&(id.clone(), way));
        if is_lost || is_known(&self.broken) || is_known(&self.lossy) {
            return self.progress.skip(1);
        }
        let what = format!("{id}, {size}, {}, round {}", way.name(), round + 1);
        self.progress.begin(what.clone());
        // Once more if it failed: a connection may stall for long on a busy machine.
        let mut take = || measure(case, way, size);
        let mut losses = 0;
        let outcome = self.take_near(case, &what, &mut take).or_else(|error| {
            stop_here_if_ending();
            if is_inside() {
                return Err(error);
            }
            losses += u32::from(is_loss(&error));
            self.progress
                .say(&format!("{what}: once more after: {error:#}"));
            self.take_near(case, &what, &mut take)
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
                losses += u32::from(is_loss(&error));
                let is_lossy = losses == 2 && !way.is_ours() && way != Way::Loopback;
                let why = format!("round {}: {error:#}", round + 1);
                // A log at its end may end with line feeds, and be long.
                let why: String = why.trim_end().chars().take(500).collect();
                self.progress.skip(1);
                self.progress.say(&format!("FAILED {what}: {why}"));
                self.results
                    .note_not_run(&format!("{id}/{}", way.name()), &format!("failed: {why}"));
                let list = if is_lossy {
                    &mut self.lossy
                } else {
                    &mut self.broken
                };
                list.push((id, way));
            }
        }
    }

    /// Takes a measurement while the CPUs that it needs stay near each other, if that can be had.
    fn take_near(
        &mut self,
        case: &Case,
        what: &str,
        take: &mut impl FnMut() -> Result<Measured>,
    ) -> Result<Measured> {
        let Some(distance) = self.distance.as_mut().filter(|_| uses_two_cpus(case)) else {
            return take();
        };
        loop {
            let before = distance.settle()?;
            let start = Instant::now();
            let measured = take()?;
            if distance.counts(before, start.elapsed())? {
                return Ok(measured);
            }
            self.progress
                .say(&format!("{what}: once more, as the CPUs moved apart"));
        }
    }

    fn record(&mut self, case: &Case, way: Way, size: u32, measured: &Measured) {
        let part = if case.test.is_with_host() { 2 } else { 1 };
        for (index, value) in measured.values.iter().enumerate() {
            let cost = measured.cpu_seconds_per_gb().filter(|_| index == 0);
            self.results.add(Row {
                place: case.place,
                metric: value.metric.clone(),
                way,
                size,
                unit: value.unit.to_owned(),
                rounds: vec![value.value],
                cpu_seconds_per_gb: cost.into_iter().collect(),
                copies: way.copies() / part,
                processes: way.processes() / part,
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

    /// Fails if a case failed. A way that loses datagrams did not: the report names it.
    ///
    /// # Errors
    ///
    /// The number of ways of cases that failed.
    pub fn verdict(&self) -> Result<()> {
        match self.broken.len() {
            0 => Ok(()),
            count => bail!("The bench is incomplete: {count} failed, named in the report"),
        }
    }
}

/// Nested machines tried: an emulated processor is not perfect.
const MACHINES: u32 = 3;
/// … and for how long.
const NESTED_LIMIT: Duration = Duration::from_secs(240);
/// How long a run waits, in all, for two CPUs to be near each other.
const SETTLING: Duration = Duration::from_secs(600);
const QUICK_SETTLING: Duration = Duration::from_secs(60);

/// Whether a ping-pong stopped as a datagram was lost.
fn is_loss(error: &anyhow::Error) -> bool {
    error.is::<tools::Unanswered>()
}

/// Whether the parties of a case are bound to two CPUs.
fn uses_two_cpus(case: &Case) -> bool {
    case.place.placement == Placement::PerGuest && !is_inside()
}
