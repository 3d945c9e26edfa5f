//! Devices that come, are seen, and go.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::{Place, TIMEOUT, until};
use crate::rest;

#[test]
fn device_is_plugged_in_and_unplugged_again_and_again() {
    let place = Place::new();
    let _launcher = place.idle_vm(&["--kernel", "k"]);
    let vm = rest::serve(&place.path("api"));
    for round in 0..5 {
        let device = place.device(",id=db,mac=02:00:00:00:00:05,mtu=9000");
        let out = if round % 2 == 0 {
            place
                .remote(&["add-device", &format!("inter-vm,{device}")])
                .succeeded()
        } else {
            place.remote(&["add-inter-vm", &device]).succeeded()
        };
        assert_eq!(out, "{\"bdf\":\"0000:00:05.0\",\"id\":\"db\"}\n");
        assert_eq!(
            *vm.lock().unwrap().last("vm.add-net").unwrap(),
            json!({
                "id": "db", "vhost_user": true, "mac": "02:00:00:00:00:05", "mtu": 9000,
                "num_queues": 2, "vhost_socket": place.text("api.inter-vm/db.sock"),
            })
        );
        assert_eq!(place.ports(), 1);
        place.remote(&["remove-device", "db"]).succeeded();
        assert_eq!(place.ports(), 0);
        assert_eq!(vm.lock().unwrap().devices, [""; 0]);
    }
}

#[test]
fn name_of_a_device_that_was_unplugged_by_other_means_is_free() {
    let place = Place::new();
    let _launcher = place.idle_vm(&["--kernel", "k"]);
    let vm = rest::serve(&place.path("api"));
    let device = place.device(",id=db");
    place.remote(&["add-inter-vm", &device]).succeeded();
    // For example by ch-remote.
    vm.lock().unwrap().devices.clear();
    place.remote(&["add-inter-vm", &device]).succeeded();
    assert_eq!(place.ports(), 1);
    vm.lock().unwrap().devices.clear();
    place.remote(&["remove-device", "db"]).succeeded();
    assert_eq!(place.ports(), 0);
}

#[test]
fn remove_device_asked_again_goes_on_waiting() {
    let place = Place::new();
    let _launcher = place.idle_vm(&["--kernel", "k"]);
    let vm = rest::serve(&place.path("api"));
    place
        .remote(&["add-inter-vm", &place.device(",id=db")])
        .succeeded();
    // Asked for before, by a program that has given up waiting, or by another one.
    {
        let mut vm = vm.lock().unwrap();
        vm.holds = true;
        assert_eq!(vm.unplug("db".into()).0, 204);
    }
    std::thread::scope(|scope| {
        let again = scope.spawn(|| place.remote(&["remove-device", "db"]));
        let seen = vm.lock().unwrap().requests.len();
        until("it waits", || {
            assert!(!again.is_finished());
            vm.lock().unwrap().requests.len() > seen + 3
        });
        assert_eq!(place.ports(), 1);
        vm.lock().unwrap().holds = false;
        again.join().unwrap().succeeded();
    });
    assert_eq!(place.ports(), 0);
}

/// The other's request comes between the look at the device and the request to unplug it.
#[test]
fn remove_device_goes_on_waiting_when_another_was_quicker() {
    let place = Place::new();
    let _launcher = place.idle_vm(&["--kernel", "k"]);
    let vm = rest::serve(&place.path("api"));
    place
        .remote(&["add-inter-vm", &place.device(",id=db")])
        .succeeded();
    vm.lock().unwrap().other_is_quicker = true;
    place.remote(&["remove-device", "db"]).succeeded();
    assert_eq!(place.ports(), 0);
}

/// Cloud Hypervisor asks the port for something while it removes the device, and would wait for it.
#[test]
fn remove_device_lets_the_vmm_not_wait_for_a_port_that_is_away() {
    let place = Place::new();
    let launcher = place.idle_vm(&["--kernel", "k", "--inter-vm", &place.device("")]);
    let vm = rest::serve(&place.path("api"));
    {
        let mut vm = vm.lock().unwrap();
        vm.devices = vec!["inter-vm0".into()];
        vm.holds = true;
    }
    let socket = place.text("api.inter-vm/inter-vm0.sock");
    let mut frontend = UnixStream::connect(&socket).unwrap();
    frontend.set_read_timeout(Some(TIMEOUT)).unwrap();
    // GET_FEATURES, as whoever has asked for nothing is not kept.
    for word in [1u32, 1, 0] {
        frontend.write_all(&word.to_ne_bytes()).unwrap();
    }
    frontend.read_exact(&mut [0; 20]).unwrap();
    let port = || {
        let list = place.remote(&["inter-vm", "list", "--json"]).succeeded();
        serde_json::from_str::<Value>(&list).unwrap()[0].clone()
    };
    let send = |pid: i64, signal| {
        let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    };
    let pid = port()["pid"].as_i64().unwrap();
    send(launcher.pid().into(), Signal::STOP);
    send(pid, Signal::KILL);
    // The next waits for this lock, 5 s at most.
    let lock = File::open(format!("{socket}.lock")).unwrap();
    let operation = FlockOperation::NonBlockingLockExclusive;
    until("the port is gone", || flock(&lock, operation).is_ok());
    send(launcher.pid().into(), Signal::CONT);
    until("it is started again", || port()["restarts"] == 1);
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| place.remote(&["remove-device", "inter-vm0"]));
        assert_eq!(frontend.read(&mut [0]).unwrap(), 0);
        // Later it would have been given up anyway.
        assert_eq!(port()["restarts"], 1);
        vm.lock().unwrap().holds = false;
        drop(lock);
        removal.join().unwrap().succeeded();
    });
    assert_eq!(place.ports(), 0);
}

#[test]
fn devices_are_shown() {
    let place = Place::new();
    let _launcher = place.idle_vm(&[
        "--kernel",
        "k",
        "--inter-vm",
        &place.device(""),
        &place.device(",id=b"),
    ]);
    let list = place.remote(&["inter-vm", "list"]).succeeded();
    let words: Vec<Vec<&str>> = list
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        words[0],
        ["ID", "STATE", "MAC", "SEGMENT", "PEERS", "RESTARTS"]
    );
    // The VMM does not answer.
    assert_eq!(words[1][..2], ["inter-vm0", "disconnected"]);
    assert_eq!(words[2][..2], ["b", "disconnected"]);
    assert_eq!((words.len(), words[1][5]), (3, "0"));

    let text = place.remote(&["inter-vm", "show", "b"]).succeeded();
    assert!(
        text.starts_with("b: disconnected\n  warning   Cloud Hypervisor "),
        "{text}"
    );
    assert!(text.contains(&place.text("api.inter-vm/b.sock")), "{text}");

    let json: Value = serde_json::from_str(
        &place
            .remote(&["inter-vm", "show", "b", "--json"])
            .succeeded(),
    )
    .unwrap();
    assert_eq!(
        (&json[0]["id"], &json[0]["state"]),
        (&json!("b"), &json!("serving"))
    );
    assert_eq!(json[0]["status"]["counters"][0]["tx_frames"], 0);
    let json: Value =
        serde_json::from_str(&place.remote(&["inter-vm", "list", "--json"]).succeeded()).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);
}

/// Each of these was `unplugged` once.
#[test]
fn device_state_tells_a_vm_to_be_booted_from_a_device_that_is_gone() {
    let place = Place::new();
    let _launcher = place.idle_vm(&["--inter-vm", &place.device("")]);
    let vm = rest::serve(&place.path("api"));
    let state = || {
        let list = place.remote(&["inter-vm", "list", "--json"]).succeeded();
        let list: Value = serde_json::from_str(&list).unwrap();
        let words = place.remote(&["inter-vm", "list"]).succeeded();
        let word = words
            .lines()
            .nth(1)
            .and_then(|line| line.split_whitespace().nth(1));
        assert_eq!(list[0]["device_state"], *word.unwrap());
        word.unwrap().to_owned()
    };
    let set = |vm_state, devices: &[&str]| {
        let mut vm = vm.lock().unwrap();
        vm.state = Some(vm_state);
        vm.devices = devices.iter().map(|id| (*id).to_owned()).collect();
    };
    set("", &[]);
    assert_eq!(state(), "no-vm");
    set("Created", &["inter-vm0"]);
    assert_eq!(state(), "created");
    set("Created", &[]);
    assert_eq!(state(), "unplugged");
    set("Running", &["inter-vm0"]);
    assert_eq!(state(), "disconnected");
    set("Running", &[]);
    assert_eq!(state(), "unplugged");
    // Like the VMM when the VM is booted.
    set("Running", &["inter-vm0"]);
    let _frontend = UnixStream::connect(place.path("api.inter-vm/inter-vm0.sock")).unwrap();
    until("the port has a frontend", || state() == "plugged");
    set("Paused", &["inter-vm0"]);
    assert_eq!(state(), "paused");
    let mut vm = vm.lock().unwrap();
    vm.holds = true;
    assert_eq!(vm.unplug("inter-vm0".into()).0, 204);
    drop(vm);
    assert_eq!(state(), "unplugging");
}

#[test]
fn warnings_of_a_port_are_shown() {
    let place = Place::new();
    let _launcher = place.idle_vm(&[
        "--kernel",
        "k",
        "--inter-vm",
        &place.device(""),
        &place.device(",id=b,mtu=9000"),
    ]);
    let shown = |id: &str| place.remote(&["inter-vm", "show", id]).succeeded();
    // Each links with the other at its own pace.
    let start = Instant::now();
    while !["inter-vm0", "b"]
        .into_iter()
        .all(|id| shown(id).contains("  warning   MTU mismatch: "))
    {
        assert!(start.elapsed() < Duration::from_secs(20), "{}", shown("b"));
        sleep(Duration::from_millis(50));
    }
    let text = shown("b");
    let warning = text.lines().find(|line| line.contains("MTU mismatch: "));
    let warning = warning.expect("a line with it");
    for words in ["9000 at this port", "1500 at ", "(1 so far, last "] {
        assert!(warning.contains(words), "{warning}");
    }
}

#[test]
fn vm_is_created_with_its_devices() {
    let place = Place::new();
    let _launcher = place.idle_vm(&["--inter-vm", &place.device(",mac=02:00:00:00:00:05")]);
    let vm = rest::serve(&place.path("api"));
    let expected = json!({
        "payload": {"kernel": "k"},
        "memory": {"size": 1024, "shared": true},
        "net": [{
            "id": "inter-vm0", "vhost_user": true, "mac": "02:00:00:00:00:05", "num_queues": 2,
            "vhost_socket": place.text("api.inter-vm/inter-vm0.sock"),
        }],
    });
    let config = r#"{"payload": {"kernel": "k"}, "memory": {"size": 1024}}"#;
    std::fs::write(place.path("vm.json"), config).unwrap();
    place
        .remote(&["create", &place.text("vm.json")])
        .succeeded();
    assert_eq!(*vm.lock().unwrap().last("vm.create").unwrap(), expected);
    let api = place.text("api");
    place
        .run_with(&["--api-socket", &api, "create"], config)
        .succeeded();
    assert_eq!(*vm.lock().unwrap().last("vm.create").unwrap(), expected);
}

#[test]
fn relative_paths_are_of_this_directory() {
    let place = Place::new();
    let _launcher = place.idle_vm(&["--kernel", "k"]);
    let _vm = rest::serve(&place.path("api"));
    // Tests and supervisor run in the package's directory: only the path in the request differs.
    let error = place
        .remote(&["add-inter-vm", "segment=./nowhere"])
        .failed(1);
    let here = std::env::current_dir().unwrap();
    assert!(
        error.contains(&format!("{}/nowhere", here.display())),
        "{error}"
    );
}
