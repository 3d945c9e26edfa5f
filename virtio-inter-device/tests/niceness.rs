//! Workers are nicer than their process, and stop being so where that starves them. In a program of its own, as it looks at
//! all threads of the process.

mod driver;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::getpriority_process;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use virtio_inter_device::Scheduling;
use virtio_inter_test_support::skip;

use driver::stream::{all_to_all, mixed};
use driver::{Network, Spec, until};

/// Threads that leave a nicer one next to nothing of their CPU.
const BUSY: usize = 6;
/// Far longer than it takes.
const LIMIT: Duration = Duration::from_secs(60);
/// Of setpriority(2).
const NICEST: i32 = 19;

/// Name, number and nice value of each thread that serves a queue pair.
fn queue_threads() -> Vec<(String, Pid, i32)> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let threads = tasks.map(|task| {
        let path = task.unwrap().path();
        let name = fs::read_to_string(path.join("comm")).unwrap();
        let id = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let stat = fs::read_to_string(path.join("stat")).unwrap();
        // proc(5): the 19th field, and the second, which may contain anything, ends with the last parenthesis.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let nice = fields.split_whitespace().nth(16).unwrap().parse().unwrap();
        (name.trim().to_owned(), Pid::from_raw(id).unwrap(), nice)
    });
    threads
        .filter(|(name, ..)| name.starts_with("queue-"))
        .collect()
}

/// Binds a thread, or the calling one, to one of the CPUs that this process may use.
fn bind(thread: Option<Pid>) {
    let allowed = sched_getaffinity(None).unwrap();
    let cpu = (0..CpuSet::MAX_CPU)
        .rfind(|cpu| allowed.is_set(*cpu))
        .unwrap();
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(thread, &one).unwrap();
}

/// Keeps a CPU busy for as long as it lives.
struct Hogs<'a>(&'a AtomicBool);

impl Drop for Hogs<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Exchanges frames until each worker was handed over so many times.
#[track_caller]
fn exchange_until_handed_over(network: &mut Network, times: u64) {
    let start = Instant::now();
    for seed in 0.. {
        assert_eq!(all_to_all(network, 1000, seed, mixed, false).stalled, 0);
        if network
            .nodes
            .iter()
            .all(|n| n.count("handed_over") >= times)
        {
            return;
        }
        assert!(start.elapsed() < LIMIT, "not handed over {times} times");
    }
}

/// One test, for what it looks at is the process.
#[test]
fn workers_are_nicer_until_that_starves_them() {
    let own = getpriority_process(None).unwrap();
    if own + i32::from(Scheduling::default().nice) > NICEST {
        return skip("This process is too nice already");
    }
    let mut network = Network::new(&[Spec::default(), Spec::default()]);
    for (name, nice) in [
        ("queue-0", own),
        ("queue-0-nicer", own + i32::from(Scheduling::default().nice)),
    ] {
        // A thread gives itself both after it was started.
        until("the threads are as nice as they are to be", || {
            let threads = queue_threads().into_iter();
            let nice_values: Vec<i32> = threads.filter(|t| t.0 == name).map(|t| t.2).collect();
            nice_values == [nice; 2]
        });
    }

    let threads = queue_threads();
    assert_eq!(threads.len(), 4);
    for (_, thread, _) in &threads {
        bind(Some(*thread));
    }
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let hogs = Hogs(&end);
        for _ in 0..BUSY {
            scope.spawn(|| {
                bind(None);
                while !end.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        exchange_until_handed_over(&mut network, 1);
        drop(hogs);
    });
    // Back, for good, as nobody is in the way any more.
    exchange_until_handed_over(&mut network, 2);
}
