//! Measures how long the commands need for 256 ports: `cargo bench -p virtio-inter-host`.
//!
//! The ports are threads of this process that answer as ports of one segment do, each with 255
//! peers. Their work is part of the time, as it is on a host.
#![allow(clippy::print_stdout, reason = "the figures are what it is for")]

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use virtio_inter_device::Counters;
use virtio_inter_host::args::{ExporterArgs, ListArgs, Places};
use virtio_inter_host::exporter::Manager;
use virtio_inter_sandbox::{Mode, SandboxArgs};

const PORTS: usize = 256;
const ROUNDS: usize = 15;

fn main() {
    let segment = tempfile::tempdir().expect("a directory");
    for port in 0..PORTS {
        serve(segment.path(), port);
    }
    let places = Places {
        places: vec![segment.path().as_os_str().to_owned()],
    };
    let list = ListArgs {
        places: places.clone(),
        json: false,
    };
    print("list", || {
        let table = virtio_inter_host::list(&list).expect("a table");
        assert_eq!(table.matches("running").count(), PORTS);
    });
    let file = tempfile::tempdir().expect("a directory");
    let manager = Manager {
        ready: || {},
        alive: || {},
        interval: None,
    };
    for peers in [false, true] {
        let exporter = ExporterArgs {
            places: places.clone(),
            listen: None,
            textfile: Some(file.path().to_owned()),
            interval: 15,
            once: true,
            peers,
            sandbox: SandboxArgs { mode: Mode::Off },
        };
        let name = if peers {
            "exporter --peers"
        } else {
            "exporter"
        };
        print(name, || {
            virtio_inter_host::exporter::run(&exporter, manager).expect("metrics");
        });
    }
}

/// A port that runs and has all others as peers.
fn serve(segment: &Path, port: usize) {
    let path = |suffix: &str| segment.join(format!("vm{port}.{suffix}"));
    fs::write(path("lock"), "").expect("a lock file");
    let listener = UnixListener::bind(path("status")).expect("a status socket");
    let document = Arc::new(document(port).to_string());
    thread::spawn(move || {
        for client in listener.incoming() {
            // Who hangs up gets no answer.
            let _ = client.and_then(|mut client| client.write_all(document.as_bytes()));
        }
    });
}

fn mac(port: usize) -> String {
    format!("02:00:00:00:{:02x}:{:02x}", port / 256, port % 256)
}

fn document(port: usize) -> Value {
    let peers = (0..PORTS).filter(|peer| *peer != port).map(|peer| {
        json!({
            "id": format!("vm{peer}"), "mac": mac(peer), "mtu": 1500, "queue_pairs": 1,
            "since": 1_767_225_600,
            "tx": {"frames": 120_000, "bytes": 170_000_000, "drops": 0},
            "rx": {"frames": 80_000, "bytes": 5_280_000},
        })
    });
    let names = Counters::default().values().into_iter();
    let counters: Map<String, Value> = names
        .map(|(name, _)| (name.to_owned(), json!(123_456)))
        .collect();
    json!({
        "version": 1, "program_version": "0.1.0", "started": 1_767_225_500, "pid": 1,
        "id": format!("vm{port}"), "mac": mac(port), "mtu": 1500, "queue_pairs": 1,
        "frontend": {"pid": null, "queues_running": 2, "features": ["CSUM", "MRG_RXBUF"]},
        "peers": peers.collect::<Vec<_>>(), "warnings": [], "refused": [],
        "counters": [counters],
    })
}

/// Prints the median time, and the shortest and longest.
fn print(name: &str, mut run: impl FnMut()) {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            run();
            began.elapsed()
        })
        .collect();
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "{name}, {PORTS} ports: {:.0} ms ({:.0} to {:.0})",
        ms(times[ROUNDS / 2]),
        ms(times[0]),
        ms(times[ROUNDS - 1])
    );
}
