//! Many ports of one segment that start at the same moment.

use std::time::{Duration, Instant};

use crate::process::{Place, Port};

/// As many as the inotify instances that a user has by default, of which a port needs none, and
/// more than a port has handshakes under way at a time.
const PORTS: usize = 128;

/// A few seconds on two idle processors; this is for debug builds on busy ones.
const LINKED_WITHIN: Duration = Duration::from_secs(100);

fn spawn(place: &Place, i: usize) -> Port {
    place
        .command(&format!("p{i:02}"))
        .with("--mac", format!("52:54:00:00:00:{i:02x}"))
        .with("--ring-size", "262144")
        .spawn()
}

/// Waits until each port has logged so many links, links that went down again included.
fn wait_for_links(ports: &mut [Port], wanted: impl Fn(usize) -> usize) {
    let started = Instant::now();
    let count = ports.len();
    let mut waiting: Vec<usize> = (0..count).collect();
    while !waiting.is_empty() {
        std::thread::sleep(Duration::from_millis(100));
        for &i in &waiting {
            if let Some(status) = ports[i].try_end() {
                panic!("{status}: {}", ports[i].log());
            }
        }
        let links = |i: &usize| ports[*i].log().matches(" is up").count();
        waiting.retain(|i| links(i) < wanted(*i));
        assert!(
            started.elapsed() < LINKED_WITHIN,
            "{} of {count} ports lack peers: {:?}",
            waiting.len(),
            waiting.iter().map(links).collect::<Vec<_>>()
        );
    }
}

#[test]
fn ports_that_start_together_are_linked_before_long() {
    let place = Place::new();
    let mut ports: Vec<Port> = (0..PORTS).map(|i| spawn(&place, i)).collect();
    wait_for_links(&mut ports, |_| PORTS - 1);
    for port in &ports {
        let log = port.log();
        let complaint = log
            .lines()
            .find(|l| l.contains("WARN") || l.contains("ERROR"));
        assert_eq!(complaint, None);
    }
    // All at once, too.
    for port in &ports {
        port.signal(rustix::process::Signal::TERM);
    }
    for mut port in ports {
        assert_eq!(port.wait().code(), Some(0), "{}", port.log());
    }
    assert_eq!(place.files(), [""; 0]);
}

/// A third of many ports is killed and started again. Each of the others links up with each that
/// returns, and loses no other link.
#[test]
fn ports_of_which_a_third_is_killed_and_returns_are_all_linked_again() {
    const PORTS: usize = 64;
    let is_killed = |i: usize| i.is_multiple_of(3);
    let killed = (0..PORTS).filter(|&i| is_killed(i)).count();
    let place = Place::new();
    let mut ports: Vec<Port> = (0..PORTS).map(|i| spawn(&place, i)).collect();
    wait_for_links(&mut ports, |_| PORTS - 1);
    for i in (0..PORTS).filter(|&i| is_killed(i)) {
        ports[i].signal(rustix::process::Signal::KILL);
    }
    for i in (0..PORTS).filter(|&i| is_killed(i)) {
        assert_eq!(ports[i].wait().code(), None);
        ports[i] = spawn(&place, i);
    }
    let wanted = |i| PORTS - 1 + if is_killed(i) { 0 } else { killed };
    wait_for_links(&mut ports, wanted);
    for (i, port) in ports.iter().enumerate() {
        let log = port.log();
        let count = |text| log.matches(text).count();
        assert_eq!(count(" is up"), wanted(i), "{log}");
        let down = if is_killed(i) { 0 } else { killed };
        assert_eq!(count(" is down"), down, "{log}");
    }
    ports.into_iter().for_each(Port::end);
    assert_eq!(place.files(), [""; 0]);
}
