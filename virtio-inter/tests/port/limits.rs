//! Resource limits and signals: what kills a process by default kills no port without a word.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::thread;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde_json::json;
use virtio_inter_test_support::{refuse, skip};

use crate::frontends::{assert_served, connect, memory, share, start_queue, stop_queue, tell};
use crate::guest::Guest;
use crate::process::{Place, Port, address, until};
use crate::sandbox::of_threads;
use crate::status::status;

const SET_MEM_TABLE: u32 = 5;

/// Files that are left where a port ended in good order: none.
const NONE: [&str; 0] = [];

#[test]
fn limit_on_file_size_prevents_rings_and_ends_nothing() {
    // In units of 512 bytes: less than the smallest ring, and less than the largest.
    for (limit, warning) in [
        (
            "ulimit -f 64",
            "No frame can be sent to a peer: a ring needs",
        ),
        (
            "ulimit -f 512",
            "Rings to peers cannot grow to the ring size",
        ),
    ] {
        let place = Place::new();
        let port = place.command("a").limited(limit).start();
        port.wait_for(warning);
        let peer = place.start("b");
        port.wait_for("link with b");
        let frontend = connect(&port);
        share(&frontend, memory().as_fd());
        start_queue(&frontend);
        assert_served(&frontend);
        stop_queue(&frontend);
        port.end();
        peer.end();
        assert_eq!(place.files(), NONE);
    }
}

/// One for each queue pair, and four: log, signals, control, slow doorbells. (Those that close
/// descriptors come and go.)
#[test]
fn threads_of_a_port_are_few() {
    let place = Place::new();
    let port = place.command("a").with("--queues", "3").start();
    let ids = ["b", "c", "d"];
    let peers = ids.map(|id| place.start(id));
    until("links", || port.log().matches(" is up").count() == 3);
    let mut guest = Guest::new(&port, 1514);
    let of_peers = peers.each_ref().map(|peer| Guest::new(peer, 1514));
    for id in ids {
        guest.send(&address("a"), &address(id), 100);
    }
    until("the frames", || of_peers.iter().all(Guest::has_frame));
    let expected = [
        "log",
        "queue-0",
        "queue-1",
        "queue-2",
        "ringer",
        "signals",
        "virtio-inter",
    ];
    let tasks = || fs::read_dir(format!("/proc/{}/task", port.pid())).unwrap();
    let mut threads = Vec::new();
    until("those threads", || {
        threads = of_threads(&port, "Name").into_keys().collect();
        threads == expected && tasks().count() == expected.len()
    });
    port.end();
    peers.into_iter().for_each(Port::end);
}

/// As where another user has used `fs.aio-max-nr` up.
#[test]
fn port_without_asynchronous_io_links_with_no_other_user() {
    let place = Place::new();
    let Some(other) = place.command("b").by_ordinary_user() else {
        return skip("another user cannot run the program");
    };
    if !rustix::process::geteuid().is_root() {
        return skip("there is no other user without root");
    }
    let command = place.command("a");
    // What this thread starts gets none.
    let port = thread::scope(|scope| {
        let without = scope.spawn(|| {
            refuse(libc::SYS_io_setup, libc::EAGAIN);
            command.start()
        });
        without.join().unwrap()
    });
    port.wait_for("No asynchronous I/O here");
    let (other, of_root) = (other.start(), place.start("c"));
    port.wait_for("User 65534 may not join: this port got no asynchronous I/O");
    port.wait_for("link with c");
    until("a link of the others", || {
        of_root.log().matches(" is up").count() == 2
    });
    assert!(!port.log().contains("link with b"), "{}", port.log());
    port.end();
    of_root.end();
    other.end();
}

/// Limits of what the VM sends and gets.
#[test]
fn rate_limits_are_in_the_status() {
    let place = Place::new();
    let socket = place.path("a.status");
    let port = place
        .command("a")
        .with("--bandwidth", "direction=tx,size=125000,refill_time=100")
        .with("--packets", "size=1K,refill_time=1000,one_time_burst=9")
        .with("--status-socket", &socket)
        .start();
    let packets = json!({"size": 1024, "refill_time": 1000, "one_time_burst": 9});
    let expected = json!({
        "bandwidth": {
            "tx": {"size": 125000, "refill_time": 100, "one_time_burst": 0},
            "rx": null
        },
        "packets": {"tx": packets, "rx": packets}
    });
    assert_eq!(status(&socket)["rate_limits"], expected);
    port.end();
}

/// What a port keeps its guest from, in its own status and in that of its peers.
#[test]
fn guard_is_in_the_status_of_both_ends() {
    let place = Place::new();
    let sockets = [place.path("a.status"), place.path("b.status")];
    let guarded = place
        .command("a")
        .with("--ip", "fd00::/64,10.0.0.7")
        .flag("--no-dhcp-server")
        .with("--status-socket", &sockets[0])
        .start();
    let other = place.command("b").with("--status-socket", &sockets[1]);
    let other = other.start();
    until("a link", || status(&sockets[1])["peers"][0]["id"] == "a");
    let ips = json!(["10.0.0.7", "fd00::/64"]);
    for seen in [&status(&sockets[0]), &status(&sockets[1])["peers"][0]] {
        assert_eq!(seen["ip"], ips, "{seen}");
        assert_eq!(seen["no_dhcp_server"], true, "{seen}");
    }
    let seen = status(&sockets[0]);
    assert_eq!(seen["peers"][0]["ip"], json!(null), "{seen}");
    for port in [guarded, other] {
        port.end();
    }
}

/// The options, and what is used of them.
#[test]
fn limits_of_peers_and_memory_are_options_and_in_the_status() {
    let place = Place::new();
    let socket = place.path("a.status");
    let port = place
        .command("a")
        .with("--max-peers", "1")
        .with("--max-link-memory", "64K")
        .with("--max-user-share", "60")
        .with("--status-socket", &socket)
        .start();
    let limits = |peers: u64, memory: u64, rings: u64| {
        json!({
            "peers": {"used": peers, "max": 1},
            "link_memory": {"used": memory, "max": 65536},
            "rings": {"used": rings, "max": 8192},
            "max_user_share": 60
        })
    };
    assert_eq!(status(&socket)["limits"], limits(0, 0, 0));
    let peer = place.start("b");
    until("a link", || status(&socket)["limits"] == limits(1, 0, 0));
    let third = place.start("c");
    third.wait_for("more than 1 peers");
    peer.end();
    until("a link with the other", || {
        let now = status(&socket);
        now["peers"][0]["id"] == "c" && now["limits"] == limits(1, 0, 0)
    });
    third.end();
    port.end();
}

#[test]
fn limit_on_file_size_of_the_log_ends_nothing() {
    let place = Place::new();
    // 1 KiB: the log is a file, too.
    let log = fs::File::create(place.path("a.log")).unwrap();
    let port = place
        .command("a")
        .limited("ulimit -f 1")
        .spawn_onto(Stdio::null(), log);
    until("the port serves", || {
        UnixStream::connect(&port.socket).is_ok()
    });
    for _ in 0..40 {
        assert_served(&connect(&port));
    }
    assert!(fs::metadata(place.path("a.log")).unwrap().len() <= 1024);
    port.end();
}

#[test]
fn limits_that_are_reached_at_the_start_are_told() {
    for (limit, told) in [
        ("ulimit -n 10", "Too many open files"),
        ("ulimit -n 24", "Too many open files"),
        ("ulimit -d 1000", "Resource temporarily unavailable"),
        // Before it can write its process id to the first lock file.
        ("ulimit -f 0", "File too large"),
    ] {
        let place = Place::new();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut port = place
            .command("a")
            .limited(limit)
            .spawn_onto(Stdio::null(), writer);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(port.wait().code(), Some(1), "{limit}: {said}");
        assert!(said.contains(told), "{limit}: {said}");
        let left = place.files();
        assert_eq!(left, NONE, "{limit}: {said}");
    }
}

#[test]
fn limit_on_processes_is_told() {
    let place = Place::new();
    // Root has none.
    let Some(command) = place.command("a").by_ordinary_user() else {
        skip("no other user can run the program");
        return;
    };
    let (code, said) = command.limited("ulimit -u 1").fail();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("Resource temporarily unavailable"), "{said}");
    assert_eq!(place.files(), NONE);
}

#[test]
fn limits_that_a_port_does_not_need_do_nothing() {
    let place = Place::new();
    let peer = place.start("b");
    let port = place
        .command("a")
        .limited("ulimit -l 0; ulimit -i 0; ulimit -c 0; ulimit -q 0")
        .start();
    port.wait_for(", is up");
    port.end();
    peer.end();
}

#[test]
fn limit_on_address_space_refuses_memory() {
    let place = Place::new();
    let port = place.start("a");
    let pid = Pid::from_raw(port.pid().try_into().unwrap());
    let status = fs::read_to_string(format!("/proc/{}/status", port.pid())).unwrap();
    let used: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmSize:")?.trim().strip_suffix(" kB"))
        .unwrap()
        .parse()
        .unwrap();
    // Room for all but the guest.
    let limit = Rlimit {
        current: Some(used * 1024 + (256 << 20)),
        maximum: Some(used * 1024 + (256 << 20)),
    };
    prlimit(pid, Resource::As, limit).unwrap();
    let guest = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&guest, 1 << 30).unwrap();
    let frontend = connect(&port);
    let table = [1, 0, 1 << 30, 0x1000_0000, 0];
    tell(&frontend, SET_MEM_TABLE, &table, &[guest.as_fd()]);
    port.wait_for("Memory region of 0x40000000 bytes at guest address 0x0 cannot be mapped");
    assert_served(&connect(&port));
    port.end();
}

#[test]
fn limit_on_cpu_time_is_told_at_the_start() {
    let place = Place::new();
    let port = place.command("a").limited("ulimit -t 3600").start();
    assert!(
        port.log()
            .contains("kills this port when it has used 3600 s of CPU time (RLIMIT_CPU"),
        "{}",
        port.log()
    );
    port.end();
}

#[test]
fn signals_that_are_not_for_ports_do_nothing() {
    let place = Place::new();
    let port = place.start("a");
    let peer = place.start("b");
    for (signal, name) in [
        (Signal::USR1, "SIGUSR1 is ignored"),
        (Signal::USR2, "SIGUSR2 is ignored"),
        (Signal::POWER, "SIGPWR is ignored"),
        (Signal::STKFLT, "SIGSTKFLT is ignored"),
    ] {
        port.signal(signal);
        port.wait_for(name);
    }
    for signal in [
        Signal::IO,
        Signal::PIPE,
        Signal::XFSZ,
        Signal::TTIN,
        Signal::TTOU,
    ] {
        port.signal(signal);
        assert_served(&connect(&port));
    }
    for signal in [libc::SIGRTMIN(), libc::SIGRTMAX()] {
        let sent = std::process::Command::new("sh")
            .args(["-c", &format!("kill -{signal} {}", port.pid())])
            .status();
        assert!(sent.unwrap().success());
        assert_served(&connect(&port));
    }
    peer.end();
    port.end();
}

#[test]
fn signals_that_end_a_port_are_named_and_leave_nothing_behind() {
    for (signal, told) in [
        (Signal::QUIT, "SIGQUIT was sent to this port"),
        (Signal::ALARM, "SIGALRM was sent to this port"),
        (Signal::VTALARM, "SIGVTALRM was sent to this port"),
        (Signal::PROF, "SIGPROF was sent to this port"),
        (Signal::XCPU, "SIGXCPU: all CPU time that"),
    ] {
        let place = Place::new();
        let mut port = place.start("a");
        port.signal(signal);
        assert_eq!(port.wait().code(), Some(1), "{}", port.log());
        assert!(port.log().contains(told), "{}", port.log());
        assert_eq!(place.files(), NONE);
    }
}

#[test]
fn signals_that_a_port_was_started_to_ignore_are_ignored() {
    let place = Place::new();
    let port = place.command("a").limited("trap '' QUIT USR1").start();
    for signal in [Signal::QUIT, Signal::USR1] {
        port.signal(signal);
        assert_served(&connect(&port));
    }
    assert!(!port.log().contains("SIG"), "{}", port.log());
    port.end();
}
