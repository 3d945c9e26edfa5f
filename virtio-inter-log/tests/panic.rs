//! A panic is reported and ends the process, whatever becomes of standard error.

use std::io::{PipeReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const CHILD: &str = "VIRTIO_INTER_LOG_TEST_CHILD";

/// Not a test by itself: what the child process of the others does.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_some() {
        virtio_inter_log::report_panics(|| std::process::abort());
        virtio_inter_log::start("info");
        log::info!("Before it");
        panic!("out of luck");
    }
}

/// This program again, as a process that panics.
fn start(stderr: impl Into<Stdio>) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, "1")
        .env_remove("RUST_BACKTRACE")
        .env_remove("RUST_LOG")
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap()
}

fn wait(mut child: Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

const ABORT: Option<i32> = Some(6);

fn read(mut reader: PipeReader) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn log_of_a_panic_comes_after_the_lines_before_it() {
    let (reader, writer) = std::io::pipe().unwrap();
    let child = start(writer);
    assert_eq!(wait(child).signal(), ABORT);
    let text = read(reader);
    let (before, panic) = text.split_once("Before it\n").expect(&text);
    assert!(before.contains(" INFO "), "{text}");
    assert!(
        panic.starts_with("Thread child panicked at virtio-inter-log/tests/panic.rs:"),
        "{text}"
    );
    assert!(panic.ends_with(":\nout of luck\n"), "{text}");
}

#[test]
fn log_nobody_reads_does_not_keep_a_process_that_panics() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    // Its capacity: no byte more goes into it.
    writer.write_all(&[b'.'; 65536]).unwrap();
    let child = start(writer);
    assert_eq!(wait(child).signal(), ABORT);
    assert_eq!(read(reader), ".".repeat(65536));
}
