//! Control groups by cgroup v2, in a machine that has them. (The tests of `bench` use the hierarchy
//! of this machine.)
#![forbid(unsafe_code)]

use std::fs;
use std::process::Command;
use std::time::Duration;

use virtio_inter_tests::{
    ControlGroups, Machine, Process, Supplies, Testbed, guest_test, is_inside, port_program, skip,
};

/// The processor is emulated.
const LIMIT: Duration = Duration::from_secs(60);
/// Machines booted at most.
const TRIES: usize = 2;

#[test]
fn control_groups_of_version_2() {
    if is_inside() {
        return inside();
    }
    guest_test(|bed| {
        let supplies = match Supplies::new(&std::env::current_exe()?, &port_program()?) {
            Ok(supplies) => supplies,
            Err(error) => {
                skip(&format!("no nested machine: {error:#}"));
                return Ok(());
            }
        };
        // An emulated processor is not perfect, and slow on a busy machine.
        let machine = (1..TRIES)
            .find_map(|_| Machine::boot(bed, &supplies).ok())
            .map_or_else(|| Machine::boot(bed, &supplies), Ok)?;
        let arguments = ["--exact", "control_groups_of_version_2", "--nocapture"];
        let output = machine.run(&arguments, LIMIT, true)?.expect("an end");
        assert!(output.success() && output.stdout.contains("1 passed"));
        Ok(())
    });
}

/// In the nested machine, which has mounted no hierarchy yet.
fn inside() {
    let error = ControlGroups::new().unwrap_err();
    assert!(
        format!("{error:#}").contains("No control group hierarchy"),
        "{error:#}"
    );
    let mounted = Command::new("mount")
        .args(["-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"])
        .status()
        .unwrap();
    assert!(mounted.success());

    let bed = Testbed::new("control groups").unwrap();
    let groups = ControlGroups::new().unwrap();
    assert_eq!(groups.version(), 2);
    let start = |name: &str| {
        let mut command = Command::new("sleep");
        command.arg("600");
        Process::start(name, command, &bed.path(name), &[]).unwrap()
    };
    let parties = ["a", "b"].map(start);
    let own = parties.each_ref().map(|process| {
        let group = groups.make("party").unwrap();
        group.add(process).unwrap();
        group
    });
    let group_of =
        |process: &Process| fs::read_to_string(format!("/proc/{}/cgroup", process.pid())).unwrap();
    for (group, process) in own.iter().zip(&parties) {
        let name = group.path().file_name().unwrap().to_str().unwrap();
        assert!(
            group_of(process).trim_end().ends_with(name),
            "{}",
            group_of(process)
        );
        let weight = fs::read_to_string(group.path().join("cpu.weight")).unwrap();
        assert_eq!(weight.trim(), "100");
    }
    let directory = groups.directory().to_owned();
    drop(own);
    assert_eq!(group_of(&parties[0]), "0::/\n");
    drop(groups);
    assert!(!directory.exists());

    // One that a killed run left behind.
    let left = directory.with_file_name("virtio-inter-1-0");
    fs::create_dir_all(left.join("party")).unwrap();
    fs::write(
        left.join("party/cgroup.procs"),
        parties[1].pid().to_string(),
    )
    .unwrap();
    drop(ControlGroups::new().unwrap());
    assert!(!left.exists());
    assert_eq!(group_of(&parties[1]), "0::/\n");
}
