//! `cargo xtask bench`: a small part of it has figures, goals and a page, and leaves nothing
//! behind.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use virtio_inter_tests::{ControlGroups, Process, guest_test, is_root, skip};

/// The programs may have to be built first.
const LIMIT: Duration = Duration::from_secs(240);

#[test]
fn part_of_the_bench_has_its_figures() {
    guest_test(|bed| {
        if !is_root() {
            skip("bridges and tap devices need root");
            return Ok(());
        }
        let (made, output, json) = (bed.path("made"), bed.path("out"), bed.path("out.json"));
        fs::create_dir(&made)?;
        let groups = ControlGroups::new();
        let grouping = if groups.is_ok() { "groups" } else { "session" };
        let mut command = Command::new("cargo");
        command
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("TMPDIR", &made)
            .args(["run", "--quiet", "--package", "xtask", "--", "bench"])
            .args(["--quick", "--rounds", "1"])
            .args([
                "--only",
                &format!("latency/uml/one-cpu/{grouping}/udp,udp/uml/one-cpu"),
            ])
            .arg("--output")
            .arg(&output)
            .arg("--json")
            .arg(&json);
        let mut bench = Process::start("the bench", command, &bed.path("bench.log"), &[])?;
        let status = bench.wait(LIMIT)?;
        assert!(status.success(), "{status}: {}", bench.log());
        let report: Value = serde_json::from_slice(&fs::read(&json)?)?;
        let mut seen = BTreeSet::new();
        for row in report["rows"].as_array().expect("a list") {
            let (way, metric) = (row["way"].to_string(), row["metric"].to_string());
            let rounds = row["rounds"].as_array().expect("a list");
            assert_eq!(rounds.len(), 1, "{row}");
            let value = rounds[0].as_f64().expect("a number");
            assert!(value > 0.0 || metric.contains("loss"), "{row}");
            seen.insert((way, metric, row["size"].to_string()));
        }
        // Three ways: median and two percentiles of one size, rate and loss of two.
        assert_eq!(seen.len(), 3 * (3 + 2 * 2), "{seen:?}");
        for goal in report["goals"].as_array().expect("a list") {
            assert!(
                goal["name"].is_string() && goal["goal"].is_string(),
                "{goal}"
            );
            assert!(goal["met"].is_null(), "{goal}");
        }
        let page = fs::read_to_string(output.join("REPORT.md"))?;
        assert!(page.contains("### UDP datagrams that arrive: User Mode Linux"));
        assert!(page.contains("`paper/cloud-hypervisor`") || page.contains("## What did not run"));
        let plot = format!("plots/udp-uml-one-cpu-{grouping}-datagrams.svg");
        assert!(output.join(plot).is_file());
        if let Ok(groups) = groups {
            // Of other runs, only those that live.
            let of_bench = format!("virtio-inter-{}-", bench.pid());
            let base = groups.directory().parent().expect("a directory");
            for entry in fs::read_dir(base)?.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                assert!(!name.starts_with(&of_bench), "{name}");
            }
        }
        let left: Vec<_> = fs::read_dir(&made)?.flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        Ok(())
    });
}
