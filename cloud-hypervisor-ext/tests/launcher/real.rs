//! A stock Cloud Hypervisor, where the variable `CLOUD_HYPERVISOR` names one: how it handles the
//! arguments that the launcher passes. The tests with guests boot guests; these do not.

use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::process::Signal;
use virtio_inter_test_support::stock_cloud_hypervisor;

use crate::harness::{Launcher, Place, until};

fn launcher(place: &Place, program: &Path, arguments: &[&str]) -> Launcher {
    place.launcher(arguments).env("CLOUD_HYPERVISOR", program)
}

#[test]
fn stock_vmm_connects_to_its_ports_and_reports_its_own_errors() {
    let Some(program) = stock_cloud_hypervisor() else {
        return;
    };
    let place = Place::new();
    let (device, kernel) = (place.device(""), place.text("no-kernel"));
    let arguments = [
        "-v",
        "--console",
        "off",
        "--inter-vm",
        &device,
        "--kernel",
        &kernel,
    ];
    let (status, log) = launcher(&place, &program, &arguments).end();
    assert_eq!(status, 1, "{log}");
    assert!(log.contains("Frontend connected"), "{log}");
    assert!(log.contains("Cannot open kernel file"), "{log}");
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn stock_vmm_takes_several_devices_with_all_keys() {
    let Some(program) = stock_cloud_hypervisor() else {
        return;
    };
    let place = Place::new();
    let full = place.device(
        ",id=full,mac=02:00:00:00:00:07,mtu=9000,num_queues=4,queue_size=512,\
         pci_segment=0,pci_device_id=9",
    );
    let kernel = place.text("no-kernel");
    let (one, odd) = (
        place.device(""),
        place.device(&format!(",socket=\"{}\"", place.text("o,dd"))),
    );
    let (status, log) = launcher(
        &place,
        &program,
        &[
            "--kernel",
            &kernel,
            "--console",
            "off",
            "-v",
            "--cpus",
            "boot=2",
            "--memory",
            "size=256M",
            "--inter-vm",
            &full,
            &one,
            &odd,
        ],
    )
    .end();
    assert_eq!(status, 1, "{log}");
    assert_eq!(log.matches("Frontend connected").count(), 3, "{log}");
    assert!(log.contains("Cannot open kernel file"), "{log}");
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn stock_vmm_refuses_unknown_arguments() {
    let Some(program) = stock_cloud_hypervisor() else {
        return;
    };
    let place = Place::new();
    let device = place.device("");
    let arguments = ["--kernel", "k", "--inter-vm", &device, "--frobnicate"];
    let (status, log) = launcher(&place, &program, &arguments).end();
    assert_eq!(status, 2, "{log}");
    assert!(log.contains("unexpected argument '--frobnicate'"), "{log}");
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn stock_vmm_waits_for_a_vm_on_its_api_socket() {
    let Some(program) = stock_cloud_hypervisor() else {
        return;
    };
    let place = Place::new();
    let (api, device) = (place.text("api"), place.device(""));
    let mut running = launcher(
        &place,
        &program,
        &["--api-socket", &api, "--inter-vm", &device],
    )
    .spawn();
    until("the API socket accepts", || {
        UnixStream::connect(&api).is_ok()
    });
    let ports = running.ports();
    drop(UnixStream::connect(&ports[0].net.vhost_socket).unwrap());
    running.signal(Signal::TERM);
    assert_eq!(running.wait().code(), Some(0), "{}", running.log());
    // A lock file of the VMM's own stays, from v53 on.
    let left: Vec<String> = place
        .files()
        .into_iter()
        .filter(|name| name != "api.lock")
        .collect();
    assert_eq!(left, [""; 0]);
}

#[test]
fn help_has_the_flag_in_its_place() {
    let Some(program) = stock_cloud_hypervisor() else {
        return;
    };
    let place = Place::new();
    let (status, text) = launcher(&place, &program, &["--help"]).end();
    assert_eq!(status, 0);
    let flags: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("      --"))
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert!(
        flags.contains(&"inter-vm") && flags.contains(&"net"),
        "{flags:?}"
    );
    assert!(flags.is_sorted(), "{flags:?}");
}
