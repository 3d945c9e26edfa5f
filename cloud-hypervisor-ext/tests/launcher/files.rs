//! Files of a live launcher that something else removes, and those of one that is about to be gone.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};

use cloud_hypervisor_ext::control_protocol::PortState;
use cloud_hypervisor_ext::vm_directory::{beside, control_socket};
use rustix::process::Signal;

use crate::harness::{Place, Running, kill, until};

fn vm(place: &Place) -> Running {
    let arguments = place.path("arguments");
    if arguments.exists() {
        fs::remove_file(arguments).unwrap();
    }
    place.run(&["--kernel", "k", "--inter-vm", &place.device("")])
}

/// Under another name first: what is made again while this goes on would be in its way.
fn remove_directory(place: &Place) {
    let aside = place.path("aside");
    fs::rename(beside(&place.path("api")), &aside).unwrap();
    fs::remove_dir_all(&aside).unwrap();
}

/// The supervisor answers, and its port can be reached: perhaps another process, as the former one
/// is confined to a directory that is gone.
fn check(running: &Running, place: &Place) {
    let api = place.path("api");
    until("the control socket", || {
        UnixStream::connect(control_socket(&api)).is_ok()
    });
    let port = running.ports().remove(0);
    for socket in [port.net.vhost_socket, port.status_socket] {
        until(&socket, || UnixStream::connect(&socket).is_ok());
    }
    until("the port serves", || {
        running.ports().remove(0).state == PortState::Serving
    });
}

#[test]
fn files_that_were_removed_are_made_again() {
    let place = Place::new();
    let running = vm(&place);
    let directory = beside(&place.path("api"));
    check(&running, &place);
    fs::remove_file(directory.join("control")).unwrap();
    check(&running, &place);
    for _ in 0..2 {
        remove_directory(&place);
        check(&running, &place);
        // A port that dies is started again as ever.
        let port = running.ports().remove(0);
        kill(port.pid.unwrap());
        until("it serves again", || {
            let now = running.ports().remove(0);
            now.restarts > port.restarts && now.state == PortState::Serving
        });
        check(&running, &place);
    }
    let log = running.log();
    assert!(log.contains("/api.inter-vm/control; made again"), "{log}");
    running.end();
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn directory_that_cannot_be_made_again_is_told_once() {
    let place = Place::new();
    let running = vm(&place);
    let directory = beside(&place.path("api"));
    fs::rename(&directory, place.path("aside")).unwrap();
    fs::write(&directory, "another's").unwrap();
    fs::remove_dir_all(place.path("aside")).unwrap();
    let log_lines = || {
        running
            .log()
            .matches("ch-remote-ext does not find this VM")
            .count()
    };
    until("the log has it", || log_lines() == 1);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(log_lines(), 1, "{}", running.log());
    fs::remove_file(&directory).unwrap();
    check(&running, &place);
    running.end();
    assert_eq!(place.files(), [""; 0]);
}

/// The VMM is there to be found, though the launcher's directory is not.
#[test]
fn directory_of_a_live_vm_that_was_removed_is_not_free() {
    let place = Place::new();
    let running = vm(&place);
    let _vmm = UnixListener::bind(place.path("api")).unwrap();
    // So that it does not make it again itself.
    running.signal(Signal::STOP);
    remove_directory(&place);
    let api = place.text("api");
    let (status, log) = place
        .launcher(&["--api-socket", &api, "--kernel", "k"])
        .logging_to("second")
        .end();
    assert_eq!(status, 1, "{log}");
    let expected = "is in use: another VM runs with this API socket";
    assert!(log.contains(expected), "{log}");
    running.signal(Signal::CONT);
    check(&running, &place);
    running.end();
    fs::remove_file(api).unwrap();
    fs::remove_file(place.path("second")).unwrap();
    assert_eq!(place.files(), [""; 0]);
}

/// Like a supervisor with RestartSec=0, on a busy machine.
#[test]
fn start_right_after_a_kill_takes_over() {
    static OVER: AtomicBool = AtomicBool::new(false);
    let place = Place::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !OVER.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        // Also if an assertion fails: the loops would not end otherwise.
        struct End;
        impl Drop for End {
            fn drop(&mut self) {
                OVER.store(true, Ordering::Relaxed);
            }
        }
        let _end = End;
        let mut running = vm(&place);
        for round in 0..20 {
            // One that is killed, then one that exits.
            let signal = [Signal::KILL, Signal::TERM][round % 2];
            running.signal(signal);
            // Without waiting for its end.
            let next = vm(&place);
            drop(std::mem::replace(&mut running, next));
        }
        running.end();
    });
    assert_eq!(place.files(), [""; 0]);
}
