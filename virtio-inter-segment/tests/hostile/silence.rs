//! Peers that do not speak or do not listen, alone and in crowds.

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use virtio_inter_segment::Limits;

use crate::common::raw::{self, REFUSE};
use crate::common::{Net, PATIENCE, limits, local};

/// A peer that does not introduce itself is turned away in time.
#[test]
fn silence_of_a_peer_ends_in_time() {
    let mut net = Net::new();
    let limits = Limits {
        hello_timeout: Duration::from_millis(200),
        ..limits()
    };
    net.join_with(local("m"), limits).unwrap();
    let started = Instant::now();
    let socket = raw::connect(&net, "m");
    let refusal = raw::until_closed(&mut net, &socket).unwrap();
    assert_eq!(refusal.text, "Handshake made no progress within 200 ms");
    assert!(started.elapsed() >= Duration::from_millis(200));
    assert_eq!(net.ports["m"].segment.stats().timeouts, 1);
    // Once it has introduced itself, it may be silent for as long as it likes.
    let socket = raw::connect(&net, "m");
    raw::send(&socket, &raw::hello("a", 1));
    net.until("a peer", |net| net.ports["m"].links.contains_key("a"));
    let until = Instant::now() + Duration::from_millis(500);
    net.until("time to pass", |_| Instant::now() > until);
    assert_eq!(net.ports["m"].peers(), ["a"]);
}

/// A socket that accepts and says nothing is tried again, with pauses, and does no harm.
#[test]
fn silent_listener() {
    let mut net = Net::new();
    let listener = raw::listen(net.path(), "z");
    let limits = Limits {
        hello_timeout: Duration::from_millis(50),
        ..limits()
    };
    net.join_with(local("m"), limits).unwrap();
    net.join("n");
    net.until("two connections", |net| {
        net.ports["m"].segment.stats().timeouts >= 2
    });
    drop(listener);
    // Refused connections are not retried: the next socket of that name is.
    net.until("both to have found out", |net| {
        net.run_once(Duration::from_millis(1));
        net.ports["m"].peers() == ["n"]
    });
    std::fs::remove_file(net.path().join("z.sock")).unwrap();
    net.join("z");
    net.until_meshed();
    net.check_flow();
}

/// Many more silent listeners than attempts may be under way, all with ids ahead of the good ones.
#[test]
fn crowd_of_silent_listeners() {
    let mut net = Net::new();
    let _crowd: Vec<OwnedFd> = (0..128)
        .map(|i| raw::listen(net.path(), &format!("s{i:03}")))
        .collect();
    net.join("y");
    let limits = Limits {
        hello_timeout: Duration::from_millis(400),
        max_connecting: 12,
        ..limits()
    };
    net.join_with(local("m"), limits).unwrap();
    let linked = |net: &Net, id: &str| net.ports["m"].links.contains_key(id);
    net.until("a link with y", |net| linked(net, "y"));
    // By now all have been tried, and every place is taken again.
    net.join("z");
    net.until("a link with z", |net| linked(net, "z"));
}

#[test]
fn crowd_of_half_open_connections() {
    let mut net = Net::new();
    let limits = Limits {
        hello_timeout: 2 * PATIENCE,
        ..limits()
    };
    net.join_with(local("m"), limits).unwrap();
    let mut crowd: Vec<OwnedFd> = Vec::new();
    while crowd.len() < 400 {
        match raw::try_connect(&net, "m") {
            Some(socket) => crowd.push(socket),
            // The port's queue is full.
            None => net.run_once(Duration::ZERO),
        }
    }
    // An honest port gets through nevertheless.
    net.join("b");
    net.until_meshed();
    net.check_flow();
    let crowded_out = net.ports["m"].segment.stats().crowded_out;
    assert!((144..=145).contains(&crowded_out), "{crowded_out}");
    let refused = crowd.iter().filter(|socket| {
        let Ok(Some(packet)) = raw::try_receive(socket) else {
            return false;
        };
        // Busy, not full: an honest one that was hit comes back soon. The others' time may be over.
        assert_eq!(packet[4], REFUSE as u8);
        packet[16] == 10
    });
    assert_eq!(refused.count() as u64, crowded_out);
}

/// Not a test: a process that opens many connections to a port and keeps them.
#[test]
fn child_crowd() {
    let Ok(directory) = std::env::var("SEGMENT_CHILD_DIRECTORY") else {
        return;
    };
    let directory = std::path::Path::new(&directory);
    let mut crowd = Vec::new();
    let mut opened = 0;
    while directory.exists() && !directory.join("enough").exists() {
        // Also when the port ends some: to those that stay, nothing happens.
        if opened < CROWD
            && let Some(socket) = raw::try_connect_in(directory, "m")
        {
            crowd.push(socket);
            opened += 1;
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

const CROWD: usize = 400;

/// Who has the most handshakes under way loses one for each that comes, whoever opens it: a crowd
/// costs others nothing, not even those that have said nothing yet.
#[test]
fn admission_takes_the_place_from_who_has_the_most() {
    let mut net = Net::new();
    let limits = Limits {
        hello_timeout: 2 * PATIENCE,
        ..limits()
    };
    net.join_with(local("m"), limits).unwrap();
    let honest: Vec<OwnedFd> = (0..20).map(|_| raw::connect(&net, "m")).collect();
    net.run_once(Duration::from_millis(100));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "silence::child_crowd", "--nocapture"])
        .env("SEGMENT_CHILD_DIRECTORY", net.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let over = (CROWD + honest.len() - Limits::default().max_accepting) as u64;
    net.until("the crowd to be cut down", |net| {
        net.ports["m"].segment.stats().crowded_out >= over
    });
    for socket in &honest {
        assert!(matches!(raw::try_receive(socket), Err(())), "turned away");
    }
    std::fs::write(net.path().join("enough"), "").unwrap();
    assert!(child.wait().unwrap().success());
}

/// A peer that never reads cannot hold anybody up.
#[test]
fn peer_that_does_not_read() {
    let mut net = Net::new();
    let mut port = local("m");
    port.queues = 64;
    net.join_as(port).unwrap();
    let mut sockets = Vec::new();
    for i in 0..20 {
        let id = format!("a{i}");
        let mut hello = raw::hello(&id, i);
        hello[14] = 64;
        let socket = raw::connect(&net, "m");
        raw::send(&socket, &hello);
        sockets.push(socket);
        let started = Instant::now();
        net.run_once(Duration::from_millis(100));
        assert!(started.elapsed() < Duration::from_secs(2));
    }
    net.join("z");
    net.until("a link with z", |net| {
        net.ports["m"].links.contains_key("z")
    });
}
