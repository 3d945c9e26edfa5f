//! Lets a process of root or of this port's own user capture frames: hands it rings into which the
//! device copies their heads, until it hangs up (decision 0099).
//!
//! The socket `<id>.capture` is in the segment's directory, mode 0600. What the client says is one
//! request of a few numbers, and it sends no descriptor that this process would keep. One capture
//! at a time; clients that have not said what they want give way to new ones.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use log::Level;
use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, send, sendmsg,
};
use rustix::process::geteuid;
use virtio_inter_common::{Epoll, ErrorChain, LogLimit, Timeout, log_limited, peer_pid_and_uid};
use virtio_inter_device::{
    CaptureCounts, CaptureOptions, CaptureRing, Counters, Device as _, Direction,
};
use virtio_inter_host::capture::protocol::{Answer, End, MAX_PACKET, Request, VERSION};
use virtio_inter_link::{Doorbell, MIN_CAPACITY, ReceiverPage, Region, Sender};
use virtio_inter_segment::Segment;

use crate::service_socket::ServiceSocket;
use crate::uplink::PortDevice;

/// Maximum number of clients that have not said what they want.
const MAX_CLIENTS: usize = 4;
/// Bytes of all rings together, as far as each gets no less than [`MIN_CAPACITY`].
const ALL_RINGS: u32 = 8 << 20;
/// Bytes of a ring at most.
const MAX_RING: u32 = 4 << 20;

const LISTENER: u64 = 0;
const FIRST_CLIENT: u64 = 1;

/// A client can connect again and again.
static CAPTURES: LogLimit = LogLimit::new(Duration::from_secs(10), 10);

/// The listening socket and its clients.
#[derive(Debug)]
pub struct CaptureSocket {
    poll: Epoll,
    socket: ServiceSocket,
    /// Those that have not said what they want.
    clients: Vec<Client>,
    /// The one for which frames are captured.
    active: Option<Client>,
    next_token: u64,
}

/// A connected process.
#[derive(Debug)]
struct Client {
    token: u64,
    connection: OwnedFd,
    /// Its process, if that can be told.
    pid: Option<u32>,
}

impl Client {
    fn process(&self) -> String {
        self.pid
            .map_or("another process".to_owned(), |pid| format!("process {pid}"))
    }

    /// Sends a document, if the client has not gone.
    fn send(&self, document: &impl serde::Serialize) -> bool {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        serde_json::to_vec(document).is_ok_and(|text| send(&self.connection, &text, flags).is_ok())
    }
}

/// A ring, and what a client gets of it.
type Ring = ((u16, Direction, CaptureRing), [OwnedFd; 2]);

impl CaptureSocket {
    /// Nobody can connect before [`CaptureSocket::listen`].
    ///
    /// # Errors
    ///
    /// When the kernel gives no descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            poll: Epoll::new()?,
            socket: ServiceSocket::new(LISTENER),
            clients: Vec::new(),
            active: None,
            next_token: FIRST_CLIENT,
        })
    }

    /// Whether clients find the socket.
    pub fn is_in_place(&self) -> bool {
        self.socket.is_in_place()
    }

    /// Listens in the segment's directory, if it does not yet. Returns the path, and why clients do
    /// not find it; `None`: they do.
    pub fn restore(&mut self, segment: &Segment) -> (PathBuf, Option<String>) {
        let result = self.listen(segment);
        let path = segment.capture_path();
        (path, result.err().map(|error| error.to_string()))
    }

    /// Listens in the segment's directory, if it does not yet.
    ///
    /// # Errors
    ///
    /// When another process listens there, or the socket cannot be made.
    pub fn listen(&mut self, segment: &Segment) -> io::Result<()> {
        let listen = || segment.listen_capture();
        self.socket.restore(&self.poll, listen)
    }

    /// The process for which frames are captured, which may have no id here. `None`: none are.
    pub fn active(&self) -> Option<Option<u32>> {
        self.active.as_ref().map(|client| client.pid)
    }

    /// Accepts clients, and starts and ends their captures. Non-blocking.
    ///
    /// # Errors
    ///
    /// When the kernel cannot watch descriptors any more.
    pub fn process(&mut self, device: &mut PortDevice) -> io::Result<()> {
        for token in self.poll.wait::<8>(Timeout::Now)? {
            if token == LISTENER {
                self.accept()?;
            } else if self.active.as_ref().is_some_and(|it| it.token == token) {
                // Whatever it says, or that it hung up.
                self.end(device)?;
            } else if let Some(index) = self.clients.iter().position(|it| it.token == token) {
                let client = self.clients.remove(index);
                self.serve(client, device)?;
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        let Some(connection) = self.socket.accept(&self.poll)? else {
            return Ok(());
        };
        let Ok((pid, user)) = peer_pid_and_uid(connection.as_fd()) else {
            return Ok(());
        };
        let token = self.next_token;
        self.next_token += 1;
        let client = Client {
            token,
            connection,
            pid,
        };
        let own = geteuid().as_raw();
        if user != 0 && user != own {
            client.send(&refusal(format!(
                "only root and user {own}, whose port this is, may capture its frames"
            )));
            return Ok(());
        }
        if self.clients.len() == MAX_CLIENTS {
            let oldest = self.clients.remove(0);
            self.poll.remove(&oldest.connection)?;
        }
        self.poll.add(&client.connection, token)?;
        self.clients.push(client);
        Ok(())
    }

    /// Reads what a client wants, and starts that.
    fn serve(&mut self, client: Client, device: &mut PortDevice) -> io::Result<()> {
        let mut packet = [0; MAX_PACKET];
        let received = recv(&client.connection, &mut packet, RecvFlags::DONTWAIT);
        let len = match received {
            Ok((len, _)) if len != 0 => len,
            // Not yet.
            Err(Errno::AGAIN | Errno::INTR) => {
                self.clients.push(client);
                return Ok(());
            }
            _ => return self.poll.remove(&client.connection),
        };
        match self.start(&client, &packet[..len], device) {
            Ok(()) => {
                let process = client.process();
                log_limited!(CAPTURES, Level::Info, "Capture of frames by {process}");
                self.active = Some(client);
                Ok(())
            }
            Err(why) => {
                client.send(&refusal(why));
                self.poll.remove(&client.connection)
            }
        }
    }

    /// Starts a capture for a client. Fails with the reason for that client.
    fn start(&self, client: &Client, packet: &[u8], device: &mut PortDevice) -> Result<(), String> {
        let request: Request = serde_json::from_slice(packet)
            .map_err(|error| format!("it does not understand the request: {error}"))?;
        if request.version != VERSION {
            return Err(format!(
                "it has version {VERSION} of the protocol, and not {}",
                request.version
            ));
        }
        if let Some(active) = &self.active {
            return Err(format!("{} captures its frames", active.process()));
        }
        let pairs = device.queue_count() / 2;
        let directions = [
            (request.transmit, Direction::Transmit),
            (request.receive, Direction::Receive),
        ];
        let wanted = directions.iter().filter(|(wanted, _)| *wanted);
        let wanted: Vec<Direction> = wanted.map(|(_, direction)| *direction).collect();
        let capacity = capacity(u32::from(pairs) * wanted.len() as u32);
        let options = CaptureOptions {
            snaplen: request.snaplen,
            losses_only: request.losses_only,
        };
        let no_memory =
            |error: &dyn std::error::Error| format!("it cannot make a ring: {}", ErrorChain(error));
        let mut rings = Vec::new();
        let mut descriptors = Vec::new();
        for pair in 0..pairs {
            for &direction in &wanted {
                let (ring, fds) =
                    ring(pair, direction, capacity, options).map_err(|error| no_memory(&*error))?;
                rings.push(ring);
                descriptors.push(fds);
            }
        }
        let answer = Answer {
            error: None,
            rings: rings.len(),
            capacity,
            losses: Counters::losses().map(str::to_owned).collect(),
        };
        device
            .start_capture(rings)
            .map_err(|error| no_memory(&error))?;
        let handed_over = client.send(&answer)
            && descriptors
                .iter()
                .all(|fds| hand_over(client.connection.as_fd(), fds).is_ok());
        if !handed_over {
            let _ = device.stop_capture();
            return Err("its rings cannot be handed over".to_owned());
        }
        Ok(())
    }

    /// Ends the capture that there is, and says what was captured.
    ///
    /// # Errors
    ///
    /// When the kernel cannot watch descriptors any more.
    pub fn end(&mut self, device: &mut PortDevice) -> io::Result<()> {
        let Some(client) = self.active.take() else {
            return Ok(());
        };
        let counts = device.stop_capture().unwrap_or_else(|error| {
            log::error!("Cannot end a capture: {}", ErrorChain(&error));
            CaptureCounts::default()
        });
        let error = counts.violation.map(|violation| violation.to_string());
        log_limited!(
            CAPTURES,
            Level::Info,
            "End of the capture by {}: {} frames, {} missed{}",
            client.process(),
            counts.captured,
            counts.missed,
            error
                .as_ref()
                .map_or(String::new(), |why| format!("; {why}"))
        );
        client.send(&End {
            captured: counts.captured,
            missed: counts.missed,
            error,
        });
        self.poll.remove(&client.connection)
    }
}

impl AsFd for CaptureSocket {
    /// Readable when [`CaptureSocket::process`] has pending events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }
}

fn refusal(why: String) -> Answer {
    Answer {
        error: Some(why),
        ..Answer::default()
    }
}

/// The size of each of so many rings.
fn capacity(rings: u32) -> u32 {
    let share = (ALL_RINGS / rings.max(1)).clamp(MIN_CAPACITY, MAX_RING);
    // A power of two, as both bounds are.
    1 << share.ilog2()
}

/// Makes a ring.
fn ring(
    pair: u16,
    direction: Direction,
    capacity: u32,
    options: CaptureOptions,
) -> Result<Ring, Box<dyn std::error::Error>> {
    let region = Region::create(capacity)?;
    let page = ReceiverPage::create_for_receiver()?;
    let descriptors = [
        region.fd().try_clone_to_owned()?,
        page.fd().try_clone_to_owned()?,
    ];
    // Nobody else has the doorbells: the capturing process looks by itself.
    let mut sender = Sender::new(region, Doorbell::new()?, Doorbell::new()?);
    sender.attach(page)?;
    Ok((
        (pair, direction, CaptureRing::new(sender, options)),
        descriptors,
    ))
}

/// Sends the descriptors of a ring, without waiting.
fn hand_over(connection: BorrowedFd<'_>, fds: &[OwnedFd; 2]) -> Result<(), Errno> {
    let fds = [fds[0].as_fd(), fds[1].as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(connection, &[io::IoSlice::new(&[0])], &mut control, flags).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capture_rings_share_8_mib_but_hold_the_longest_frame() {
        let sizes = [1, 2, 3, 4, 32, 128].map(|rings| capacity(rings) >> 10);
        assert_eq!(sizes, [4096, 4096, 2048, 2048, 256, 256]);
    }
}
