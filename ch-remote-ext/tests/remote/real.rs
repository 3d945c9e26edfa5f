//! A stock Cloud Hypervisor, where the variable `CLOUD_HYPERVISOR` names one. Its VM is created but
//! not booted here: that is done by the tests with guests.

use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use virtio_inter_test_support::stock_cloud_hypervisor;

use crate::harness::{Launcher, Place, until};

/// A VMM that waits for a VM.
fn vmm(place: &Place, program: &std::path::Path, arguments: &[&str]) -> Launcher {
    let launcher = place.launch(program, arguments);
    until("the API socket is there", || {
        std::os::unix::net::UnixStream::connect(place.path("api")).is_ok()
    });
    launcher
}

const CONFIG: &str = r#"{"payload": {"kernel": "/no-kernel"}, "memory": {"size": 134217728}}"#;

#[test]
fn created_vm_has_its_devices_and_takes_and_gives_more() {
    let Some(program) = stock_cloud_hypervisor() else {
        return;
    };
    let place = Place::new();
    let launcher = vmm(&place, &program, &["--inter-vm", &place.device("")]);
    let api = place.text("api");
    place
        .run_with(&["--api-socket", &api, "create"], CONFIG)
        .succeeded();
    place
        .remote(&[
            "add-device",
            &format!("inter-vm,{}", place.device(",id=db,mtu=9000")),
        ])
        .succeeded();
    assert_eq!(place.ports(), 2);

    // The VMM's name for it, by which it reports that the device is gone.
    let error = place
        .remote(&["add-inter-vm", &place.device(",id=db")])
        .failed(1);
    assert!(error.contains("Identifier db is not unique"), "{error}");

    place.remote(&["remove-device", "db"]).succeeded();
    assert_eq!(place.ports(), 1);
    place
        .remote(&["add-inter-vm", &place.device(",id=db")])
        .succeeded();
    assert_eq!(place.ports(), 2);
    let list = place.remote(&["inter-vm", "list", "--json"]).succeeded();
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list[1]["net"]["id"], "db");

    let pid = Pid::from_raw(launcher.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    until("all ports are gone", || place.ports() == 0);
}

#[test]
fn stock_vmm_refusal_is_reported_and_the_port_ends() {
    let Some(program) = stock_cloud_hypervisor() else {
        return;
    };
    let place = Place::new();
    let _launcher = vmm(&place, &program, &[]);
    let error = place.remote(&["add-inter-vm", &place.device("")]).failed(1);
    assert!(error.contains("Server responded with"), "{error}");
    assert!(
        error.to_lowercase().contains("vm is not created"),
        "{error}"
    );
    assert_eq!(place.ports(), 0);

    // No ports, so this is as the user wrote it: memory that is not shared.
    let config: Value = serde_json::from_str(CONFIG).unwrap();
    let api = place.text("api");
    let stock = std::env::var_os("CH_REMOTE").map(PathBuf::from);
    let stock = stock.unwrap_or_else(|| program.with_file_name("ch-remote"));
    let words = ["--api-socket", &api, "create"];
    let ran = place.run_program(&words, &config.to_string(), stock.as_os_str());
    assert_eq!(ran.status, 0, "{}", ran.err);
    let error = place.remote(&["add-inter-vm", &place.device("")]).failed(1);
    assert!(
        error.contains("vhost-user requires using shared memory"),
        "{error}"
    );
    assert_eq!(place.ports(), 0);
}

#[test]
fn stock_vmm_reports_a_device_without_a_port() {
    let Some(program) = stock_cloud_hypervisor() else {
        return;
    };
    let stock = program.with_file_name("ch-remote");
    let place = Place::new();
    let _launcher = vmm(&place, &program, &["--inter-vm", &place.device("")]);
    let api = place.text("api");
    place
        .run_with(&["--api-socket", &api, "create"], CONFIG)
        .succeeded();
    let words = ["--api-socket", &api, "remove-device", "nothing"];
    let ran = place.run_program(&words, "", stock.as_os_str());
    assert_ne!(ran.status, 0);
    assert!(ran.err.contains("nothing"), "{}", ran.err);
    assert_eq!(place.ports(), 1);
}
