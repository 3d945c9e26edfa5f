//! What the launcher gives up, and what the VMM and ports keep.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use cloud_hypervisor_ext::control_protocol::{Reply, Request};
use virtio_inter_test_support::skip;

use crate::harness::{Place, Running, until};

/// A user that has nothing, by convention.
const NOBODY: u32 = 65534;

/// A field of a process's status (proc_pid_status(5)).
fn status(process: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

/// The process of the VMM: the child that is no port.
fn vmm(running: &Running) -> u32 {
    let ports: Vec<_> = running.ports().iter().map(|port| port.pid).collect();
    let mut children = running.children().into_iter();
    children
        .find(|child| !ports.contains(&Some(*child)))
        .unwrap()
}

#[test]
fn walls_are_around_the_launcher_and_not_around_the_vmm() {
    let place = Place::new();
    let running = place.run(&["--kernel", "k", "--inter-vm", &place.device("")]);
    let (launcher, vmm) = (running.pid(), vmm(&running));
    until("the walls stand", || status(launcher, "Seccomp") == "2");
    assert_eq!(status(launcher, "NoNewPrivs"), "1");
    for field in ["NoNewPrivs", "Seccomp", "CapBnd", "CapEff", "CapPrm"] {
        assert_eq!(
            status(vmm, field),
            status(std::process::id(), field),
            "{field}"
        );
    }
    // CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETPCAP, NET_ADMIN.
    let effective = u64::from_str_radix(&status(launcher, "CapEff"), 16).unwrap();
    assert_eq!(effective & !0x112b, 0);
    running.end();
}

/// The port that is started behind the walls adds its own.
#[test]
fn walls_let_ports_be_added_and_restarted() {
    let place = Place::new();
    let running = place.run(&[]);
    until("the walls stand", || {
        status(running.pid(), "Seccomp") == "2"
    });
    let device = place.device(",id=later,mac=52:54:00:00:00:09");
    let reply = running.connect().ask(&Request::Add(device));
    assert!(matches!(reply, Reply::Added(_)), "{reply:?}");
    let port = running.ports()[0].pid.unwrap();
    let filters = |process| status(process, "Seccomp_filters").parse::<u32>().unwrap();
    assert!(filters(port) > filters(running.pid()));
    assert_eq!(status(port, "CapEff"), "0000000000000000");
    crate::harness::kill(port);
    until("it serves again", || {
        running.ports()[0].pid.is_some_and(|pid| pid != port)
    });
    running.end();
}

/// The files in `/proc` of a process that is not dumpable belong to root.
#[test]
fn walls_keep_the_launchers_user_from_tracing_it_and_not_the_vmm() {
    let place = Place::new();
    let user = if rustix::process::geteuid().is_root() {
        for path in [place.path("segment"), place.path("")] {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        NOBODY
    } else {
        rustix::process::geteuid().as_raw()
    };
    let owner = |process: u32| {
        fs::metadata(format!("/proc/{process}/environ"))
            .unwrap()
            .uid()
    };
    let api = place.text("api");
    for (allows, expected) in [(false, 0), (true, user)] {
        let Some(mut launcher) = place.launcher(&["--api-socket", &api]).by_user(user) else {
            return skip("an ordinary user cannot run the program");
        };
        if allows {
            launcher = launcher.env("VIRTIO_INTER_ALLOW_DUMPS", "1");
        }
        let running = launcher.start();
        assert_eq!(owner(running.pid()), expected);
        assert_eq!(owner(vmm(&running)), user);
        running.end();
        fs::remove_file(place.path("arguments")).unwrap();
    }
}
