//! Wrong input of users, and failures: one clear error, nothing left behind.

use std::os::unix::net::UnixListener;

use serde_json::json;

use crate::harness::Place;
use crate::rest;

#[test]
fn wrong_devices_are_usage_errors() {
    let place = Place::new();
    for (text, expected) in [
        ("inter-vm", "segment missing"),
        ("inter-vm,segmen=x", "Unknown option: segmen"),
        (
            "inter-vm,segment=web,mac=x",
            "six pairs of hexadecimal digits",
        ),
    ] {
        let error = place.remote(&["add-device", text]).failed(2);
        assert!(error.contains(expected), "{error}");
    }
    let error = place.remote(&["add-inter-vm"]).failed(2);
    assert!(error.contains("Usage:"), "{error}");
    let error = place.remote(&["inter-vm", "frobnicate"]).failed(2);
    assert!(
        error.contains("unrecognized subcommand 'frobnicate'"),
        "{error}"
    );
}

#[test]
fn api_socket_that_is_missing_is_a_usage_error() {
    let place = Place::new();
    for words in [&["add-inter-vm", "segment=web"][..], &["inter-vm", "list"]] {
        let error = place.run(words).failed(2);
        assert!(error.contains("--api-socket"), "{error}");
    }
}

#[test]
fn api_socket_where_nobody_listens_is_an_error() {
    let place = Place::new();
    let _launcher = place.idle_vm(&["--kernel", "k"]);
    let error = place.remote(&["add-inter-vm", &place.device("")]).failed(1);
    assert!(
        error.contains(&format!(
            "Cannot connect to API socket {}",
            place.text("api")
        )),
        "{error}"
    );
    assert_eq!(place.ports(), 0);
}

#[test]
fn api_socket_that_does_not_answer_is_an_error() {
    let place = Place::new();
    let _launcher = place.idle_vm(&["--kernel", "k"]);
    let _silent = UnixListener::bind(place.path("api")).unwrap();
    let error = place.remote(&["add-inter-vm", &place.device("")]).failed(1);
    assert!(error.contains("does not answer within 10 s"), "{error}");
    assert_eq!(place.ports(), 0);
}

#[test]
fn api_socket_without_http_is_an_error() {
    let place = Place::new();
    let _launcher = place.idle_vm(&["--kernel", "k"]);
    let other = UnixListener::bind(place.path("api")).unwrap();
    let talker = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        // It may have hung up already.
        let _ = std::io::Write::write_all(&mut stream, b"SSH-2.0-OpenSSH\r\n");
        // Until it hangs up.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let error = place.remote(&["add-inter-vm", &place.device("")]).failed(1);
    assert!(error.contains("does not speak HTTP"), "{error}");
    assert_eq!(place.ports(), 0);
    talker.join().unwrap();
}

#[test]
fn vm_without_a_supervisor_is_an_error() {
    let place = Place::new();
    let _vm = rest::serve(&place.path("api"));
    for words in [
        &["add-inter-vm", &place.device("")][..],
        &["inter-vm", "list"],
    ] {
        let error = place.remote(words).failed(1);
        assert!(
            error.contains("was the VM started by cloud-hypervisor-ext?"),
            "{error}"
        );
        assert!(error.contains("virtio-inter port"), "{error}");
    }
}

/// The stock program would unplug the device and leave its port, or create the VM without its
/// devices.
#[test]
fn supervisor_that_hangs_up_is_not_taken_for_none() {
    let place = Place::new();
    let _vm = rest::serve(&place.path("api"));
    let control = cloud_hypervisor_ext::vm_directory::control_socket(&place.path("api"));
    std::fs::create_dir(control.parent().unwrap()).unwrap();
    let supervisor = UnixListener::bind(&control).unwrap();
    std::fs::write(place.path("config"), "{}").unwrap();
    for (words, told) in [
        (
            &["remove-device", "net0"][..],
            "Cannot tell whether net0 has a port",
        ),
        (
            &["create", &place.text("config")],
            "Cannot tell which inter-VM devices",
        ),
    ] {
        let error = std::thread::scope(|scope| {
            scope.spawn(|| drop(supervisor.accept().unwrap()));
            place.remote(words).failed(1)
        });
        assert!(error.contains(told), "{error}");
        assert!(error.contains("does not answer"), "{error}");
    }
}

#[test]
fn segment_that_cannot_be_joined() {
    let place = Place::new();
    let _launcher = place.idle_vm(&["--kernel", "k"]);
    let vm = rest::serve(&place.path("api"));
    let device = format!("segment={}", place.text("nowhere"));
    let error = place.remote(&["add-inter-vm", &device]).failed(1);
    assert!(
        error.contains("  0: Cannot start the port of inter-vm0 on segment"),
        "{error}"
    );
    assert!(error.contains("nowhere does not exist"), "{error}");
    assert!(vm.lock().unwrap().last("vm.add-net").is_none());
    assert_eq!(
        place
            .remote(&["inter-vm", "list"])
            .succeeded()
            .lines()
            .count(),
        1
    );
}

#[test]
fn id_that_is_taken() {
    let place = Place::new();
    let _launcher = place.idle_vm(&["--kernel", "k", "--inter-vm", &place.device(",id=x")]);
    let vm = rest::serve(&place.path("api"));
    vm.lock().unwrap().devices.push("x".into());
    let error = place
        .remote(&["add-inter-vm", &place.device(",id=x")])
        .failed(1);
    assert!(error.contains("Identifier x is not unique"), "{error}");
    assert_eq!(place.ports(), 1);
}

#[test]
fn vmm_refusal_is_reported_and_the_port_ends() {
    let place = Place::new();
    let _launcher = place.idle_vm(&["--kernel", "k"]);
    let vm = rest::serve(&place.path("api"));
    for (status, said) in [(400, "400 Bad Request"), (500, "500 Internal Server Error")] {
        let lines = json!([
            "Error from API",
            "Using vhost-user requires using shared memory"
        ]);
        vm.lock().unwrap().refuse = Some((status, lines));
        let error = place
            .remote(&["add-inter-vm", &place.device(",id=x")])
            .failed(1);
        assert_eq!(
            error,
            format!(
                "Error: ch-remote-ext exited with the following chain of errors:\n  \
                 0: Cannot plug in x\n  1: Server responded with {said}\n  2: Error from API\n  \
                 3: Using vhost-user requires using shared memory\n"
            )
        );
        assert_eq!(place.ports(), 0);
    }
    // And its name is free.
    place
        .remote(&["add-inter-vm", &place.device(",id=x")])
        .succeeded();
}

#[test]
fn device_that_is_not_unplugged_keeps_its_port() {
    let place = Place::new();
    let _launcher = place.idle_vm(&["--kernel", "k"]);
    let vm = rest::serve(&place.path("api"));
    place
        .remote(&["add-inter-vm", &place.device(",id=x")])
        .succeeded();
    vm.lock().unwrap().refuse = Some((500, json!(["Error from API", "No"])));
    let error = place.remote(&["remove-device", "x"]).failed(1);
    assert!(
        error.contains("Cannot unplug x") && error.contains("3: No"),
        "{error}"
    );
    assert_eq!(place.ports(), 1);
    place.remote(&["remove-device", "x"]).succeeded();
}

#[test]
fn vmm_that_does_not_tell_its_devices_keeps_its_ports() {
    let place = Place::new();
    let _launcher = place.idle_vm(&["--kernel", "k"]);
    let vm = rest::serve(&place.path("api"));
    let device = place.device(",id=x");
    place.remote(&["add-inter-vm", &device]).succeeded();
    vm.lock().unwrap().busy = true;
    for words in [&["remove-device", "x"], &["add-inter-vm", &device[..]]] {
        let error = place.remote(words).failed(1);
        assert!(error.contains("429 Too Many Requests"), "{error}");
        assert_eq!(place.ports(), 1);
    }
    vm.lock().unwrap().busy = false;
    place.remote(&["remove-device", "x"]).succeeded();
}

#[test]
fn device_without_a_port_is_left_to_the_stock_program() {
    let place = Place::new();
    let _launcher = place.idle_vm(&["--kernel", "k", "--inter-vm", &place.device("")]);
    let api = place.text("api");
    let words = ["--api-socket", &api, "remove-device", "_disk0"];
    let ran = place.run_program(&words, "", place.path("remote").as_os_str());
    assert_eq!(
        ran.out,
        format!("[--api-socket][{api}][remove-device][_disk0]")
    );
    assert_eq!(ran.status, 9);
    assert_eq!(place.ports(), 1);
    let error = place.remote(&["inter-vm", "show", "_disk0"]).failed(1);
    assert!(
        error.contains("There is no inter-VM device _disk0"),
        "{error}"
    );
}

#[test]
fn configuration_that_cannot_be_used() {
    let place = Place::new();
    let _launcher = place.idle_vm(&["--inter-vm", &place.device("")]);
    let vm = rest::serve(&place.path("api"));
    let api = place.text("api");
    for (config, status, expected) in [
        ("{", 1, "Cannot understand -"),
        ("[]", 2, "not a JSON object"),
        (
            r#"{"memory": {"size": 1, "shared": false}}"#,
            2,
            "says \"shared\": false",
        ),
    ] {
        let error = place
            .run_with(&["--api-socket", &api, "create"], config)
            .failed(status);
        assert!(error.contains(expected), "{error}");
    }
    let error = place.remote(&["create", "/nowhere"]).failed(1);
    assert!(error.contains("Cannot read /nowhere"), "{error}");
    assert!(vm.lock().unwrap().last("vm.create").is_none());
}

#[test]
fn ch_remote_that_is_missing_is_an_error() {
    let place = Place::new();
    let missing = place.path("missing");
    let error = place
        .run_program(&["info"], "", missing.as_os_str())
        .failed(1);
    assert!(
        error.contains("CH_REMOTE names") && error.contains("not a program"),
        "{error}"
    );
}
