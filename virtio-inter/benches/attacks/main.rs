//! Measures what attacks cost honest guests: `cargo bench -p virtio-inter --bench attacks`, with
//! names of attacks, `latency`, `third` or `pairs` behind `--` for these alone.
//!
//! Ports are processes, as in use; guests and the attacker are threads of this one. A ping is due
//! every 4 ms, so that none waits for the answer to the one before but where something stands
//! still; then it counts from when it was due. Each round measures without and under the attack;
//! the medians of three rounds are printed. "Less waits": the time of a ping without that for which
//! the two guests and the workers were ready and had no CPU, so that a p99 that many busy threads
//! on few CPUs cause shows as such. It is the sum of four threads, two of which may have waited at
//! the same time; of a ping that counts from when it was due, waits before it was sent are left in.
#![allow(clippy::print_stdout, reason = "the figures are what it is for")]

mod attack;
#[path = "../../../virtio-inter-device/tests/driver/mod.rs"]
mod driver;
#[path = "../../tests/port/process.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use all of it")]
mod process;
mod station;
#[path = "../../tests/port/vandal.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod vandal;
mod waits;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};

use attack::{A, Attack, B, OTHER, Signs, third_guest};
use driver::{Guest, Packet, RxQueue, Spec, TxQueue, mac};
use process::{Place, until};
use station::Station;
use waits::{Waits, this_thread, worker_of};

const ROUNDS: usize = 3;
/// Time between two pings.
const PERIOD: Duration = Duration::from_millis(4);
/// A ping without an answer for this long is lost.
const LOST: Duration = Duration::from_secs(1);
/// Frames that the victim's guest sends to its correspondent with each ping.
const BESIDE: usize = 16;
/// Time of each measurement of a rate, and before it.
const RATE_TIME: Duration = Duration::from_secs(3);
const WARM_UP: Duration = Duration::from_millis(500);
/// Longest time for which a thread does not notice that it is to end.
const TICK: Duration = Duration::from_millis(20);
const FRAME: usize = 1514;

fn main() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    // Cargo's own options begin with a hyphen.
    let chosen: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let wants = |part: &str| chosen.is_empty() || chosen.iter().any(|word| word == part);
    let of_latency = |attack: &Attack| wants("latency") || wants(&format!("{attack:?}"));
    let attacks: Vec<Attack> = Attack::ALL.into_iter().filter(of_latency).collect();
    if !attacks.is_empty() {
        println!("Round trip between two guests in µs, without and under an attack");
        println!(
            "attack           p50 without  under ratio  p99 without  under ratio  \
             less waits  under ratio lost  CPU"
        );
    }
    for attack in attacks {
        latency(attack);
    }
    if wants("third") {
        third();
    }
    if wants("pairs") {
        pairs();
    }
}

/// Starts a thread of the attacker, calls `warm` until it is ready, measures, and ends it. Returns
/// the attacker's CPU time as a part of one CPU, with what was measured.
fn beside<C, T>(
    (place, attack, is_hostile): (&Place, Attack, bool),
    context: &mut C,
    mut warm: impl FnMut(&mut C),
    measure: impl FnOnce(&mut C) -> T,
) -> (T, f64) {
    let signs = Signs::default();
    thread::scope(|scope| {
        let start = Instant::now();
        let attacker = scope.spawn(|| attack.run(place, is_hostile, &signs));
        let _stop = driver::SetOnDrop(&signs.stop);
        while !signs.ready.load(Ordering::Relaxed) {
            assert!(!attacker.is_finished(), "the attacker has ended");
            warm(context);
        }
        let measured = measure(context);
        signs.stop.store(true, Ordering::Relaxed);
        let used = attacker.join().unwrap();
        (measured, used / start.elapsed().as_secs_f64())
    })
}

fn latency(attack: Attack) {
    let place = Place::new();
    let mut a = Station::new(&place, "a", A, &Spec::default(), None);
    let mut b = Station::new(&place, "b", B, &attack.spec_of_b(), None);
    until("a link", || a.port.log().contains(" is up"));
    let (to, time) = (attack.correspondent(), attack.time());
    let end = AtomicBool::new(false);
    let (mut without, mut under) = (Vec::new(), Vec::new());
    let (mut lost, mut cpu) = (0, 0.0);
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let (end, guest) = (&end, &mut b.guest);
        scope.spawn(move || {
            sender.send(this_thread()).unwrap();
            echo(guest, end);
        });
        let _end = driver::SetOnDrop(end);
        let workers = [&a.port, &b.port].map(|port| worker_of(port.pid()));
        let guests = [this_thread(), receiver.recv().unwrap()];
        let waits = Waits::new(workers.into_iter().chain(guests));
        let guest = &mut a.guest;
        ping(guest, None, WARM_UP, &waits);
        let run = |guest: &mut Guest, is_hostile| {
            let kind = (&place, attack, is_hostile);
            let warm = |guest: &mut Guest| drop(ping(guest, to, TICK, &waits));
            beside(kind, guest, warm, |guest| ping(guest, to, time, &waits))
        };
        for _ in 0..ROUNDS {
            let (quiet, _) = match to {
                Some(_) => run(guest, false),
                None => (ping(guest, None, time, &waits), 0.0),
            };
            let (loud, used) = run(guest, true);
            without.push(quiet.percentiles());
            lost += loud.lost;
            under.push(loud.percentiles());
            cpu += used / ROUNDS as f64;
        }
    });
    let columns = [0, 1, 2].map(|which| {
        let of = |rounds: &[[f64; 3]]| median(rounds.iter().map(|round| round[which]).collect());
        let (without, under) = (of(&without), of(&under));
        format!("{without:>11.0} {under:>6.0} {:>5.2}", under / without)
    });
    let (name, columns) = (format!("{attack:?}"), columns.join("  "));
    println!("{name:<17}{columns} {lost:>4} {cpu:>4.2}");
}

/// Round trips, and pings that were not answered.
#[derive(Default)]
struct Pings {
    /// Time in ns, and time less that for which threads had no CPU.
    times: Vec<[u64; 2]>,
    lost: usize,
}

impl Pings {
    /// p50, p99, and p99 less waits for a CPU, in µs.
    fn percentiles(self) -> [f64; 3] {
        let at = |which: usize, percent| {
            let mut times: Vec<u64> = self.times.iter().map(|both| both[which]).collect();
            times.sort_unstable();
            times[(times.len() - 1) * percent / 100] as f64 / 1000.0
        };
        [at(0, 50), at(0, 99), at(1, 99)]
    }
}

/// Pings B from A's guest, which sends frames to another meanwhile.
fn ping(guest: &mut Guest, beside: Option<usize>, time: Duration, waits: &Waits) -> Pings {
    let other = beside.map(|number| Packet::new(mac(A), mac(number), FRAME, 0));
    let (tx, rx) = (&mut guest.tx[0], &mut guest.rx[0]);
    let (start, mut pings, mut number) = (Instant::now(), Pings::default(), 0);
    while start.elapsed() < time {
        number += 1;
        let due = start + number * PERIOD;
        let now = Instant::now();
        if due > now {
            sleep(due - now);
        }
        let waited = waits.total();
        // A sleep that is too long is no fault of the ports.
        let now = Instant::now();
        let from = if now < due + PERIOD { now } else { due };
        for packet in other.iter().cycle().take(BESIDE) {
            tx.try_send(packet);
        }
        tx.send(&Packet::new(mac(A), mac(B), 60, u64::from(number)));
        let is_answer =
            |packet: &Packet| packet.source() == mac(B) && packet.seed() == u64::from(number);
        loop {
            match rx.receive_within(LOST) {
                None => break pings.lost += 1,
                Some(got) if is_answer(&got.packet) => break,
                Some(_) => {}
            }
        }
        let elapsed = from.elapsed().as_nanos() as u64;
        let less = elapsed.saturating_sub(waits.total() - waited);
        pings.times.push([elapsed, less]);
    }
    pings
}

/// Answers pings.
fn echo(guest: &mut Guest, end: &AtomicBool) {
    let (tx, rx) = (&mut guest.tx[0], &mut guest.rx[0]);
    while !end.load(Ordering::Relaxed) {
        let Some(got) = rx.receive_within(TICK) else {
            continue;
        };
        if got.packet.source() == mac(A) {
            tx.send(&Packet::new(mac(B), mac(A), 60, got.packet.seed()));
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Counts the bytes of frames from `from`.
fn count(rx: &mut RxQueue, from: usize, end: &AtomicBool, bytes: &AtomicU64) {
    while !end.load(Ordering::Relaxed) {
        if let Some(got) = rx.receive_within(TICK)
            && got.packet.source() == mac(from)
        {
            bytes.fetch_add(got.packet.frame.len() as u64, Ordering::Relaxed);
        }
    }
}

/// Sends frames to all of these in turn.
fn send(tx: &mut TxQueue, from: usize, to: &[usize], end: &AtomicBool) {
    let packet = |number: &usize| Packet::new(mac(from), mac(*number), FRAME, 0);
    let packets: Vec<Packet> = to.iter().map(packet).collect();
    while !end.load(Ordering::Relaxed) {
        packets.iter().for_each(|packet| tx.send(packet));
    }
}

/// Mbit/s of counts of bytes, after a moment.
fn rates<const N: usize>(bytes: &[AtomicU64; N]) -> [f64; N] {
    sleep(WARM_UP);
    let now = || bytes.each_ref().map(|bytes| bytes.load(Ordering::Relaxed));
    let (before, start) = (now(), Instant::now());
    sleep(RATE_TIME);
    let (after, time) = (now(), start.elapsed().as_secs_f64());
    std::array::from_fn(|at| 8.0 * (after[at] - before[at]) as f64 / time / 1e6)
}

/// The rate at which A's guest sends to B's, while it sends to a third one in turn.
fn third() {
    let place = Place::new();
    let mut a = Station::new(&place, "a", A, &Spec::default(), None);
    let mut b = Station::new(&place, "b", B, &Spec::default(), None);
    until("a link", || a.port.log().contains(" is up"));
    let mut measure = |to: &[usize], is_slow: Option<bool>| {
        let (end, bytes) = (AtomicBool::new(false), [AtomicU64::new(0)]);
        let signs = Signs::default();
        thread::scope(|scope| {
            let _stops = [driver::SetOnDrop(&end), driver::SetOnDrop(&signs.stop)];
            if let Some(is_slow) = is_slow {
                let (place, signs) = (&place, &signs);
                scope.spawn(move || third_guest(place, is_slow, signs));
                until("a third guest", || signs.ready.load(Ordering::Relaxed));
            }
            scope.spawn(|| send(&mut a.guest.tx[0], A, to, &end));
            scope.spawn(|| count(&mut b.guest.rx[0], A, &end, &bytes[0]));
            let [rate] = rates(&bytes);
            rate
        })
    };
    let mut of_rounds = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        of_rounds[0].push(measure(&[B], None));
        of_rounds[1].push(measure(&[OTHER, B], None));
        of_rounds[2].push(measure(&[OTHER, B], Some(false)));
        of_rounds[3].push(measure(&[OTHER, B], Some(true)));
    }
    let [alone, absent, fast, slow] = of_rounds.map(median);
    println!("Rate to one guest in Mbit/s, while as many frames for another are sent in turn");
    println!(
        "all frames for it {alone:.0}, the other absent {absent:.0}, fast {fast:.0}, slow {slow:.0}"
    );
    println!(
        "slow ÷ all frames for it {:.2}, ÷ absent {:.2}, ÷ fast {:.2}",
        slow / alone,
        slow / absent,
        slow / fast
    );
}

/// The rates of two pairs of guests, alone and beside an attacker, whose flood is for the first.
fn pairs() {
    let place = Place::new();
    let station = |(number, id)| Station::new(&place, id, number, &Spec::default(), None);
    // B is where attackers send to.
    let mut stations: Vec<Station> = (0..).zip(["a", "b", "c", "d"]).map(station).collect();
    for station in &stations {
        until("all links", || {
            station.port.log().matches(" is up").count() == 3
        });
    }
    let mut measure = |attack: Option<Attack>| {
        let (end, bytes) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; 2]);
        let before: f64 = stations.iter().map(Station::cpu_time).sum();
        let (rate, attacker) = thread::scope(|scope| {
            let _end = driver::SetOnDrop(&end);
            let mut guests = stations.iter_mut().map(|station| &mut station.guest);
            let (end, bytes) = (&end, &bytes);
            for (from, bytes) in [0, 2].into_iter().zip(bytes) {
                let (near, far) = (guests.next().unwrap(), guests.next().unwrap());
                scope.spawn(move || send(&mut near.tx[0], from, &[from + 1], end));
                scope.spawn(move || count(&mut far.rx[0], from, end, bytes));
            }
            match attack {
                None => (rates(bytes), 0.0),
                Some(attack) => {
                    let warm = |_: &mut ()| sleep(TICK);
                    beside((&place, attack, true), &mut (), warm, |_| rates(bytes))
                }
            }
        });
        let ports = stations.iter().map(Station::cpu_time).sum::<f64>() - before;
        (rate, attacker, ports)
    };
    println!("Rates of two pairs of guests in Mbit/s, floods are for the first");
    println!(
        "attacker          first  second   both   loss  CPUs of the attacker  CPU s of the ports"
    );
    let attackers = [
        Attack::Spin,
        Attack::FrameFlood,
        Attack::JoinsAndLeaves,
        Attack::Vandal,
    ];
    let mut alone = Vec::new();
    let mut rows = attackers.map(|attack| (attack, Vec::new(), 0.0, 0.0));
    for _ in 0..ROUNDS {
        alone.push(measure(None).0);
        for (attack, rates, cpu, of_ports) in &mut rows {
            let (rate, attacker, ports) = measure(Some(*attack));
            rates.push(rate);
            *cpu += attacker / ROUNDS as f64;
            *of_ports += ports / ROUNDS as f64;
        }
    }
    let of_pairs = |rounds: &[[f64; 2]]| {
        let [first, second] = [0, 1].map(|at| median(rounds.iter().map(|pair| pair[at]).collect()));
        let both = median(rounds.iter().map(|pair| pair[0] + pair[1]).collect());
        (format!("{first:>6.0} {second:>7.0} {both:>6.0}"), both)
    };
    let (text, alone) = of_pairs(&alone);
    println!("{:<16} {text}", "none");
    for (attack, rates, cpu, of_ports) in rows {
        let (name, (text, both)) = (format!("{attack:?}"), of_pairs(&rates));
        let loss = 100.0 * (1.0 - both / alone);
        println!("{name:<16} {text} {loss:>5.0}% {cpu:>21.2} {of_ports:>19.1}");
    }
}
