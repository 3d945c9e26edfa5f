//! The control socket: ports that come and go while the VM runs.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use cloud_hypervisor_ext::control_protocol::{PortState, Reply, Request};
use cloud_hypervisor_ext::vm_directory::control_socket;

use crate::harness::{Place, TIMEOUT, is_alive};

#[test]
fn port_is_added_and_removed_fifty_times() {
    let place = Place::new();
    let running = place.run(&["--kernel", "k"]);
    assert_eq!(running.ports(), []);
    let mut caller = running.connect();
    for _ in 0..50 {
        let add = Request::Add(place.device(",id=hot,mtu=9000"));
        let Reply::Added(port) = caller.ask(&add) else {
            panic!("not added")
        };
        assert_eq!((port.id.as_str(), port.state), ("hot", PortState::Serving));
        assert_eq!(port.net.mtu, Some(9000));
        drop(UnixStream::connect(&port.net.vhost_socket).unwrap());
        assert_eq!(running.ports(), [(*port).clone()]);
        assert_eq!(caller.ask(&Request::Remove("hot".into())), Reply::Removed);
        assert!(!is_alive(port.pid.unwrap()));
        assert!(!std::path::Path::new(&port.net.vhost_socket).exists());
    }
    running.end();
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn names_go_on_where_the_command_line_left_off() {
    let place = Place::new();
    let running = place.run(&["--kernel", "k", "--inter-vm", &place.device("")]);
    let Reply::Added(port) = running.connect().ask(&Request::Add(place.device(""))) else {
        panic!("not added")
    };
    assert_eq!(port.id, "inter-vm1");
    assert_ne!(port.mac, running.ports()[0].mac);
    running.end();
}

#[test]
fn requests_that_fail_change_nothing() {
    let place = Place::new();
    let running = place.run(&["--kernel", "k", "--inter-vm", &place.device("")]);
    let mut caller = running.connect();
    let nowhere = format!("segment={}", place.text("nowhere"));
    for (request, expected) in [
        (
            Request::Add("mac=x".into()),
            "Error parsing --inter-vm: segment missing",
        ),
        (
            Request::Add(place.device(",id=inter-vm0")),
            "Identifier inter-vm0 is not unique",
        ),
        (Request::Add(nowhere), "nowhere does not exist"),
        (Request::Remove("other".into()), "There is no port of other"),
    ] {
        let why = caller.refused(&request);
        assert!(why.contains(expected), "{why}");
    }
    for line in ["", "{", "[]", "{\"add\":1}", "\"frobnicate\"", "\u{0}"] {
        caller.send(line);
        assert!(matches!(caller.receive(), Reply::Error(_)), "{line}");
    }
    assert_eq!(running.ports().len(), 1);
    running.end();
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn requests_may_come_in_pieces_and_at_once() {
    let place = Place::new();
    let running = place.run(&["--kernel", "k"]);
    let mut caller = running.connect();
    caller.send("\"list\"\n\"list\"");
    caller.receive();
    caller.receive();
    running.end();
}

#[test]
fn endless_lines_and_idle_callers_hold_nobody_up() {
    let place = Place::new();
    let running = place.run(&["--kernel", "k"]);
    let idle: Vec<_> = (0..40).map(|_| running.connect()).collect();
    let endless = UnixStream::connect(control_socket(&place.path("api"))).unwrap();
    endless.set_read_timeout(Some(TIMEOUT)).unwrap();
    // It may be refused before all of it is sent.
    let _ = std::io::Write::write_all(&mut &endless, &vec![b'x'; 1 << 20]);
    let mut rest = Vec::new();
    // The connection ends; what comes with it does not matter.
    let _ = (&endless).read_to_end(&mut rest);
    assert_eq!(running.ports(), []);
    drop(idle);
    running.end();
}

#[test]
fn control_socket_is_for_this_user_only() {
    let place = Place::new();
    let running = place.run(&["--kernel", "k"]);
    let mode = |name: &str| {
        let metadata = std::fs::metadata(place.path(name)).unwrap();
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(mode("api.inter-vm"), 0o700);
    assert_eq!(mode("api.inter-vm/control"), 0o600);
    running.end();
}

#[test]
fn requests_are_each_answered() {
    let place = Place::new();
    let running = place.run(&["--kernel", "k", "--inter-vm", &place.device("")]);
    // Several who ask for the same.
    let mut callers = [running.connect(), running.connect()];
    for caller in &mut callers {
        caller.send("{\"remove\":\"inter-vm0\"}");
    }
    let [first, second] = callers.map(|mut caller| caller.receive());
    assert_eq!(first, Reply::Removed);
    // It may have been asked when there was nothing left to remove.
    assert!(
        matches!(&second, Reply::Removed)
            || matches!(&second, Reply::Error(why) if why[0].contains("There is no port")),
        "{second:?}"
    );
    // At once, so that both wait for the same end, and for a start that does not come.
    let mut caller = running.connect();
    caller.send(&format!(
        "{{\"add\":\"{}\"}}\n{{\"remove\":\"x\"}}\n{{\"remove\":\"x\"}}",
        place.device(",id=x")
    ));
    let why = caller.receive();
    assert!(
        matches!(&why, Reply::Error(why) if why[0].contains("was ended before it served")),
        "{why:?}"
    );
    assert_eq!(caller.receive(), Reply::Removed);
    assert_eq!(caller.receive(), Reply::Removed);
    assert_eq!(running.ports(), []);
    running.end();
}

#[test]
fn paths_are_told_so_that_they_lead_there_from_anywhere() {
    let place = Place::new();
    let running = place
        .launcher(&[
            "--api-socket",
            "api",
            "--kernel",
            "k",
            "--inter-vm",
            "segment=./segment",
        ])
        .directory(&place.path(""))
        .start();
    let port = running.ports().remove(0);
    assert_eq!(port.segment, place.text("segment"));
    drop(UnixStream::connect(port.status_socket).unwrap());
    running.end();
}
