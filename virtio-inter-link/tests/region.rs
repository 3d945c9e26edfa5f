//! A region is what `docs/region-format.md` says, and nothing else is accepted for one.
//!
//! Offsets and values are written out here, not taken from the crate: they are the wire format.
#![cfg(not(any(miri, loom)))]
#![allow(clippy::print_stderr, reason = "says what was skipped")]
#![allow(unsafe_code, reason = "maps and advises where that has to fail")]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use virtio_inter_link::{
    DEFAULT_CAPACITY, Doorbell, FORMAT_VERSION, MAX_CAPACITY, MIN_CAPACITY, Receiver, ReceiverPage,
    Region, RegionError, SMALL_CAPACITY, Sender, Violation, max_record, pair,
};

mod support;
use support::Waiter;

const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::FUTURE_WRITE)
    .union(SealFlags::SEAL);

fn page() -> u64 {
    rustix::param::page_size() as u64
}

/// A memfd that passes for a region of [`MIN_CAPACITY`], up to what the arguments say.
fn forge(flags: MemfdFlags, size: u64, header: &[u8], seals: SealFlags) -> OwnedFd {
    let fd = rustix::fs::memfd_create(c"forged", flags | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, size).unwrap();
    if size != 0 {
        rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, size).unwrap();
    }
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
fn region_is_created_as_the_format_says() {
    for capacity in [SMALL_CAPACITY, DEFAULT_CAPACITY, MAX_CAPACITY] {
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
    let page_file = ReceiverPage::create().unwrap();
    let file = |fd: BorrowedFd<'_>| File::from(fd.try_clone_to_owned().unwrap());
    let (sent, received) = (file(region.fd()), file(page_file.fd()));
    let word = |file: &File, offset| {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, offset).unwrap();
        u64::from_le_bytes(word)
    };
    let doorbell = || Doorbell::new().unwrap();
    let mut sender = Sender::new(region, doorbell(), doorbell());
    let theirs = Region::open(sent.try_clone().unwrap().into(), MIN_CAPACITY).unwrap();
    let answer = ReceiverPage::open(received.try_clone().unwrap().into()).unwrap();
    let mut receiver = Receiver::new(theirs, page_file, doorbell(), doorbell());

    assert_eq!(&word(&received, 0).to_le_bytes(), b"vi-recv\0");
    assert_eq!(word(&received, 8), u64::from(FORMAT_VERSION));
    assert!(receiver.arm_data_doorbell().unwrap());
    assert_eq!(word(&received, 256), 1, "data target");
    let slot = sender.reserve(100).unwrap().unwrap();
    slot.slice().copy_from(&[7u8; 100]);
    slot.commit();
    sender.publish().unwrap();
    assert_eq!(word(&sent, 128), 128, "published");
    assert_eq!(word(&sent, page()), 100, "length and reserved");
    assert_eq!(word(&sent, page() + 8), 0x0707_0707_0707_0707, "payload");
    receiver.peek().unwrap().unwrap().consume();
    receiver.release().unwrap();
    assert_eq!(word(&received, 128), 128, "consumed");
    assert_eq!(sender.consumed(), Ok(0), "not known before the answer");
    sender.attach(answer).unwrap();
    assert_eq!(sender.consumed(), Ok(128));
    while let Some(slot) = sender.reserve(56).unwrap() {
        slot.commit();
    }
    assert!(sender.arm_space_doorbell(56).unwrap());
    assert_eq!(
        word(&sent, 256),
        128 + u64::from(MIN_CAPACITY) / 2,
        "space target"
    );
    sender.close().unwrap();
    assert_eq!(
        word(&sent, 128),
        128 + u64::from(MIN_CAPACITY) + 1,
        "published and closed"
    );
}

#[test]
fn region_is_sent_on_before_the_receiver_answers() {
    let region = Region::create(SMALL_CAPACITY).unwrap();
    let fd = region.fd().try_clone_to_owned().unwrap();
    let (data_doorbell, space_doorbell) = (Doorbell::new().unwrap(), Doorbell::new().unwrap());
    let clone = |doorbell: &Doorbell| doorbell.try_clone().unwrap();
    let mut sender = Sender::new(region, clone(&data_doorbell), clone(&space_doorbell));
    let mut count = 0;
    while let Some(slot) = sender.reserve(1000).unwrap() {
        slot.commit();
        count += 1;
    }
    sender.publish().unwrap();
    assert!(sender.arm_space_doorbell(1000).unwrap());
    let page = ReceiverPage::create().unwrap();
    let answer = page.fd().try_clone_to_owned().unwrap();
    let theirs = Region::open(fd, SMALL_CAPACITY).unwrap();
    let mut receiver = Receiver::new(theirs, page, data_doorbell, space_doorbell);
    while let Some(record) = receiver.peek().unwrap() {
        record.consume();
        count -= 1;
    }
    assert_eq!(count, 0);
    assert!(receiver.arm_data_doorbell().unwrap());
    assert!(sender.reserve(1000).unwrap().is_none());
    sender.attach(ReceiverPage::open(answer).unwrap()).unwrap();
    assert!(sender.reserve(1000).unwrap().is_some());
}

/// A wake-up that the receiver asked for before the sender could read its words is made up for.
#[test]
fn region_wakes_a_receiver_that_slept_before_its_answer_came() {
    let region = Region::create(SMALL_CAPACITY).unwrap();
    let fd = region.fd().try_clone_to_owned().unwrap();
    let (data_doorbell, space_doorbell) = (Doorbell::new().unwrap(), Doorbell::new().unwrap());
    let clone = |doorbell: &Doorbell| doorbell.try_clone().unwrap();
    let mut sender = Sender::new(region, clone(&data_doorbell), clone(&space_doorbell));
    let page = ReceiverPage::create().unwrap();
    let answer = page.fd().try_clone_to_owned().unwrap();
    let theirs = Region::open(fd, SMALL_CAPACITY).unwrap();
    let mut receiver = Receiver::new(theirs, page, data_doorbell, space_doorbell);
    let waiter = Waiter::new(receiver.data_doorbell());
    assert!(receiver.arm_data_doorbell().unwrap());
    sender.reserve(8).unwrap().unwrap().commit();
    sender.publish().unwrap();
    assert!(!waiter.wait(Duration::ZERO));
    sender.attach(ReceiverPage::open(answer).unwrap()).unwrap();
    assert!(waiter.wait(Duration::ZERO));
}

/// The receiver, in another process, may do to such a page what it likes.
#[test]
fn page_that_its_sender_makes_can_lose_its_memory_but_not_its_size() {
    let page_file = ReceiverPage::create_for_receiver().unwrap();
    let fd = page_file.fd().try_clone_to_owned().unwrap();
    let region = Region::create(SMALL_CAPACITY).unwrap();
    let theirs = Region::open(region.fd().try_clone_to_owned().unwrap(), SMALL_CAPACITY).unwrap();
    let doorbell = || Doorbell::new().unwrap();
    let mut sender = Sender::new(region, doorbell(), doorbell());
    sender.attach(page_file).unwrap();
    let written = ReceiverPage::open_to_write(fd.try_clone().unwrap()).unwrap();
    let mut receiver = Receiver::new(theirs, written, doorbell(), doorbell());
    sender.reserve(8).unwrap().unwrap().commit();
    sender.publish().unwrap();
    receiver.peek().unwrap().unwrap().consume();
    receiver.release().unwrap();
    assert_eq!(sender.consumed(), Ok(64));
    for len in [0, page() - 1, page() + 1] {
        assert_eq!(rustix::fs::ftruncate(&fd, len), Err(Errno::PERM));
    }
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&fd, punch, 0, page()).unwrap();
    let consumed = sender.consumed();
    assert!(
        matches!(consumed, Err(Violation::Consumed { value: 0, .. })),
        "{consumed:?}"
    );
    // It is no page of a receiver that the sender takes from elsewhere.
    let error = ReceiverPage::open(fd).unwrap_err();
    assert!(matches!(error, RegionError::Seals { .. }), "{error:?}");
}

/// Every way to change a file that its maker has handed over, by whoever has the descriptor.
#[test]
fn region_cannot_be_changed_by_its_receiver_nor_lose_pages_by_its_sender() {
    let region = Region::create(SMALL_CAPACITY).unwrap();
    let page_file = ReceiverPage::create().unwrap();
    for fd in [region.fd(), page_file.fd()] {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        // A descriptor of its own, as anybody can have who has one.
        let again = File::options().read(true).write(true).open(path);
        let fds: Vec<OwnedFd> = again
            .into_iter()
            .map(OwnedFd::from)
            .chain([fd.try_clone_to_owned().unwrap()])
            .collect();
        for fd in &fds {
            let size = rustix::fs::fstat(fd).unwrap().st_size as u64;
            let denied = Err(Errno::PERM);
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            assert_eq!(rustix::fs::fallocate(fd, punch, 0, 4096), denied);
            let keep = FallocateFlags::KEEP_SIZE;
            assert_eq!(rustix::fs::fallocate(fd, keep, size, 1 << 20), denied);
            for len in [0, size - 1, size + 1] {
                assert_eq!(rustix::fs::ftruncate(fd, len), denied);
            }
            assert_eq!(rustix::io::pwrite(fd, b"x", 0), Err(Errno::PERM));
            assert_eq!(
                rustix::fs::fcntl_add_seals(fd, SealFlags::WRITE),
                denied,
                "another seal"
            );
            let map = |prot, flags| {
                // SAFETY: a new mapping at an address of the kernel's choice; it stays for ever.
                unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, prot, flags, fd, 0) }
            };
            let both = ProtFlags::READ | ProtFlags::WRITE;
            assert_eq!(map(both, MapFlags::SHARED), Err(Errno::PERM));
            let mapped = map(ProtFlags::READ, MapFlags::SHARED).unwrap();
            // SAFETY: the mapping just made, which nobody else knows of.
            let protected = unsafe {
                rustix::mm::mprotect(mapped, 4096, MprotectFlags::READ | MprotectFlags::WRITE)
            };
            assert_eq!(protected, Err(Errno::ACCESS));
            // SAFETY: as above; the call fails.
            let removed =
                unsafe { rustix::mm::madvise(mapped, 4096, rustix::mm::Advice::LinuxRemove) };
            assert_eq!(removed, Err(Errno::ACCESS));
        }
    }
    // The maker's own mapping is writable, and is no way to punch holes either.
    let inode = rustix::fs::fstat(region.fd()).unwrap().st_ino;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let own = maps.lines().find(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1] == "rw-s" && fields[4] == inode.to_string()
    });
    let start = own.unwrap().split('-').next().unwrap();
    let start = usize::from_str_radix(start, 16).unwrap() as *mut std::ffi::c_void;
    // SAFETY: the call fails; if it did not, the pages would read as zeros, and nobody reads them.
    let removed = unsafe { rustix::mm::madvise(start, 4096, rustix::mm::Advice::LinuxRemove) };
    assert_eq!(removed, Err(Errno::PERM));
    let blocks = |fd| rustix::fs::fstat(fd).unwrap().st_blocks as u64 * 512;
    assert!(blocks(region.fd()) >= page() + u64::from(SMALL_CAPACITY));
}

#[test]
fn region_with_holes_is_refused() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    for hole in [0, page(), size() - page()] {
        let fd = rustix::fs::memfd_create(c"sparse", flags).unwrap();
        rustix::fs::ftruncate(&fd, size()).unwrap();
        rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, size()).unwrap();
        let header = header(FORMAT_VERSION, MIN_CAPACITY);
        rustix::io::pwrite(&fd, &header, 0).unwrap();
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&fd, punch, hole, page()).unwrap();
        rustix::fs::fcntl_add_seals(&fd, SEALS).unwrap();
        let error = refusal(fd);
        assert!(
            matches!(error, RegionError::Holes { allocated, .. } if allocated == size() - page()),
            "{error}"
        );
    }
    let fd = rustix::fs::memfd_create(c"sparse", flags).unwrap();
    rustix::fs::ftruncate(&fd, page()).unwrap();
    rustix::fs::fcntl_add_seals(&fd, SEALS).unwrap();
    let error = ReceiverPage::open(fd).unwrap_err();
    assert!(matches!(error, RegionError::Holes { allocated: 0, .. }));
}

#[test]
fn receiver_page_that_is_none_is_refused() {
    let forged = |size: u64, start: &[u8], seals| {
        let flags = MemfdFlags::CLOEXEC;
        ReceiverPage::open(forge(flags, size, start, seals)).map(drop)
    };
    let good = b"vi-recv\0\x02\0";
    forged(page(), good, SEALS).unwrap();
    let error = forged(page(), b"vi-link\0\x02\0", SEALS).unwrap_err();
    assert!(matches!(error, RegionError::Magic(_)), "{error}");
    let error = forged(page(), b"vi-recv\0\x07\0", SEALS).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("Region has format version 7, this program speaks {FORMAT_VERSION}")
    );
    for size in [0, 2 * page()] {
        let error = forged(size, &[], SEALS).unwrap_err();
        assert!(matches!(error, RegionError::Size { .. }), "{error}");
    }
    for missing in [
        SealFlags::SHRINK,
        SealFlags::GROW,
        SealFlags::FUTURE_WRITE,
        SealFlags::SEAL,
    ] {
        let error = forged(page(), good, SEALS - missing).unwrap_err();
        assert!(matches!(error, RegionError::Seals { .. }), "{error}");
    }
}

#[test]
fn record_over_the_end_of_the_data_area_arrives_whole() {
    let (mut sender, mut receiver) = pair(MIN_CAPACITY).unwrap();
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
fn capacity_outside_of_the_format_is_refused() {
    for capacity in [
        0,
        1,
        SMALL_CAPACITY / 2,
        SMALL_CAPACITY + 64,
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
fn forged_region_that_keeps_to_the_format_is_accepted() {
    let fd = forge(
        MemfdFlags::CLOEXEC,
        size(),
        &header(FORMAT_VERSION, MIN_CAPACITY),
        SEALS,
    );
    Region::open(fd, MIN_CAPACITY).unwrap();
}

#[test]
fn region_of_another_version_is_refused_by_the_names_of_both() {
    let fd = forge(MemfdFlags::CLOEXEC, size(), &header(7, MIN_CAPACITY), SEALS);
    let text = refusal(fd).to_string();
    assert_eq!(
        text,
        format!("Region has format version 7, this program speaks {FORMAT_VERSION}")
    );
}

#[test]
fn region_without_one_of_its_seals_is_refused() {
    for missing in [
        SealFlags::SHRINK,
        SealFlags::GROW,
        SealFlags::FUTURE_WRITE,
        SealFlags::SEAL,
    ] {
        let seals = SEALS - missing;
        let fd = forge(
            MemfdFlags::CLOEXEC,
            size(),
            &header(FORMAT_VERSION, MIN_CAPACITY),
            seals,
        );
        assert!(
            matches!(refusal(fd), RegionError::Seals { found, .. } if found & missing.bits() == 0)
        );
    }
}

#[test]
fn region_of_another_size_is_refused() {
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
fn region_of_another_description_is_refused() {
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
fn region_that_is_no_memfd_is_refused() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&header(FORMAT_VERSION, MIN_CAPACITY))
        .unwrap();
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
fn file_on_tmpfs_is_refused_for_its_seals() {
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
fn memfd_of_huge_pages_is_refused() {
    // Made without a page being taken: it works where none are configured.
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(c"huge", flags) {
        Ok(fd) => assert!(matches!(refusal(fd), RegionError::NotMemfd(0x9584_58f6))),
        Err(e) => eprintln!("skipped: this kernel has no huge pages for memfds ({e})"),
    }
}
