//! Measures what the sandbox costs when a port starts: `cargo bench -p virtio-inter --bench start`.
//!
//! The time from the start of the process until it tells its service manager that it serves, with
//! and without the sandbox in turn.
#![allow(clippy::print_stdout, reason = "the figures are what it is for")]

#[path = "../tests/port/process.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use all of it")]
mod process;
#[path = "../tests/port/service_manager.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod service_manager;

use std::time::{Duration, Instant};

use process::Place;
use service_manager::ServiceManager;

const ROUNDS: usize = 50;
const MODES: [&str; 2] = ["off", "on"];

fn main() {
    let place = Place::new();
    let manager = ServiceManager::new(&place);
    let mut times = MODES.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (mode, times) in MODES.iter().zip(&mut times) {
            let command = place.command("a").with("--sandbox", mode);
            let start = Instant::now();
            let port = command.notifying(&place.path("notify")).spawn();
            while !manager.hear().contains("READY=1") {}
            times.push(start.elapsed());
            port.end();
            // What it said last.
            manager.hear_all();
        }
    }
    println!("Time until a port serves in ms, of {ROUNDS} starts each");
    println!("sandbox   shortest  median  longest");
    for (mode, mut times) in MODES.iter().zip(times) {
        times.sort();
        let [shortest, median, longest] = [0, ROUNDS / 2, ROUNDS - 1].map(|at| millis(times[at]));
        println!("{mode:<8} {shortest:>9.2} {median:>7.2} {longest:>8.2}");
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
