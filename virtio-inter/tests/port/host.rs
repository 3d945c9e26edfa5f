//! `virtio-inter list`, `show` and `check` on running ports.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::Value;
use virtio_inter_test_support::skip;

use crate::frontends::connect;
use crate::guest::Guest;
use crate::process::{NOBODY, PROGRAM, Place, until};

fn run(command: &str, place: &OsStr, options: &[&str]) -> Output {
    Command::new(PROGRAM)
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

/// A command as a user to whom the files of the test's user are closed. None: there is none who
/// could run the program.
fn by_other_user(command: &mut Command) -> Option<Output> {
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.output().ok()
}

#[test]
fn segment_and_port_that_may_not_be_read_keep_nothing_else_from_the_view() {
    let place = Place::new();
    let a = place.start("a");
    // Its status is for the test's user alone; for that user, there is no way in.
    fs::set_permissions(place.path(""), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(place.segment(), Permissions::from_mode(0o755)).unwrap();
    let status = place.segment().join("a.status");
    fs::set_permissions(status, Permissions::from_mode(0o000)).unwrap();
    let closed = place.path("closed");
    fs::DirBuilder::new().mode(0o000).create(&closed).unwrap();
    let run = |command: &str, options: &[&str]| {
        let mut program = Command::new(PROGRAM);
        let program = program.arg(command).args(options);
        by_other_user(program.args([&closed, &place.segment()]))
    };
    let Some(list) = run("list", &[]) else {
        return skip("another user cannot run the program");
    };
    let list = text(&list);
    let has = |first: &str, state: &str| {
        let mut lines = list.lines().map(|line| line.split_whitespace());
        lines.any(|mut line| line.next() == Some(first) && line.any(|it| it == state))
    };
    assert!(has(closed.to_str().unwrap(), "denied"), "{list}");
    assert!(has(place.segment().to_str().unwrap(), "denied"), "{list}");

    let json: Value = serde_json::from_str(&text(&run("list", &["--json"]).unwrap())).unwrap();
    assert_eq!(json[0]["segment"], closed.to_str().unwrap());
    assert_eq!(
        (&json[0]["port"], &json[0]["state"]),
        (&Value::Null, &"denied".into())
    );
    assert_eq!(
        (&json[1]["port"], &json[1]["state"]),
        (&"a".into(), &"denied".into())
    );

    let show = run("show", &[]).unwrap();
    assert!(show.status.success());
    let show = text(&show);
    assert!(
        show.starts_with(&format!(
            "! {}: the segment's ports cannot be listed",
            closed.display()
        )),
        "{show}"
    );
    assert!(show.contains("/a: not permitted: ask as root"), "{show}");

    let check = text(&run("check", &[]).unwrap());
    for code in ["(segment-unreadable)", "(port-denied)"] {
        assert!(check.contains(code), "{check}");
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
    let mut exporter = Command::new(PROGRAM);
    exporter
        .args(["exporter", "--once", "--textfile"])
        .arg(directory.path())
        .args([&closed, &place.segment()]);
    let exporter = by_other_user(&mut exporter).unwrap();
    assert!(exporter.status.success());
    let metrics = fs::read_to_string(directory.path().join("virtio-inter.prom")).unwrap();
    for line in [
        format!("segment_readable{{segment=\"{}\"}} 0", closed.display()),
        format!(
            "up{{segment=\"{}\",port=\"a\"}} 0",
            place.segment().display()
        ),
    ] {
        assert!(
            metrics.contains(&format!("virtio_inter_{line}\n")),
            "{metrics}"
        );
    }

    // One port of it, which cannot be told from one that is not there.
    let mut ping = Command::new(PROGRAM);
    let ping = by_other_user(ping.arg("ping").arg(closed.join("a"))).unwrap();
    assert_eq!(ping.status.code(), Some(1));
    let error = String::from_utf8_lossy(&ping.stderr).into_owned();
    assert!(
        error.contains("the segment's ports cannot be listed"),
        "{error}"
    );
    // So that it can be removed.
    fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
    a.end();
}

#[test]
fn list_has_the_drops_of_each_second() {
    let place = Place::new();
    let a = place.start("a");
    let segment = place.segment();
    let mut guest = Guest::new(&a, 1514);
    let drops = || {
        let list = text(&run("list", segment.as_os_str(), &[]));
        let cells: Vec<&str> = list.lines().nth(1).unwrap().split_whitespace().collect();
        // Warnings have spaces in them, and so have VMMs.
        let state = cells.iter().position(|cell| *cell == "running").unwrap();
        cells[state + 3..state + 5].join(" ")
    };
    until("the guest", || {
        text(&run("list", segment.as_os_str(), &[])).contains(" running ")
    });
    assert_eq!(drops(), "0 0");
    // From another address than the port's, until they were seen.
    std::thread::scope(|scope| {
        let seen = scope.spawn(|| until("a rate", || !drops().ends_with(" 0")));
        while !seen.is_finished() {
            guest.send("52:54:00:00:00:99", "ff:ff:ff:ff:ff:ff", 60);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    // They are over, and still counted.
    let drops = drops();
    assert!(drops.ends_with(" 0") && drops != "0 0", "{drops}");
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
        show.lines()
            .next()
            .unwrap()
            .contains("(mtu-mismatch, 1, since "),
        "{show}"
    );
    assert!(show.contains("    Port a (no VMM)\n"), "{show}");
    let peer = "peer: b 52:54:00:00:00:62, MTU 9000, without a guest, sent 0 frames (0B), \
                received 0 (0B), linked for ";
    assert!(show.contains(peer), "{show}");
    let directory = place.segment();
    let segment = format!("Segment {}\n", directory.display());
    assert!(show.contains(&segment), "{show}");
    let process = format!("process: {}, version ", a.pid());
    for line in [&*process, ", started ", "sandbox: ", "limits: peers 1 of "] {
        assert!(show.contains(line), "{line} is not in\n{show}");
    }
    assert!(!show.contains("Port b"), "{show}");
    a.end();
    b.end();
}

#[test]
fn show_of_a_client_says_why_it_waits_for_the_vmm() {
    let place = Place::new();
    let a = place.command("a").flag("--client").start();
    let port = place.segment().join("a");
    let show = || text(&run("show", port.as_os_str(), &[]));
    until("the reason", || {
        show().contains("        client: waiting: No such file or directory")
    });
    assert!(show().contains("    Port a (no VMM)\n"), "{}", show());
    a.end();
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
    // Neither clean nor a finding.
    let failed = run("check", OsStr::new("no-such-segment"), &[]);
    assert_eq!(failed.status.code(), Some(3));
    assert_eq!(text(&failed), "");
    let b = place
        .command("b")
        .with("--mac", "52:54:00:00:00:61")
        .start();
    until("both refuse each other", || {
        of_segment(&check(&["--json"]))
            .iter()
            .filter(|code| *code == "conflict")
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
fn check_finds_a_port_near_its_limits() {
    let place = Place::new();
    let a = place.command("a").with("--max-peers", "1").start();
    let b = place.start("b");
    let port = place.segment().join("a");
    until("the finding", || {
        let text = text(&run("check", port.as_os_str(), &[]));
        text.contains("/a: The port has 1 peers of 1: further ones are refused; raise --max-peers")
            && text.contains("(peers-used-up)\n")
    });
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
            let code = if command == "check" { 3 } else { 1 };
            assert_eq!(output.status.code(), Some(code), "{log}");
            assert!(log.contains(told), "{log}");
            assert_eq!(log.lines().count(), 1, "{log}");
        }
    }
    // A segment by its name, and not a directory below the working directory.
    for command in ["list", "ping", "capture"] {
        let output = run(command, OsStr::new("no-such-segment/vm1"), &[]);
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(
            log.contains("There is no segment /run/virtio-inter/no-such-segment"),
            "{log}"
        );
    }
    a.end();
}

#[test]
fn ping_says_whether_a_port_answers_and_has_a_guest() {
    let place = Place::new();
    let a = place.start("a");
    let port = place.segment().join("a");
    let ping = || run("ping", port.as_os_str(), &["--count", "1"]);
    // There is no VMM.
    let answer = ping();
    assert_eq!(answer.status.code(), Some(1));
    let said = text(&answer);
    assert!(
        said.contains("/a: number=1 time=") && said.contains("no VMM"),
        "{said}"
    );

    // Its VMM gives the guest another address.
    let mut guest = Guest::new(&a, 1514);
    assert_eq!(ping().status.code(), Some(0));
    guest.send("52:54:00:00:00:99", "ff:ff:ff:ff:ff:ff", 60);
    let answer = ping();
    let said = text(&answer);
    assert_eq!(answer.status.code(), Some(1), "{said}");
    assert!(
        said.contains("ALL FRAMES OF THE GUEST ARE LOST (tx_spoofed), WARNING (foreign-source)\n")
            && said.contains("    The guest sends frames from 52:54:00:00:00:99, but"),
        "{said}"
    );
    let answer = run("ping", port.as_os_str(), &["--count=1", "--json"]);
    let answer: Value = serde_json::from_str(&text(&answer)).unwrap();
    assert_eq!(answer["good"], false);
    assert_eq!(answer["warnings"], serde_json::json!(["foreign-source"]));

    a.signal(Signal::KILL);
    until("it is gone", || text(&ping()).contains("nobody listens"));
}

#[test]
fn ping_and_others_end_with_the_status_of_a_wrong_command_line() {
    let place = Place::new();
    let segment = place.segment();
    let told = |command: &str, value: &OsStr| {
        let answer = run(command, value, &[]);
        let error = String::from_utf8_lossy(&answer.stderr).into_owned();
        assert_eq!(answer.status.code(), Some(2), "{command}: {error}");
        error
    };
    assert_eq!(
        told("ping", segment.as_os_str()),
        format!(
            "virtio-inter: {} is a segment: name a port of it, SEGMENT/PORT\n",
            segment.display()
        )
    );
    for command in ["ping", "list", "check", "top", "exporter"] {
        let options: &[&str] = match command {
            "exporter" => &["--once", "--textfile=/no-such-directory"],
            _ => &[],
        };
        let answer = run(command, OsStr::new(".."), options);
        assert_eq!(answer.status.code(), Some(2), "{command}");
    }
}

#[test]
fn commands_say_what_is_wrong_in_plain_lines_and_daemons_in_log_lines() {
    let said = |command: &str, options: &[&str]| {
        let mut program = Command::new(PROGRAM);
        program.env_remove("RUST_LOG").arg(command).args(options);
        let output = program.arg("no-such-segment").output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let plain = "virtio-inter: There is no segment /run/virtio-inter/no-such-segment";
    for command in ["list", "show", "check", "top", "ping", "capture", "events"] {
        let said = said(command, &[]);
        assert!(said.starts_with(plain), "{command}: {said}");
        assert_eq!(said.lines().count(), 1, "{command}: {said}");
    }
    let said = said("exporter", &["--listen", "127.0.0.1:0"]);
    assert!(said.contains("ERROR virtio_inter] There is no"), "{said}");
}

#[test]
fn top_prints_lines_for_programs_and_else_needs_a_terminal() {
    let place = Place::new();
    let a = place.start("a");
    let segment = place.segment();
    let lines = text(&run("top", segment.as_os_str(), &["--json", "--count=2"]));
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[1]["ports"][0]["port"], "a");
    assert_eq!(lines[1]["ports"][0]["rates"]["tx_frames"], 0.0);

    let answer = run("top", segment.as_os_str(), &[]);
    assert_eq!(answer.status.code(), Some(1));
    let error = String::from_utf8_lossy(&answer.stderr).into_owned();
    assert!(error.contains("must be a terminal; --json"), "{error}");
    a.end();
}

#[test]
fn segment_is_created_for_a_port_and_deleted_after_it() {
    let temp = tempfile::tempdir().unwrap();
    let segment = temp.path().join("web");
    let command = |verb: &str| {
        Command::new(PROGRAM)
            .args(["segment", verb])
            .arg(&segment)
            .output()
            .unwrap()
    };
    // The line of tmpfiles.d(5).
    let line = text(&command("create"));
    for command in ["show", "check"] {
        let said = text(&run(command, segment.as_os_str(), &[]));
        let expected = format!("There is no port on segment {}", segment.display());
        assert!(said.contains(&expected), "{said}");
    }
    let expected = format!("d {} 0700 ", segment.display());
    assert!(line.starts_with(&expected), "{line}");
    assert!(!command("create").status.success());
    assert!(command("delete").status.success());
    assert!(!segment.exists());
    let error = String::from_utf8_lossy(&command("delete").stderr).into_owned();
    assert!(error.contains("There is no segment"), "{error}");
}

#[test]
fn segment_is_created_for_an_owner_and_a_group() {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("beside")).unwrap();
    let segment = temp.path().join("web");
    let create = |options: &[&str]| {
        Command::new(PROGRAM)
            .args(["segment", "create"])
            .args(options)
            .arg(temp.path().join("beside/../web"))
            .output()
            .unwrap()
    };
    let refused = create(&["--owner", "no-such-user"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(!segment.exists());
    if !rustix::process::geteuid().is_root() {
        let failed = create(&["--owner", "nobody"]);
        let error = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(error.contains("to user nobody: only root can"), "{error}");
        assert!(!segment.exists());
        return skip("only root can give a directory away");
    }
    let line = text(&create(&["--owner", "nobody", "--group", "1234"]));
    let expected = format!("d {} 3770 nobody 1234\n", segment.display());
    assert_eq!(line, expected);
    let metadata = fs::metadata(&segment).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (NOBODY, 1234));
    assert_eq!(metadata.mode() & 0o7777, 0o3770);
    fs::remove_dir(&segment).unwrap();

    let line = text(&create(&["--group", "daemon"]));
    let expected = format!("d {} 3770 root daemon\n", segment.display());
    assert_eq!(line, expected);
}

#[test]
fn events_are_printed_as_they_happen() {
    let place = Place::new();
    let a = place.start("a");
    let mut child = Command::new(PROGRAM)
        .arg("events")
        .arg(place.segment())
        .args(["--interval", "20"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // It has seen what there is.
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("Watching 1 ports") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0);
    }
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut next = |event: &str, port: &str| -> Value {
        loop {
            let mut line = String::new();
            assert_ne!(
                output.read_line(&mut line).unwrap(),
                0,
                "no {event} of {port}"
            );
            let value: Value = serde_json::from_str(&line).unwrap();
            if value["event"] == event && value["port"] == port {
                return value;
            }
        }
    };
    let b = place.start("b");
    assert_eq!(next("port-up", "b")["pid"], b.pid());
    // Events of one round are in the order of the ports.
    assert_eq!(next("link-up", "b")["peer"], "a");
    let c = place.command("c").with("--mtu", "9000").start();
    assert_eq!(next("warning", "a")["code"], "mtu-mismatch");
    c.end();
    assert_eq!(next("warning-end", "a")["code"], "mtu-mismatch");
    let twin = place.command("d").with("--mac", "52:54:00:00:00:61");
    let d = twin.start();
    let refused = next("refused", "a");
    assert_eq!(refused["peer"], "d");
    assert!(
        refused["reason"].as_str().unwrap().contains("MAC address"),
        "{refused}"
    );
    d.end();
    let frontend = connect(&a);
    let connected = next("frontend-connected", "a");
    assert_eq!(connected["pid"], std::process::id());
    drop(frontend);
    next("frontend-disconnected", "a");
    b.end();
    assert_eq!(next("link-down", "a")["peer"], "b");
    // Nobody reads any more.
    drop(output);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    a.end();
}
