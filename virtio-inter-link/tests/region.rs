//! A region is what `docs/region-format.md` says, and nothing else is accepted for one.
//!
//! Offsets and values are written out here, not taken from the crate: they are the wire format.
#![cfg(not(any(miri, loom)))]
#![allow(clippy::print_stderr, reason = "says what was skipped")]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags};
use virtio_inter_link::{
    DEFAULT_CAPACITY, Doorbell, FORMAT_VERSION, MAX_CAPACITY, MIN_CAPACITY, Receiver, Region,
    RegionError, Sender, max_record,
};

const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

fn page() -> u64 {
    rustix::param::page_size() as u64
}

/// A memfd that passes for a region of [`MIN_CAPACITY`], up to what the arguments say.
fn forge(flags: MemfdFlags, size: u64, header: &[u8], seals: SealFlags) -> OwnedFd {
    let fd = rustix::fs::memfd_create(c"forged", flags | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, size).unwrap();
    let file = File::from(fd);
    if !header.is_empty() {
        file.write_all_at(header, 0).unwrap();
    }
    rustix::fs::fcntl_add_seals(&file, seals).unwrap();
    file.into()
}

/// The description of a region, as the format says.
fn header(version: u16, capacity: u32) -> Vec<u8> {
    let mut header = b"vi-link\0".to_vec();
    header.extend(version.to_le_bytes());
    header.extend(8u16.to_le_bytes());
    header.extend(64u32.to_le_bytes());
    header.extend(capacity.to_le_bytes());
    header.extend((page() as u32).to_le_bytes());
    header
}

fn size() -> u64 {
    page() + u64::from(MIN_CAPACITY)
}

fn refusal(fd: impl Into<OwnedFd>) -> RegionError {
    Region::open(fd.into(), MIN_CAPACITY).expect_err("must not be accepted")
}

#[test]
fn what_is_created_is_what_the_format_says() {
    for capacity in [MIN_CAPACITY, DEFAULT_CAPACITY, MAX_CAPACITY] {
        let region = Region::create(capacity).unwrap();
        assert_eq!(region.capacity(), capacity);
        assert!(
            rustix::fs::fcntl_get_seals(region.fd())
                .unwrap()
                .contains(SEALS)
        );
        let file = File::from(region.fd().try_clone_to_owned().unwrap());
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), page() + u64::from(capacity));
        assert!(rustix::fs::fstat(&file).unwrap().st_blocks as u64 * 512 >= metadata.len());
        let mut found = vec![0; page() as usize];
        file.read_exact_at(&mut found, 0).unwrap();
        let mut expected = header(FORMAT_VERSION, capacity);
        expected.resize(page() as usize, 0);
        assert_eq!(found, expected);
        Region::open(file.into(), capacity).unwrap();
    }
}

#[test]
fn words_and_records_are_where_the_format_says() {
    let region = Region::create(MIN_CAPACITY).unwrap();
    let file = File::from(region.fd().try_clone_to_owned().unwrap());
    let word = |offset| {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, offset).unwrap();
        u64::from_le_bytes(word)
    };
    let open = || Region::open(file.try_clone().unwrap().into(), MIN_CAPACITY).unwrap();
    let doorbell = || Doorbell::new().unwrap();
    let mut sender = Sender::new(open(), doorbell(), doorbell());
    let mut receiver = Receiver::new(region, doorbell(), doorbell());

    assert!(receiver.wait_for_data().unwrap());
    assert_eq!(word(512), 1, "data target");
    let slot = sender.reserve(100).unwrap().unwrap();
    slot.slice().copy_from(&[7u8; 100]);
    slot.commit();
    sender.publish().unwrap();
    assert_eq!(word(128), 128, "published");
    assert_eq!(word(page()), 100, "length and reserved");
    assert_eq!(word(page() + 8), 0x0707_0707_0707_0707, "payload");
    receiver.peek().unwrap().unwrap().consume();
    receiver.release().unwrap();
    assert_eq!(word(384), 128, "consumed");
    while let Some(slot) = sender.reserve(56).unwrap() {
        slot.commit();
    }
    assert!(sender.wait_for_space(56).unwrap());
    assert_eq!(word(256), 128 + u64::from(MIN_CAPACITY) / 2, "space target");
}

#[test]
fn a_record_over_the_end_of_the_data_area_arrives_whole() {
    let region = Region::create(MIN_CAPACITY).unwrap();
    let theirs = Region::open(region.fd().try_clone_to_owned().unwrap(), MIN_CAPACITY).unwrap();
    let doorbell = || Doorbell::new().unwrap();
    let mut sender = Sender::new(theirs, doorbell(), doorbell());
    let mut receiver = Receiver::new(region, doorbell(), doorbell());
    let largest = max_record(MIN_CAPACITY) as usize;
    for round in 0..20usize {
        // A short record in front moves each round's large one to another place.
        for len in [round * 1000, largest - round] {
            let sent: Vec<u8> = (0..len).map(|i| (i * 7 + round) as u8).collect();
            let slot = sender.reserve(len).unwrap().unwrap();
            slot.slice().copy_from(&sent[..]);
            slot.commit();
            sender.publish().unwrap();
            let record = receiver.peek().unwrap().unwrap();
            let mut found = vec![0; record.slice().len()];
            record.slice().copy_to(&mut found[..]);
            record.consume();
            receiver.release().unwrap();
            assert_eq!(found, sent);
        }
    }
}

#[test]
fn a_capacity_outside_of_the_format_is_refused() {
    for capacity in [
        0,
        1,
        MIN_CAPACITY / 2,
        MIN_CAPACITY + 64,
        MAX_CAPACITY * 2,
        u32::MAX,
    ] {
        let error = Region::create(capacity).unwrap_err();
        assert!(matches!(error, RegionError::Capacity(found) if found == capacity));
        let fd = forge(MemfdFlags::CLOEXEC, 4096, &[], SEALS);
        assert!(matches!(
            Region::open(fd, capacity).unwrap_err(),
            RegionError::Capacity(_)
        ));
    }
}

#[test]
fn a_forged_region_that_keeps_to_the_format_is_accepted() {
    let fd = forge(
        MemfdFlags::CLOEXEC,
        size(),
        &header(FORMAT_VERSION, MIN_CAPACITY),
        SEALS,
    );
    Region::open(fd, MIN_CAPACITY).unwrap();
}

#[test]
fn another_version_is_refused_by_the_names_of_both() {
    let fd = forge(MemfdFlags::CLOEXEC, size(), &header(7, MIN_CAPACITY), SEALS);
    let text = refusal(fd).to_string();
    assert_eq!(
        text,
        format!("Region has format version 7, this program speaks {FORMAT_VERSION}")
    );
}

#[test]
fn each_missing_seal_is_refused() {
    for missing in [SealFlags::SHRINK, SealFlags::GROW, SealFlags::SEAL] {
        let seals = SEALS - missing;
        let fd = forge(MemfdFlags::CLOEXEC, size(), &header(1, MIN_CAPACITY), seals);
        assert!(
            matches!(refusal(fd), RegionError::Seals { found, .. } if found & missing.bits() == 0)
        );
    }
}

#[test]
fn another_size_is_refused() {
    for found in [
        0,
        1,
        page(),
        size() - 1,
        size() + 1,
        size() + page(),
        2 * size(),
    ] {
        let fd = forge(MemfdFlags::CLOEXEC, found, &[], SEALS);
        let error = refusal(fd);
        let RegionError::Size { found: f, expected } = error else {
            panic!("{error}");
        };
        assert_eq!((f, expected), (found, size()));
    }
}

#[test]
fn another_description_is_refused() {
    let good = header(FORMAT_VERSION, MIN_CAPACITY);
    // Each field in turn: magic, record header, record alignment, capacity, data offset.
    for (offset, field) in [
        (0, "magic"),
        (10, "record header"),
        (12, "record alignment"),
        (16, "capacity"),
        (20, "data offset"),
    ] {
        let mut bad = good.clone();
        bad[offset] ^= 1;
        let text = refusal(forge(MemfdFlags::CLOEXEC, size(), &bad, SEALS)).to_string();
        assert!(text.contains(field), "{text}");
    }
    assert!(matches!(
        refusal(forge(MemfdFlags::CLOEXEC, size(), &[], SEALS)),
        RegionError::Magic(0)
    ));
}

#[test]
fn a_memfd_that_nobody_can_write_is_refused() {
    let seals = SEALS | SealFlags::WRITE;
    let fd = forge(MemfdFlags::CLOEXEC, size(), &header(1, MIN_CAPACITY), seals);
    assert!(matches!(refusal(fd), RegionError::Map(_)));
}

#[test]
fn what_is_no_memfd_is_refused() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&header(1, MIN_CAPACITY)).unwrap();
    file.set_len(size()).unwrap();
    assert!(matches!(
        refusal(file),
        RegionError::NotMemfd(_) | RegionError::Seals { .. }
    ));

    let (reader, writer) = std::io::pipe().unwrap();
    assert!(matches!(refusal(reader), RegionError::NotMemfd(_)));
    assert!(matches!(refusal(writer), RegionError::NotMemfd(_)));
    let doorbell = Doorbell::new().unwrap();
    let doorbell = doorbell.as_fd().try_clone_to_owned().unwrap();
    assert!(matches!(refusal(doorbell), RegionError::NotMemfd(_)));
    let directory = File::open("/dev/shm").or_else(|_| File::open("/")).unwrap();
    assert!(matches!(
        refusal(directory),
        RegionError::NotMemfd(_) | RegionError::Seals { .. }
    ));
}

#[test]
fn a_file_on_tmpfs_is_refused_for_its_seals() {
    // Where /dev/shm is no tmpfs there is nothing to test.
    if let Ok(file) = tempfile::tempfile_in("/dev/shm") {
        file.set_len(size()).unwrap();
        assert!(matches!(
            refusal(file),
            RegionError::Seals { .. } | RegionError::NotMemfd(_)
        ));
    }
}

#[test]
fn a_memfd_of_huge_pages_is_refused() {
    // Made without a page being taken: it works where none are configured.
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(c"huge", flags) {
        Ok(fd) => assert!(matches!(refusal(fd), RegionError::NotMemfd(0x9584_58f6))),
        Err(e) => eprintln!("skipped: this kernel has no huge pages for memfds ({e})"),
    }
}
