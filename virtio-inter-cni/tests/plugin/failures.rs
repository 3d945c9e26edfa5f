//! ADD that fails: nothing is left of it.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use virtio_inter_test_support::process::{Spawned, is_alive};

use crate::harness::Place;

#[test]
fn add_that_ipam_refuses_leaves_nothing() {
    let place = Place::new();
    fs::write(place.path("ipam-fails"), "").unwrap();
    let failed = place.call("ADD", "eth0", &place.config());
    failed.assert_error(11, "ADD of IPAM plug-in fake-ipam: No address is left");
    assert_eq!(failed.error()["details"], "of 254");
    place.assert_empty();
    let missing = place.config_with(json!({ "ipam": { "type": "none-such" } }));
    place
        .call("ADD", "eth0", &missing)
        .assert_error(101, "none-such");
    let path = place.config_with(json!({ "ipam": { "type": "../plugins/fake-ipam" } }));
    place
        .call("ADD", "eth0", &path)
        .assert_error(101, "../plugins");
    place.assert_empty();
}

#[test]
fn add_with_an_answer_of_ipam_that_is_of_no_use_gives_it_back() {
    let place = Place::new();
    let script = "#!/bin/sh\necho $CNI_COMMAND >> \"$(dirname \"$0\")/../ipam-calls\"\necho '{}'\n";
    place.script("plugins/fake-ipam", script);
    place
        .call("ADD", "eth0", &place.config())
        .assert_error(101, "It has no address");
    assert_eq!(place.ipam_calls(), ["ADD", "DEL"]);
    place.assert_empty();
}

/// The id is taken by a port that somebody else runs.
#[test]
fn add_whose_port_cannot_start_leaves_nothing_and_gives_the_addresses_back() {
    let place = Place::new();
    place.add("eth0");
    let state = place.names("state");
    let id = state.iter().find(|name| *name != ".lock").unwrap();
    place.call("DEL", "eth0", &place.config()).assert_done();
    let log = place.path("other.log");
    let program = place.config()["port_program"].as_str().unwrap().to_owned();
    let other = Spawned::new(
        Command::new(program)
            .args([
                "port",
                "--mac",
                "02:00:00:00:00:01",
                "--id",
                id,
                "--segment",
            ])
            .arg(place.path("segment"))
            .arg("--socket")
            .arg(place.path("other.sock"))
            .stdin(Stdio::null())
            .stderr(File::create(&log).unwrap()),
        "port",
        &log,
    );
    other.wait_for("other.sock");
    let before = place.names("segment");
    let failed = place.call("ADD", "eth0", &place.config());
    failed.assert_error(100, "The port cannot start");
    failed.assert_error(100, id);
    // The other port is unharmed.
    assert!(is_alive(other.pid()));
    assert_eq!(place.names("segment"), before);
    assert_eq!(place.names("state"), [".lock"]);
    assert_eq!(place.names("run/dans"), [""; 0]);
    assert_eq!(place.ipam_calls(), ["ADD", "DEL", "ADD", "DEL"]);
}

#[test]
fn add_that_cannot_write_katas_file_leaves_nothing() {
    let place = Place::new();
    fs::write(place.path("run"), "no directory").unwrap();
    let failed = place.call("ADD", "eth0", &place.config());
    failed.assert_error(5, place.path("run/dans").to_str().unwrap());
    place.assert_empty();
    assert_eq!(place.ipam_calls(), ["ADD", "DEL"]);
    fs::remove_file(place.path("run")).unwrap();
    fs::create_dir_all(place.path("run/dans")).unwrap();
    fs::write(place.dan_file(), "[]").unwrap();
    // Kata's file is somebody's that we do not understand.
    place
        .call("ADD", "eth0", &place.config())
        .assert_error(102, "it has no list of them");
    assert_eq!(fs::read(place.dan_file()).unwrap(), b"[]");
    assert_eq!(place.names("segment"), [""; 0]);
}

#[test]
fn add_of_a_name_that_is_taken_is_refused_and_harms_nothing() {
    let place = Place::new();
    let result = place.add("eth0");
    let again = place.call("ADD", "eth0", &place.config());
    again.assert_error(103, "is attached to network pods already");
    let other = place.config_with(json!({ "name": "other" }));
    place
        .call("ADD", "eth0", &other)
        .assert_error(102, "has a device \\\"eth0\\\" already");
    assert_eq!(place.records().len(), 1);
    place
        .call("CHECK", "eth0", &place.config_after(&result))
        .assert_done();
}

#[test]
fn add_into_a_state_directory_of_everybody_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    fs::create_dir(place.path("state")).unwrap();
    fs::set_permissions(place.path("state"), fs::Permissions::from_mode(0o777)).unwrap();
    place
        .call("ADD", "eth0", &place.config())
        .assert_error(5, "others may write to it");
    place.assert_empty();
}

/// The runtime is gone and reads no result: it will not know of the interface.
#[test]
fn add_whose_result_nobody_reads_leaves_nothing() {
    let place = Place::new();
    let program = env!("CARGO_BIN_EXE_virtio-inter-cni");
    let config = place.path("config");
    fs::write(&config, place.config().to_string()).unwrap();
    let status = Command::new(program)
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", "a")
        .env("CNI_NETNS", "/run/netns/pod")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", place.path("plugins"))
        .stdin(File::open(&config).unwrap())
        .stdout(
            File::options()
                .write(true)
                .open(Path::new("/dev/full"))
                .unwrap(),
        )
        .status();
    assert!(!status.unwrap().success());
    place.assert_empty();
    assert_eq!(place.ipam_calls(), ["ADD", "DEL"]);
}
