//! Ports of one segment, each with a guest of few frames.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use serde_json::Value;

use crate::guest::{Guest, octets};
use crate::process::{Place, Port, PortCommand, TIMEOUT, until};
use crate::status::status;

/// Room of a receive buffer for a frame, in bytes.
const ROOM: u64 = 2048;
/// Offset of a frame's number, behind its Ethernet header.
const NUMBER: usize = 14;

/// A port and its guest.
pub(crate) struct Member {
    pub(crate) port: Port,
    pub(crate) guest: Guest,
    status: PathBuf,
}

/// Name and address of the member with this number.
pub(crate) fn name(number: usize) -> String {
    format!("p{number:03}")
}

pub(crate) fn address(number: usize) -> String {
    format!("52:54:00:00:00:{number:02x}")
}

/// The port of the member with this number, not started yet.
pub(crate) fn command(place: &Place, number: usize) -> PortCommand {
    let name = name(number);
    place
        .command(&name)
        .with("--mac", address(number))
        .with("--status-socket", place.path(&format!("{name}.status")))
        // So that an ordinary user can count its descriptors.
        .env("VIRTIO_INTER_ALLOW_DUMPS", "1")
}

/// So many ports, started at once, that are linked, each with a guest.
pub(crate) fn start(
    place: &Place,
    count: usize,
    change: impl Fn(PortCommand) -> PortCommand,
) -> Vec<Member> {
    allow_descriptors();
    let ports = (0..count).map(|number| change(command(place, number)).spawn());
    let mut ports: Vec<Port> = ports.collect();
    crate::many::wait_for_links(&mut ports, |_| count - 1);
    let members = ports.into_iter().enumerate();
    members
        .map(|(number, port)| Member::new(place, number, port))
        .collect()
}

/// Each guest takes four descriptors of this process.
pub(crate) fn allow_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

impl Member {
    /// With a guest that has just started.
    pub(crate) fn new(place: &Place, number: usize, port: Port) -> Self {
        until("the port serves", || port.log().contains("Serving"));
        Self {
            guest: Guest::new(&port, ROOM),
            port,
            status: place.path(&format!("{}.status", name(number))),
        }
    }

    pub(crate) fn status(&self) -> Value {
        status(&self.status)
    }

    pub(crate) fn status_socket(&self) -> &PathBuf {
        &self.status
    }

    /// A counter of its only queue pair.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.status()["counters"][0][name].as_u64().unwrap()
    }

    /// Rings of both directions, and bytes of those that it has made.
    pub(crate) fn rings(&self) -> (u64, u64) {
        let limits = &self.status()["limits"];
        let used = |of: &str| limits[of]["used"].as_u64().unwrap();
        (used("rings"), used("link_memory"))
    }

    /// Leaves the running port so many descriptors besides those that it has. Returns its limit.
    pub(crate) fn leave_descriptors(&self, count: usize) -> Rlimit {
        let list = fs::read_dir(format!("/proc/{}/fd", self.port.pid())).unwrap();
        let numbers = list.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let taken: BTreeSet<u64> = numbers.map(|number| number.parse().unwrap()).collect();
        // The kernel hands out the smallest number that is free.
        let mut free = (0..).filter(|number| !taken.contains(number));
        self.limit_descriptors(Rlimit {
            current: free.nth(count),
            ..getrlimit(Resource::Nofile)
        })
    }

    /// Sets its limit of descriptors; the former one.
    pub(crate) fn limit_descriptors(&self, limit: Rlimit) -> Rlimit {
        let pid = Pid::from_raw(self.port.pid().try_into().unwrap());
        prlimit(pid, Resource::Nofile, limit).unwrap()
    }
}

/// A frame between members, whose length and content follow from its number.
pub(crate) fn frame(from: usize, to: usize, number: u32) -> Vec<u8> {
    frame_to(&address(to), from, number)
}

/// The same to all.
pub(crate) fn broadcast(from: usize, number: u32) -> Vec<u8> {
    frame_to("ff:ff:ff:ff:ff:ff", from, number)
}

fn frame_to(to: &str, from: usize, number: u32) -> Vec<u8> {
    let mut frame = octets(to);
    frame.extend(octets(&address(from)));
    frame.extend([0x88, 0xb5]); // For experiments (IEEE 802).
    frame.extend(number.to_be_bytes());
    let len = 60 + (number as usize * 97 + from * 31) % 1400;
    let mut state = number ^ ((from as u32) << 16);
    frame.resize_with(len, || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    frame
}

/// Sends so many frames between each of these pairs, the first to the second. All arrive, and those
/// of one pair in order.
pub(crate) fn exchange(members: &mut [Member], pairs: &[(usize, usize)], frames: u32) {
    let pair_numbers: HashMap<_, _> = pairs.iter().copied().zip(0..).collect();
    let mut sent = vec![0; pairs.len()];
    let mut received = vec![0; pairs.len()];
    let mut progress = Instant::now();
    while received.iter().any(|count| *count < frames) {
        let mut moved = false;
        for (&(from, to), sent) in pairs.iter().zip(&mut sent) {
            let guest = &mut members[from].guest;
            while *sent < frames && guest.can_post() {
                guest.post(&frame(from, to, *sent));
                *sent += 1;
                moved = true;
            }
        }
        for (to, member) in members.iter_mut().enumerate() {
            while let Some(bytes) = member.guest.receive() {
                let from = usize::from(bytes[11]);
                let number = pair_numbers[&(from, to)];
                let expected = frame(from, to, received[number]);
                assert_eq!(bytes, expected, "{from} to {to}: {}", received[number]);
                received[number] += 1;
                moved = true;
            }
        }
        if moved {
            progress = Instant::now();
        } else {
            let missing: Vec<_> = pairs.iter().zip(&received).collect();
            assert!(
                progress.elapsed() < TIMEOUT,
                "frames are missing: {missing:?}"
            );
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Number of a frame that was made by [`frame`] or [`broadcast`].
pub(crate) fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[NUMBER..][..4].try_into().unwrap())
}
