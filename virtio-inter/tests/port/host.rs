//! `virtio-inter list`, `show` and `check` on running ports.

use std::ffi::OsStr;
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::Value;

use crate::frontends::connect;
use crate::process::{Place, until};

fn run(command: &str, place: &OsStr, options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_virtio-inter"))
        .arg(command)
        .arg(place)
        .args(options)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn list_has_each_port_with_its_state() {
    let place = Place::new();
    let (a, b) = (place.start("a"), place.start("b"));
    let frontend = connect(&a);
    let segment = place.segment();
    let list = || text(&run("list", segment.as_os_str(), &[]));
    let cells = |list: &str, port: usize| -> Vec<String> {
        let line = list.lines().nth(port).unwrap();
        line.split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .map(str::to_owned)
            .collect()
    };
    until("both ports, linked", || {
        let list = list();
        cells(&list, 1)[6] == "1" && cells(&list, 2)[6] == "1"
    });
    let all = list();
    assert_eq!(cells(&all, 1)[1..4], ["a", "52:54:00:00:00:61", "1500"]);
    assert!(
        cells(&all, 1)[4].ends_with(&format!(" {}", std::process::id())),
        "{all}"
    );
    assert_eq!(cells(&all, 1)[5], "no driver");
    assert_eq!(
        cells(&all, 2)[1..6],
        ["b", "52:54:00:00:00:62", "1500", "-", "no VMM"]
    );

    b.signal(Signal::KILL);
    until("it is gone", || cells(&list(), 2)[2..5] == ["-", "-", "-"]);
    assert_eq!(cells(&list(), 2)[5], "gone");

    let json: Value =
        serde_json::from_str(&text(&run("list", segment.as_os_str(), &["--json"]))).unwrap();
    assert_eq!(json[0]["port"], "a");
    assert_eq!(json[0]["status"]["pid"], a.pid());
    assert_eq!(json[1]["state"], "gone");
    drop(frontend);
    a.end();
}

#[test]
fn show_of_one_port_has_its_peers_and_warnings_on_top() {
    let place = Place::new();
    let a = place.start("a");
    let b = place.command("b").with("--mtu", "9000").start();
    let port = place.segment().join("a");
    let show = || text(&run("show", port.as_os_str(), &[]));
    until("the warning", || show().starts_with("! "));
    let show = show();
    assert!(
        show.lines().next().unwrap().contains("(mtu-mismatch, 1)"),
        "{show}"
    );
    assert!(show.contains("    Port a (no VMM)\n"), "{show}");
    assert!(
        show.contains("peer: b 52:54:00:00:00:62, MTU 9000\n"),
        "{show}"
    );
    assert!(!show.contains("Port b"), "{show}");
    a.end();
    b.end();
}

#[test]
fn check_ends_with_the_status_that_monitoring_needs() {
    let place = Place::new();
    let a = place.start("a");
    let segment = place.segment();
    let check = |options: &[&str]| run("check", segment.as_os_str(), options);
    // The host's own limits may be nearly reached while other tests run.
    let of_segment = |output: &Output| -> Vec<String> {
        let findings: Value = serde_json::from_str(&text(output)).unwrap();
        let all = findings.as_array().unwrap().iter();
        all.filter(|one| one["place"] != "")
            .map(|one| one["code"].as_str().unwrap().to_owned())
            .collect()
    };
    let output = check(&["--json"]);
    assert_eq!(of_segment(&output), [""; 0]);
    let b = place
        .command("b")
        .with("--mac", "52:54:00:00:00:61")
        .start();
    until("both refuse each other", || {
        of_segment(&check(&["--json"]))
            .iter()
            .filter(|code| *code == "refused")
            .count()
            == 2
    });
    let output = check(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output).contains("Ports a, b have one MAC address"),
        "{}",
        text(&output)
    );
    a.end();
    b.end();
}

#[test]
fn segment_or_port_that_is_not_there_is_told_with_the_nearest_name() {
    let place = Place::new();
    let a = place.command("gateway").start();
    for (value, told) in [
        (place.path("segmnt"), "did you mean segment?"),
        (place.segment().join("gatewya"), "did you mean gateway?"),
    ] {
        for command in ["list", "show", "check"] {
            let output = run(command, value.as_os_str(), &[]);
            let log = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{log}");
            assert!(log.contains(told), "{log}");
            assert_eq!(log.lines().count(), 1, "{log}");
        }
    }
    a.end();
}
