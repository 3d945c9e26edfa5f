//! Measures what the sandbox costs when a port starts: `cargo bench -p virtio-inter --bench start`.
//!
//! The time from the start of the process until it tells its service manager that it serves, with
//! and without the sandbox in turn.
#![allow(clippy::print_stdout, reason = "the figures are what it is for")]

#[path = "../tests/port/process.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use all of it")]
mod process;

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use process::{Place, TIMEOUT};

const ROUNDS: usize = 50;
const MODES: [&str; 2] = ["off", "on"];

fn main() {
    let place = Place::new();
    let path = place.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let mut times = MODES.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (mode, times) in MODES.iter().zip(&mut times) {
            let command = place.command("a").with("--sandbox", mode);
            let start = Instant::now();
            let port = command.notifying(&path).spawn();
            wait_for(&manager, "READY=1");
            times.push(start.elapsed());
            port.end();
            // The next one's messages come after this.
            manager.set_nonblocking(true).unwrap();
            while manager.recv(&mut [0; 4096]).is_ok() {}
            manager.set_nonblocking(false).unwrap();
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

fn wait_for(manager: &UnixDatagram, wanted: &str) {
    manager.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut text = [0; 4096];
    loop {
        let len = manager.recv(&mut text).unwrap();
        if String::from_utf8_lossy(&text[..len]).contains(wanted) {
            return;
        }
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
