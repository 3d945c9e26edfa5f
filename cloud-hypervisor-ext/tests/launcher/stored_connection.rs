//! Ports that die when Cloud Hypervisor does not watch its connection: it does so only while the VM
//! and the guest's driver run, and never speaks again to a port of whose end it hears by a request
//! that fails.

use std::fs::File;
use std::path::Path;

use cloud_hypervisor_ext::control_protocol::{PortState, Reply, Request};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::frontend::MockVmm;
use crate::harness::{Place, Running, kill, pid, until};

/// Kills the port and waits for the next.
fn kill_port(running: &Running) {
    let before = running.ports().remove(0);
    kill(before.pid.unwrap());
    until("it serves again", || {
        let now = running.ports().remove(0);
        now.restarts == before.restarts + 1 && now.state == PortState::Serving
    });
}

/// Kills the port. The next waits for the socket's lock as long as the result lives, 5 s at most.
fn keep_port_away(running: &Running) -> File {
    let port = running.ports().remove(0);
    running.signal(Signal::STOP);
    kill_process(pid(port.pid.unwrap()), Signal::KILL).unwrap();
    let lock = File::open(format!("{}.lock", port.socket)).unwrap();
    let operation = FlockOperation::NonBlockingLockExclusive;
    until("the port is gone", || flock(&lock, operation).is_ok());
    running.signal(Signal::CONT);
    until("it is started again", || running.ports()[0].restarts == 1);
    lock
}

fn queues_running(running: &Running) -> Value {
    let status = running.ports().remove(0).status_socket;
    let stream = std::os::unix::net::UnixStream::connect(status).unwrap();
    let status: Value = serde_json::from_reader(stream).unwrap();
    status["frontend"]["queues_running"].clone()
}

fn start(place: &Place) -> (Running, MockVmm) {
    let running = place.run(&["-v", "--kernel", "k", "--inter-vm", &place.device("")]);
    let vmm = MockVmm::new(Path::new(&running.ports()[0].net.vhost_socket));
    (running, vmm)
}

#[test]
fn stored_connection_port_that_dies_in_a_paused_vm_is_controlled_after_resume() {
    let place = Place::new();
    let (running, mut vmm) = start(&place);
    vmm.activate().unwrap();
    vmm.enable(false).unwrap();
    // More than once.
    kill_port(&running);
    kill_port(&running);
    // Cloud Hypervisor never recovers from this error.
    vmm.enable(true).unwrap();
    vmm.wait_for_its_end();
    vmm.connect_again().unwrap();
    assert_eq!(queues_running(&running), 2);
    vmm.enable(false).unwrap();
    assert_eq!(queues_running(&running), 0);
    running.end();
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn stored_connection_port_that_dies_before_the_driver_starts_serves_it() {
    let place = Place::new();
    let (running, mut vmm) = start(&place);
    kill_port(&running);
    vmm.activate().unwrap();
    assert_eq!(queues_running(&running), 2);
    // And between two drivers.
    vmm.reset().unwrap();
    kill_port(&running);
    vmm.activate().unwrap();
    assert_eq!(queues_running(&running), 2);
    running.end();
}

#[test]
fn stored_connection_ends_at_once_where_the_vmm_watches_it() {
    let place = Place::new();
    let (running, mut vmm) = start(&place);
    vmm.activate().unwrap();
    for _ in 0..2 {
        kill_port(&running);
        vmm.wait_for_its_end();
        vmm.connect_again().unwrap();
        assert_eq!(queues_running(&running), 2);
    }
    running.end();
}

#[test]
fn stored_connection_ends_with_a_port_that_is_removed() {
    let place = Place::new();
    let (running, vmm) = start(&place);
    let remove = cloud_hypervisor_ext::control_protocol::Request::Remove("inter-vm0".into());
    running.connect().ask(&remove);
    vmm.wait_for_its_end();
    running.end();
}

/// Cloud Hypervisor may ask the port for something on its way to its end.
#[test]
fn stored_connection_of_a_port_that_is_away_ends_when_the_vm_is_to_end() {
    let place = Place::new();
    let device = place.device("");
    let api = place.text("api");
    let arguments = ["--api-socket", &api, "--kernel", "k", "--inter-vm", &device];
    // The VMM does not exit at a signal.
    let launcher = place.launcher(&arguments).env("STAND_IN_DOES", "ignore");
    let running = launcher.start();
    let vmm = MockVmm::new(Path::new(&running.ports()[0].net.vhost_socket));
    let lock = keep_port_away(&running);
    running.signal(Signal::TERM);
    vmm.wait_for_its_end();
    // Later it would have been given up anyway.
    assert_eq!(running.ports()[0].restarts, 1);
    drop(lock);
    running.end();
}

#[test]
fn stored_connection_of_a_port_that_is_away_ends_when_asked_for() {
    let place = Place::new();
    let (running, vmm) = start(&place);
    let ask = |id: &str| running.connect().ask(&Request::Release(id.into()));
    assert!(matches!(ask("other"), Reply::Error(_)));
    let lock = keep_port_away(&running);
    assert_eq!(ask("inter-vm0"), Reply::Released);
    vmm.wait_for_its_end();
    assert_eq!(running.ports()[0].restarts, 1);
    drop(lock);
    running.end();
}
