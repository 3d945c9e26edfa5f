//! Many ports of one segment that start at once: time and CPU until each has met each, and what
//! each costs at rest, after some have talked, and after these have been quiet; then a third is
//! killed and returns.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, getrlimit, setrlimit};
use virtio_inter_tests::{Port, PortConfig, Segment, Testbed};

use crate::guests::MTU;
use crate::measured::Measured;
use crate::mock_guest::MockGuest;
use crate::stats::Spread;

/// Time in which all ports have to be joined, at most.
const JOINED_WITHIN: Duration = Duration::from_secs(120);
/// Time between two looks at the ports.
const LOOK: Duration = Duration::from_millis(20);
/// Time in which a port that is alone has opened all its descriptors.
const SETTLED: Duration = Duration::from_millis(500);
/// Time after which rings on which nothing was sent are closed, with some time to do so: the
/// default of `virtio-inter port`, and the half again after which it looks.
const QUIET: Duration = Duration::from_secs(95);
/// Pause behind a frame after which ports sleep.
const PAUSE: Duration = Duration::from_millis(2);
/// Sparse frames of each pair, and the pairs: one process is dearer than its twin by up to a
/// tenth, by where its memory lies. Pairs of the mesh and pairs that are alone send in turn, a
/// frame each, so that what else the machine does meets all.
const SPARSE: u32 = 400;
const PAIRS: usize = 8;
/// Pairs of which the first frame is timed, at most.
const TIMED: usize = 64;

/// Starts `count` ports on one segment, and measures them.
///
/// # Errors
///
/// A port that does not start, or ports that have not met in time.
pub fn measure(count: u32, program: Option<&Path>) -> Result<Measured> {
    let bed = Testbed::new("the bench")?;
    // Descriptors of as many guests.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let alone = descriptors_alone(&bed, program)?;
    let start = Instant::now();
    let mut mesh = Mesh::start(&bed, "mesh", count, program, alone)?;
    let joined = mesh.wait_until_joined(start)?;
    let join_cpu = mesh.cpu_nanoseconds()? / 1e6 / f64::from(count);
    let rest = mesh.footprint()?;
    let mut guests = mesh.guests()?;
    let before = mesh.footprint()?;
    let delays = mesh.talk_in_a_ring(&mut guests)?;
    let talked = mesh.footprint()?;
    thread::sleep(QUIET);
    let quiet = mesh.footprint()?;
    let mut pairs = Pairs::start(&bed, PAIRS.min(guests.len() / 2), program, alone)?;
    let sparse = mesh.sparse_frames(&mut guests, &mut pairs)?;
    mesh.make_rings(&mut guests, pairs.0.len())?;
    let with_rings = mesh.sparse_frames(&mut guests, &mut pairs)?;
    drop(pairs);
    let returned = mesh.kill_a_third(&bed)?;
    // As many pairs as ports.
    let of_pairs = |now: f64, before: f64| (now - before).max(0.0);
    let measured = Measured::one("mesh", "s from the first start", joined.as_secs_f64())
        .and("mesh_join_work", "ms of CPU a port", join_cpu)
        .and("mesh_memory", "KiB a port, at rest", rest.kib)
        .and("mesh_files", "descriptors a port, at rest", rest.files)
        .and("mesh_maps", "mappings a port, at rest", rest.maps)
        .and(
            "mesh_pair_memory",
            "KiB more for a pair that talks one way",
            of_pairs(talked.kib, before.kib),
        )
        .and(
            "mesh_pair_files",
            "descriptors more for such a pair",
            of_pairs(talked.files, before.files),
        )
        .and(
            "mesh_pair_maps",
            "mappings more for such a pair",
            of_pairs(talked.maps, before.maps),
        )
        .and(
            "mesh_quiet_memory",
            "KiB a port, a quiet time after that",
            quiet.kib,
        )
        .and("mesh_first_frame", "µs, median of pairs", delays.first)
        .and("mesh_later_frame", "µs, median of pairs", delays.later)
        .and("mesh_sparse", "µs of CPU a frame, both ports", sparse.cost)
        .and("mesh_sparse_ratio", "÷ two ports alone", sparse.ratio)
        .and("mesh_sparse_noise", "÷ two others alone", sparse.noise)
        .and(
            "mesh_sparse_rings",
            "µs of CPU a frame, both ports",
            with_rings.cost,
        )
        .and(
            "mesh_sparse_rings_ratio",
            "÷ two ports alone",
            with_rings.ratio,
        )
        .and(
            "mesh_return",
            "s from the first start again",
            returned.as_secs_f64(),
        );
    measured.check()?;
    Ok(measured)
}

/// Means over all ports.
struct Footprint {
    kib: f64,
    files: f64,
    maps: f64,
}

/// Time of a frame from its guest's kick until the other guest has it, in microseconds.
struct Delays {
    /// The first frame of a pair, for which a ring is made.
    first: f64,
    /// The second one.
    later: f64,
}

/// What a frame costs that is sent while the ports sleep.
struct Sparse {
    /// CPU time of both ports in microseconds.
    cost: f64,
    /// The same, divided by that of two ports that have no other peers: medians of all pairs.
    ratio: f64,
    /// The dearest of the pairs that are alone, divided by the cheapest.
    noise: f64,
}

/// Two ports on a segment of their own, with a guest each, several times.
struct Pairs(Vec<(Mesh, Vec<MockGuest>)>);

impl Pairs {
    fn start(bed: &Testbed, count: usize, program: Option<&Path>, alone: usize) -> Result<Self> {
        let pair = |number| {
            let mut pair = Mesh::start(bed, &format!("pair{number}-"), 2, program, alone)?;
            pair.wait_until_joined(Instant::now())?;
            let guests = pair.guests()?;
            Ok((pair, guests))
        };
        Ok(Self((0..count).map(pair).collect::<Result<_>>()?))
    }
}

struct Mesh {
    ports: Vec<Port>,
    /// Descriptors of a port that has no peers.
    alone: usize,
}

impl Mesh {
    /// Starts the ports without waiting for each other. A port without peers has `alone`
    /// descriptors.
    fn start(
        bed: &Testbed,
        name: &str,
        count: u32,
        program: Option<&Path>,
        alone: usize,
    ) -> Result<Self> {
        let segment = Segment::new(bed, name)?;
        let start = |host| {
            let host = u8::try_from(host).context("Too many ports")?;
            let mut config = PortConfig::new(&segment, &format!("{name}{host}"), host).mtu(MTU);
            config.program = program.map(Path::to_path_buf);
            Port::spawn(bed, config)
        };
        // From 0, since 256 of them have to fit.
        let ports = (0..count).map(start).collect::<Result<_>>()?;
        Ok(Self { ports, alone })
    }

    /// Waits until each port has a connection for each other one. Time from `start` until then.
    ///
    /// Their descriptors are counted, of one port after the other: to tell its status takes a port
    /// CPU time, and a log loses lines. That the connections are links is asked at the end.
    fn wait_until_joined(&mut self, start: Instant) -> Result<Duration> {
        let peers = self.ports.len() - 1;
        let enough = self.alone + peers;
        for port in &mut self.ports {
            while port.process().open_files()? < enough {
                ensure!(
                    start.elapsed() < JOINED_WITHIN,
                    "A port lacks peers after {JOINED_WITHIN:?}"
                );
                thread::sleep(LOOK);
            }
        }
        let mut joined = start.elapsed();
        for port in &self.ports {
            while port.peers()? < peers {
                ensure!(
                    start.elapsed() < JOINED_WITHIN,
                    "A port with enough connections lacks peers after {JOINED_WITHIN:?}"
                );
                thread::sleep(LOOK);
                joined = start.elapsed();
            }
        }
        Ok(joined)
    }

    /// CPU time of all ports so far.
    fn cpu_nanoseconds(&mut self) -> Result<f64> {
        let pids = self.ports.iter_mut().map(|port| port.process().pid());
        pids.map(cpu_nanoseconds).sum()
    }

    fn footprint(&mut self) -> Result<Footprint> {
        let count = self.ports.len() as f64;
        let (mut bytes, mut files, mut maps) = (0, 0, 0);
        for port in &mut self.ports {
            let process = port.process();
            bytes += process.proportional_memory()?;
            files += process.open_files()?;
            let path = format!("/proc/{}/maps", process.pid());
            maps += fs::read_to_string(&path)
                .with_context(|| format!("Reading {path}"))?
                .lines()
                .count();
        }
        Ok(Footprint {
            kib: bytes as f64 / 1024.0 / count,
            files: files as f64 / count,
            maps: maps as f64 / count,
        })
    }

    /// A guest for each port.
    fn guests(&self) -> Result<Vec<MockGuest>> {
        let ports = self.ports.iter();
        ports.map(|port| MockGuest::new(port.socket())).collect()
    }

    /// Each guest sends two frames to the next port's, the second a while after the first.
    fn talk_in_a_ring(&self, guests: &mut [MockGuest]) -> Result<Delays> {
        let (mut first, mut later) = (Vec::new(), Vec::new());
        for from in 0..guests.len() {
            let to = (from + 1) % guests.len();
            for delays in [&mut first, &mut later] {
                thread::sleep(PAUSE);
                let delay = self.deliver(guests, from, to)?;
                if delays.len() < TIMED {
                    delays.push(delay.as_secs_f64() * 1e6);
                }
            }
        }
        Ok(Delays {
            first: median(&first),
            later: median(&later),
        })
    }

    /// Sends a frame, and waits until the other guest has it.
    fn deliver(&self, guests: &mut [MockGuest], from: usize, to: usize) -> Result<Duration> {
        let before = guests[to].received()?;
        let address = |index: usize| self.ports[index].config().mac.0;
        let start = Instant::now();
        guests[from].offer_frame(address(to), address(from))?;
        while guests[to].received()? == before {
            ensure!(
                start.elapsed() < JOINED_WITHIN,
                "A frame of port {from} does not arrive at port {to}"
            );
            thread::yield_now();
        }
        let delay = start.elapsed();
        guests[from].wait_until_taken()?;
        guests[to].recycle()?;
        Ok(delay)
    }

    /// The sender of each of the first pairs sends a frame to each other guest, and gets one: all
    /// these have rings.
    fn make_rings(&self, guests: &mut [MockGuest], pairs: usize) -> Result<()> {
        for sender in (0..pairs).map(|pair| 2 * pair) {
            for other in (0..guests.len()).filter(|other| *other != sender) {
                for (from, to) in [(other, sender), (sender, other)] {
                    self.send(&mut guests[from], from, to)?;
                    guests[to].recycle()?;
                }
            }
        }
        Ok(())
    }

    /// Kills every third port, and starts these again. Time from then on until each is joined with
    /// each.
    fn kill_a_third(&mut self, bed: &Testbed) -> Result<Duration> {
        for port in self.ports.iter_mut().step_by(3) {
            port.process().kill()?;
        }
        let start = Instant::now();
        for port in self.ports.iter_mut().step_by(3) {
            *port = Port::spawn(bed, port.config().clone())?;
        }
        self.wait_until_joined(start)
    }

    /// Frames of the first pairs of ports, in turn with those of `alone`.
    fn sparse_frames(&mut self, guests: &mut [MockGuest], alone: &mut Pairs) -> Result<Sparse> {
        let Pairs(alone) = alone;
        // The first frames make rings, and load what both need.
        self.sparse_round(guests, alone)?;
        let before = self.costs(alone)?;
        for _ in 0..SPARSE {
            self.sparse_round(guests, alone)?;
        }
        let cost = |(after, before): (f64, f64)| (after - before) / 1e3 / f64::from(SPARSE);
        let costs: Vec<f64> = self
            .costs(alone)?
            .into_iter()
            .zip(before)
            .map(cost)
            .collect();
        let (mesh, alone) = costs.split_at(alone.len());
        let dearest = alone.iter().copied().fold(f64::MIN, f64::max);
        let cheapest = alone.iter().copied().fold(f64::MAX, f64::min);
        Ok(Sparse {
            cost: median(mesh),
            ratio: median(mesh) / median(alone),
            noise: dearest / cheapest,
        })
    }

    /// A frame of each pair.
    fn sparse_round(
        &self,
        guests: &mut [MockGuest],
        alone: &mut [(Self, Vec<MockGuest>)],
    ) -> Result<()> {
        for (number, (pair, pair_guests)) in alone.iter_mut().enumerate() {
            self.sparse_frame(guests, 2 * number)?;
            pair.sparse_frame(pair_guests, 0)?;
        }
        Ok(())
    }

    /// A frame from port `from` to the next one, and a pause.
    fn sparse_frame(&self, guests: &mut [MockGuest], from: usize) -> Result<()> {
        self.send(&mut guests[from], from, from + 1)?;
        thread::sleep(PAUSE);
        guests[from + 1].recycle()
    }

    /// CPU time so far of each of the first pairs, and then of each pair of `alone`, in
    /// nanoseconds.
    fn costs(&mut self, alone: &mut [(Self, Vec<MockGuest>)]) -> Result<Vec<f64>> {
        let mut costs = Vec::new();
        for number in 0..alone.len() {
            costs.push(self.cost_of_pair(2 * number)?);
        }
        for (pair, _) in alone {
            costs.push(pair.cost_of_pair(0)?);
        }
        Ok(costs)
    }

    fn cost_of_pair(&mut self, first: usize) -> Result<f64> {
        let ports = self.ports[first..first + 2].iter_mut();
        ports
            .map(|port| cpu_nanoseconds(port.process().pid()))
            .sum()
    }

    fn send(&self, guest: &mut MockGuest, from: usize, to: usize) -> Result<()> {
        let address = |index: usize| self.ports[index].config().mac.0;
        guest.send(address(to), address(from))
    }
}

/// Descriptors of a port that has no peers.
fn descriptors_alone(bed: &Testbed, program: Option<&Path>) -> Result<usize> {
    let mut mesh = Mesh::start(bed, "alone", 1, program, 0)?;
    thread::sleep(SETTLED);
    mesh.ports[0].process().open_files()
}

fn median(values: &[f64]) -> f64 {
    Spread::of(values).map_or(f64::NAN, |spread| spread.median)
}

/// Time that all threads of a process spent on CPUs.
fn cpu_nanoseconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/task");
    let mut sum = 0.0;
    for thread in fs::read_dir(&path).with_context(|| format!("Listing {path}"))? {
        let path = thread.context("Listing threads")?.path().join("schedstat");
        let text =
            fs::read_to_string(&path).with_context(|| format!("Reading {}", path.display()))?;
        let spent = text.split_whitespace().next().context("No time in it")?;
        sum += spent.parse::<f64>().context("Reading a thread's time")?;
    }
    Ok(sum)
}
