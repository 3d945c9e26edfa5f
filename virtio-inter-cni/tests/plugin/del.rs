//! DEL: what it removes, and that it may come at any time.

use std::fs;

use serde_json::json;
use virtio_inter_test_support::process::{is_alive, kill, until};

use crate::harness::Place;

#[test]
fn del_ends_the_port_and_removes_everything_and_again_is_no_error() {
    let place = Place::new();
    let result = place.add("eth0");
    let port = place.port();
    assert!(is_alive(port));
    let config = place.config_after(&result);
    place.call("DEL", "eth0", &config).assert_done();
    assert!(!is_alive(port));
    place.assert_empty();
    assert_eq!(place.ipam_calls(), ["ADD", "DEL"]);
    for _ in 0..2 {
        place.call("DEL", "eth0", &config).assert_done();
    }
    // IPAM may know more than this plug-in does.
    assert_eq!(place.ipam_calls(), ["ADD", "DEL", "DEL", "DEL"]);
    place.assert_empty();
}

#[test]
fn del_of_a_killed_port_removes_its_files() {
    let place = Place::new();
    place.add("eth0");
    let port = place.port();
    kill(port);
    until("the port has ended", || !is_alive(port));
    assert!(
        !place.names("segment").is_empty(),
        "a killed port leaves files"
    );
    place.call("DEL", "eth0", &place.config()).assert_done();
    place.assert_empty();
}

#[test]
fn del_needs_neither_a_segment_nor_a_namespace_nor_the_record() {
    let place = Place::new();
    let delete = |config: &serde_json::Value| {
        let variables = [("CNI_NETNS", ""), ("CNI_ARGS", "")];
        let input = config.to_string();
        place
            .call_with("DEL", "eth0", &input, &variables)
            .assert_done();
    };
    // Nothing was there ever, not even the directories.
    delete(&place.config());
    let bare = place.config_with(json!({
        "segment": null, "ipam": null, "dan_dir": null, "port_program": null, "supervisor": null,
    }));
    delete(&bare);
    place.add("eth0");
    let port = place.port();
    delete(&bare);
    assert!(!is_alive(port));
    place.assert_empty();
    // A record that went missing: the device goes all the same.
    place.add("eth0");
    let port = place.port();
    let state = place
        .names("state")
        .into_iter()
        .find(|name| name != ".lock")
        .unwrap();
    fs::remove_file(place.path("state").join(state).join("attachment.json")).unwrap();
    delete(&place.config());
    assert_eq!(place.names("run/dans"), [""; 0]);
    assert_eq!(place.names("state"), [".lock"]);
    kill(port);
}

#[test]
fn del_that_fails_at_ipam_says_so_and_can_be_repeated() {
    let place = Place::new();
    place.add("eth0");
    let port = place.port();
    fs::write(place.path("ipam-fails"), "").unwrap();
    let failed = place.call("DEL", "eth0", &place.config());
    failed.assert_error(11, "DEL of IPAM plug-in fake-ipam: No address is left");
    assert!(!is_alive(port));
    place.assert_empty();
    fs::remove_file(place.path("ipam-fails")).unwrap();
    place.call("DEL", "eth0", &place.config()).assert_done();
}

#[test]
fn del_of_one_network_leaves_the_interface_of_another() {
    let place = Place::new();
    place.add("eth0");
    let port = place.port();
    let other = place.config_with(json!({ "name": "other" }));
    place.call("DEL", "eth0", &other).assert_done();
    assert!(is_alive(port));
    assert_eq!(place.devices().len(), 1);
}
