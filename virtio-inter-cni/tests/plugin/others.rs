//! CHECK, STATUS, GC and VERSION.

use std::fs;

use serde_json::{Value, json};
use virtio_inter_test_support::process::{is_alive, kill, until};

use crate::harness::{POD, Place};

#[test]
fn check_fails_when_the_port_is_gone() {
    let place = Place::new();
    let result = place.add("eth0");
    let config = place.config_after(&result);
    place.call("CHECK", "eth0", &config).assert_done();
    assert_eq!(place.ipam_calls(), ["ADD", "CHECK"]);
    let port = place.port();
    kill(port);
    until("the port has ended", || !is_alive(port));
    place
        .call("CHECK", "eth0", &config)
        .assert_error(100, "does not answer");
}

#[test]
fn check_compares_with_the_result_and_katas_file_and_asks_ipam() {
    let place = Place::new();
    place
        .call("CHECK", "eth0", &place.config())
        .assert_error(100, "is not attached");
    let mut result = place.add("eth0");
    place
        .call("CHECK", "eth0", &place.config())
        .assert_error(7, "prevResult");
    let config = place.config_after(&result);
    result["interfaces"][0]["mac"] = json!("02:00:00:00:00:01");
    let other = place.config_after(&result);
    place
        .call("CHECK", "eth0", &other)
        .assert_error(7, "has no interface eth0 with address");
    let file = fs::read(place.dan_file()).unwrap();
    fs::write(place.dan_file(), r#"{ "netns": null, "devices": [] }"#).unwrap();
    place
        .call("CHECK", "eth0", &config)
        .assert_error(102, "has no device eth0 with address");
    fs::remove_file(place.dan_file()).unwrap();
    place
        .call("CHECK", "eth0", &config)
        .assert_error(102, "has no device eth0 with address");
    fs::write(place.dan_file(), file).unwrap();
    place.call("CHECK", "eth0", &config).assert_done();
    fs::write(place.path("ipam-fails"), "").unwrap();
    place
        .call("CHECK", "eth0", &config)
        .assert_error(11, "CHECK of IPAM plug-in");
}

#[test]
fn status_says_whether_there_is_a_segment_and_asks_ipam() {
    let place = Place::new();
    let call = |config: &Value| {
        let none = [
            ("CNI_CONTAINERID", ""),
            ("CNI_IFNAME", ""),
            ("CNI_NETNS", ""),
        ];
        place.call_with("STATUS", "", &config.to_string(), &none)
    };
    call(&place.config()).assert_done();
    assert_eq!(place.ipam_calls(), ["STATUS"]);
    let elsewhere = place.config_with(json!({ "segment": place.path("none") }));
    call(&elsewhere).assert_error(50, "There is no segment");
    fs::write(place.path("ipam-fails"), "").unwrap();
    call(&place.config()).assert_error(11, "STATUS of IPAM plug-in");
    let old = place.config_with(json!({ "cniVersion": "1.0.0" }));
    call(&old).assert_error(1, "STATUS");
}

#[test]
fn gc_removes_what_the_runtime_does_not_know_of_this_network() {
    let place = Place::new();
    place.add("eth0");
    place.add("eth1");
    let other = place.config_with(json!({ "name": "other" }));
    place.call("ADD", "eth2", &other).result();
    let call = |changes: Value| {
        let none = [
            ("CNI_CONTAINERID", ""),
            ("CNI_IFNAME", ""),
            ("CNI_NETNS", ""),
        ];
        let config = place.config_with(changes).to_string();
        place.call_with("GC", "", &config, &none)
    };
    let names = || {
        let mut names: Vec<String> = place
            .devices()
            .iter()
            .map(|device| device["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    call(json!({})).assert_error(7, "cni.dev/valid-attachments");
    assert_eq!(names(), ["eth0", "eth1", "eth2"]);
    let valid = json!([{ "containerID": POD, "ifname": "eth1" }]);
    call(json!({ "cni.dev/valid-attachments": valid })).assert_done();
    assert_eq!(names(), ["eth1", "eth2"]);
    assert_eq!(place.records().len(), 2);
    assert_eq!(place.ipam_calls().last().unwrap(), "GC");
    call(json!({ "cni.dev/valid-attachments": [] })).assert_done();
    assert_eq!(names(), ["eth2"]);
}

#[test]
fn version_lists_what_is_supported_and_every_one_of_it_works() {
    let place = Place::new();
    let none = [
        ("CNI_CONTAINERID", ""),
        ("CNI_IFNAME", ""),
        ("CNI_NETNS", ""),
    ];
    let input = r#"{ "cniVersion": "1.0.0" }"#;
    let version = place.call_with("VERSION", "", input, &none).result();
    assert_eq!(version["cniVersion"], "1.0.0");
    let supported: Vec<String> =
        serde_json::from_value(version["supportedVersions"].clone()).unwrap();
    assert_eq!(supported.last().unwrap(), "1.1.0");
    for version in supported {
        let config = place.config_with(json!({ "cniVersion": version }));
        let result = place.call("ADD", "eth0", &config).result();
        assert_eq!(result["cniVersion"], version.as_str());
        place.call("DEL", "eth0", &config).assert_done();
    }
}
