//! A TCP transfer both ways at once whose every byte is checked at its receiver.
//!
//! The client opens with 32 bytes (magic, seed, bytes to the server, bytes to the client; 8 each,
//! little-endian; [`UNTIL_TOLD`] for as many as there are until the client's standard input ends).
//! Both then send their [`Pattern`] in chunks, each behind its length (4 bytes, little-endian; 0
//! is the end), and the server closes its stream with its result: count, checksum, place of the
//! first wrong byte (8 bytes each; all ones if none is wrong). There are no time limits: a transfer
//! outlasts any stall that TCP outlasts, and the host bounds it.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use virtio_inter_agent::UNTIL_TOLD;
use virtio_inter_agent::pattern::{Checksum, Pattern};

use crate::failure::Failure;

const MAGIC: u64 = 0x7669_2d74_6370_0002;
const CHUNK: usize = 128 * 1024;
const LEN_BYTES: usize = 4;
/// The client reports its progress each time it has moved this many bytes in one direction.
const PROGRESS_STEP: u64 = 1024 * 1024;
const NONE_WRONG: u64 = u64::MAX;

/// How much a client moves.
pub(crate) struct Plan {
    /// Bytes to the server, or [`UNTIL_TOLD`].
    pub(crate) send: u64,
    /// Bytes from the server, or [`UNTIL_TOLD`].
    pub(crate) receive: u64,
    /// Fixes the content.
    pub(crate) seed: u64,
}

/// A receiver's result.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Verdict {
    bytes: u64,
    checksum: u64,
    wrong_at: u64,
}

/// Serves transfers until killed.
pub(crate) fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    println!("{{\"listening\":{port}}}");
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            if let Err(error) = answer(&stream) {
                eprintln!("{error}");
            }
        });
    }
    Ok(())
}

fn answer(stream: &TcpStream) -> io::Result<()> {
    let mut opening = [0; 32];
    (&*stream).read_exact(&mut opening)?;
    let [magic, seed, to_server, to_client] = words(&opening);
    if magic != MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "Not a transfer"));
    }
    let stop = AtomicBool::new(false);
    let verdict = thread::scope(|scope| {
        let sender = scope.spawn(|| send(stream, seed + 1, to_client, &stop, false));
        let verdict = receive(stream, seed, to_server, false);
        stop.store(true, Ordering::Relaxed);
        sender
            .join()
            .map_err(|_| io::Error::other("The sender panicked"))??;
        verdict
    })?;
    let mut closing = Vec::with_capacity(24);
    for word in [verdict.bytes, verdict.checksum, verdict.wrong_at] {
        closing.extend_from_slice(&word.to_le_bytes());
    }
    (&*stream).write_all(&closing)
}

/// Moves the bytes of `plan` to and from the server at `peer`, and prints counts and checksums of
/// both ends.
pub(crate) fn transfer(peer: SocketAddr, plan: &Plan) -> Result<(), Failure> {
    let stream = &TcpStream::connect(peer)?;
    let mut opening = Vec::with_capacity(32);
    for word in [MAGIC, plan.seed, plan.send, plan.receive] {
        opening.extend_from_slice(&word.to_le_bytes());
    }
    (&*stream).write_all(&opening)?;
    println!("{{\"connected\":\"{peer}\"}}");
    let stop: &'static AtomicBool = Box::leak(Box::default());
    if [plan.send, plan.receive].contains(&UNTIL_TOLD) {
        // It ends with the process, if nobody tells it before.
        thread::spawn(|| {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            stop.store(true, Ordering::Relaxed);
        });
    }
    let ((sent, checksum_sent), received) = thread::scope(|scope| {
        let sender = scope.spawn(|| send(stream, plan.seed, plan.send, stop, true));
        let received = receive(stream, plan.seed + 1, plan.receive, true);
        if received.is_err() {
            // Nor does the peer get more.
            stream.shutdown(Shutdown::Both)?;
        }
        let received = received?;
        let sent = sender
            .join()
            .map_err(|_| io::Error::other("The sender panicked"))??;
        io::Result::Ok((sent, received))
    })?;
    let mut closing = [0; 24];
    (&*stream).read_exact(&mut closing)?;
    let [bytes, checksum, wrong_at] = words(&closing);
    println!(
        "{{\"sent\":{},\"sent_checksum\":\"{:016x}\",\
         \"peer_received\":{bytes},\"peer_checksum\":\"{checksum:016x}\",\
         \"received\":{},\"received_checksum\":\"{:016x}\"}}",
        sent, checksum_sent, received.bytes, received.checksum
    );
    if wrong_at != NONE_WRONG {
        return Err(format!("The peer got a wrong byte at {wrong_at}").into());
    }
    if received.wrong_at != NONE_WRONG {
        return Err(format!("Got a wrong byte at {}", received.wrong_at).into());
    }
    if (bytes, checksum) != (sent, checksum_sent) {
        return Err("The peer's count or checksum differs".into());
    }
    Ok(())
}

fn words<const BYTES: usize, const WORDS: usize>(bytes: &[u8; BYTES]) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*chunk);
    }
    words
}

/// Tells on standard output how far one direction got.
struct Progress<'a> {
    direction: &'a str,
    next: u64,
}

impl Progress<'_> {
    fn tell(&mut self, bytes: u64) {
        if bytes >= self.next {
            println!("{{\"{}\":{bytes}}}", self.direction);
            self.next = bytes + PROGRESS_STEP;
        }
    }
}

/// Sends `bytes` of the pattern of `seed`, [`UNTIL_TOLD`] until `stop`; returns how many they were
/// and their checksum.
fn send(
    mut stream: &TcpStream,
    seed: u64,
    bytes: u64,
    stop: &AtomicBool,
    tell: bool,
) -> io::Result<(u64, u64)> {
    let mut progress = Progress {
        direction: "sent_so_far",
        next: PROGRESS_STEP,
    };
    let (mut pattern, mut checksum) = (Pattern::new(seed), Checksum::new());
    let mut buffer = vec![0; LEN_BYTES + CHUNK];
    let mut sent = 0;
    while sent < bytes && !(bytes == UNTIL_TOLD && stop.load(Ordering::Relaxed)) {
        let len = (bytes - sent).min(CHUNK as u64) as usize;
        buffer[..LEN_BYTES].copy_from_slice(&(len as u32).to_le_bytes());
        let chunk = &mut buffer[LEN_BYTES..LEN_BYTES + len];
        pattern.fill(chunk);
        checksum.update(chunk);
        stream.write_all(&buffer[..LEN_BYTES + len])?;
        sent += len as u64;
        if tell {
            progress.tell(sent);
        }
    }
    stream.write_all(&0_u32.to_le_bytes())?;
    Ok((sent, checksum.value()))
}

/// Receives up to the peer's end mark, and checks it against the pattern of `seed`. Unless `bytes`
/// is [`UNTIL_TOLD`], it has to be as long as that.
fn receive(mut stream: &TcpStream, seed: u64, bytes: u64, tell: bool) -> io::Result<Verdict> {
    let mut progress = Progress {
        direction: "received_so_far",
        next: PROGRESS_STEP,
    };
    let (mut pattern, mut checksum) = (Pattern::new(seed), Checksum::new());
    let (mut buffer, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut verdict = Verdict {
        bytes: 0,
        checksum: 0,
        wrong_at: NONE_WRONG,
    };
    let mut left = 0;
    loop {
        if left == 0 {
            let mut len = [0; LEN_BYTES];
            stream.read_exact(&mut len)?;
            left = u32::from_le_bytes(len) as usize;
            if left == 0 {
                break;
            }
            if left > CHUNK {
                let text = format!("A chunk of {left} bytes behind {} others", verdict.bytes);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        let len = match stream.read(&mut buffer[..left]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        pattern.fill(&mut expected[..len]);
        checksum.update(&buffer[..len]);
        if verdict.wrong_at == NONE_WRONG && buffer[..len] != expected[..len] {
            let at = buffer
                .iter()
                .zip(&expected)
                .position(|(got, want)| got != want);
            verdict.wrong_at = verdict.bytes + at.unwrap_or(0) as u64;
        }
        verdict.bytes += len as u64;
        left -= len;
        if tell {
            progress.tell(verdict.bytes);
        }
    }
    if ![verdict.bytes, UNTIL_TOLD].contains(&bytes) {
        let text = format!("The peer sent {} bytes of {bytes}", verdict.bytes);
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    verdict.checksum = checksum.value();
    Ok(verdict)
}
