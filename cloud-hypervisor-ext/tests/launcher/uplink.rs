//! `tap=` and `fd=` of `--inter-vm`: the tap device of each process of a port.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use virtio_inter_test_support::skip;

use crate::harness::{Launcher, Place, kill, until};

/// Has a launcher run in a network namespace of its own with the tap device `up0`. None: the
/// running test is skipped.
fn with_tap(launcher: Launcher) -> Option<Launcher> {
    let unshare = Command::new("unshare").args(["-n", "true"]).status();
    if !unshare.is_ok_and(|status| status.success()) {
        skip("network namespaces need root");
        return None;
    }
    let make = "ip tuntap add dev up0 mode tap && ip link set up0 up";
    let inside = format!("{make} && exec \"$0\" \"$@\"");
    Some(launcher.after(&format!("exec unshare -n sh -c '{inside}' \"$0\" \"$@\"")))
}

fn status(socket: &Path) -> String {
    let mut text = String::new();
    if let Ok(mut stream) = UnixStream::connect(socket) {
        // A port that is killed meanwhile says no more.
        let _ = stream.read_to_string(&mut text);
    }
    text
}

#[test]
fn uplink_by_name_is_passed_to_each_process_of_the_port() {
    let place = Place::new();
    let (api, device) = (place.text("api"), place.device(",tap=up0"));
    let launcher = place.launcher(&["--api-socket", &api, "--kernel", "k", "--inter-vm", &device]);
    let Some(launcher) = with_tap(launcher) else {
        return;
    };
    let running = launcher.start();
    let status = || status(&place.path("api.inter-vm/inter-vm0.status"));
    let uplink = r#""uplink":{"tap":"up0","state":"up","mtu":1500}"#;
    until("the port has its uplink", || status().contains(uplink));
    // It is none of the VMM's own.
    assert!(!running.arguments().join(" ").contains("tap"));
    let pid = || {
        let status = status();
        let (_, pid) = status.split_once("\"pid\":")?;
        pid.split(',').next()?.parse::<u32>().ok()
    };
    let former = pid().unwrap();
    kill(former);
    until("the next process has it too", || {
        status().contains(uplink) && pid() != Some(former)
    });
    running.end();
}

#[test]
fn uplink_by_descriptors_is_passed_to_the_port() {
    let place = Place::new();
    let run = |device: &str, line: &str| {
        let device = place.device(device);
        let launcher = place.launcher(&["--kernel", "k", "--inter-vm", &device]);
        launcher.after(line).end()
    };
    // Descriptors of something else, so that it is seen how many there are.
    let line = "exec 7</dev/null 9</dev/null";
    let (status, text) = run(",fd=[9,7],num_queues=4", line);
    assert_eq!(status, 1, "{text}");
    let expected = "Descriptor 1 of tap-fd= is not attached to a tap device";
    assert!(text.contains(expected), "{text}");
    let (status, text) = run(",fd=[9,7],num_queues=4", "exec 7</dev/null");
    assert_eq!(status, 2, "{text}");
    assert!(text.contains("fd=9 is not open"), "{text}");
}

#[test]
fn uplink_that_the_port_cannot_have_ends_the_start() {
    let place = Place::new();
    let device = place.device(",tap=none0");
    let (status, text) = place
        .launcher(&["--kernel", "k", "--inter-vm", &device])
        .end();
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("No tap device none0"), "{text}");
    assert!(!place.path("arguments").exists());
}
