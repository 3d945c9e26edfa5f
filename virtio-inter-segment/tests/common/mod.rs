//! A segment of several ports in one process, driven by their descriptors only, with bounded waits.

#![allow(dead_code, reason = "each test file uses its part of this")]
#![allow(unreachable_pub, reason = "shared by several test binaries")]

pub mod raw;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;
use virtio_inter_common::MacAddr;
use virtio_inter_link::{MIN_CAPACITY, Receiver, Sender};
use virtio_inter_segment::{
    JoinError, Limits, LocalPort, PeerInfo, PeerKey, Segment, SegmentEvent,
};

/// Long enough for the slowest machine; reached only by a test that fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two notifications of changes.
const CHECK_PAUSE: Duration = Duration::from_millis(20);

/// Limits for tests: slow retries that a test can wait for, and as many connections and violations
/// as it likes.
pub fn limits() -> Limits {
    Limits {
        slow_retry: Duration::from_millis(300),
        connect_burst: 1 << 30,
        connects_per_second: 1 << 30,
        user_share: 100,
        ..Limits::default()
    }
}

/// A port description with small rings; the MAC address follows from the id.
pub fn local(id: &str) -> LocalPort {
    let sum = id.bytes().fold(0u32, |sum, byte| {
        sum.wrapping_mul(131).wrapping_add(byte.into())
    });
    let [a, b, c, d] = sum.to_be_bytes();
    let mac = MacAddr::new([0x52, 0x54, a, b, c, d]);
    LocalPort {
        ring_capacity: MIN_CAPACITY,
        ..LocalPort::new(id.parse().unwrap(), mac)
    }
}

/// A peer and the rings to and from it.
#[derive(Debug)]
pub struct PeerLink {
    pub peer: PeerInfo,
    /// One for each of the port's own queue pairs: number, and sending end.
    pub senders: Vec<(u64, Sender)>,
    /// One for each of the peer's queue pairs: number, and receiving end.
    pub receivers: Vec<(u64, Receiver)>,
    /// Rings that the peer has accepted.
    pub accepted: usize,
}

impl PeerLink {
    pub fn is_complete(&self) -> bool {
        self.accepted == self.senders.len() && self.receivers.len() == usize::from(self.peer.queues)
    }
}

/// A port and what it has been told.
pub struct Port {
    pub segment: Segment,
    /// Links that are up, by the peer's id.
    pub links: BTreeMap<String, PeerLink>,
    /// All links that went down, with the reason.
    pub downs: Vec<(PeerKey, String)>,
    /// How often the segment said that its files were lost, or are there again.
    pub files_changed: usize,
    /// Queue pairs for each of which a ring is made when a peer is up.
    pub queues: u16,
    /// Records that came without a ring, with the sender.
    pub frames: Vec<(PeerKey, Vec<u8>)>,
    /// The addresses of trunks, as they came.
    pub addresses: Vec<(PeerKey, Vec<MacAddr>)>,
    /// How often a peer's guest came or went.
    pub guest_events: usize,
    /// Rings that are not read any more: number, and whether the peer declined.
    pub done: Vec<(u64, bool)>,
}

impl Port {
    pub fn new(segment: Segment) -> Port {
        Port {
            segment,
            links: BTreeMap::new(),
            downs: Vec::new(),
            files_changed: 0,
            queues: 1,
            frames: Vec::new(),
            addresses: Vec::new(),
            guest_events: 0,
            done: Vec::new(),
        }
    }

    fn link_mut(&mut self, key: PeerKey) -> &mut PeerLink {
        let mut links = self.links.values_mut();
        links.find(|link| link.peer.key == key).unwrap()
    }

    pub fn process(&mut self) {
        for event in self.segment.process() {
            match event {
                SegmentEvent::Up(peer) => {
                    let senders = (0..self.queues).filter_map(|queue| {
                        let opened = self.segment.open_link(peer.key, queue, u32::MAX);
                        opened.ok().map(|opened| (opened.number, opened.sender))
                    });
                    let link = PeerLink {
                        senders: senders.collect(),
                        receivers: Vec::new(),
                        accepted: 0,
                        peer,
                    };
                    let old = self.links.insert(link.peer.id.to_string(), link);
                    assert!(old.is_none(), "two links with one peer: {old:?}");
                }
                SegmentEvent::Link {
                    peer,
                    queue,
                    number,
                    receiver,
                } => {
                    let link = self.link_mut(peer);
                    assert!(usize::from(queue) <= link.receivers.len());
                    link.receivers.push((number, receiver));
                }
                SegmentEvent::Accepted {
                    peer,
                    queue,
                    number,
                    page,
                } => {
                    let link = self.link_mut(peer);
                    link.accepted += 1;
                    let (of_sender, sender) = &mut link.senders[usize::from(queue)];
                    assert_eq!(*of_sender, number);
                    sender.attach(page).unwrap();
                }
                SegmentEvent::LinkDone {
                    number, declined, ..
                } => self.done.push((number, declined)),
                SegmentEvent::Guest { peer, away } => {
                    self.link_mut(peer).peer.away = away;
                    self.guest_events += 1;
                }
                SegmentEvent::Addresses { peer, addresses } => {
                    self.addresses.push((peer, addresses));
                }
                SegmentEvent::Frame { peer, record } => self.frames.push((peer, record.into())),
                SegmentEvent::Down(key, reason) => {
                    let before = self.links.len();
                    self.links.retain(|_, link| link.peer.key != key);
                    assert_eq!(self.links.len() + 1, before, "{key} was not up");
                    self.downs.push((key, reason.to_string()));
                }
                SegmentEvent::FilesChanged => self.files_changed += 1,
            }
        }
    }

    pub fn peers(&self) -> Vec<&str> {
        self.links.keys().map(String::as_str).collect()
    }
}

/// A segment and its ports, by id.
pub struct Net {
    pub directory: TempDir,
    pub ports: BTreeMap<String, Port>,
    /// When the ports were last told to check their files.
    checked: Option<Instant>,
}

impl Net {
    pub fn new() -> Net {
        // As a port's process does; how many descriptors may wait to be closed follows from it.
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit).unwrap();
        Net {
            directory: tempfile::tempdir().unwrap(),
            ports: BTreeMap::new(),
            checked: None,
        }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn join(&mut self, id: &str) {
        self.join_as(local(id)).unwrap();
    }

    pub fn join_as(&mut self, local: LocalPort) -> Result<(), JoinError> {
        self.join_with(local, limits())
    }

    pub fn join_with(&mut self, local: LocalPort, limits: Limits) -> Result<(), JoinError> {
        let (id, queues) = (local.id.to_string(), local.queues);
        let segment = Segment::join_with(self.path(), local, limits)?;
        let mut port = Port::new(segment);
        port.queues = queues;
        assert!(self.ports.insert(id, port).is_none());
        Ok(())
    }

    pub fn leave(&mut self, id: &str) {
        self.ports.remove(id).unwrap();
    }

    /// Runs all ports until the condition holds.
    pub fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Net) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{what}: not within {PATIENCE:?}: {:?}",
                self.peers()
            );
            self.run_once(left.min(Duration::from_millis(50)));
        }
    }

    /// Waits for a descriptor to become readable, and has those ports work whose is. The wait is
    /// bounded, since conditions may look at things that wake nobody here.
    pub fn run_once(&mut self, wait: Duration) {
        // As if the kernel had notified of changes.
        if self.checked.is_none_or(|at| at.elapsed() >= CHECK_PAUSE) {
            for port in self.ports.values_mut() {
                port.segment.check_files();
            }
            self.checked = Some(Instant::now());
        }
        let mut ports: Vec<&mut Port> = self.ports.values_mut().collect();
        let ready: Vec<bool> = {
            let mut fds: Vec<PollFd<'_>> = ports
                .iter()
                .map(|port| PollFd::from_borrowed_fd(port.segment.fd(), PollFlags::IN))
                .collect();
            let wait = Timespec {
                tv_sec: 0,
                tv_nsec: wait.subsec_nanos().into(),
            };
            rustix::event::poll(&mut fds, Some(&wait)).unwrap();
            fds.iter().map(|fd| !fd.revents().is_empty()).collect()
        };
        for (port, _) in ports.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            port.process();
        }
    }

    /// Runs until every port has a link with every other one, and with nobody else.
    pub fn until_meshed(&mut self) {
        self.until("a full mesh", |net| {
            let ids: Vec<&str> = net.ports.keys().map(String::as_str).collect();
            net.ports.iter().all(|(id, port)| {
                port.links.len() + 1 == ids.len()
                    && ids
                        .iter()
                        .all(|other| other == id || port.links.contains_key(*other))
                    && port.links.values().all(PeerLink::is_complete)
            })
        });
    }

    pub fn peers(&self) -> BTreeMap<&str, Vec<&str>> {
        self.ports
            .iter()
            .map(|(id, port)| (id.as_str(), port.peers()))
            .collect()
    }

    /// Sends a record on every ring of every link, and finds it at the right place.
    pub fn check_flow(&mut self) {
        let ids: Vec<String> = self.ports.keys().cloned().collect();
        for from in &ids {
            for to in ids.iter().filter(|to| *to != from) {
                let mut link = self.ports.get_mut(from).unwrap().links.remove(to).unwrap();
                let back = self.ports.get_mut(to).unwrap().links.get_mut(from).unwrap();
                assert_eq!(link.senders.len(), back.receivers.len());
                for (i, (_, sender)) in link.senders.iter_mut().enumerate() {
                    let text = format!("{from} to {to} on {i}");
                    send(sender, text.as_bytes());
                    assert_eq!(receive(&mut back.receivers[i].1), Some(text.into_bytes()));
                    assert_eq!(receive(&mut back.receivers[i].1), None);
                }
                self.ports
                    .get_mut(from)
                    .unwrap()
                    .links
                    .insert(to.clone(), link);
            }
        }
    }

    /// Names in the directory.
    pub fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

pub fn send(sender: &mut Sender, record: &[u8]) {
    let slot = sender.reserve(record.len()).unwrap().unwrap();
    slot.slice().copy_from(record);
    slot.commit();
    sender.publish().unwrap();
}

pub fn receive(receiver: &mut Receiver) -> Option<Vec<u8>> {
    let record = receiver.peek().unwrap()?;
    let mut bytes = vec![0; record.slice().len()];
    record.slice().copy_to(&mut bytes);
    record.consume();
    receiver.release().unwrap();
    Some(bytes)
}

pub fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

pub fn readable(fd: impl AsFd, wait: Duration) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let wait = Timespec {
        tv_sec: wait.as_secs().cast_signed(),
        tv_nsec: wait.subsec_nanos().into(),
    };
    rustix::event::poll(&mut fds, Some(&wait)).unwrap() > 0
}

/// Lines that were logged at info and above since the start of this process.
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Capture;

impl log::Log for Capture {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LINES
            .lock()
            .unwrap()
            .push(format!("{}: {}", record.level(), record.args()));
    }

    fn flush(&self) {}
}

/// Starts to keep what is logged.
pub fn capture_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Capture).unwrap();
        log::set_max_level(log::LevelFilter::Info);
    });
}

/// The captured lines that contain all of these words.
pub fn logged(words: &[&str]) -> Vec<String> {
    let lines = LINES.lock().unwrap();
    lines
        .iter()
        .filter(|line| words.iter().all(|word| line.contains(word)))
        .cloned()
        .collect()
}
