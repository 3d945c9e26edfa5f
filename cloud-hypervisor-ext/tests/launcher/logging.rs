//! The launcher's log when nobody reads it.

use std::io::{Read, Write};

use cloud_hypervisor_ext::control_protocol::{PortState, Reply, Request};

use crate::harness::{Place, kill, until};

/// A pipe that is full: the reading end, and one for a child.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    // The capacity of a pipe: no byte more goes into it.
    writer.write_all(&[b'.'; 65536]).unwrap();
    (reader, writer)
}

#[test]
fn log_nobody_reads_holds_no_vm_up() {
    let place = Place::new();
    let (mut reader, writer) = full_pipe();
    let api = place.text("api");
    let device = place.device("");
    // Debug messages, so that the launcher and its ports have much to say.
    let mut running = place
        .launcher(&[
            "-vv",
            "--api-socket",
            &api,
            "--kernel",
            "k",
            "--inter-vm",
            &device,
        ])
        .spawn_onto(writer);
    running.wait_for_vmm();
    for restarts in 1..=3 {
        kill(running.ports()[0].pid.unwrap());
        until("it serves again", || {
            let port = running.ports().remove(0);
            port.restarts == restarts && port.state == PortState::Serving
        });
    }
    let add = Request::Add(format!("{device},id=more"));
    assert!(matches!(running.connect().ask(&add), Reply::Added(_)));
    running.end();
    assert_eq!(place.files(), [""; 0]);
    let mut said = Vec::new();
    reader.read_to_end(&mut said).unwrap();
    assert_eq!(said, [b'.'; 65536]);
}

#[test]
fn log_nobody_reads_does_not_keep_a_launcher_that_cannot_start_a_vm() {
    let place = Place::new();
    let (_reader, writer) = full_pipe();
    let mut running = place
        .launcher(&["--kernel", "k", "--inter-vm", "segmen=web"])
        .spawn_onto(writer);
    assert_eq!(running.wait().code(), Some(2));
}
