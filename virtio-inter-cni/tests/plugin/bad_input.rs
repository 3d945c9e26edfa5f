//! Calls that are not valid: the specification's codes, and nothing is done.

use serde_json::{Value, json};

use crate::harness::Place;

#[test]
fn bad_configuration_has_the_codes_of_the_specification() {
    let place = Place::new();
    let cases: [(Value, u32, &str); 16] = [
        (json!({ "segment": null }), 7, "segment"),
        (json!({ "segment": 7 }), 7, "segment"),
        (json!({ "segment": "" }), 7, "segment"),
        (
            json!({ "segment": "no-such-segment-of-tests" }),
            7,
            "There is no segment",
        ),
        (json!({ "name": null }), 7, "name"),
        (json!({ "name": "../a" }), 7, "name"),
        (json!({ "mtu": "1500" }), 7, "mtu"),
        (json!({ "mtu": 65536 }), 7, "mtu"),
        (json!({ "queues": 0 }), 7, "queues"),
        (json!({ "options": "--ip" }), 7, "options"),
        (json!({ "supervisor": "runit" }), 7, "supervisor"),
        (json!({ "state_dir": "relative" }), 7, "state_dir"),
        (json!({ "port_program": "/none" }), 7, "port_program"),
        (
            json!({ "runtimeConfig": { "mac": "01:00:00:00:00:01" } }),
            7,
            "mac",
        ),
        (json!({ "cniVersion": "0.2.0" }), 1, "0.2.0"),
        (json!({ "cniVersion": null }), 1, "Supported: 0.3.0"),
    ];
    for (changes, code, text) in cases {
        let answer = place.call("ADD", "eth0", &place.config_with(changes.clone()));
        answer.assert_error(code, text);
        place.assert_empty();
    }
    for input in ["", "{", "[]"] {
        place
            .call_with("ADD", "eth0", input, &[])
            .assert_error(6, "network configuration");
    }
    let guard = place.config_with(json!({ "guard": true, "ipam": null }));
    place.call("ADD", "eth0", &guard).assert_error(7, "guard");
    let long = place.config_with(json!({ "state_dir": place.path(&"x".repeat(90)) }));
    place
        .call("ADD", "eth0", &long)
        .assert_error(7, "state_dir");
    place.assert_empty();
}

#[test]
fn bad_variables_have_the_code_of_the_specification() {
    let place = Place::new();
    let config = place.config().to_string();
    for (command, name, value) in [
        ("ADD", "CNI_CONTAINERID", ""),
        ("ADD", "CNI_CONTAINERID", "../a"),
        ("ADD", "CNI_NETNS", ""),
        ("ADD", "CNI_IFNAME", ""),
        ("ADD", "CNI_IFNAME", "a/b"),
        ("ADD", "CNI_IFNAME", "sixteen-letters-"),
        ("ADD", "CNI_ARGS", "MAC"),
        ("ADD", "CNI_ARGS", "MAC=1"),
        ("DEL", "CNI_CONTAINERID", ""),
        ("DEL", "CNI_IFNAME", ""),
        ("CHECK", "CNI_NETNS", ""),
        ("ADD", "CNI_COMMAND", ""),
        ("ADD", "CNI_COMMAND", "add"),
    ] {
        let text = if name == "CNI_ARGS" { "MAC" } else { name };
        let answer = place.call_with(command, "eth0", &config, &[(name, value)]);
        answer.assert_error(4, text);
        place.assert_empty();
    }
}
