//! Asks a port whether it is the one of an interface: every port serves its status in its
//! segment's directory.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::Value;

use crate::attachment::Attachment;
use crate::error::{Error, PORT};

/// Maximum time to connect and without an answer, and twice that for the whole of it.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Time for which a port that is restarted by its supervisor may be away.
const AWAY: Duration = Duration::from_secs(2);

/// Maximum size of a status document.
const MAX_SIZE: usize = 4 << 20;

/// Finds out whether the port of an interface answers.
pub(crate) fn check(attachment: &Attachment) -> Result<(), Error> {
    let deadline = Instant::now() + AWAY;
    loop {
        match ask(attachment) {
            Err(_) if attachment.record.is_unit && Instant::now() < deadline => {
                sleep(Duration::from_millis(100));
            }
            answer => return answer,
        }
    }
}

fn ask(attachment: &Attachment) -> Result<(), Error> {
    let port = &attachment.port;
    let failed = |what: &dyn std::fmt::Display| {
        Error::new(PORT, format!("Port {port} does not answer: {what}"))
    };
    let text = read(attachment).map_err(|error| failed(&error))?;
    let status: Value = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
    let pid = attachment.record.process.map(|process| process.pid());
    let is_it = status["id"] == *port.as_str()
        && status["mac"] == *attachment.record.mac
        && pid.is_none_or(|pid| status["pid"] == pid);
    match is_it {
        true => Ok(()),
        false => {
            let message = format!("Another process has the name of port {port} on the segment");
            Err(Error::new(PORT, message))
        }
    }
}

/// Reads the status document.
fn read(attachment: &Attachment) -> io::Result<Vec<u8>> {
    let directory = File::open(&attachment.record.segment)?;
    // By its descriptor: a socket's address is short.
    let path = format!(
        "/proc/self/fd/{}/{}.status",
        directory.as_raw_fd(),
        attachment.port
    );
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Bounds the time to connect as well: a stopped port accepts nothing.
    set_socket_timeout(&socket, Timeout::Send, Some(TIMEOUT))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(TIMEOUT))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let deadline = Instant::now() + 2 * TIMEOUT;
    let mut stream = UnixStream::from(socket);
    let mut document = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(document);
        }
        document.extend_from_slice(&buffer[..length]);
        if document.len() > MAX_SIZE || Instant::now() >= deadline {
            return Err(io::Error::other("its status does not end"));
        }
    }
}
