//! Four mock VMs exchange hashed streams while ports, VMMs and guests are killed, stopped,
//! disconnected and kept from disk, descriptors and memory, by a schedule that a seed decides.
//!
//! After each step all streams have to go on. At the end no port may hold more than before, and
//! nothing may be left.
//!
//! - `options.rs`: how a soak runs;
//! - `schedule.rs`: what happens, by seed;
//! - `station.rs`: a port and its VM, and how each is started again;
//! - `limits.rs`: what ports are kept from having;
//! - `footprint.rs`: what ports hold;
//! - `clock.rs`: time in which the machine had CPUs for all that;
//! - `summary.rs`: the outcome.

mod clock;
mod footprint;
mod limits;
mod options;
mod schedule;
mod station;
mod summary;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;
use virtio_inter_test_support::tell;

use self::clock::Clock;
use self::footprint::Footprint;
use self::limits::{FullDisk, MemoryGroup};
pub use self::options::{Length, Options};
use self::schedule::{Fault, STATIONS, SURVIVOR, Schedule, Step, name};
use self::station::Station;
pub use self::summary::Summary;
use crate::mock_vm::{MAX_VMS, Progress, WINDOW, now};
use crate::{Port, PortConfig, Result, Segment, Testbed};

/// Time in which all streams have to go on after the last fault of a step has ended, without that
/// in which ports and VMs wait for a CPU. What the summary calls slow is less.
const RECOVERED_WITHIN: Duration = Duration::from_secs(10);
/// Longest time for which streams between stations without a fault may stand still, counted in the
/// same way.
const OTHERS_WAIT: Duration = Duration::from_secs(5);
/// Time in which a port holds no more than before, after the last recovery.
const RETURNED_WITHIN: Duration = Duration::from_secs(10);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(2);
/// Frames of each stream after which ports hold what they need, and the time for that.
const WARM: u64 = 20 * WINDOW;
const WARM_WITHIN: Duration = Duration::from_secs(60);
/// Time before, and of, the calm in which no frame is lost.
const SETTLE: Duration = Duration::from_millis(300);
const CALM: Duration = Duration::from_secs(1);
/// Number of the fifth port's address, and its name.
const VISITOR: (u8, &str) = (MAX_VMS as u8 - 1, "visitor");

/// Runs a soak.
///
/// # Errors
///
/// What was found, with the step in which it was.
pub fn run(bed: &Testbed, options: &Options) -> Result<Summary> {
    let mut soak = Soak::new(bed, options)?;
    let result = soak.run();
    if result.is_err() {
        fs::create_dir_all(&options.logs).context("Making a directory for logs")?;
        for (name, text) in bed.logs() {
            let path = options.logs.join(&name);
            fs::write(&path, text).with_context(|| format!("Writing {}", path.display()))?;
        }
        tell(&format!("Logs are in {}", options.logs.display()));
    }
    result.map(|()| soak.summary)
}

struct Soak<'a> {
    bed: &'a Testbed,
    options: &'a Options,
    segment: Segment,
    stations: Vec<Station>,
    visitor: Option<Port>,
    disk: Option<FullDisk>,
    group: Option<MemoryGroup>,
    clock: Clock,
    summary: Summary,
}

/// The progress of all VMs at one moment.
type Snapshot = Vec<Progress>;

impl<'a> Soak<'a> {
    fn new(bed: &'a Testbed, options: &'a Options) -> Result<Self> {
        let segment = Segment::new(bed, "soak")?;
        let station = |index| Station::new(bed, &segment, index, options);
        Ok(Self {
            bed,
            options,
            stations: (0..STATIONS).map(station).collect::<Result<_>>()?,
            segment,
            visitor: None,
            disk: None,
            group: None,
            clock: Clock::new(),
            summary: Summary::new(options.seed),
        })
    }

    fn run(&mut self) -> Result<()> {
        for station in &mut self.stations {
            station.start_port(self.bed)?;
            station.start_vm()?;
        }
        let zero = vec![Progress::default(); STATIONS];
        self.wait_for_frames(&zero, WARM, &[], WARM_WITHIN)
            .context("Before the first step")?;
        let before = self.footprints()?;
        let epochs = epochs(&self.snapshot()?);
        let start = Instant::now();
        match &self.options.length {
            Length::Upgrade(program) => self.upgrade(program)?,
            Length::Time(_) | Length::Kills(_) => self.steps(start)?,
        }
        self.calm()?;
        if !matches!(self.options.length, Length::Time(_)) {
            let now = self::epochs(&self.snapshot()?);
            ensure!(now == epochs, "A stream began again");
        }
        self.check_footprints(before)?;
        self.summary.time = start.elapsed();
        self.finish()
    }

    /// Replaces each port by another program, as an upgrade does.
    fn upgrade(&mut self, program: &Path) -> Result<()> {
        for at in 0..STATIONS {
            let step = Step {
                faults: vec![(Fault::EndPort, at)],
                hold: Duration::ZERO,
                pause: Duration::ZERO,
            };
            self.stations[at].end_port()?;
            self.stations[at].set_port_program(program);
            self.stations[at].start_port(self.bed)?;
            let (ended, base) = (now(), self.snapshot()?);
            self.wait_for_frames(&base, WINDOW + 1, &[], RECOVERED_WITHIN)
                .with_context(|| format!("After the upgrade of {}", name(at)))?;
            self.summary.recovered(self.clock.span(ended), at, &step);
            *self.summary.faults.entry("upgrades of ports").or_default() += 1;
            let pid = self.stations[at].port_process()?.pid();
            let runs = fs::read_link(format!("/proc/{pid}/exe")).context("Finding a program")?;
            ensure!(runs == program.canonicalize()?, "It is {}", runs.display());
        }
        Ok(())
    }

    /// The steps of the schedule.
    fn steps(&mut self, start: Instant) -> Result<()> {
        let only_kills = matches!(self.options.length, Length::Kills(_));
        for (number, step) in Schedule::new(self.options.seed, only_kills).enumerate() {
            let is_over = match &self.options.length {
                Length::Time(time) => start.elapsed() >= *time,
                Length::Kills(count) => number as u64 >= u64::from(*count),
                Length::Upgrade(_) => true,
            };
            if is_over {
                break;
            }
            if self.options.verbose {
                tell(&format!("{:8.3?} step {number}: {step}", start.elapsed()));
            }
            let seed = self.options.seed;
            let context = || format!("Step {number} of seed {seed}: {step}");
            self.step(number, &step).with_context(context)?;
        }
        Ok(())
    }

    fn step(&mut self, number: usize, step: &Step) -> Result<()> {
        let before = self.snapshot()?;
        for (fault, station) in &step.faults {
            self.begin(*fault, *station, step.hold)
                .with_context(|| format!("Beginning {fault:?}"))?;
            *self.summary.faults.entry(fault.counted()).or_default() += 1;
        }
        let held = Instant::now();
        while held.elapsed() < step.hold {
            self.look(number, &before, &step.faults)?;
        }
        for (fault, station) in step.faults.iter().rev() {
            self.end(*fault, *station, &before)
                .with_context(|| format!("Ending {fault:?}"))?;
        }
        let (ended, base) = (now(), self.snapshot()?);
        self.wait_for_frames(&base, WINDOW + 1, &step.faults, RECOVERED_WITHIN)?;
        self.summary.recovered(self.clock.span(ended), number, step);
        for station in &self.stations {
            station.shorten_log(self.bed)?;
        }
        let paused = Instant::now();
        while paused.elapsed() < step.pause {
            self.look(number, &base, &[])?;
        }
        Ok(())
    }

    fn begin(&mut self, fault: Fault, at: usize, hold: Duration) -> Result<()> {
        let station = &mut self.stations[at];
        match fault {
            Fault::KillPort => station.kill_port(),
            Fault::EndPort => station.end_port(),
            Fault::StopPort => station.port_process()?.signal(Signal::STOP),
            Fault::KillVm => {
                self.summary.add(&station.progress()?);
                station.kill_vm()
            }
            Fault::StopVm => station.vm_process()?.signal(Signal::STOP),
            Fault::Disconnect => station.command(&format!("disconnect {}", hold.as_millis())),
            Fault::Reset => {
                self.summary.add(&station.progress()?);
                station.command("reset")
            }
            Fault::Visitor => {
                self.visitor = Some(Port::spawn(self.bed, self.visitor_config())?);
                Ok(())
            }
            Fault::FullDisk if self.options.small_disk => {
                self.disk = Some(FullDisk::fill(&self.bed.path("ballast"))?);
                Ok(())
            }
            Fault::FullDisk => {
                self.summary.left_out.insert("full disks");
                Ok(())
            }
            Fault::NoDescriptors => limits::limit_descriptors(station.port_process()?),
            Fault::NoAddressSpace => limits::limit_address_space(station.port_process()?),
            Fault::NoMemory => {
                self.group = MemoryGroup::new();
                match &self.group {
                    Some(group) => group.limit(station.port_process()?)?,
                    None => {
                        self.summary.left_out.insert("lacks of memory");
                    }
                }
                Ok(())
            }
        }
    }

    fn end(&mut self, fault: Fault, at: usize, before: &Snapshot) -> Result<()> {
        let station = &mut self.stations[at];
        match fault {
            Fault::KillPort | Fault::EndPort => station.start_port(self.bed),
            Fault::StopPort => station.port_process()?.signal(Signal::CONT),
            Fault::KillVm => station.start_vm(),
            Fault::StopVm => station.vm_process()?.signal(Signal::CONT),
            Fault::Disconnect => Ok(()),
            Fault::Reset => {
                let start = now();
                while self.stations[at].progress()?.epoch == before[at].epoch {
                    ensure!(
                        self.clock.since(start) < RECOVERED_WITHIN,
                        "The guest hangs"
                    );
                    self.look(0, before, &[(fault, at)])?;
                }
                Ok(())
            }
            Fault::Visitor => {
                self.visitor = None;
                Ok(())
            }
            Fault::FullDisk => {
                self.disk = None;
                Ok(())
            }
            Fault::NoDescriptors | Fault::NoAddressSpace => {
                let process = station.port_process()?;
                // It may have ended: the next one has no limit.
                if process.is_running() {
                    limits::unlimit(process)?;
                }
                Ok(())
            }
            Fault::NoMemory => self.group.take().map_or(Ok(()), |group| group.unlimit()),
        }
    }

    fn visitor_config(&self) -> PortConfig {
        let (number, id) = VISITOR;
        let mut config = PortConfig::new(&self.segment, id, number);
        config.program = self.options.port_program.clone();
        config
    }

    fn snapshot(&self) -> Result<Snapshot> {
        self.stations.iter().map(Station::progress).collect()
    }

    /// Starts ports that ended and may, and checks that streams between the stations without a
    /// fault go on; then waits a moment.
    fn look(&mut self, number: usize, before: &Snapshot, faults: &[(Fault, usize)]) -> Result<()> {
        self.supervise(faults)?;
        let snapshot = self.snapshot()?;
        let is_hit = |at: usize| faults.iter().any(|(_, station)| *station == at);
        let others: Vec<usize> = (0..STATIONS).filter(|at| !is_hit(*at)).collect();
        for (to, from) in pairs().filter(|(to, from)| others.contains(to) && others.contains(from))
        {
            let last = snapshot[to].peers[from].last_delivery;
            if last == 0 || before[to].epoch != snapshot[to].epoch {
                continue;
            }
            let gap = self.clock.span(last);
            self.summary.others_waited(gap, number);
            ensure!(
                gap.with_cpu < OTHERS_WAIT,
                "{} has received nothing of {} for {gap}, and neither has a fault: {:?}, {:?}",
                name(to),
                name(from),
                snapshot[to],
                snapshot[from]
            );
        }
        thread::sleep(LOOK);
        Ok(())
    }

    fn supervise(&mut self, faults: &[(Fault, usize)]) -> Result<()> {
        self.clock
            .pass(self.stations.iter_mut().flat_map(Station::pids));
        let full = faults.iter().any(|(fault, _)| *fault == Fault::FullDisk);
        for (at, station) in self.stations.iter_mut().enumerate() {
            let hit = faults.iter().find(|(_, station)| *station == at);
            let may_end = full || hit.is_some_and(|(fault, _)| fault.starves());
            station.supervise(self.bed, may_end)?;
        }
        Ok(())
    }

    /// Waits until each VM has received `count` frames of each other one since `base`.
    fn wait_for_frames(
        &mut self,
        base: &Snapshot,
        count: u64,
        faults: &[(Fault, usize)],
        limit: Duration,
    ) -> Result<()> {
        let start = now();
        loop {
            self.supervise(faults)?;
            let snapshot = self.snapshot()?;
            let lacking = |(to, from): &(usize, usize)| {
                let (before, now) = (&base[*to], &snapshot[*to]);
                let mut received = now.peers[*from].delivered;
                if now.epoch == before.epoch {
                    received -= before.peers[*from].delivered.min(received);
                }
                received < count
            };
            let lacking: Vec<_> = pairs().filter(lacking).collect();
            if lacking.is_empty() {
                return Ok(());
            }
            if self.clock.since(start) >= limit {
                let lacking = lacking
                    .iter()
                    .map(|(to, from)| format!("{} of {}", name(*to), name(*from)));
                let lacking = lacking.collect::<Vec<_>>().join(", ");
                bail!(
                    "No progress within {limit:?} where each should receive {count} frames of \
                     each other: {lacking}"
                );
            }
            thread::sleep(LOOK);
        }
    }

    /// Without a fault, no frame is lost.
    fn calm(&mut self) -> Result<()> {
        let wait = |soak: &mut Self, time: Duration| -> Result<u64> {
            let (start, base) = (Instant::now(), soak.snapshot()?);
            while start.elapsed() < time {
                soak.look(0, &base, &[])?;
            }
            Ok(soak.snapshot()?.iter().map(|vm| vm.missing).sum())
        };
        let before = wait(self, SETTLE)?;
        let after = wait(self, CALM)?;
        ensure!(
            after == before,
            "Without any fault, {} frames came after one that was lost",
            after - before
        );
        Ok(())
    }

    fn footprints(&mut self) -> Result<Vec<Footprint>> {
        let of = |station: &mut Station| Footprint::of(station.port_process()?);
        self.stations.iter_mut().map(of).collect()
    }

    /// What ports hold has to return to what they held at first. Ports that were started again
    /// are compared as well: all have the same peers.
    fn check_footprints(&mut self, before: Vec<Footprint>) -> Result<()> {
        let most = before
            .into_iter()
            .fold(Footprint::default(), Footprint::max);
        let start = Instant::now();
        loop {
            let now = self.footprints()?;
            let grown = now.iter().position(|port| !port.is_within(most));
            let Some(grown) = grown else {
                self.summary.survivor = format!("{}; at first {most}", now[SURVIVOR]);
                return Ok(());
            };
            if start.elapsed() >= RETURNED_WITHIN {
                bail!(
                    "Port {} holds {}, and no port held more at first than {most}",
                    name(grown),
                    now[grown]
                );
            }
            self.supervise(&[])?;
            thread::sleep(10 * LOOK);
        }
    }

    /// Ends all, and checks that nothing is left.
    fn finish(&mut self) -> Result<()> {
        for station in &mut self.stations {
            self.summary.add(&station.progress()?);
            station.end_vm()?;
        }
        // A port that was killed leaves files to its successor.
        let mut visitor = Port::start(self.bed, self.visitor_config())?;
        visitor.stop()?;
        for station in &mut self.stations {
            station.end_port()?;
        }
        let mut left = files(self.segment.path())?;
        let own = |name: &String| [".log", ".progress"].iter().any(|end| name.ends_with(end));
        let segment = self.segment.path().file_name().map(|name| name.to_owned());
        left.extend(files(self.bed.directory())?.into_iter().filter(|name| {
            !own(name) && segment.as_ref().is_none_or(|segment| **segment != **name)
        }));
        ensure!(left.is_empty(), "Files are left: {left:?}");
        let left = processes(self.bed.directory())?;
        ensure!(left.is_empty(), "Processes are left: {left:?}");
        Ok(())
    }
}

/// The incarnations of all VMs.
fn epochs(snapshot: &Snapshot) -> Vec<u64> {
    snapshot.iter().map(|vm| vm.epoch).collect()
}

/// All pairs of a receiver and a sender.
fn pairs() -> impl Iterator<Item = (usize, usize)> {
    let all = |to| (0..STATIONS).map(move |from| (to, from));
    (0..STATIONS).flat_map(all).filter(|(to, from)| to != from)
}

fn files(directory: &Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(directory).context("Listing what is left")?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Command lines of processes that name a path.
fn processes(path: &Path) -> Result<Vec<String>> {
    let path = path.to_string_lossy();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("Listing processes")? {
        let file = entry?.path().join("cmdline");
        // Most entries are no processes, and some end meanwhile.
        let line = fs::read(file).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&*path) {
            found.push(line);
        }
    }
    Ok(found)
}
