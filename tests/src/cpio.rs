//! Writes an initramfs: a cpio archive in the "newc" format, as Linux's
//! `Documentation/driver-api/early-userspace/buffer-format.rst` defines it.
//!
//! Written here rather than by cpio(1): a device node needs no root this way, and the archive
//! depends on nothing but its content.

use std::io::{self, Write};

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive in the making.
pub struct Archive<W> {
    writer: W,
    written: usize,
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// An empty archive, to be written to `writer`.
    pub fn new(writer: W) -> Self {
        Self {
            writer,
            written: 0,
            inode: 0,
        }
    }

    /// A directory that anybody may enter.
    ///
    /// # Errors
    ///
    /// The writer's error, here and below.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// A file that anybody may read and run.
    ///
    /// # Errors
    ///
    /// A file over 4 GiB, which the format cannot say.
    pub fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.entry(path, REGULAR | 0o755, (0, 0), content)
    }

    /// A symbolic link to `target`.
    ///
    /// # Errors
    ///
    /// The writer's error.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// A character device with major and minor `number`.
    ///
    /// # Errors
    ///
    /// The writer's error.
    pub fn character_device(&mut self, path: &str, number: (u32, u32)) -> io::Result<()> {
        self.entry(path, CHARACTER | 0o600, number, &[])
    }

    /// Writes the end mark and returns the writer.
    ///
    /// # Errors
    ///
    /// The writer's error.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.writer.flush()?;
        Ok(self.writer)
    }

    fn entry(
        &mut self,
        path: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "File over 4 GiB"))?;
        // Inode, mode, uid, gid, links, time, size, device of the file (2), of a node (2), name's
        // size, check.
        let name_size = path.len() as u32 + 1;
        let fields = [
            self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header += &format!("{field:08x}");
        }
        self.put(header.as_bytes())?;
        self.put(path.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.writer.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        self.put(&[0; 3][..self.written.next_multiple_of(4) - self.written])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_start_at_multiples_of_four_and_say_their_sizes() {
        let mut archive = Archive::new(Vec::new());
        archive.file("init", b"12345").unwrap();
        archive.character_device("dev/console", (5, 1)).unwrap();
        let bytes = archive.finish().unwrap();
        // 110 bytes of header and 5 of name fill 116; then the content, padded to 8.
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[116..121], b"12345");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(&bytes[124 + 78..124 + 94], b"0000000500000001");
        assert_eq!(bytes.len() % 4, 0);
    }
}
