//! `cargo xtask demo`: its figures are all there, it shows VMs of Cloud Hypervisor, and a signal in
//! the middle leaves nothing behind.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use virtio_inter_tests::{
    Process, Result, Testbed, cloud_hypervisor_program, guest_test, is_root, skip, until,
};

/// For a demo with measurements of one second; the port may have to be built first.
const LIMIT: Duration = Duration::from_secs(240);
/// For the demo of Cloud Hypervisor, which may boot three nested machines.
const LAUNCHED_LIMIT: Duration = Duration::from_secs(1500);
/// How long killed processes may take to be gone.
const END_LIMIT: Duration = Duration::from_secs(10);

/// The table of one placement.
const TABLE: [&str; 4] = ["--frontend", "uml", "--placement", "one-cpu"];

/// The demo's process, and the directory that it has for what it makes.
fn start(bed: &Testbed, arguments: &[&str]) -> Result<(Process, PathBuf)> {
    let directory = bed.path("made");
    fs::create_dir(&directory)?;
    let mut command = Command::new("cargo");
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("TMPDIR", &directory)
        .args(["run", "--quiet", "--package", "xtask", "--", "demo"])
        .args(["--seconds", "1"])
        .args(arguments);
    let demo = Process::start("the demo", command, &bed.path("demo.log"), &[])?;
    Ok((demo, directory))
}

#[test]
fn demo_has_all_its_figures() {
    guest_test(|bed| {
        if !is_root() {
            skip("bridges and tap devices need root");
            return Ok(());
        }
        let json = bed.path("out.json");
        let json_option = ["--json", &json.display().to_string()];
        let (mut demo, directory) = start(bed, &[&TABLE[..], &json_option].concat())?;
        let status = demo.wait(LIMIT)?;
        assert!(status.success(), "{status}: {}", demo.log());
        let report: Value = serde_json::from_slice(&fs::read(&json)?)?;
        let mut seen = BTreeSet::new();
        for result in report["results"].as_array().expect("a list") {
            assert_eq!(result["frontend"], "uml");
            assert!(result["value"].as_f64().expect("a number") > 0.0);
            assert!(!result["unit"].as_str().expect("a word").is_empty());
            seen.insert((result["path"].to_string(), result["metric"].to_string()));
        }
        assert_eq!(seen.len(), 3 * 5, "{seen:?}");
        let log = demo.log();
        assert!(log.contains("ping of the host by the uplink"), "{log}");
        assert!(log.contains("namespace by its port's uplink"), "{log}");
        assert_eq!(left_in(&directory), Vec::<String>::new());
        Ok(())
    });
}

#[test]
fn demo_shows_vms_of_cloud_hypervisor_on_two_segments() -> Result<()> {
    if cloud_hypervisor_program().is_none() || !is_root() {
        skip("the demo of Cloud Hypervisor needs root, and CLOUD_HYPERVISOR or one in PATH");
        return Ok(());
    }
    // Without the limit of a test: the demo may need several nested machines.
    let bed = Testbed::new("demo_of_cloud_hypervisor")?;
    let (mut demo, directory) = start(&bed, &["--frontend", "cloud-hypervisor"])?;
    let status = demo.wait(LAUNCHED_LIMIT)?;
    let log = demo.log();
    assert!(status.success(), "{status}: {log}");
    for part in [
        "--inter-vm segment=web,tap=tap",
        "a → bridge, 10.0.0.254: ping",
        "add-device inter-vm,segment=db",
    ] {
        assert!(log.contains(part), "{log}");
    }
    // Over each of the two segments, both of which the list has at the end.
    assert_eq!(log.matches("iperf3").count(), 2, "{log}");
    let (_, list) = log.split_once("inter-vm list").expect("a list");
    assert!(
        list.contains("segment-web") && list.contains("segment-db"),
        "{log}"
    );
    assert_eq!(left_in(&directory), Vec::<String>::new());
    Ok(())
}

/// Interrupts the demo once its log has `text`.
fn interrupt_at(text: &str) {
    guest_test(|bed| {
        if !is_root() {
            skip("bridges and tap devices need root");
            return Ok(());
        }
        let (mut demo, directory) = start(bed, &TABLE)?;
        demo.wait_for_log(text, 0, LIMIT)?;
        let family = descendants(demo.pid());
        assert!(family.len() >= 4, "two guests and two ports: {family:?}");
        let namespaces = format!("virtio-inter-{}-", demo.pid());
        assert_eq!(namespaces_named(&namespaces), 1);
        demo.signal(Signal::INT)?;
        let status = demo.wait(END_LIMIT)?;
        assert_eq!(status.code(), Some(128 + Signal::INT.as_raw()));
        until("end of all processes of the demo", END_LIMIT, || {
            Ok(family.iter().all(|pid| !is_alive(*pid)).then_some(()))
        })?;
        assert_eq!(namespaces_named(&namespaces), 0);
        assert_eq!(left_in(&directory), Vec::<String>::new());
        let log = demo.log();
        assert!(!log.contains("FAILED") && !log.contains("Error"), "{log}");
        Ok(())
    });
}

#[test]
fn interrupted_demo_leaves_nothing_behind() {
    interrupt_at("over loopback");
}

fn left_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn namespaces_named(prefix: &str) -> usize {
    let names = left_in(Path::new("/run/netns"));
    names.iter().filter(|name| name.starts_with(prefix)).count()
}

/// All processes below one.
fn descendants(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        let threads = fs::read_dir(format!("/proc/{pid}/task"));
        for thread in threads.into_iter().flatten().flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            found.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
        next += 1;
    }
    found.split_off(1)
}

/// Whether the process runs: what is dead and was not waited for holds nothing.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().next());
    state.is_some_and(|state| !["Z", "X"].contains(&state))
}
