//! A member of a segment that keeps to no rule: it joins, leaves, floods, lies, and writes anywhere
//! in the memory of its rings.

use std::fs::{File, read_to_string};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_inter_common::MacAddr;
use virtio_inter_link::{MIN_CAPACITY, Receiver, Sender};
use virtio_inter_segment::{LocalPort, PeerInfo, PeerKey, Segment, SegmentEvent};
use virtio_inter_test_support::Rng;

/// A membership: what a port has beside its workers.
pub(crate) struct Member {
    pub(crate) segment: Segment,
    pub(crate) peers: Vec<PeerInfo>,
    pub(crate) senders: Vec<(PeerKey, u64, Sender)>,
    pub(crate) receivers: Vec<(PeerKey, Receiver)>,
    capacity: u32,
}

impl Member {
    /// Joins as `id` with this address. It opens a ring of `capacity` to each peer.
    pub(crate) fn join(directory: &Path, id: &str, mac: MacAddr, capacity: u32) -> Option<Self> {
        let port = LocalPort {
            mtu: 65_535,
            ring_capacity: capacity,
            ..LocalPort::new(id.parse().ok()?, mac)
        };
        Some(Self {
            segment: Segment::join(directory, port).ok()?,
            peers: Vec::new(),
            senders: Vec::new(),
            receivers: Vec::new(),
            capacity,
        })
    }

    /// Handles the segment's events, after waiting at most for `wait`.
    pub(crate) fn process(&mut self, wait: Duration) {
        let wait = Timespec::try_from(wait).unwrap();
        let fd = self.segment.fd();
        let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait));
        for event in self.segment.process() {
            match event {
                SegmentEvent::Up(peer) => {
                    let opened = self.segment.open_link(peer.key, 0, self.capacity);
                    if let Ok(opened) = opened {
                        let (number, sender) = (opened.number, opened.sender);
                        self.senders.push((peer.key, number, sender));
                    }
                    self.peers.push(peer);
                }
                SegmentEvent::Link { peer, receiver, .. } => self.receivers.push((peer, receiver)),
                SegmentEvent::Accepted {
                    peer, number, page, ..
                } => {
                    let mut senders = self.senders.iter_mut();
                    let found = senders.find(|(of, ring, _)| *of == peer && *ring == number);
                    if let Some((.., sender)) = found {
                        let _ = sender.attach(page);
                    }
                }
                SegmentEvent::Down(peer, _) => {
                    self.peers.retain(|info| info.key != peer);
                    self.senders.retain(|(of, ..)| *of != peer);
                    self.receivers.retain(|(of, _)| *of != peer);
                }
                _ => {}
            }
        }
    }

    /// Sends a record to the owner of ring `at`, if there is room. False: there is none.
    pub(crate) fn send(&mut self, at: usize, record: &[u8]) -> bool {
        let sender = &mut self.senders[at].2;
        let Ok(Some(slot)) = sender.reserve(record.len()) else {
            return false;
        };
        slot.slice().copy_from(record);
        slot.commit();
        sender.publish().is_ok()
    }

    /// The address of the owner of ring `at`.
    pub(crate) fn address(&self, at: usize) -> Option<MacAddr> {
        let peer = self.senders.get(at)?.0;
        let info = self.peers.iter().find(|info| info.key == peer)?;
        Some(info.mac)
    }

    /// Takes all records that peers have sent, and asks for a signal at the next one.
    pub(crate) fn take_all(&mut self) {
        for (_, receiver) in &mut self.receivers {
            while let Ok(Some(record)) = receiver.peek() {
                record.consume();
            }
            let _ = receiver.release();
            let _ = receiver.arm_data_doorbell();
        }
    }
}

/// What it has done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deeds {
    pub(crate) joins: u64,
    pub(crate) records: u64,
    /// Records under the address of another member.
    pub(crate) forged: u64,
    /// Words that it wrote where it must not.
    pub(crate) words: u64,
}

/// The address under which it sends.
pub(crate) const MAC: MacAddr = MacAddr::new([0x52, 0x54, 0, 0xee, 0, 1]);
/// Records of one stay, at most.
const RECORDS: u64 = 2000;

/// Attacks until `is_over` returns true.
pub(crate) fn run(directory: PathBuf, seed: u64, mut is_over: impl FnMut() -> bool) -> Deeds {
    let mut random = Rng::new(seed);
    let mut deeds = Deeds::default();
    let mut options = File::options();
    options.read(true).write(true);
    let memory = options.open("/proc/self/mem").unwrap();
    while !is_over() {
        let Some(mut member) = Member::join(&directory, "vandal", MAC, MIN_CAPACITY) else {
            continue;
        };
        deeds.joins += 1;
        let reads = random.below(2) == 0;
        // One stay in four ends with a violation, after which the ports make its user wait.
        let pokes = (deeds.joins > 1 && deeds.words == 0) || random.below(4) == 0;
        for _ in 0..random.below(20) + 2 {
            member.process(Duration::from_millis(2));
        }
        for _ in 0..random.below(RECORDS) {
            if is_over() {
                break;
            }
            member.process(Duration::ZERO);
            if reads {
                member.take_all();
            }
            if !member.senders.is_empty() {
                let at = random.below(member.senders.len() as u64) as usize;
                let from = source(&mut random, &member.peers);
                let record = record(&mut random, from, member.address(at));
                let sent = u64::from(member.send(at, &record));
                deeds.records += sent;
                deeds.forged += sent * u64::from(from != MAC);
            }
            if let Some(peer) = member.peers.first()
                && random.below(8) == 0
            {
                let key = peer.key;
                member.segment.send_frame(key, &[0xff; 60]);
            }
        }
        if pokes && is_alone_in_process() {
            deeds.words += scribble(&memory, &mut random);
        }
        member.process(Duration::from_millis(1));
    }
    deeds
}

/// Its own address, or now and then the one of any peer.
fn source(random: &mut Rng, peers: &[PeerInfo]) -> MacAddr {
    let number = random.below(8 * peers.len().max(1) as u64) as usize;
    peers.get(number).map_or(MAC, |peer| peer.mac)
}

/// A record that may be anything: right, of no length that is possible, or with a net header of
/// lies.
fn record(random: &mut Rng, from: MacAddr, to: Option<MacAddr>) -> Vec<u8> {
    let len = match random.below(4) {
        0 => random.below(40),
        1 => random.below(1514) + 26,
        2 => 72,
        _ => random.below(60_000) + 26,
    };
    let mut bytes = vec![0; len as usize];
    if let Some(net) = bytes.get_mut(..12)
        && random.below(2) == 0
    {
        net.iter_mut().for_each(|byte| *byte = random.word() as u8);
        // NEEDS_CSUM, and a kind that exists.
        net[0] = 1;
        net[1] = [1, 4, 5, 0x81][random.below(4) as usize];
        net[5] = 0;
    }
    if let (Some(addresses), Some(to)) = (bytes.get_mut(12..24), to) {
        addresses[..6].copy_from_slice(&to.octets());
        addresses[6..].copy_from_slice(&from.octets());
    }
    bytes
}

/// Nextest runs each test in a process of its own: no other test's rings are overwritten there.
pub(crate) fn is_alone_in_process() -> bool {
    std::env::var_os("NEXTEST").is_some()
}

/// Overwrites words of all memory of links that this process can write to.
fn scribble(memory: &File, random: &mut Rng) -> u64 {
    let maps = read_to_string("/proc/self/maps").unwrap();
    let ours = |line: &&str| line.contains(" rw-s ") && line.contains("/memfd:virtio-inter-re");
    let ranges = maps.lines().filter(ours).filter_map(|line| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(start)?, number(end)?))
    });
    let mut words = 0;
    for (start, end) in ranges {
        for _ in 0..64 {
            // The words of a ring are in its first page.
            let len = if random.below(2) == 0 {
                512
            } else {
                end - start
            };
            let at = start + random.below(len / 8) * 8;
            let value = random.word() >> random.below(64);
            words += u64::from(memory.write_all_at(&value.to_le_bytes(), at).is_ok());
        }
    }
    words
}
