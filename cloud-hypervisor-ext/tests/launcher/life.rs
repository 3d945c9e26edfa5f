//! From the start of a VM's processes to their end, whoever ends first.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use cloud_hypervisor_ext::control_protocol::PortState;
use rustix::process::{Pid, Signal};

use crate::harness::{Place, Running, is_alive, kill, until};

fn vm(place: &Place) -> Running {
    place.run(&["--kernel", "k", "--inter-vm", &place.device("")])
}

#[test]
fn signals_go_to_the_vmm_and_its_end_comes_back() {
    for signal in [
        Signal::TERM,
        Signal::INT,
        Signal::USR1,
        Signal::HUP,
        Signal::QUIT,
        Signal::ALARM,
        Signal::VTALARM,
        Signal::PROF,
        Signal::XCPU,
        Signal::IO,
        Signal::POWER,
        Signal::STKFLT,
    ] {
        let place = Place::new();
        let mut running = vm(&place);
        running.signal(signal);
        // The stand-in does not handle it.
        assert_eq!(running.wait().code(), Some(128 + signal.as_raw()));
        assert_eq!(place.files(), [""; 0]);
    }
}

/// Like timeout(1) and terminals, which signal the process and its group.
#[test]
fn signal_that_comes_twice_at_once_leaves_nothing_behind() {
    for round in 0..10 {
        let place = Place::new();
        let mut running = vm(&place);
        let children = running.children();
        // All moments of its leaving.
        for _ in 0..10 {
            running.signal(Signal::TERM);
            std::thread::sleep(Duration::from_micros(500 * round));
        }
        assert_eq!(running.wait().code(), Some(128 + Signal::TERM.as_raw()));
        assert!(!children.iter().any(|pid| is_alive(*pid)));
        assert_eq!(place.files(), [""; 0]);
    }
}

#[test]
fn exit_status_is_the_vmms() {
    for status in ["0", "1", "77"] {
        let place = Place::new();
        let (code, log) = place
            .launcher(&["--kernel", "k", "--inter-vm", &place.device("")])
            .env("STAND_IN_DOES", "exit")
            .env("STAND_IN_STATUS", status)
            .end();
        assert_eq!(code.to_string(), status, "{log}");
        assert_eq!(place.files(), [""; 0]);
    }
}

#[test]
fn ports_end_with_a_vmm_that_was_killed() {
    let place = Place::new();
    let mut running = vm(&place);
    let port = running.ports()[0].pid.unwrap();
    let vmm: Vec<u32> = running
        .children()
        .into_iter()
        .filter(|pid| *pid != port)
        .collect();
    assert_eq!(vmm.len(), 1);
    kill(vmm[0]);
    assert_eq!(running.wait().code(), Some(128 + 9));
    assert!(
        running
            .log()
            .contains("Cloud Hypervisor was ended by signal 9")
    );
    assert!(!is_alive(port));
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn port_that_dies_is_started_again_again_and_again() {
    let place = Place::new();
    let running = vm(&place);
    for restarts in 1..=5 {
        let before = running.ports().remove(0);
        kill(before.pid.unwrap());
        until("it serves again", || {
            let now = running.ports().remove(0);
            now.restarts == restarts && now.state == PortState::Serving
        });
        let now = running.ports().remove(0);
        assert_ne!(now.pid, before.pid);
        assert_eq!(
            (now.mac, now.net.vhost_socket),
            (before.mac, before.net.vhost_socket.clone())
        );
        drop(UnixStream::connect(before.net.vhost_socket).unwrap());
    }
    assert!(
        running
            .log()
            .contains("Port of inter-vm0 died (signal: 9 (SIGKILL)); starting it again")
    );
    running.end();
    assert_eq!(place.files(), [""; 0]);
}

/// SIGSYS is how the kernel ends a process that makes a forbidden system call.
#[test]
fn port_that_its_sandbox_ended_is_told_with_a_way_out() {
    let place = Place::new();
    let running = vm(&place);
    let port = running.ports().remove(0);
    let pid = Pid::from_raw(port.pid.unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, Signal::SYS).unwrap();
    until("it serves again", || {
        let now = running.ports().remove(0);
        now.restarts == 1 && now.state == PortState::Serving
    });
    let log = running.log();
    assert!(
        log.contains("a system call that its sandbox forbids"),
        "{log}"
    );
    assert!(log.contains("sandbox=log"), "{log}");
    running.end();
}

#[test]
fn port_that_cannot_come_back_is_tried_for_as_long_as_the_vm_runs() {
    let place = Place::new();
    let running = vm(&place);
    std::fs::rename(place.path("segment"), place.path("away")).unwrap();
    kill(running.ports()[0].pid.unwrap());
    until("it was tried", || running.ports()[0].restarts >= 4);
    std::fs::rename(place.path("away"), place.path("segment")).unwrap();
    until("it serves again", || {
        running.ports()[0].state == PortState::Serving
    });
    running.end();
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn launcher_that_was_killed_leaves_no_process_and_the_next_takes_over() {
    let place = Place::new();
    let mut running = vm(&place);
    let children = running.children();
    assert_eq!(children.len(), 2);
    running.signal(Signal::KILL);
    running.wait();
    until("its children are gone", || {
        !children.iter().any(|pid| is_alive(*pid))
    });
    std::fs::remove_file(place.path("arguments")).unwrap();
    vm(&place).end();
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn port_does_not_get_the_terminals_signals() {
    let place = Place::new();
    let running = vm(&place);
    let port = running.ports()[0].pid.unwrap();
    let group = |pid: u32| {
        let pid = rustix::process::Pid::from_raw(pid.cast_signed());
        rustix::process::getpgid(pid)
            .unwrap()
            .as_raw_nonzero()
            .get()
    };
    assert_eq!(group(port), port.cast_signed());
    // Nor is it stopped when it writes to a terminal of which it has not the foreground.
    assert!(ignores(port, Signal::TTOU));
    assert!(ignores(port, Signal::XFSZ));
    // The VMM does: it reads from the terminal.
    let vmm = running
        .children()
        .into_iter()
        .find(|pid| *pid != port)
        .unwrap();
    assert_eq!(group(vmm), group(running.pid()));
    running.end();
}

#[test]
fn signals_that_the_launcher_ignores_the_vmm_ignores() {
    let place = Place::new();
    let api = place.text("api");
    let device = place.device("");
    let arguments = ["--api-socket", &api, "--kernel", "k", "--inter-vm", &device];
    // Like nohup(1).
    let running = place.launcher(&arguments).ignoring("HUP").start();
    let port = running.ports()[0].pid.unwrap();
    let vmm = running.children().into_iter().find(|pid| *pid != port);
    assert!(ignores(vmm.unwrap(), Signal::HUP));
    running.signal(Signal::HUP);
    assert_eq!(running.ports().len(), 1);
    running.end();
}

#[test]
fn signals_that_only_the_launcher_ignores_the_vmm_has_as_it_was_to() {
    // The signals for writers to a full disk quota, and to a terminal with `stty tostop`.
    let signals = [Signal::XFSZ, Signal::TTOU, Signal::TTIN];
    for (ignored, device) in [(false, true), (true, true), (false, false), (true, false)] {
        let place = Place::new();
        let api = place.text("api");
        let option = place.device("");
        // Without a device and an API socket the launcher becomes the VMM.
        let arguments: &[&str] = if device {
            &["--api-socket", &api, "--kernel", "k", "--inter-vm", &option]
        } else {
            &["--kernel", "k"]
        };
        let mut launcher = place.launcher(arguments);
        if ignored {
            launcher = launcher.ignoring("XFSZ TTOU TTIN");
        }
        let running = launcher.start();
        let vmm = if device {
            let port = running.ports()[0].pid.unwrap();
            let mut others = running.children().into_iter();
            others.rfind(|pid| *pid != port).unwrap()
        } else {
            running.pid()
        };
        for signal in signals {
            assert_eq!(ignores(vmm, signal), ignored, "{signal:?}");
            assert!(!device || ignores(running.pid(), signal), "{signal:?}");
        }
        running.end();
    }
}

#[test]
fn signals_of_a_full_log_and_of_others_do_not_end_a_vm() {
    let place = Place::new();
    let api = place.text("api");
    let device = place.device("");
    let arguments = [
        "-vv",
        "--api-socket",
        &api,
        "--kernel",
        "k",
        "--inter-vm",
        &device,
    ];
    // 2 KiB, which the log soon has.
    let running = place.launcher(&arguments).after("ulimit -f 4").start();
    let mut restarts = 0;
    while running.log().len() < 2048 {
        kill(running.ports()[0].pid.unwrap());
        restarts += 1;
        until("it serves again", || {
            let port = running.ports().remove(0);
            port.restarts == restarts && port.state == PortState::Serving
        });
    }
    // One more time, with no room for what is said of it.
    kill(running.ports()[0].pid.unwrap());
    until("it serves again", || {
        let port = running.ports().remove(0);
        port.restarts == restarts + 1 && port.state == PortState::Serving
    });
    let pid = running.pid();
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let sent = std::process::Command::new("sh")
        .args(["-c", &format!("kill -{first} {pid} && kill -{last} {pid}")])
        .status();
    assert!(sent.unwrap().success());
    assert_eq!(running.ports().len(), 1);
    running.end();
    assert_eq!(place.files(), [""; 0]);
}

/// From proc_pid_status(5).
fn ignores(process: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .unwrap();
    let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
    mask & (1 << (signal.as_raw() - 1)) != 0
}
