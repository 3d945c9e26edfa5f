//! Links between two ends in one process, and what a peer that breaks the rules does to one.

use std::os::fd::{AsFd, OwnedFd};

use virtio_inter_link::{Doorbell, Receiver, Region, Sender};

/// A region's file and doorbells, kept to be written to behind the ends' back.
pub(crate) struct RawLink {
    region: OwnedFd,
    pub(crate) data_doorbell: Doorbell,
    pub(crate) space_doorbell: Doorbell,
}

/// Offsets of the shared words in bytes: `docs/region-format.md`.
pub(crate) const PUBLISHED: u64 = 128;
pub(crate) const SPACE_TARGET: u64 = 256;
pub(crate) const CONSUMED: u64 = 384;
pub(crate) const DATA_TARGET: u64 = 512;
/// Where the data begins, and with it the first record's header.
pub(crate) const DATA: u64 = 4096;

impl RawLink {
    /// Writes a word into the region.
    pub(crate) fn poke(&self, offset: u64, value: u64) {
        let written = rustix::io::pwrite(&self.region, &value.to_le_bytes(), offset).unwrap();
        assert_eq!(written, 8);
    }

    /// Reads a word of the region.
    pub(crate) fn peek(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        rustix::io::pread(&self.region, &mut bytes, offset).unwrap();
        u64::from_le_bytes(bytes)
    }
}

/// A link of `capacity` data bytes.
pub(crate) fn link(capacity: u32) -> (Sender, Receiver, RawLink) {
    let region = Region::create(capacity).unwrap();
    let (data_doorbell, space_doorbell) = (Doorbell::new().unwrap(), Doorbell::new().unwrap());
    let fd = || region.fd().try_clone_to_owned().unwrap();
    let doorbell = |doorbell: &Doorbell| {
        Doorbell::from_fd(doorbell.as_fd().try_clone_to_owned().unwrap()).unwrap()
    };
    let raw = RawLink {
        region: fd(),
        data_doorbell: data_doorbell.try_clone().unwrap(),
        space_doorbell: space_doorbell.try_clone().unwrap(),
    };
    let sender = Sender::new(
        Region::open(fd(), capacity).unwrap(),
        doorbell(&data_doorbell),
        doorbell(&space_doorbell),
    );
    (
        sender,
        Receiver::new(region, data_doorbell, space_doorbell),
        raw,
    )
}
