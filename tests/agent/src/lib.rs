//! The framed protocol between the harness on the host and the agent in a guest.
//!
//! Both ends talk over one reliable byte stream: a virtio-serial port under QEMU, a serial line
//! under User Mode Linux. A frame is a 16-byte header and a payload; all numbers are little-endian:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 4 | magic, [`MAGIC`] |
//! | 4 | 1 | kind, see [`Kind`] |
//! | 5 | 3 | zero |
//! | 8 | 4 | job: the number by which the host knows a command |
//! | 12 | 4 | length of the payload in bytes, at most [`MAX_PAYLOAD`] |
//!
//! The guest answers each frame of the host by [`Kind::Taken`], and the host keeps at most
//! [`WINDOW`] bytes unanswered: a serial line of User Mode Linux 6.1 that ever throttles its input
//! never takes any again. The host sends nothing before the guest's [`Kind::Ready`]. A guest that
//! reboots may stop within a frame; the reader therefore looks for the next magic after anything
//! that is not a frame.
#![forbid(unsafe_code)]

pub mod pattern;

use std::io::{self, Read, Write};

/// First bytes of each frame.
pub const MAGIC: [u8; 4] = *b"vIa\x01";
/// Longest payload of a frame, in bytes.
pub const MAX_PAYLOAD: usize = 32 * 1024;
/// Most bytes, headers among them, that the host sends ahead of the guest's [`Kind::Taken`]; less
/// than the 4 KiB after which Linux throttles a terminal.
pub const WINDOW: usize = 3 * 1024;
/// Longest payload of a frame from host to guest, in bytes.
pub const MAX_PAYLOAD_TO_GUEST: usize = WINDOW - HEADER_LEN;
/// Name of the virtio-serial port on which QEMU guests are driven.
pub const PORT_NAME: &str = "virtio-inter.agent";
/// Kernel command line option that names the agent's device in `/dev`, where there is no
/// virtio-serial port.
pub const DEVICE_OPTION: &str = "agent=";

/// Length of a frame's header in bytes.
pub const HEADER_LEN: usize = 16;
/// In place of the bytes that a transfer moves one way: until the client's standard input ends.
pub const UNTIL_TOLD: u64 = u64::MAX;

/// Meaning of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Guest to host, once after each boot: commands are welcome. Payload: the kernel's release.
    Ready = 1,
    /// Host to guest: start a command. Payload: its arguments, each ended by a zero byte.
    Spawn = 2,
    /// Host to guest: bytes for a command's standard input; no bytes close it.
    Stdin = 3,
    /// Host to guest: send a signal to all processes of a command. Payload: its number, 4 bytes.
    Signal = 4,
    /// Guest to host: bytes of a command's standard output.
    Stdout = 5,
    /// Guest to host: bytes of a command's standard error.
    Stderr = 6,
    /// Guest to host, last frame of a command that ran. Payload: exit code, 4 bytes (-1 if a signal
    /// ended it), and that signal's number, 4 bytes (0 if none).
    Exit = 7,
    /// Guest to host, only frame of a command that could not be started. Payload: why, as text.
    SpawnFailed = 8,
    /// Guest to host: one more of the host's frames was read. Payload: its length with the header,
    /// 4 bytes.
    Taken = 9,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Ready,
            2 => Self::Spawn,
            3 => Self::Stdin,
            4 => Self::Signal,
            5 => Self::Stdout,
            6 => Self::Stderr,
            7 => Self::Exit,
            8 => Self::SpawnFailed,
            9 => Self::Taken,
            _ => return None,
        })
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its meaning.
    pub kind: Kind,
    /// The command it is about; 0 for [`Kind::Ready`].
    pub job: u32,
    /// Its content.
    pub payload: Vec<u8>,
}

/// Writes one frame in one call to `writer`.
///
/// # Errors
///
/// `InvalidInput` for a payload over [`MAX_PAYLOAD`], else what the stream reports.
pub fn write_frame(
    writer: &mut impl Write,
    kind: Kind,
    job: u32,
    payload: &[u8],
) -> io::Result<()> {
    if payload.len() > MAX_PAYLOAD {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "Payload too long",
        ));
    }
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[kind as u8, 0, 0, 0]);
    bytes.extend_from_slice(&job.to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(payload);
    writer.write_all(&bytes)?;
    writer.flush()
}

/// Takes frames out of a byte stream.
pub struct FrameReader<R> {
    stream: R,
    pending: Vec<u8>,
}

impl<R: Read> FrameReader<R> {
    /// Reads from `stream`.
    pub fn new(stream: R) -> Self {
        Self {
            stream,
            pending: Vec::new(),
        }
    }

    /// The next frame, or nothing at the stream's end. Bytes which belong to no frame are skipped.
    ///
    /// # Errors
    ///
    /// The stream's error.
    pub fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.take_frame() {
                return Ok(Some(frame));
            }
            let mut chunk = [0; 4096];
            let len = match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.pending.extend_from_slice(&chunk[..len]);
        }
    }

    fn take_frame(&mut self) -> Option<Frame> {
        loop {
            let start = self.find_magic();
            self.pending.drain(..start);
            if self.pending.len() < HEADER_LEN {
                return None;
            }
            let word = |at: usize| {
                u32::from_le_bytes([
                    self.pending[at],
                    self.pending[at + 1],
                    self.pending[at + 2],
                    self.pending[at + 3],
                ])
            };
            let (kind, job, len) = (Kind::from_byte(self.pending[4]), word(8), word(12) as usize);
            let Some(kind) = kind.filter(|_| self.pending[5..8] == [0; 3] && len <= MAX_PAYLOAD)
            else {
                // A magic by accident, or a frame cut short by a reboot.
                self.pending.drain(..1);
                continue;
            };
            if self.pending.len() < HEADER_LEN + len {
                // A Ready behind an unfinished frame: the guest rebooted while it wrote that frame.
                match find(&self.pending[HEADER_LEN..], &MAGIC) {
                    Some(next)
                        if self.pending.get(HEADER_LEN + next + 4)
                            == Some(&(Kind::Ready as u8)) =>
                    {
                        self.pending.drain(..HEADER_LEN + next);
                        continue;
                    }
                    _ => return None,
                }
            }
            let payload = self.pending[HEADER_LEN..HEADER_LEN + len].to_vec();
            self.pending.drain(..HEADER_LEN + len);
            return Some(Frame { kind, job, payload });
        }
    }

    /// Start of the next possible frame: a magic, or bytes that may become one with more bytes.
    fn find_magic(&self) -> usize {
        (0..self.pending.len())
            .find(|&at| {
                let rest = &self.pending[at..];
                let len = rest.len().min(MAGIC.len());
                rest[..len] == MAGIC[..len]
            })
            .unwrap_or(self.pending.len())
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(bytes: &[u8]) -> Vec<Frame> {
        let mut reader = FrameReader::new(bytes);
        std::iter::from_fn(|| reader.next_frame().unwrap()).collect()
    }

    fn encoded(kind: Kind, job: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, kind, job, payload).unwrap();
        bytes
    }

    #[test]
    fn frames_come_out_as_they_went_in() {
        let mut bytes = encoded(Kind::Spawn, 7, b"ls\0-l\0");
        bytes.extend(encoded(Kind::Stdin, 7, b""));
        let got = frames(&bytes);
        assert_eq!(got.len(), 2);
        assert_eq!(
            got[0],
            Frame {
                kind: Kind::Spawn,
                job: 7,
                payload: b"ls\0-l\0".to_vec()
            }
        );
        assert_eq!(
            got[1],
            Frame {
                kind: Kind::Stdin,
                job: 7,
                payload: Vec::new()
            }
        );
    }

    #[test]
    fn noise_before_a_frame_is_passed_over() {
        let mut bytes = b"login: vI vIa".to_vec();
        bytes.extend(encoded(Kind::Ready, 0, b"6.1"));
        assert_eq!(frames(&bytes).len(), 1);
    }

    #[test]
    fn frame_cut_by_a_reboot_does_not_hide_the_next_boot() {
        let mut bytes = encoded(Kind::Stdout, 3, &[0; 1000]);
        bytes.truncate(100);
        bytes.extend(encoded(Kind::Ready, 0, b"6.1"));
        let got = frames(&bytes);
        assert_eq!(got.last().map(|frame| frame.kind), Some(Kind::Ready));
    }

    #[test]
    fn payload_over_the_limit_is_refused() {
        let error = write_frame(&mut Vec::new(), Kind::Stdin, 1, &vec![0; MAX_PAYLOAD + 1]);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
