//! Rings between whole ports: the first frame, rings that are given back and made again, and no
//! descriptors left for one.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use virtio_inter_test_support::note;

use crate::members::{self, Member, broadcast, exchange, frame, number};
use crate::process::{Place, TIMEOUT, until};

/// Bytes of a ring as rings begin.
const SMALL: u64 = 64 << 10;

/// Time until a frame that is sent now is in a receive buffer.
fn time_of(members: &mut [Member], from: usize, to: usize, number: u32) -> Duration {
    let start = Instant::now();
    members[from].guest.post(&frame(from, to, number));
    while !members[to].guest.has_frame() {
        assert!(start.elapsed() < TIMEOUT, "{from} to {to}: frame {number}");
        thread::yield_now();
    }
    let time = start.elapsed();
    let received = members[to].guest.receive().unwrap();
    assert_eq!(received, frame(from, to, number));
    time
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The first frames to a peer, as many as a guest has buffers, arrive in order; and one alone about
/// as soon as later ones.
#[test]
fn first_frames_to_a_peer_arrive_in_order_and_soon() {
    const PEERS: usize = 16;
    let place = Place::new();
    let mut members = members::start(&place, 1 + PEERS, |command| command);
    let (mut first, mut later) = (Vec::new(), Vec::new());
    for peer in 1..=PEERS {
        // The workers sleep.
        thread::sleep(Duration::from_millis(10));
        if peer % 2 == 0 {
            exchange(&mut members, &[(0, peer)], 8);
            continue;
        }
        first.push(time_of(&mut members, 0, peer, 0));
        for number in 1..10 {
            thread::sleep(Duration::from_millis(2));
            later.push(time_of(&mut members, 0, peer, number));
        }
    }
    assert_eq!(members[0].rings(), (PEERS as u64, PEERS as u64 * SMALL));
    let (first, later) = (median(first), median(later));
    note(&format!(
        "first frame to a peer {first:?}, later ones {later:?} (medians)"
    ));
    assert!(first < Duration::from_secs(1), "{first:?}");
}

/// One guest's frames to another.
#[derive(Debug)]
struct Way {
    sent: u32,
    received: u32,
    /// When the next one is sent.
    due: Instant,
}

/// Six guests, each of which sends to each other about as often as rings are given back: all frames
/// arrive, in order.
#[test]
fn frames_that_come_while_rings_are_given_back_arrive_in_order() {
    const GUESTS: usize = 6;
    const RUN: Duration = Duration::from_secs(12);
    let place = Place::new();
    let mut members = members::start(&place, GUESTS, |command| command.with("--link-idle", "1"));
    // From the time at which a ring is first looked at for being quiet until it is gone for sure.
    let mut state: u32 = 1;
    let mut pause = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Duration::from_millis(u64::from(900 + (state >> 16) % 800))
    };
    let start = Instant::now();
    let mut ways = HashMap::new();
    for from in 0..GUESTS {
        for to in (0..GUESTS).filter(|to| *to != from) {
            let due = start + pause();
            ways.insert(
                (from, to),
                Way {
                    sent: 0,
                    received: 0,
                    due,
                },
            );
        }
    }
    let (mut looked, mut rings) = (start, Vec::new());
    while start.elapsed() < RUN || ways.values().any(|way| way.sent != way.received) {
        for (&(from, to), way) in &mut ways {
            let (guest, now) = (&mut members[from].guest, Instant::now());
            if now >= way.due && start.elapsed() < RUN && guest.can_post() {
                guest.post(&frame(from, to, way.sent));
                way.sent += 1;
                way.due = now + pause();
            }
        }
        for (to, member) in members.iter_mut().enumerate() {
            while let Some(bytes) = member.guest.receive() {
                let from = usize::from(bytes[11]);
                let way = ways.get_mut(&(from, to)).unwrap();
                assert_eq!(bytes, frame(from, to, way.received), "{from} to {to}");
                way.received += 1;
            }
        }
        assert!(start.elapsed() < RUN + TIMEOUT, "frames are lost: {ways:?}");
        if looked.elapsed() > Duration::from_millis(100) {
            rings.push(members[0].rings().0);
            looked = Instant::now();
        }
        thread::sleep(Duration::from_micros(200));
    }
    // Up and down: rings come and go.
    let ups = rings.windows(2).filter(|pair| pair[0] < pair[1]).count();
    let downs = rings.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(ups > 3 && downs > 3, "{rings:?}");
    until("all rings to be given back", || {
        members.iter().all(|member| member.rings() == (0, 0))
    });
}

/// Both guests of a pair send their first frames at the same time.
#[test]
fn rings_that_both_guests_of_a_pair_need_at_once_are_both_made() {
    const GUESTS: usize = 8;
    let place = Place::new();
    let mut members = members::start(&place, GUESTS, |command| command);
    for from in 0..GUESTS {
        for to in 0..from {
            exchange(&mut members, &[(from, to), (to, from)], 5);
        }
    }
    for member in &members {
        let others = GUESTS as u64 - 1;
        assert_eq!(member.rings(), (2 * others, others * SMALL));
    }
}

/// A peer that was asked for a ring is killed before it has answered. Frames for others go on, and
/// it is a peer like any other when it returns.
#[test]
fn peer_killed_before_it_takes_a_ring_costs_others_nothing() {
    let place = Place::new();
    let mut members = members::start(&place, 3, |command| command);
    members[1].port.signal(Signal::STOP);
    members[0].guest.send_frame(&frame(0, 1, 0));
    assert_eq!(members[0].rings(), (1, SMALL));
    exchange(&mut members, &[(0, 2), (2, 0)], 20);
    members[1].port.signal(Signal::KILL);
    members[1].port.wait();
    members[0].port.wait_for(" is down");
    until("its ring to be gone", || members[0].rings() == (2, SMALL));
    exchange(&mut members, &[(0, 2), (2, 0)], 20);
    let port = members::command(&place, 1).start();
    let links = |member: &Member| member.port.log().matches(" is up").count();
    until("new links", || {
        members.iter().step_by(2).all(|it| links(it) == 3)
    });
    members[1] = Member::new(&place, 1, port);
    exchange(&mut members, &[(0, 1), (1, 2), (2, 1), (1, 0)], 20);
}

/// A running port has no descriptor left. It cannot make a ring, nor take one; frames of both
/// directions are counted as lost at their senders; those that need no ring pass; and all do as
/// soon as it has descriptors again.
#[test]
fn descriptor_limit_reached_later_costs_frames_and_not_the_port() {
    let place = Place::new();
    let mut members = members::start(&place, 3, |command| command);
    let limit = members[0].leave_descriptors(0);
    members[0].guest.send_frame(&frame(0, 1, 0));
    members[0].port.wait_for("No ring to p001: ");
    members[2].guest.send_frame(&frame(2, 0, 0));
    members[0].port.wait_for("no ring from");
    for (from, others) in [(0, [1, 2]), (1, [0, 2])] {
        members[from].guest.send_frame(&broadcast(from, 7));
        for to in others {
            let mut received = None;
            until("the broadcast", || {
                received = members[to].guest.receive();
                received.is_some()
            });
            assert_eq!(received, Some(broadcast(from, 7)));
        }
    }
    until("the frame that was declined to be counted", || {
        members[2].counter("tx_no_link") == 1
    });
    members[0].limit_descriptors(limit);
    assert_eq!(members[0].counter("tx_no_link"), 1);
    for (from, to) in [(0, 1), (2, 0)] {
        until_frame_passes(&mut members, from, to);
    }
    for member in &members {
        assert!(!member.port.log().contains(" is down"), "a link ended");
    }
    members.into_iter().for_each(|member| member.port.end());
}

/// Sends frames until one arrives; it is one of them.
fn until_frame_passes(members: &mut [Member], from: usize, to: usize) {
    let mut sent = 0;
    until("a frame to pass", || {
        sent += 1;
        members[from].guest.send_frame(&frame(from, to, sent));
        thread::sleep(Duration::from_millis(100));
        let received = members[to].guest.receive();
        received.is_some_and(|bytes| {
            assert!((1..=sent).contains(&number(&bytes)));
            bytes == frame(from, to, number(&bytes))
        })
    });
}

/// There are descriptors for one ring at a time. A second one is made when the first was given
/// back.
#[test]
fn descriptor_limit_with_room_for_one_ring_serves_the_next_peer_when_it_is_given_back() {
    let place = Place::new();
    let mut members = members::start(&place, 3, |command| command.with("--link-idle", "1"));
    let before = members[0].port.descriptors();
    // A ring takes six while it is made, of which two stay.
    members[0].leave_descriptors(7);
    exchange(&mut members, &[(0, 1)], 1);
    until("the others to be closed", || {
        members[0].port.descriptors() == before + 2
    });
    members[0].guest.send_frame(&frame(0, 2, 0));
    members[0].port.wait_for("No ring to p002: ");
    until_frame_passes(&mut members, 0, 2);
    until("all to be given back", || {
        members[0].port.descriptors() == before
    });
}

/// Milliseconds of CPU time that a process has used.
fn cpu_time(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // utime and stime, in ticks of 10 ms.
    [11, 12]
        .map(|field: usize| fields[field].parse::<u64>().unwrap())
        .iter()
        .sum::<u64>()
        * 10
}

/// Clients wait to be accepted by a port that has no descriptor for them. That keeps it not busy,
/// and each is served later.
#[test]
fn descriptor_limit_with_clients_that_wait_keeps_no_port_busy() {
    let place = Place::new();
    let members = members::start(&place, 1, |command| command);
    let port = &members[0].port;
    let limit = members[0].leave_descriptors(0);
    let mut waiting = UnixStream::connect(members[0].status_socket()).unwrap();
    waiting.set_read_timeout(Some(TIMEOUT)).unwrap();
    let _frontend = UnixStream::connect(&port.socket).unwrap();
    let before = cpu_time(port.pid());
    thread::sleep(Duration::from_secs(1));
    let used = cpu_time(port.pid()) - before;
    // A busy loop takes all that other processes leave, which may be little.
    assert!(used < 50, "{used} ms of CPU time in 1 s");
    members[0].limit_descriptors(limit);
    assert_eq!(members[0].status()["id"], members::name(0));
    let mut text = String::new();
    waiting.read_to_string(&mut text).unwrap();
    assert!(text.contains(&members::name(0)), "{text}");
}

/// What the status of `of` says that it exchanged with `peer`: frames and bytes sent, frames
/// dropped, frames and bytes received.
fn exchanged(of: &Member, peer: usize) -> [u64; 5] {
    let status = of.status();
    let peers = status["peers"].as_array().unwrap();
    let peer = peers
        .iter()
        .find(|found| found["id"] == members::name(peer))
        .unwrap();
    assert!(peer["since"].as_u64().unwrap() > 1_700_000_000);
    let [tx, rx] = ["tx", "rx"].map(|direction| &peer[direction]);
    [
        &tx["frames"],
        &tx["bytes"],
        &tx["drops"],
        &rx["frames"],
        &rx["bytes"],
    ]
    .map(|value| value.as_u64().unwrap())
}

/// Each peer's frames are counted by themselves, also over rings that are given back.
#[test]
fn status_says_what_was_exchanged_with_each_peer() {
    let place = Place::new();
    let mut members = members::start(&place, 3, |command| command.with("--link-idle", "1"));
    let bytes = |from: usize, to: usize, numbers: Range<u32>| -> u64 {
        numbers
            .map(|number| frame(from, to, number).len() as u64)
            .sum()
    };
    exchange(&mut members, &[(0, 1)], 5);
    exchange(&mut members, &[(1, 0), (2, 0)], 3);
    let (to_1, from_1) = (bytes(0, 1, 0..5), bytes(1, 0, 0..3));
    let from_2 = bytes(2, 0, 0..3);
    assert_eq!(exchanged(&members[0], 1), [5, to_1, 0, 3, from_1]);
    assert_eq!(exchanged(&members[0], 2), [0, 0, 0, 3, from_2]);
    assert_eq!(exchanged(&members[1], 0), [3, from_1, 0, 5, to_1]);
    assert_eq!(exchanged(&members[2], 1), [0; 5]);
    until("the rings are given back", || members[0].rings().0 == 0);
    let rings = |of: &Member| -> Vec<u64> {
        let status = of.status();
        let peers = status["peers"].as_array().unwrap().iter();
        peers
            .filter_map(|peer| peer["tx"]["ring"]["capacity"].as_u64())
            .collect()
    };
    assert_eq!(rings(&members[0]), [0; 0]);
    exchange(&mut members, &[(0, 1)], 2);
    assert_eq!(rings(&members[0]), [SMALL]);
    let again = bytes(0, 1, 0..2);
    assert_eq!(exchanged(&members[0], 1), [7, to_1 + again, 0, 3, from_1]);
}
