//! Links between two ends in one process, and what a peer that breaks the rules does to one.

use std::fs::{File, read_to_string};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use virtio_inter_link::{Doorbell, Receiver, ReceiverPage, Region, Sender};

/// The memory and doorbells of a link, kept to be written to behind the ends' back.
///
/// Nobody can write to the files but by the mapping that their maker has: so this writes to that
/// one, as a process that has made a file and goes wrong.
pub(crate) struct RawLink {
    memory: File,
    /// Where the sender's mapping of the region and the receiver's of its page begin.
    region: u64,
    page: u64,
    pub(crate) data_doorbell: Doorbell,
    pub(crate) space_doorbell: Doorbell,
}

/// Set in the offsets of what is in the receiver's page.
const PAGE: u64 = 1 << 32;
/// Offsets of the shared words in bytes: `docs/region-format.md`.
pub(crate) const PUBLISHED: u64 = 128;
pub(crate) const SPACE_TARGET: u64 = 256;
pub(crate) const CONSUMED: u64 = PAGE + 128;
pub(crate) const DATA_TARGET: u64 = PAGE + 256;
/// Where the data begins, and with it the first record's header.
pub(crate) const DATA: u64 = 4096;

impl RawLink {
    fn address(&self, offset: u64) -> u64 {
        if offset & PAGE != 0 {
            self.page + offset - PAGE
        } else {
            self.region + offset
        }
    }

    /// Writes a word, if the maker of the file still has it mapped.
    pub(crate) fn poke(&self, offset: u64, value: u64) {
        let _ = self
            .memory
            .write_all_at(&value.to_le_bytes(), self.address(offset));
    }

    /// Reads a word.
    pub(crate) fn peek(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        let _ = self.memory.read_exact_at(&mut bytes, self.address(offset));
        u64::from_le_bytes(bytes)
    }
}

/// Where this process has mapped the beginning of a file writable.
fn mapped_at(fd: BorrowedFd<'_>) -> u64 {
    let inode = rustix::fs::fstat(fd).unwrap().st_ino.to_string();
    let maps = read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1] == "rw-s" && fields[2] == "00000000" && fields[4] == inode
    });
    let start = line.unwrap().split('-').next().unwrap();
    u64::from_str_radix(start, 16).unwrap()
}

/// A link of `capacity` data bytes.
pub(crate) fn link(capacity: u32) -> (Sender, Receiver, RawLink) {
    let region = Region::create(capacity).unwrap();
    let page = ReceiverPage::create().unwrap();
    let (data_doorbell, space_doorbell) = (Doorbell::new().unwrap(), Doorbell::new().unwrap());
    let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
    let doorbell = |doorbell: &Doorbell| Doorbell::from_fd(copy(doorbell.as_fd())).unwrap();
    let raw = RawLink {
        memory: File::options()
            .read(true)
            .write(true)
            .open("/proc/self/mem")
            .unwrap(),
        region: mapped_at(region.fd()),
        page: mapped_at(page.fd()),
        data_doorbell: data_doorbell.try_clone().unwrap(),
        space_doorbell: space_doorbell.try_clone().unwrap(),
    };
    let theirs = Region::open(copy(region.fd()), capacity).unwrap();
    let answer = ReceiverPage::open(copy(page.fd())).unwrap();
    let mut sender = Sender::new(region, doorbell(&data_doorbell), doorbell(&space_doorbell));
    sender.attach(answer).unwrap();
    let receiver = Receiver::new(theirs, page, data_doorbell, space_doorbell);
    (sender, receiver, raw)
}
