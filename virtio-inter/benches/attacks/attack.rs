//! Attacks of a hostile guest, VMM, peer or user, on a thread of their own.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{sleep, spawn, yield_now};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::time::{ClockId, clock_gettime};
use virtio_inter_link::{MAX_CAPACITY, MIN_CAPACITY};
use virtio_inter_test_support::epoll_watches::watch;

use crate::driver::{Feature, Packet, Spec, mac};
use crate::process::Place;
use crate::station::Station;
use crate::vandal::{self, Member};

/// Numbers of the victims, of a third port, and of a member without a port.
pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;
pub(crate) const OTHER: usize = 2;
const MEMBER: usize = 9;

/// Pause between two buffers of a slow guest: 6 Mbit/s of the largest plain frames.
const SLOW: Duration = Duration::from_millis(2);
/// A doorbell has the square of this number of watches.
const WATCHES: usize = 500;
/// Connections that a flood keeps open.
const OPEN: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attack {
    /// No attack: a thread that uses a CPU, to compare with.
    Spin,
    /// A guest with few receive buffers, to which the victim's guest sends.
    SlowGuest,
    /// A VMM whose interrupts cannot be written without waiting.
    StuckVmm,
    /// A peer that attaches 250,000 watches to the doorbell that the victim rings.
    WatchedDoorbell,
    /// A peer that sends 60 KB to a guest that has 32 KiB of buffers.
    LargeFrames,
    /// A peer that asks for the most segments that are allowed.
    SmallSegments,
    /// A peer that asks for segments of one byte.
    OneByteSegments,
    /// A peer that joins, makes large rings and leaves.
    JoinsAndLeaves,
    /// A user that connects without end.
    ConnectFlood,
    /// A peer that sends as many small frames as it can.
    FrameFlood,
    /// A peer that sends as many messages as it can.
    MessageFlood,
    /// A peer that does much of this at random, and overwrites words of its rings.
    Vandal,
}

/// Flags that the attacking thread and the measuring one share.
#[derive(Default)]
pub(crate) struct Signs {
    pub(crate) ready: AtomicBool,
    pub(crate) stop: AtomicBool,
}

impl Signs {
    fn go_on(&self) -> bool {
        self.ready.store(true, Ordering::Relaxed);
        !self.stop.load(Ordering::Relaxed)
    }
}

impl Attack {
    pub(crate) const ALL: [Attack; 12] = [
        Attack::Spin,
        Attack::SlowGuest,
        Attack::StuckVmm,
        Attack::WatchedDoorbell,
        Attack::LargeFrames,
        Attack::SmallSegments,
        Attack::OneByteSegments,
        Attack::JoinsAndLeaves,
        Attack::ConnectFlood,
        Attack::FrameFlood,
        Attack::MessageFlood,
        Attack::Vandal,
    ];

    /// The address to which the victim's guest sends meanwhile, with an honest one in the place of
    /// the attacker too.
    pub(crate) fn correspondent(self) -> Option<usize> {
        match self {
            Attack::SlowGuest | Attack::StuckVmm => Some(OTHER),
            Attack::WatchedDoorbell => Some(MEMBER),
            _ => None,
        }
    }

    /// The victim that the attacker sends to.
    pub(crate) fn spec_of_b(self) -> Spec {
        match self {
            Attack::LargeFrames => Spec {
                buffers: (16, 2048),
                ..Spec::default()
            },
            // Everything is done in software.
            Attack::SmallSegments | Attack::OneByteSegments => Spec {
                features: Feature::VERSION_1 | Feature::EVENT_IDX | Feature::MRG_RXBUF,
                ..Spec::default()
            },
            _ => Spec::default(),
        }
    }

    /// Time to measure: a peer that breaks a rule is away for some 8 s, and one whose ring is full
    /// holds frames up for 100 ms once, which is to be no hundredth of the time.
    pub(crate) fn time(self) -> Duration {
        Duration::from_secs(match self {
            Attack::Vandal => 9,
            Attack::SlowGuest | Attack::WatchedDoorbell => 20,
            _ => 3,
        })
    }

    /// Attacks, or does the same honestly, until it is to stop. Returns its CPU time in seconds.
    pub(crate) fn run(self, place: &Place, is_hostile: bool, signs: &Signs) -> f64 {
        let segment = place.segment();
        let record = |to, len, gso_size| {
            let packet = Packet::new(mac(MEMBER), mac(to), len, 1);
            match gso_size {
                0 => packet.bytes(),
                size => packet.segmented(1, size).bytes(),
            }
        };
        match self {
            Attack::Spin => while signs.go_on() {},
            Attack::SlowGuest => third_guest(place, is_hostile, signs),
            Attack::StuckVmm => stuck_vmm(place, is_hostile, signs),
            Attack::WatchedDoorbell => watched_doorbell(&segment, is_hostile, signs),
            Attack::LargeFrames => flood(&segment, &record(B, 60_000, 1448), &[B], signs),
            Attack::SmallSegments => flood(&segment, &record(B, 60_000, 8), &[B], signs),
            Attack::OneByteSegments => flood(&segment, &record(B, 60_000, 1), &[B], signs),
            Attack::FrameFlood => flood(&segment, &record(B, 60, 0), &[B], signs),
            Attack::JoinsAndLeaves => join_and_leave(&segment, signs),
            Attack::ConnectFlood => connect(&segment, signs),
            Attack::MessageFlood => messages(&segment, signs),
            Attack::Vandal => {
                vandal::run(segment, 1, || !signs.go_on());
            }
        }
        let used = clock_gettime(ClockId::ThreadCPUTime);
        used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
    }
}

/// A third port, with a guest that has few buffers, or that takes frames at once.
pub(crate) fn third_guest(place: &Place, is_slow: bool, signs: &Signs) {
    let spec = Spec {
        buffers: if is_slow { (2, 2048) } else { (256, 2048) },
        ..Spec::default()
    };
    let mut station = Station::new(place, "s", OTHER, &spec, None);
    let rx = &mut station.guest.rx[0];
    while signs.go_on() {
        if is_slow {
            sleep(SLOW);
            rx.try_receive();
        } else {
            rx.receive_within(Duration::from_millis(20));
        }
    }
}

fn stuck_vmm(place: &Place, is_hostile: bool, signs: &Signs) {
    let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let call = is_hostile.then_some(full);
    let mut station = Station::new(place, "s", OTHER, &Spec::default(), call);
    let rx = &mut station.guest.rx[0];
    while signs.go_on() {
        while rx.try_receive().is_some() {}
        rx.queue.want_interrupt(1);
        sleep(Duration::from_micros(200));
    }
}

fn member(segment: &Path, capacity: u32) -> Option<Member> {
    Member::join(segment, "m", mac(MEMBER), capacity)
}

fn watched_doorbell(segment: &Path, is_hostile: bool, signs: &Signs) {
    while !signs.stop.load(Ordering::Relaxed) {
        let Some(mut member) = member(segment, MIN_CAPACITY) else {
            continue;
        };
        // A ring may get a successor, with other doorbells.
        let (mut watches, mut was_up) = (Vec::new(), false);
        while !signs.stop.load(Ordering::Relaxed) && (member.peers.len() == 2 || !was_up) {
            member.process(Duration::from_micros(50));
            member.take_all();
            was_up |= member.peers.len() == 2;
            for (_, receiver) in member.receivers.iter().skip(watches.len()) {
                let doorbell = match is_hostile {
                    true => receiver.data_doorbell().try_clone_to_owned().unwrap(),
                    // One that nobody rings, as the CPU time is the same.
                    false => eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
                };
                // It takes a second, in which a guest does not stop to take frames.
                let watched = spawn(move || watch(doorbell.as_fd(), WATCHES).unwrap());
                watches.push(watched);
            }
            if !member.receivers.is_empty() {
                signs.ready.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// Sends this record to these victims as often as there is room.
fn flood(segment: &Path, record: &[u8], victims: &[usize], signs: &Signs) {
    let mut member = member(segment, MIN_CAPACITY).unwrap();
    while signs.go_on() {
        member.process(Duration::ZERO);
        member.take_all();
        let mut sent = false;
        for at in 0..member.senders.len() {
            let is_victim = |address| victims.iter().any(|victim| mac(*victim) == address);
            if member.address(at).is_some_and(is_victim) {
                while member.send(at, record) {
                    sent = true;
                }
            }
        }
        if !sent {
            yield_now();
        }
    }
}

fn join_and_leave(segment: &Path, signs: &Signs) {
    while signs.go_on() {
        let Some(mut member) = member(segment, MAX_CAPACITY) else {
            continue;
        };
        for _ in 0..10 {
            member.process(Duration::from_millis(1));
            if member.peers.len() == 2 {
                break;
            }
        }
        for at in 0..member.senders.len() {
            member.send(at, &[0; 100]);
        }
        member.process(Duration::ZERO);
    }
}

fn connect(segment: &Path, signs: &Signs) {
    let mut open = Vec::new();
    while signs.go_on() {
        for id in ["a", "b"] {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let kind = SocketType::SEQPACKET;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
            let address = SocketAddrUnix::new(segment.join(format!("{id}.sock"))).unwrap();
            if rustix::net::connect(&socket, &address).is_ok() {
                open.push(socket);
            }
        }
        if open.len() >= OPEN {
            open.clear();
        }
    }
}

fn messages(segment: &Path, signs: &Signs) {
    let mut member = member(segment, MIN_CAPACITY).unwrap();
    let record = Packet::new(mac(MEMBER), [0xff; 6].into(), 1000, 1).bytes();
    while signs.go_on() {
        member.process(Duration::ZERO);
        let keys: Vec<_> = member.peers.iter().map(|peer| peer.key).collect();
        for key in keys {
            member.segment.send_frame(key, &record);
        }
    }
}
