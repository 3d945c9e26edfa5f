//! Control groups of the bench on the real kernel: made, filled, and removed however the run ends.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use virtio_inter_bench::neighbour::Neighbour;
use virtio_inter_tests::{ControlGroups, Hierarchy, Process, Testbed, skip, until};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The groups, or None: the running test was skipped.
fn groups() -> Option<ControlGroups> {
    match ControlGroups::new() {
        Ok(groups) => Some(groups),
        Err(error) => {
            skip(&format!("{error:#}"));
            None
        }
    }
}

/// A process that sleeps, and so does a child of it.
fn sleeper(bed: &Testbed, name: &str) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", "sleep 600 & echo started; wait"]);
    let mut process = Process::start(name, command, &bed.path(name), &[]).unwrap();
    process.wait_for_log("started", 0, PATIENCE).unwrap();
    process
}

/// The path of a process's group within the hierarchy that has the cpu controller, as the kernel
/// tells.
fn group_of(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let version = Hierarchy::find().unwrap().version;
    let line = text.lines().find(|line| {
        let controllers = line.split(':').nth(1).unwrap();
        match version {
            2 => controllers.is_empty(),
            _ => controllers.split(',').any(|name| name == "cpu"),
        }
    });
    line.unwrap().splitn(3, ':').nth(2).unwrap().to_owned()
}

fn pids(group: &Path) -> Vec<u32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
fn control_groups_have_equal_weight_and_are_removed() {
    let Some(groups) = groups() else { return };
    let bed = Testbed::new("control groups").unwrap();
    let (a, b) = (sleeper(&bed, "a"), sleeper(&bed, "b"));
    let home = group_of(a.pid());
    let (group_a, group_b) = (groups.make("a").unwrap(), groups.make("b").unwrap());
    group_a.add(&a).unwrap();
    group_b.add(&b).unwrap();
    // The shell and its child.
    assert_eq!(pids(group_a.path()).len(), 2);
    let weight = |group: &Path| {
        let file = if groups.version() == 2 {
            "cpu.weight"
        } else {
            "cpu.shares"
        };
        fs::read_to_string(group.join(file)).unwrap()
    };
    assert_eq!(weight(group_a.path()), weight(group_b.path()));
    let (in_a, in_b) = (group_of(a.pid()), group_of(b.pid()));
    assert!(in_a != in_b && in_a != home && in_b != home);

    let (directory, path) = (groups.directory().to_owned(), group_a.path().to_owned());
    drop(group_a);
    assert!(!path.exists());
    assert_eq!(group_of(a.pid()), home);
    drop(groups);
    assert!(!directory.exists());
    assert_eq!(group_of(b.pid()), home);
}

/// Two loops on one CPU: each group has half, however many processes are in it.
#[test]
fn control_groups_share_a_cpu_in_equal_parts() {
    let Some(groups) = groups() else { return };
    let bed = Testbed::new("control groups").unwrap();
    let cpu = *virtio_inter_bench::placement::allowed_cpus()
        .unwrap()
        .last()
        .unwrap();
    let spin = |name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_virtio-inter-bench"));
        command.arg("spin").stdin(Stdio::null());
        Process::start(name, command, &bed.path(name), &[cpu]).unwrap()
    };
    let (alone, many) = (groups.make("alone").unwrap(), groups.make("many").unwrap());
    let one = spin("one");
    alone.add(&one).unwrap();
    let others = ["other0", "other1", "other2"].map(spin);
    for other in &others {
        many.add(other).unwrap();
    }
    let time = |process: &Process| process.cpu_time().unwrap();
    let before = (
        time(&one),
        others.each_ref().map(time).iter().sum::<Duration>(),
    );
    until("the loops get time", PATIENCE, || {
        let spent = time(&one) + others.iter().map(time).sum::<Duration>();
        Ok((spent > before.0 + before.1 + Duration::from_millis(800)).then_some(()))
    })
    .unwrap();
    let of_one = time(&one) - before.0;
    let of_many = others.iter().map(time).sum::<Duration>() - before.1;
    // In one group it would be a quarter. What else runs here takes from both.
    let part = of_one.as_secs_f64() / (of_one + of_many).as_secs_f64();
    assert!((0.37..0.63).contains(&part), "{part}");
}

/// A run of this test's program that makes a group with a process in it, and waits for its end.
fn start_run(bed: &Testbed) -> (Child, PathBuf) {
    let file = bed.path("told");
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_run_that_is_ended", "--ignored"])
        .env("TOLD", &file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut told = String::new();
    until("the run makes its group", PATIENCE, || {
        told = fs::read_to_string(&file).unwrap_or_default();
        Ok(told.ends_with('\n').then_some(()))
    })
    .unwrap();
    (child, told.trim_end().into())
}

#[test]
#[ignore = "the other process of the tests below"]
fn a_run_that_is_ended() {
    let file = std::env::var_os("TOLD").unwrap();
    let bed = Testbed::new("a run").unwrap();
    let groups = ControlGroups::new().unwrap();
    let group = groups.make("party").unwrap();
    let process = sleeper(&bed, "party");
    group.add(&process).unwrap();
    fs::write(file, format!("{}\n", group.path().display())).unwrap();
    std::thread::sleep(Duration::from_secs(600));
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn control_groups_of_a_run_that_is_interrupted_are_removed() {
    let Some(_groups) = groups() else { return };
    let bed = Testbed::new("control groups").unwrap();
    for (number, by) in [(2, Signal::INT), (15, Signal::TERM)] {
        let (mut child, group) = start_run(&bed);
        assert!(group.exists());
        signal(&child, by);
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(128 + number), "{status}");
        assert!(!group.exists() && !group.parent().unwrap().exists());
        fs::remove_file(bed.path("told")).unwrap();
    }
}

#[test]
fn control_groups_of_a_run_that_was_killed_are_removed_by_the_next() {
    let Some(living) = groups() else { return };
    let bed = Testbed::new("control groups").unwrap();
    let (mut child, group) = start_run(&bed);
    // A process that outlived its run, as one may that a party started.
    let orphan = sleeper(&bed, "orphan");
    fs::write(group.join("cgroup.procs"), orphan.pid().to_string()).unwrap();
    signal(&child, Signal::KILL);
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    let left = pids(&group);
    drop(ControlGroups::new().unwrap());
    assert!(!group.exists() && !group.parent().unwrap().exists());
    // The process lives, and so does the directory of a run that lives.
    assert_eq!(group_of(orphan.pid()), group_of(std::process::id()));
    assert!(living.directory().exists());
    for pid in left.into_iter().filter(|pid| *pid != orphan.pid()) {
        // The kernel ended the run's own child already.
        let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
    }
}

#[test]
fn busy_neighbour_has_a_loop_on_each_cpu_in_a_group_of_its_own() {
    let Some(groups) = groups() else { return };
    let cpus = virtio_inter_bench::placement::allowed_cpus().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_virtio-inter-bench"));
    let neighbour = Neighbour::start(program, &cpus, Some(&groups)).unwrap();
    assert_eq!(neighbour.loops().len(), cpus.len());
    let own = group_of(neighbour.loops()[0].pid());
    assert_ne!(own, group_of(std::process::id()));
    for process in neighbour.loops() {
        assert_eq!(group_of(process.pid()), own);
        assert!(process.cpu_time().unwrap() > Duration::ZERO);
    }
    drop(neighbour);
    // Nothing but files of the kernel's is left in the directory.
    let entries = fs::read_dir(groups.directory()).unwrap();
    let left = entries.filter(|entry| entry.as_ref().unwrap().path().is_dir());
    assert_eq!(left.count(), 0);
    // Without groups the loops are where this process is.
    let neighbour = Neighbour::start(program, &cpus[..1], None).unwrap();
    let own = group_of(neighbour.loops()[0].pid());
    assert_eq!(own, group_of(std::process::id()));
}
