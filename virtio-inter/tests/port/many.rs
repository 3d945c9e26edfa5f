//! Many ports of one segment that start at the same moment.

use std::time::{Duration, Instant};

use crate::process::{Place, Port};

/// As many as the inotify instances that a user has by default, of which a port needs none, and
/// more than a port has handshakes under way at a time.
const PORTS: usize = 128;

/// A few seconds on two idle processors; this is for debug builds on busy ones.
const LINKED_WITHIN: Duration = Duration::from_secs(100);

#[test]
fn ports_that_start_together_are_linked_before_long() {
    let place = Place::new();
    let started = Instant::now();
    let mut ports: Vec<Port> = (0..PORTS)
        .map(|i| {
            place
                .command(&format!("p{i:02}"))
                .with("--mac", format!("52:54:00:00:00:{i:02x}"))
                .with("--ring-size", "262144")
                .spawn()
        })
        .collect();
    let mut waiting: Vec<usize> = (0..PORTS).collect();
    while !waiting.is_empty() {
        std::thread::sleep(Duration::from_millis(100));
        for &i in &waiting {
            if let Some(status) = ports[i].try_end() {
                panic!("{status}: {}", ports[i].log());
            }
        }
        let links = |i: &usize| ports[*i].log().matches(" is up").count();
        waiting.retain(|i| links(i) < PORTS - 1);
        assert!(
            started.elapsed() < LINKED_WITHIN,
            "{} of {PORTS} ports lack peers: {:?}",
            waiting.len(),
            waiting.iter().map(links).collect::<Vec<_>>()
        );
    }
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
