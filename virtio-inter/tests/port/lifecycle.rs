//! From start to end: files, signals, and what a process leaves that was killed.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Signal;

use crate::frontends::{
    assert_served, connect, memory, set_call, share, start_transmit_queue, stop_queue, transmit_one,
};
use crate::process::{Place, Port, until};

const FILES: [&str; 6] = [
    "a.vhost",
    "a.vhost.lock",
    "segment/a.capture",
    "segment/a.lock",
    "segment/a.sock",
    "segment/a.status",
];

#[test]
fn signals_end_a_port_and_nothing_is_left() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let place = Place::new();
        let mut port = place.start("a");
        assert_eq!(place.files(), FILES);
        let lock = fs::read_to_string(place.path("a.vhost.lock")).unwrap();
        assert_eq!(lock.trim(), port.pid().to_string());
        // A frontend does not keep it.
        let frontend = UnixStream::connect(&port.socket).unwrap();
        port.wait_for("Frontend connected");
        port.signal(signal);
        assert_eq!(port.wait().code(), Some(0));
        assert_eq!(place.files(), [""; 0]);
        drop(frontend);
    }
}

/// Like timeout(1) and terminals, which signal the process and its group.
#[test]
fn signal_that_comes_twice_at_once_leaves_nothing_behind() {
    for round in 0..25 {
        let place = Place::new();
        let status = place.path("a.status");
        let mut port = place.command("a").with("--status-socket", &status).start();
        let frontend = UnixStream::connect(&port.socket).unwrap();
        port.wait_for("Frontend connected");
        // All moments of its leaving.
        for _ in 0..10 {
            port.signal(Signal::TERM);
            std::thread::sleep(Duration::from_micros(100 * round));
        }
        assert_eq!(port.wait().code(), Some(0));
        assert_eq!(place.files(), [""; 0]);
        drop(frontend);
    }
}

/// A queue that is to be stopped would wait for an interrupt that blocks.
#[test]
fn call_eventfd_that_is_full_and_blocking_does_not_keep_a_port() {
    let place = Place::new();
    let mut port = place.start("a");
    let frontend = connect(&port);
    let memory = memory();
    share(&frontend, memory.as_fd());
    let (kick, call) = start_transmit_queue(&frontend);
    assert_served(&frontend);
    let _ = rustix::io::read(&call, &mut [0; 8]);
    rustix::io::write(&call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    clear_nonblock(&call);
    transmit_one(memory.as_fd());
    rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
    wait_for_interrupt(&memory);
    stop_queue(&frontend);
    port.signal(Signal::TERM);
    assert_eq!(port.wait().code(), Some(0), "{}", port.log());
    assert_eq!(place.files(), [""; 0]);
}

/// Waits until the frame's buffer comes back, and with it the interrupt.
fn wait_for_interrupt(memory: &impl AsFd) {
    let used = || {
        let mut used = [0; 2];
        rustix::io::pread(memory, &mut used, 0x4002).unwrap();
        u16::from_ne_bytes(used)
    };
    until("the frame is taken", || used() == 1);
}

fn clear_nonblock(fd: &OwnedFd) {
    let flags = fcntl_getfl(fd).unwrap();
    fcntl_setfl(fd, flags - OFlags::NONBLOCK).unwrap();
}

/// A port whose worker waits for its VMM: here by an interrupt through a FIFO, which the kernel
/// cannot write to without waiting, full and blocking.
fn blocked_port(place: &Place) -> (Port, UnixStream, OwnedFd) {
    let port = place.start("a");
    let frontend = connect(&port);
    let memory = memory();
    share(&frontend, memory.as_fd());
    let (kick, _) = start_transmit_queue(&frontend);
    let path = place.path("fifo");
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let fifo = rustix::fs::open(&path, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).unwrap();
    fs::remove_file(path).unwrap();
    while rustix::io::write(&fifo, &[0; 4096]).is_ok() {}
    set_call(&frontend, fifo.as_fd());
    assert_served(&frontend);
    clear_nonblock(&fifo);
    transmit_one(memory.as_fd());
    rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
    // Or the port could end before its worker has begun.
    wait_for_interrupt(&memory);
    (port, frontend, fifo)
}

#[test]
fn second_signal_ends_what_the_first_could_not() {
    let place = Place::new();
    let (mut port, _frontend, _fifo) = blocked_port(&place);
    port.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(port.try_end(), None, "nothing blocked its end");
    // A signal that comes with the first one does not count as the second, nor does a different
    // one.
    port.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(1000));
    port.signal(Signal::INT);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(port.try_end(), None);
    port.signal(Signal::TERM);
    assert_eq!(port.wait().signal(), Some(Signal::TERM.as_raw()));
}

/// Nobody has to send a second one. The port has left its segment already.
#[test]
fn signal_ends_a_port_that_its_vmm_blocks() {
    let place = Place::new();
    let (mut port, _frontend, _fifo) = blocked_port(&place);
    port.signal(Signal::TERM);
    until("it has left the segment", || {
        !place
            .files()
            .iter()
            .any(|name| name.starts_with("segment/"))
    });
    assert_eq!(port.wait().signal(), Some(Signal::TERM.as_raw()));
    let log = port.log();
    assert!(log.contains("SIGTERM came 10 s ago"), "{log}");
}

#[test]
fn files_of_a_killed_port_are_taken_over() {
    let place = Place::new();
    for round in 0..5 {
        let mut port = place.start("a");
        assert_eq!(port.log().contains("Taking over socket"), round > 0);
        port.signal(Signal::KILL);
        port.wait();
        assert_eq!(place.files(), FILES);
    }
    place.start("a").end();
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn socket_that_somebody_replaced_is_no_trouble() {
    let place = Place::new();
    let port = place.start("a");
    // A newer one is not this port's to remove.
    fs::write(place.path("another"), "another's").unwrap();
    fs::rename(place.path("another"), &port.socket).unwrap();
    port.end();
    assert_eq!(place.files(), ["a.vhost"]);
}

#[test]
fn lock_that_somebody_removed_is_not_taken_from_the_next() {
    let place = Place::new();
    let first = place.start("a");
    // Or it would make them again.
    first.signal(Signal::STOP);
    fs::remove_file(place.path("a.vhost.lock")).unwrap();
    fs::remove_file(&first.socket).unwrap();
    let second = place
        .command("b")
        .with("--socket", place.path("a.vhost"))
        .start();
    first.signal(Signal::CONT);
    first.wait_for("is in use by process");
    first.end();
    assert_eq!(
        place.files(),
        [
            "a.vhost",
            "a.vhost.lock",
            "segment/b.capture",
            "segment/b.lock",
            "segment/b.sock",
            "segment/b.status"
        ]
    );
    second.end();
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn ports_that_start_at_once_on_one_socket_leave_one() {
    let place = Place::new();
    for _ in 0..5 {
        let commands: Vec<_> = ["b", "c", "d", "e"]
            .map(|id| place.command(id).with("--socket", place.path("x")))
            .into();
        let ended = std::thread::scope(|scope| {
            let threads: Vec<_> = commands
                .iter()
                .map(|command| {
                    scope.spawn(|| {
                        let mut port = command.spawn();
                        until("it serves or ends", || {
                            port.try_end().is_some() || port.log().contains("Serving")
                        });
                        port
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect::<Vec<_>>()
        });
        let mut living = Vec::new();
        for mut port in ended {
            match port.try_end() {
                Some(status) => {
                    assert_eq!(status.code(), Some(1));
                    assert!(port.log().contains("is in use"), "{}", port.log());
                }
                None => living.push(port),
            }
        }
        assert_eq!(living.len(), 1);
        living.pop().unwrap().end();
        assert_eq!(place.files(), [""; 0]);
    }
}

#[test]
fn sockets_may_lie_in_the_segment() {
    let place = Place::new();
    let socket = |name: &str| place.segment().join(name);
    let first = place
        .command("a")
        .with("--socket", socket("vm1.sock"))
        .start();
    let second = place
        .command("b")
        .with("--socket", socket("vm2.sock"))
        .start();
    first.wait_for("is up");
    second.wait_for("is up");
    second.end();
    first.wait_for("is down");
    first.end();
    assert_eq!(place.files(), [""; 0]);
}

/// Cloud Hypervisor 53 gives its device up for good when the next connection is accepted and then
/// reset.
#[test]
fn socket_is_gone_when_a_frontend_sees_the_port_end() {
    for signal in [Signal::KILL, Signal::TERM] {
        for _ in 0..10 {
            let place = Place::new();
            let mut port = place.start("a");
            let mut frontend = UnixStream::connect(&port.socket).unwrap();
            port.wait_for("Frontend connected");
            port.signal(signal);
            // Until its end, by which the frontend knows.
            let _ = frontend.read(&mut [0]);
            let again = UnixStream::connect(&port.socket).map_err(|error| error.kind());
            assert!(
                matches!(
                    again,
                    Err(ErrorKind::ConnectionRefused | ErrorKind::NotFound)
                ),
                "{signal:?}: {again:?}"
            );
            port.wait();
        }
    }
}
