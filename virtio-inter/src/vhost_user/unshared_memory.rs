//! Detects that a guest's memory is not shared, although its frontend handed it over.
//!
//! QEMU with `-object memory-backend-memfd` but without `share=on` maps the file privately: the
//! guest writes to copies of its pages, and this process sees a file that never changes. No error
//! occurs; the queues just stay empty.
//!
//! There are two checks. The first reads how the frontend's process maps the file. It is certain,
//! but works only for a process of the same user and namespace, and not within the sandbox, whose
//! Landlock forbids it. The second finds memory that is
//! blank from its first byte on while one of its queues is kicked: a guest that kicks a queue has
//! written to its memory before. The number of kicks is no evidence: VMMs kick by themselves, at a
//! queue's start and after a pause, and a driver whose requests are not seen may kick once only
//! (with VIRTIO_F_EVENT_IDX). See decision 0041.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::makedev;

/// The advice in both warnings.
pub(crate) const ADVICE: &str = "Start the VM with shared memory: share=on in QEMU's memory \
 backend object, --memory shared=on with Cloud Hypervisor";

/// Bytes of memory to check: firmware, page tables or a kernel write something there at boot.
const CHECKED_BYTES: u64 = 16 << 20;
/// Bytes read at a time.
const READ_SIZE: usize = 64 << 10;

/// The results of the checks of a memory table.
#[derive(Debug, Default)]
pub(crate) enum Sharing {
    /// Not checked yet.
    #[default]
    Unknown,
    /// This process cannot read how the frontend's process maps it.
    Unreadable,
    /// The frontend's process maps it shared.
    Shared,
    /// The guest writes to private memory: the warning, with advice.
    Private(String),
}

/// Whether process `pid` maps `file` shared at `address`; `None` if this process cannot find out.
pub(crate) fn maps_shared(pid: u32, address: u64, file: &File) -> Option<bool> {
    let file = file.metadata().ok()?;
    let file = (file.dev(), file.ino());
    let maps = BufReader::new(File::open(format!("/proc/{pid}/maps")).ok()?);
    maps.lines()
        .map_while(Result::ok)
        .find_map(|line| is_shared_at(&line, address, file))
}

/// Whether a line of /proc/PID/maps (proc(5)) is a shared mapping of the file at `address`; `None`
/// if it is a line about another address, or about a file with another device or inode. Inode
/// numbers alone are not unique: many file systems use the same ones.
fn is_shared_at(line: &str, address: u64, file: (u64, u64)) -> Option<bool> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let range = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
    let kind = fields.next()?.chars().nth(3)?;
    // The field after the offset is the device number.
    let (major, minor) = fields.nth(1)?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let device = makedev(number(major)?, number(minor)?);
    let inode: u64 = fields.next()?.parse().ok()?;
    (range.contains(&address) && (device, inode) == file).then_some(kind == 's')
}

/// A part of a file, and the ranges that this process itself writes.
pub(crate) struct FilePart<'a> {
    pub(crate) file: &'a File,
    pub(crate) bytes: Range<u64>,
    /// Within the file, like `bytes`.
    pub(crate) written_by_us: Vec<Range<u64>>,
}

/// Whether only this process has ever written to the first mebibytes of these parts.
///
/// Reads the files, not mappings of them: reading a hole through a mapping allocates memory.
pub(crate) fn is_blank<'a>(parts: impl Iterator<Item = FilePart<'a>>) -> io::Result<bool> {
    let mut left = CHECKED_BYTES;
    let mut buffer = vec![0; READ_SIZE];
    for FilePart {
        file,
        bytes,
        written_by_us,
    } in parts
    {
        let end = bytes.end.min(bytes.start.saturating_add(left));
        left -= end - bytes.start;
        let mut at = bytes.start;
        while at < end {
            let piece = buffer.len().min((end - at) as usize);
            let piece = &mut buffer[..piece];
            file.read_exact_at(piece, at)?;
            if piece.iter().all(|byte| *byte == 0) {
                at += piece.len() as u64;
                continue;
            }
            let is_theirs = |position: u64| !written_by_us.iter().any(|r| r.contains(&position));
            let mut written = piece.iter().zip(at..).filter(|(byte, _)| **byte != 0);
            if written.any(|(_, position)| is_theirs(position)) {
                return Ok(false);
            }
            at += piece.len() as u64;
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{FileOffset, MmapRegion};

    use super::*;

    #[test]
    fn lines_of_maps_tell_shared_from_private() {
        let shared = "7f1200000000-7f1240000000 rw-s 00000000 00:01 4711    /memfd:guest (deleted)";
        let private = "7f1200000000-7f1240000000 rw-p 00000000 00:01 4711 /memfd:guest (deleted)";
        let file = (makedev(0, 1), 4711);
        let at = |line, address| is_shared_at(line, address, file);
        assert_eq!(at(shared, 0x7f12_0000_0000), Some(true));
        assert_eq!(at(private, 0x7f12_3fff_ffff), Some(false));
        assert_eq!(at(private, 0x7f12_4000_0000), None);
        assert_eq!(at(private, 0x7f11_ffff_ffff), None);
        assert_eq!(
            is_shared_at(private, 0x7f12_0000_0000, (file.0, 4712)),
            None
        );
        for nonsense in ["", "7f12", "x-y rw-p 0 00:01 4711", "1-f rw 0 00:01 4711"] {
            assert_eq!(at(nonsense, 2), None, "{nonsense}");
        }
    }

    /// A file of another file system may have the same inode number.
    #[test]
    fn lines_of_maps_are_of_a_file_of_their_device_only() {
        let private = "7f1200000000-7f1240000000 rw-p 00000000 fd:1a 4711 /var/lib/guest";
        let at = |device| is_shared_at(private, 0x7f12_0000_0000, (device, 4711));
        assert_eq!(at(makedev(0xfd, 0x1a)), Some(false));
        for device in [makedev(0xfd, 1), makedev(0, 0x1a), 0] {
            assert_eq!(at(device), None);
        }
        // In the formats of the kernel, for a mapping and its file.
        let file = tempfile::tempfile().unwrap();
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        for file in [file, File::from(fd)] {
            file.set_len(1 << 16).unwrap();
            let offset = FileOffset::new(file.try_clone().unwrap(), 0);
            let map: MmapRegion = MmapRegion::from_file(offset, 1 << 16).unwrap();
            let shared = maps_shared(std::process::id(), map.as_ptr() as u64, &file);
            assert_eq!(shared, Some(true));
        }
    }

    #[test]
    fn memory_is_blank_where_only_this_process_wrote() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let is_blank = |bytes: Range<u64>, ours: Vec<Range<u64>>| {
            let part = FilePart {
                file: &file,
                bytes,
                written_by_us: ours,
            };
            is_blank(std::iter::once(part)).unwrap()
        };
        assert!(is_blank(0..1 << 20, Vec::new()));
        file.write_all_at(&[1, 1], 0x2_0001).unwrap();
        assert!(!is_blank(0..1 << 20, Vec::new()));
        assert!(is_blank(0x2_0003..1 << 20, Vec::new()));
        let ours = std::iter::once(0x2_0000..0x2_0003).collect();
        assert!(is_blank(0..1 << 20, ours));
        let half = std::iter::once(0x2_0000..0x2_0002).collect();
        assert!(!is_blank(0..1 << 20, half));
        file.flush().unwrap();
    }
}
