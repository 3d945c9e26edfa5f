//! Guest memory that the port cannot see, and memory that only looks like it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags};
use serde_json::Value;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, MmapRegion};

use crate::frontends::{assert_served, connect, tell};
use crate::process::{Place, Port, until};
use crate::status::status;

const SIZE: u64 = 0x10_0000;
/// A frontend address at which nothing is mapped.
const NOWHERE: u64 = 0x1000_0000;
/// How long a frontend's kicks say nothing, in whatever number they come.
const GRACE: Duration = Duration::from_secs(5);

/// A port and a frontend whose receive queue runs.
struct Rig {
    place: Place,
    port: Port,
    socket: UnixStream,
    kick: OwnedFd,
    memory: File,
}

impl Rig {
    /// The kick holds 1 from the start, as QEMU makes it. `map`: where the frontend has the memory.
    fn new(map: impl FnOnce(&File) -> u64) -> Self {
        Self::with_sandbox("on", map)
    }

    /// For a port that can read how its frontend maps the memory: Landlock forbids that.
    fn without_sandbox(map: impl FnOnce(&File) -> u64) -> Self {
        Self::with_sandbox("off", map)
    }

    fn with_sandbox(mode: &str, map: impl FnOnce(&File) -> u64) -> Self {
        let place = Place::new();
        let port = place
            .command("a")
            .with("--status-socket", place.path("a.status"))
            .with("--sandbox", mode)
            .start();
        let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, SIZE).unwrap();
        let memory = File::from(memory);
        let user = map(&memory);
        let socket = connect(&port);
        let kick = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        // VERSION_1 alone, which enables the queues.
        tell(&socket, 2, &[1 << 32], &[]);
        tell(&socket, 5, &[1, 0, SIZE, user, 0], &[memory.as_fd()]);
        tell(&socket, 8, &[256 << 32], &[]);
        let address = [0, user, user + 0x4000, user + 0x6000, u64::MAX];
        tell(&socket, 9, &address, &[]);
        tell(&socket, 12, &[0], &[kick.as_fd()]);
        assert_served(&socket);
        Self {
            place,
            port,
            socket,
            kick,
            memory,
        }
    }

    fn kick(&self) {
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
    }

    /// Kicks and waits, so often.
    fn kick_for(&self, times: u32, pause: Duration) {
        for _ in 0..times {
            self.kick();
            sleep(pause);
        }
    }

    fn warnings(&self) -> Vec<Value> {
        let socket: PathBuf = self.place.path("a.status");
        status(&socket)["warnings"].as_array().unwrap().clone()
    }

    #[track_caller]
    fn assert_accused(&self) {
        let [warning] = &self.warnings()[..] else {
            panic!("one warning is wanted: {:?}", self.warnings());
        };
        assert_eq!(warning["code"], "memory-not-shared");
        let text = warning["text"].as_str().unwrap();
        for way_out in ["share=on", "shared=on"] {
            assert!(text.contains(way_out), "{text}");
        }
        let lines = self.port.log();
        let lines = lines.lines().filter(|line| line.contains("share=on"));
        assert_eq!(lines.count(), 1, "{}", self.port.log());
    }

    #[track_caller]
    fn assert_not_accused(&self) {
        assert!(!self.port.log().contains("share"), "{}", self.port.log());
        assert_eq!(self.warnings(), [Value::Null; 0]);
    }
}

/// Maps the memory as a frontend does.
fn map(memory: &File, kind: MapFlags) -> MmapRegion<()> {
    let memory = FileOffset::new(memory.try_clone().unwrap(), 0);
    MmapRegionBuilder::new(SIZE as usize)
        .with_file_offset(memory)
        .with_mmap_prot((ProtFlags::READ | ProtFlags::WRITE).bits().cast_signed())
        .with_mmap_flags(kind.bits().cast_signed())
        .build()
        .unwrap()
}

#[test]
fn memory_that_is_shared_is_not_accused_for_its_frontends_kicks() {
    let mut mapping = None;
    let rig = Rig::without_sandbox(|memory| {
        let shared = mapping.insert(map(memory, MapFlags::SHARED));
        shared.as_ptr() as u64
    });
    // The driver is not there yet: newer QEMU kicks again.
    rig.kick_for(3, Duration::from_millis(100));
    rig.assert_not_accused();
    // Nor later, where it can be seen that the memory is shared: Cloud Hypervisor kicks after a
    // pause.
    sleep(GRACE);
    rig.kick_for(3, Duration::from_millis(100));
    rig.assert_not_accused();
    rig.port.end();
}

/// A frontend of another user or another process namespace cannot be looked into.
#[test]
fn memory_of_which_nothing_is_known_is_not_accused_for_kicks_at_the_start() {
    let rig = Rig::new(|_| NOWHERE);
    rig.kick_for(30, Duration::from_millis(100));
    rig.assert_not_accused();
    rig.port.end();
}

#[test]
fn memory_that_holds_anything_is_not_accused() {
    let rig = Rig::new(|_| NOWHERE);
    // A guest has booted, but the driver of this ring does not use it.
    rustix::io::pwrite(&rig.memory, b"kernel", SIZE - 8).unwrap();
    sleep(GRACE);
    rig.kick_for(3, Duration::from_millis(100));
    rig.assert_not_accused();
    rig.port.end();
}

#[test]
fn memory_that_stays_blank_under_a_guests_kicks_is_told() {
    let rig = Rig::new(|_| NOWHERE);
    let start = Instant::now();
    until("the warning", || {
        rig.kick_for(1, Duration::from_millis(200));
        rig.port.log().contains("share=on")
    });
    assert!(start.elapsed() > GRACE - Duration::from_secs(1));
    rig.kick_for(3, Duration::from_millis(100));
    rig.assert_accused();
    rig.port.end();
}

/// Like a driver with VIRTIO_F_EVENT_IDX whose requests are not seen.
#[test]
fn memory_that_stays_blank_is_told_after_a_single_early_kick() {
    let rig = Rig::new(|_| NOWHERE);
    rig.kick();
    rig.port.wait_for("share=on");
    rig.assert_accused();
    rig.port.end();
}

#[test]
fn memory_that_is_mapped_privately_is_told_at_once() {
    let mut mapping = None;
    let rig = Rig::without_sandbox(|memory| {
        let private = mapping.insert(map(memory, MapFlags::PRIVATE));
        private.as_ptr() as u64
    });
    rig.port.wait_for("share=on");
    rig.kick_for(3, Duration::from_millis(100));
    rig.assert_accused();
    // The next frontend is not accused for this one.
    let Rig {
        place,
        port,
        socket,
        ..
    } = rig;
    drop(socket);
    port.wait_for("Frontend disconnected");
    let now = status(&place.path("a.status"));
    assert_eq!(now["warnings"], Value::Array(Vec::new()));
    port.end();
}
