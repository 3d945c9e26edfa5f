//! Ports that are units of systemd: what it is asked for. Scripts stand in for its programs.

use std::env;
use std::fs;

use serde_json::{Value, json};

use crate::harness::{Answer, Place};

/// Note their arguments, one on each line.
const RUN: &str = r#"#!/bin/sh
printf '%s\n' "$@" > "$(dirname "$0")/../run-arguments"
[ ! -e "$(dirname "$0")/../run-fails" ] || { echo 'Job failed' >&2; exit 1; }
"#;
const CONTROL: &str = r#"#!/bin/sh
echo "$@" >> "$(dirname "$0")/../control-arguments"
[ "$1" != is-active ] || { echo inactive; exit 3; }
"#;

fn call(place: &Place, command: &str, config: &Value) -> Answer {
    let path = format!(
        "{}:{}",
        place.path("bin").display(),
        env::var("PATH").unwrap()
    );
    place.call_with(command, "eth0", &config.to_string(), &[("PATH", &path)])
}

fn place() -> Place {
    let place = Place::new();
    fs::create_dir(place.path("bin")).unwrap();
    place.script("bin/systemd-run", RUN);
    place.script("bin/systemctl", CONTROL);
    place.script(
        "bin/journalctl",
        "#!/bin/sh\necho \"Reason in the log: $*\"\n",
    );
    place
}

fn lines(place: &Place, name: &str) -> Vec<String> {
    let text = fs::read_to_string(place.path(name)).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn port_is_a_unit_that_is_restarted_and_keeps_its_connection() {
    let place = place();
    let config = place.config_with(json!({
        "supervisor": "systemd", "options": ["--log-prefix", "$HOME"],
    }));
    call(&place, "ADD", &config).result();
    let device = place.devices().remove(0);
    let arguments = lines(&place, "run-arguments");
    let unit = arguments
        .iter()
        .find_map(|line| line.strip_prefix("--unit="))
        .unwrap();
    let split = arguments.iter().position(|line| line == "--").unwrap();
    let (options, command) = arguments.split_at(split);
    for setting in [
        "Type=notify",
        "Restart=always",
        "FileDescriptorStoreMax=4",
        "PrivateNetwork=yes",
        "ProtectSystem=strict",
        &format!("ReadWritePaths={}", place.path("segment").display()),
    ] {
        let is_set = options
            .windows(2)
            .any(|pair| pair == ["--property", setting]);
        assert!(is_set, "{setting}: {options:?}");
    }
    assert_eq!(command[1], config["port_program"].as_str().unwrap());
    assert_eq!(command[2..4], ["port", "--client"]);
    let mac = device["guest_mac"].as_str().unwrap();
    assert!(
        command.windows(2).any(|pair| pair == ["--mac", mac]),
        "{command:?}"
    );
    // What systemd makes of it is what was meant.
    assert_eq!(command[command.len() - 2..], ["--log-prefix", "$$HOME"]);
    call(&place, "DEL", &config).assert_done();
    assert_eq!(
        lines(&place, "control-arguments")[0],
        format!("stop {unit}")
    );
    place.assert_empty();
}

#[test]
fn port_with_an_uplink_keeps_the_network_of_the_host() {
    let place = place();
    let config = place.config_with(json!({
        "supervisor": "systemd", "options": ["--uplink=tap=pod-up"],
    }));
    call(&place, "ADD", &config).result();
    let arguments = lines(&place, "run-arguments");
    assert!(
        !arguments.contains(&"PrivateNetwork=yes".to_owned()),
        "{arguments:?}"
    );
    call(&place, "DEL", &config).assert_done();
}

#[test]
fn unit_that_cannot_start_is_stopped_and_leaves_nothing() {
    let place = place();
    fs::write(place.path("run-fails"), "").unwrap();
    let config = place.config_with(json!({ "supervisor": "systemd" }));
    let failed = call(&place, "ADD", &config);
    failed.assert_error(100, "Job failed");
    failed.assert_error(100, "journalctl -u virtio-inter-cni-");
    failed.assert_error(100, "Reason in the log: ");
    assert!(lines(&place, "control-arguments")[0].starts_with("stop virtio-inter-cni-"));
    place.assert_empty();
    assert_eq!(place.ipam_calls(), ["ADD", "DEL"]);
}
