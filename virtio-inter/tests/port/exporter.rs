//! `virtio-inter exporter` on running ports.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::Signal;

use crate::process::{PROGRAM, Place, recorded, until};
use crate::service_manager::ServiceManager;

/// An exporter and what it logged up to the line that says where it serves.
struct Exporter {
    process: Child,
    serving: String,
}

impl Exporter {
    fn start(place: &Place, option: &str, value: &str) -> Self {
        let command = Command::new(PROGRAM);
        let mut command = recorded(command, "exporter-");
        command
            .args(["exporter", option, value])
            .arg(place.segment());
        Self::spawn(&mut command)
    }

    /// With a command that is complete.
    fn spawn(command: &mut Command) -> Self {
        let mut process = command
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Walls that are missing come first.
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let serving = lines.find(|line| {
            let line = line.as_ref().unwrap();
            line.contains("Serving") || line.contains("Writing")
        });
        Self {
            process,
            serving: serving.expect("a line that says where").unwrap(),
        }
    }

    /// Ends it as a service manager does.
    fn end(mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn get(mut stream: impl Read + Write, path: &str, accept: &str) -> String {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn exporter_serves_both_formats_by_tcp_and_by_a_unix_socket() {
    let place = Place::new();
    let a = place.start("a");
    let up = format!(
        "virtio_inter_up{{segment=\"{}\",port=\"a\"}} 1\n",
        place.segment().display()
    );

    let exporter = Exporter::start(&place, "--listen", "127.0.0.1:0");
    let address = exporter.serving.split("http://").nth(1).unwrap();
    let address = address.split('/').next().unwrap();
    let connect = || TcpStream::connect(address).unwrap();
    let text = get(connect(), "/metrics", "*/*");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(
        text.contains("content-type: text/plain; version=0.0.4"),
        "{text}"
    );
    assert!(text.contains(&up), "{text}");
    let text = get(
        connect(),
        "/metrics",
        "application/openmetrics-text;version=1.0.0,*/*;q=0.1",
    );
    assert!(
        text.contains("content-type: application/openmetrics-text"),
        "{text}"
    );
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(get(connect(), "/metric", "*/*").starts_with("HTTP/1.1 404"));

    let (code, log) = {
        let output = Command::new(PROGRAM)
            .args(["exporter", "--listen", address])
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    assert_eq!(code, Some(1), "{log}");
    assert!(
        log.contains(&format!("Cannot listen on {address}")),
        "{log}"
    );
    // A silent client does not keep it from ending.
    let silent = connect();
    exporter.end();
    drop(silent);

    let socket = place.path("metrics");
    let exporter = Exporter::start(&place, "--listen", &format!("unix:{}", socket.display()));
    let text = get(UnixStream::connect(&socket).unwrap(), "/metrics", "*/*");
    assert!(text.contains(&up), "{text}");
    exporter.end();
    assert!(!socket.exists());
    a.end();
}

#[test]
fn exporter_writes_a_whole_file_for_the_textfile_collector() {
    let place = Place::new();
    let a = place.start("a");
    let run = |options: &[&str]| {
        recorded(Command::new(PROGRAM), "exporter-")
            .args(["exporter", "--once", "--textfile"])
            .args(options)
            .arg(place.segment())
            .output()
            .unwrap()
    };
    let directory = place.path("");
    assert!(run(&[directory.to_str().unwrap()]).status.success());
    let text = fs::read_to_string(place.path("virtio-inter.prom")).unwrap();
    assert!(
        text.contains("virtio_inter_transmit_packets_total{"),
        "{text}"
    );
    assert!(text.ends_with('\n'));
    assert!(!text.contains("virtio_inter_peer_"), "{text}");
    let b = place.start("b");
    until("the metrics of both links", || {
        assert!(
            run(&[directory.to_str().unwrap(), "--peers"])
                .status
                .success()
        );
        let text = fs::read_to_string(place.path("virtio-inter.prom")).unwrap();
        let segment = place.segment();
        [("a", "b"), ("b", "a")].iter().all(|(port, peer)| {
            text.contains(&format!(
                "virtio_inter_peer_transmit_packets_total{{segment=\"{}\",port=\"{port}\",\
                 peer=\"{peer}\"}} 0\n",
                segment.display()
            ))
        })
    });
    b.end();
    let missing = run(&["/no/such/directory"]);
    let log = String::from_utf8(missing.stderr).unwrap();
    assert_eq!(missing.status.code(), Some(1), "{log}");
    assert!(
        log.contains("Cannot write /no/such/directory/virtio-inter.prom"),
        "{log}"
    );
    a.end();
}

/// As systemd does with `Type=notify` and `WatchdogSec=`.
#[test]
fn exporter_tells_a_service_manager_that_it_serves_and_works() {
    let place = Place::new();
    let a = place.start("a");
    let manager = ServiceManager::new(&place);
    let socket = place.path("metrics");
    let listen = format!("unix:{}", socket.display());
    let text = place.path("text");
    fs::create_dir(&text).unwrap();
    let file = text.join("virtio-inter.prom");
    let ways = [
        (["--listen", &listen], &socket),
        (["--textfile", text.to_str().unwrap()], &file),
    ];
    for (options, made) in ways {
        let mut command = recorded(Command::new(PROGRAM), "exporter-");
        command
            .arg("exporter")
            .args(options)
            .arg(place.segment())
            .env("NOTIFY_SOCKET", place.path("notify"))
            .env("WATCHDOG_USEC", "400000");
        let exporter = Exporter::spawn(&mut command);
        let mut heard = Vec::new();
        while heard.iter().filter(|text| *text == "WATCHDOG=1\n").count() < 4 {
            heard.push(manager.hear());
            if heard.last().is_some_and(|text| text == "READY=1\n") {
                assert!(made.exists(), "{options:?}");
            }
        }
        assert!(heard.iter().any(|text| text == "READY=1\n"), "{heard:?}");
        exporter.end();
        // What it had sent before its end.
        manager.hear_all();
    }
    let output = Command::new(PROGRAM)
        .args(["exporter", "--textfile", "/no/such/directory"])
        .arg(place.segment())
        .env("NOTIFY_SOCKET", place.path("notify"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = manager.hear();
    assert!(told.starts_with("STATUS=Cannot write /no/such"), "{told}");
    a.end();
}

/// Whatever the process's umask is, as that of the package's unit lets all users connect.
#[test]
fn exporter_makes_a_file_that_only_its_user_changes() {
    let place = Place::new();
    let umask = format!("umask 0; exec {PROGRAM} exporter --once --textfile \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &umask]).arg(place.path(""));
    assert!(command.arg(place.segment()).status().unwrap().success());
    let file = fs::metadata(place.path("virtio-inter.prom")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o644);
}

#[test]
fn exporter_tells_once_that_it_cannot_write() {
    let place = Place::new();
    let directory = place.path("text");
    fs::create_dir(&directory).unwrap();
    let (file, log) = (directory.join("virtio-inter.prom"), place.path("log"));
    let mut exporter = recorded(Command::new(PROGRAM), "exporter-");
    exporter.args(["exporter", "--interval", "1", "--textfile"]);
    exporter.args([&directory, &place.segment()]);
    exporter.env_remove("RUST_LOG");
    let process = exporter.stderr(fs::File::create(&log).unwrap()).spawn();
    let exporter = Exporter {
        process: process.unwrap(),
        serving: String::new(),
    };
    let failures = || {
        let log = fs::read_to_string(&log).unwrap();
        log.matches("Cannot write").count()
    };
    for number in 1..=2 {
        until("the file", || file.is_file());
        // Another directory stands in the file's way, unless the exporter is quicker.
        until("a directory", || {
            fs::remove_file(&file).is_ok() && fs::create_dir(&file).is_ok()
        });
        until("a failure", || failures() == number);
        // For two rounds more.
        sleep(Duration::from_millis(2500));
        assert_eq!(failures(), number);
        fs::remove_dir(&file).unwrap();
    }
    exporter.end();
}
