//! Many ports of one segment: that start at the same moment, are killed and return, and whose
//! guests all talk.

use std::env;
use std::time::{Duration, Instant};

use virtio_inter_test_support::note;

use crate::members::{self, Member, exchange};
use crate::process::{Place, Port, PortCommand, until};

/// As many as the inotify instances that a user has by default, of which a port needs none, and
/// more than a port has handshakes under way at a time.
const PORTS: usize = 128;

/// A few seconds on two idle processors; this is for debug builds on busy ones.
const LINKED_WITHIN: Duration = Duration::from_secs(100);

/// Another number than half of that, of ports of which a third is killed: up to 256. The bench has
/// 256 (`mesh_return`).
const KILLED_PORTS: &str = "VIRTIO_INTER_TEST_PORTS";

fn spawn(place: &Place, i: usize) -> Port {
    members::command(place, i).spawn()
}

/// Waits until each port has logged so many links, links that went down again included.
pub(crate) fn wait_for_links(ports: &mut [Port], wanted: impl Fn(usize) -> usize) {
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
/// returns, and loses no other link. Then frames pass between all kinds: those that stayed, and
/// those that returned.
#[test]
fn ports_of_which_a_third_is_killed_and_returns_are_all_linked_again() {
    let wanted = env::var(KILLED_PORTS).map(|count| count.parse().unwrap());
    let count: usize = wanted.unwrap_or(PORTS / 2);
    let is_killed = |i: usize| i.is_multiple_of(3);
    let killed = (0..count).filter(|&i| is_killed(i)).count();
    let place = Place::new();
    members::allow_descriptors();
    let start = Instant::now();
    let mut ports: Vec<Port> = (0..count).map(|i| spawn(&place, i)).collect();
    wait_for_links(&mut ports, |_| count - 1);
    let linked = start.elapsed();
    for i in (0..count).filter(|&i| is_killed(i)) {
        ports[i].signal(rustix::process::Signal::KILL);
    }
    for i in (0..count).filter(|&i| is_killed(i)) {
        assert_eq!(ports[i].wait().code(), None);
        ports[i] = spawn(&place, i);
    }
    let start = Instant::now();
    let wanted = |i| count - 1 + if is_killed(i) { 0 } else { killed };
    wait_for_links(&mut ports, wanted);
    note(&format!(
        "{count} ports linked after {linked:?}, and {:?} after {killed} were killed",
        start.elapsed()
    ));
    for (i, port) in ports.iter().enumerate() {
        let log = port.log();
        let count = |text| log.matches(text).count();
        assert_eq!(count(" is up"), wanted(i), "{log}");
        let down = if is_killed(i) { 0 } else { killed };
        assert_eq!(count(" is down"), down, "{log}");
    }
    let ports = ports.into_iter().enumerate();
    let mut members: Vec<Member> = ports
        .map(|(i, port)| Member::new(&place, i, port))
        .collect();
    // To the next, and to the third next: from and to each kind.
    let pairs = [1, 3].map(|step| (0..count).map(move |i| (i, (i + step) % count)));
    let pairs: Vec<_> = pairs.into_iter().flatten().collect();
    exchange(&mut members, &pairs, 3);
    members.into_iter().for_each(|member| member.port.end());
    assert_eq!(place.files(), [""; 0]);
}

/// 64 guests send to the next one each, then all to one. All frames arrive, in order; rings are
/// there for those who talk, and given back when they do not.
#[test]
fn guests_that_talk_in_a_ring_and_then_all_to_one_lose_nothing() {
    const GUESTS: usize = 64;
    /// Fewer bytes than the smallest ring has.
    const FRAMES: u32 = 40;
    /// Bytes of that ring.
    const RING: u64 = 64 << 10;
    let place = Place::new();
    // Longer than either part takes.
    let idle = |command: PortCommand| command.with("--link-idle", "8");
    let mut members = members::start(&place, GUESTS, idle);
    let at_rest: Vec<usize> = members
        .iter()
        .map(|member| member.port.descriptors())
        .collect();
    let ring: Vec<_> = (0..GUESTS).map(|i| (i, (i + 1) % GUESTS)).collect();
    exchange(&mut members, &ring, FRAMES);
    for member in &members {
        let (rings, bytes) = member.rings();
        assert!(rings <= 2 && bytes <= RING, "{rings} rings, {bytes} bytes");
    }
    let to_one: Vec<_> = (1..GUESTS).map(|i| (i, 0)).collect();
    exchange(&mut members, &to_one, FRAMES);
    let (rings, bytes) = members[0].rings();
    assert!(
        rings <= GUESTS as u64 && bytes <= RING,
        "{rings} rings, {bytes} bytes"
    );
    for member in &members[1..] {
        let (rings, bytes) = member.rings();
        assert!(
            rings <= 3 && bytes <= 2 * RING,
            "{rings} rings, {bytes} bytes"
        );
    }
    until("all rings to be given back", || {
        members.iter().all(|member| member.rings() == (0, 0))
    });
    for (member, at_rest) in members.iter().zip(at_rest) {
        until("descriptors to be given back", || {
            member.port.descriptors() == at_rest
        });
    }
    // Who has none gets one again.
    exchange(&mut members, &to_one, 1);
}
