//! Snapshots, which the stock program takes, of a VM whose ports stand still, which it cannot tell.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;

use cloud_hypervisor_ext::control_protocol::{PortInfo, PortState, Reply, VERSION};
use cloud_hypervisor_ext::device::NetConfig;
use cloud_hypervisor_ext::vm_directory::control_socket;
use serde_json::{Value, json};

use crate::harness::Place;
use crate::rest;

/// A supervisor and a port, as far as they are asked.
fn serve(place: &Place, status: Value) {
    let control = control_socket(&place.path("api"));
    std::fs::create_dir(control.parent().unwrap()).unwrap();
    let control = UnixListener::bind(&control).unwrap();
    let port = UnixListener::bind(place.path("status")).unwrap();
    let net = NetConfig {
        id: "net0".into(),
        vhost_user: true,
        vhost_socket: "/x".into(),
        mac: "02:00:00:00:00:01".into(),
        num_queues: 2,
        queue_size: None,
        mtu: None,
        pci_segment: None,
        pci_device_id: None,
    };
    let info = PortInfo {
        id: "net0".into(),
        port_id: "net0".into(),
        segment: "/s".into(),
        mac: net.mac.clone(),
        state: PortState::Serving,
        pid: Some(1),
        restarts: 1,
        socket: "/x".into(),
        status_socket: place.text("status"),
        net,
    };
    let list = Reply::List {
        version: VERSION,
        ports: vec![info],
    };
    let list = serde_json::to_string(&list).unwrap();
    std::thread::spawn(move || {
        for stream in control.incoming().map(Result::unwrap) {
            BufReader::new(&stream)
                .read_line(&mut String::new())
                .unwrap();
            writeln!(&stream, "{list}").unwrap();
        }
    });
    std::thread::spawn(move || {
        for stream in port.incoming().map(Result::unwrap) {
            writeln!(&stream, "{status}").unwrap();
        }
    });
}

#[test]
fn snapshot_is_refused_while_a_port_of_a_paused_vm_runs() {
    for (state, queues, is_refused) in [
        ("Paused", 2, true),
        ("Paused", 0, false),
        // The VMM itself refuses that.
        ("Running", 2, false),
    ] {
        let place = Place::new();
        let vm = rest::serve(&place.path("api"));
        {
            let mut vm = vm.lock().unwrap();
            vm.state = Some(state);
            vm.devices = vec!["net0".into()];
        }
        serve(&place, json!({"frontend": {"queues_running": queues}}));
        let api = place.text("api");
        let words = ["--api-socket", &api, "snapshot", "file:///x"];
        let ran = place.run_program(&words, "", place.path("remote").as_os_str());
        if is_refused {
            let error = ran.failed(1);
            assert!(
                error.contains("No snapshot is taken because of net0"),
                "{error}"
            );
            assert!(error.contains("ch-remote-ext reboot"), "{error}");
        } else {
            assert!(ran.out.ends_with("[snapshot][file:///x]"), "{}", ran.out);
        }
    }
}
