//! ADD: the result, Kata's file, and the port at its socket.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use serde_json::{Value, json};
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;
use virtio_inter_test_support::process::until;

use crate::harness::{POD, Place};

/// Waits for the port as Kata's VMM does, and asks it for its features.
fn serve(socket: &Path) -> u64 {
    assert!(!socket.exists(), "Kata refuses a socket that is there");
    let listener = UnixListener::bind(socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    until("the port connects", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (stream, _) = accepted.unwrap();
    stream.set_nonblocking(false).unwrap();
    let frontend = Frontend::from_stream(stream, 2);
    frontend.set_owner().unwrap();
    frontend.get_features().unwrap()
}

/// What the port says of itself on its segment.
fn port_status(place: &Place) -> Value {
    let names = place.names("segment");
    let name = names.iter().find(|name| name.ends_with(".status")).unwrap();
    let mut stream =
        std::os::unix::net::UnixStream::connect(place.path("segment").join(name)).unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn add_gives_a_result_and_a_device_to_whose_socket_the_port_connects() {
    let place = Place::new();
    let result = place.add("eth0");
    let devices = place.devices();
    assert_eq!(devices.len(), 1);
    let mac = devices[0]["guest_mac"].as_str().unwrap();
    let socket = devices[0]["device"]["path"].as_str().unwrap();
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [ { "name": "eth0", "mac": mac, "sandbox": "/run/netns/pod",
                "mtu": 1500, "socketPath": socket } ],
            "ips": [
                { "address": "10.0.0.10/24", "gateway": "10.0.0.1", "interface": 0 },
                { "address": "fd00::10/64", "interface": 0 },
            ],
            "routes": [
                { "dst": "0.0.0.0/0" },
                { "dst": "10.9.0.0/16", "gw": "10.0.0.9", "mtu": 1400 },
            ],
            "dns": { "nameservers": [ "10.0.0.1" ] },
        })
    );
    assert_eq!(
        devices[0],
        json!({
            "name": "eth0",
            "guest_mac": mac,
            "device": { "type": "vhost-user", "path": socket, "queue_num": 0, "queue_size": 256 },
            "network_info": {
                "interface": { "ip_addresses": [ "10.0.0.10/24", "fd00::10/64" ], "mtu": 1500,
                    "ntype": "", "flags": 0 },
                "routes": [
                    { "dest": "0.0.0.0/0", "gateway": "10.0.0.1", "source": "", "scope": 0,
                        "flags": 0, "mtu": 0 },
                    { "dest": "10.9.0.0/16", "gateway": "10.0.0.9", "source": "", "scope": 0,
                        "flags": 0, "mtu": 1400 },
                ],
                "neighbors": [],
            },
        })
    );
    let directory = Path::new(socket).parent().unwrap();
    let mode = fs::metadata(directory).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "{directory:?}");
    // VERSION_1 and the address in the device's configuration.
    let features = serve(Path::new(socket));
    assert_eq!(
        features & (1 << 32 | 1 << 5),
        1 << 32 | 1 << 5,
        "{features:x}"
    );
    let status = port_status(&place);
    assert_eq!(status["mac"], mac);
    assert_eq!(status["pid"], place.port());
    // IPAM has the configuration as the runtime gave it.
    let given = fs::read_to_string(place.path("ipam-ADD")).unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&given).unwrap(),
        place.config()
    );
}

#[test]
fn add_of_four_interfaces_at_once_loses_no_device() {
    let place = Place::new();
    fs::create_dir_all(place.path("run/dans")).unwrap();
    let foreign = json!({ "name": "net1", "device": { "type": "host-tap", "tap_name": "t" } });
    let file = json!({ "netns": null, "devices": [ foreign ] });
    fs::write(place.dan_file(), file.to_string()).unwrap();
    let interfaces = ["eth0", "eth1", "eth2", "eth3"];
    thread::scope(|scope| {
        for interface in interfaces {
            scope.spawn(|| place.add(interface));
        }
    });
    let mut names: Vec<String> = place
        .devices()
        .iter()
        .map(|device| device["name"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["eth0", "eth1", "eth2", "eth3", "net1"]);
    for interface in interfaces {
        place.call("DEL", interface, &place.config()).assert_done();
    }
    // Another plug-in's device stays, and the file for it.
    assert_eq!(place.devices(), [foreign]);
    fs::remove_file(place.dan_file()).unwrap();
    place.assert_empty();
}

#[test]
fn add_takes_the_address_that_the_runtime_wants() {
    let place = Place::new();
    let of = |config: &Value, arguments: &str| {
        let variables = [("CNI_ARGS", arguments)];
        let answer = place.call_with("ADD", "eth0", &config.to_string(), &variables);
        let mac = answer.result()["interfaces"][0]["mac"].clone();
        assert_eq!(place.devices()[0]["guest_mac"], mac);
        assert_eq!(port_status(&place)["mac"], mac);
        place.call("DEL", "eth0", config).assert_done();
        mac.as_str().unwrap().to_owned()
    };
    let plain = place.config();
    let derived = of(&plain, "");
    assert_eq!(of(&plain, ""), derived, "it is the same each time");
    assert_eq!(of(&plain, "A=b;MAC=02:00:00:00:00:07"), "02:00:00:00:00:07");
    let runtime = place.config_with(json!({ "runtimeConfig": { "mac": "02:00:00:00:00:08" } }));
    assert_eq!(of(&runtime, "MAC=02:00:00:00:00:07"), "02:00:00:00:00:08");
}

#[test]
fn add_gives_the_port_what_the_configuration_says() {
    let place = Place::new();
    let config = place.config_with(json!({
        "mtu": 9000, "queues": 2, "guard": true, "options": ["--no-such-option"],
        "a_key_of_the_runtime": {},
    }));
    place
        .call("ADD", "eth0", &config)
        .assert_error(100, "--no-such-option");
    place.assert_empty();
    let config = place.config_with(json!({
        "mtu": 9000, "queues": 2, "guard": true, "options": ["--allow-mac", "02:00:00:00:00:55"],
        "a_key_of_the_runtime": {},
    }));
    place.call("ADD", "eth0", &config).result();
    let status = port_status(&place);
    assert_eq!(status["mtu"], 9000);
    assert_eq!(status["queue_pairs"], 2);
    assert_eq!(status["ip"], json!(["10.0.0.10", "fd00::10"]));
    assert_eq!(status["no_dhcp_server"], true);
    assert_eq!(status["allow_mac"], json!(["02:00:00:00:00:55"]));
    let device = &place.devices()[0];
    assert_eq!(device["device"]["queue_num"], 2);
    assert_eq!(device["network_info"]["interface"]["mtu"], 9000);
}

#[test]
fn add_without_ipam_and_after_another_plug_in_passes_its_result_on() {
    let place = Place::new();
    let config = place.config_with(json!({
        "cniVersion": "1.0.0",
        "ipam": null,
        "dns": { "domain": "pods" },
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [ { "name": "lo", "sandbox": "/run/netns/pod" } ],
            "ips": [ { "address": "127.0.0.1/8", "interface": 0 } ],
        },
    }));
    let result = place.call("ADD", "eth0", &config).result();
    let mac = place.devices()[0]["guest_mac"].clone();
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": "lo", "sandbox": "/run/netns/pod" },
                { "name": "eth0", "mac": mac, "sandbox": "/run/netns/pod" },
            ],
            "ips": [ { "address": "127.0.0.1/8", "interface": 0 } ],
            "dns": { "domain": "pods" },
        })
    );
    let info = &place.devices()[0]["network_info"];
    assert_eq!(info["interface"]["ip_addresses"], json!([]));
    assert_eq!(place.ipam_calls(), [""; 0]);
    assert_eq!(place.records()[0]["container"], POD);
}
