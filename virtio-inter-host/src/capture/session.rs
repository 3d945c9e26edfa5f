//! The capture of one port: the connection with it, and the rings that it fills.

use std::collections::BTreeSet;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, Shutdown,
    SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, send, shutdown, socket_with,
};
use virtio_inter_common::{MacAddr, PortId};
use virtio_inter_device::{CapturedFrame, NET_HEADER};
use virtio_inter_link::{Doorbell, Receiver, ReceiverPage, Region};

use super::protocol::{Answer, End, MAX_PACKET, Request};
use crate::document::Document;
use crate::place::Place;
use crate::reader::{self, Port};
use crate::show;
use crate::text::safe;

/// Time for each packet of the port: it answers at once, if it is not stopped.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Rings of a port at most: two for each queue pair.
const MAX_RINGS: usize = 128;
/// Records that are read of one ring before the next one's turn.
const TURN: usize = 4096;

/// A captured frame.
#[derive(Debug)]
pub(crate) struct Frame {
    /// Nanoseconds since 1970.
    pub(crate) time: u64,
    /// Position of its port.
    pub(crate) port: u32,
    /// From the guest.
    pub(crate) transmit: bool,
    /// The queue pair.
    pub(crate) queue: u32,
    /// Frames that were missed before it.
    pub(crate) missed: u64,
    /// Why it was lost.
    pub(crate) loss: Option<Arc<str>>,
    /// Its length in bytes.
    pub(crate) len: u32,
    pub(crate) net_header: [u8; NET_HEADER],
    /// Its first bytes.
    pub(crate) bytes: Vec<u8>,
}

/// What a port said of itself.
#[derive(Debug)]
pub(crate) struct About {
    /// SEGMENT/PORT.
    pub(crate) name: String,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) mtu: Option<u16>,
    /// As its guest has negotiated them. None: there is no guest yet.
    pub(crate) features: Option<Vec<String>>,
}

/// The reading end of a ring.
struct Ring {
    receiver: Receiver,
    transmit: bool,
    queue: u32,
    /// Frames missed before the last one that was read.
    missed: u64,
}

/// The capture of one port.
pub(crate) struct Session {
    pub(crate) about: About,
    /// Position among the ports.
    number: u32,
    connection: OwnedFd,
    rings: Vec<Ring>,
    losses: Vec<Arc<str>>,
    /// How the capture ended. None: it has not.
    end: Option<Result<End>>,
    /// The port ended it by itself.
    ended_by_port: bool,
    /// Frames read so far.
    read: u64,
}

impl Session {
    /// Starts the capture of the port of a place, which has no other.
    ///
    /// # Errors
    ///
    /// When there is no such port, or it does not let this process capture.
    pub(crate) fn start(place: &Place, number: u32, request: &Request) -> Result<Self> {
        let asked = reader::read(std::slice::from_ref(place));
        let port = asked.first().context("There is no port")?;
        let about = about(port)?;
        let refused = |why: String| anyhow!("Cannot capture frames of port {}: {why}", about.name);
        let connection = open(place, port).map_err(|error| {
            refused(match error {
                Errno::NOENT => "it is of an older version, or starting".to_owned(),
                Errno::CONNREFUSED => {
                    "nobody listens: the port was killed; start it again".to_owned()
                }
                Errno::ACCESS | Errno::PERM => "only root and the port's own user may".to_owned(),
                error => error.to_string(),
            })
        })?;
        let packet = serde_json::to_vec(request)?;
        // A port that refuses this user says so without reading it.
        let _ = send(&connection, &packet, SendFlags::NOSIGNAL);
        let answer = receive(&connection).map_err(|error| refused(format!("{error:#}")))?;
        let answer: Answer = match answer {
            Some((packet, _)) => serde_json::from_slice(&packet)
                .map_err(|error| refused(format!("its answer is none: {error}")))?,
            None => return Err(refused("it hung up".to_owned())),
        };
        if let Some(error) = &answer.error {
            return Err(refused(safe(error)));
        }
        let directions: Vec<bool> = [(request.transmit, true), (request.receive, false)]
            .into_iter()
            .filter_map(|(wanted, transmit)| wanted.then_some(transmit))
            .collect();
        ensure!(
            answer.rings <= MAX_RINGS,
            refused(format!("it has {} rings", answer.rings))
        );
        let mut rings = Vec::new();
        for number in 0..answer.rings {
            let receiver = ring(&connection, answer.capacity)
                .map_err(|error| refused(format!("{error:#}")))?;
            rings.push(Ring {
                receiver,
                transmit: directions[number % directions.len()],
                queue: (number / directions.len()) as u32,
                missed: 0,
            });
        }
        let losses = answer.losses.iter().map(|loss| Arc::from(safe(loss)));
        let losses = losses.collect();
        Ok(Self {
            about,
            number,
            connection,
            rings,
            losses,
            end: None,
            ended_by_port: false,
            read: 0,
        })
    }

    /// The connection, which is readable when the port ends the capture.
    pub(crate) fn connection(&self) -> Option<BorrowedFd<'_>> {
        self.end.is_none().then(|| self.connection.as_fd())
    }

    /// Whether no frame comes any more, but for those that are in the rings.
    pub(crate) fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// The port ends the capture by itself: the connection is readable.
    pub(crate) fn end_by_port(&mut self) {
        if self.end.is_none() {
            self.ended_by_port = true;
            self.read_end();
        }
    }

    fn read_end(&mut self) {
        let end = match receive(&self.connection) {
            Ok(Some((packet, _))) => serde_json::from_slice(&packet)
                .map_err(|_| anyhow!("Port {} said something that is no end", self.about.name)),
            Ok(None) => Err(anyhow!(
                "Port {} went away; what it captured until then is written",
                self.about.name
            )),
            Err(error) => Err(error.context(format!("Port {} does not answer", self.about.name))),
        };
        self.end = Some(end);
    }

    /// Ends the capture. What was captured before is in the rings.
    pub(crate) fn stop(&mut self) {
        if self.end.is_none() {
            let _ = shutdown(&self.connection, Shutdown::Write);
            self.read_end();
        }
    }

    /// Reads frames, some of those that are there. Returns how many.
    pub(crate) fn read(&mut self, frames: &mut Vec<Frame>) -> usize {
        let before = frames.len();
        for ring in &mut self.rings {
            if let Err(why) = ring.read(self.number, &self.losses, frames) {
                let name = &self.about.name;
                self.end = Some(Err(anyhow!(
                    "Port {name} broke the rules of its ring: {why}"
                )));
                self.rings.clear();
                break;
            }
        }
        let read = frames.len() - before;
        self.read += read as u64;
        read
    }

    /// Frames read, and frames missed.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let missed = self.rings.iter().map(|ring| ring.missed).sum();
        match &self.end {
            Some(Ok(end)) => (self.read, end.missed),
            _ => (self.read, missed),
        }
    }

    /// Why the capture ended, unless this process ended it. To be asked once.
    pub(crate) fn take_failure(&mut self) -> Option<anyhow::Error> {
        let name = &self.about.name;
        match self.end.replace(Ok(End::default()))? {
            Ok(End {
                error: Some(why), ..
            }) => Some(anyhow!("Port {name} ended the capture: {}", safe(&why))),
            Ok(_) if self.ended_by_port => Some(anyhow!(
                "Port {name} ended; what it captured until then is written"
            )),
            Ok(_) => None,
            Err(error) => Some(error),
        }
    }
}

impl Ring {
    fn read(
        &mut self,
        port: u32,
        losses: &[Arc<str>],
        frames: &mut Vec<Frame>,
    ) -> Result<(), String> {
        let mut bytes = Vec::new();
        for _ in 0..TURN {
            let Some(record) = self.receiver.peek().map_err(|why| why.to_string())? else {
                break;
            };
            let slice = record.slice();
            bytes.resize(slice.len(), 0);
            slice.copy_to(&mut bytes[..]);
            record.consume();
            let frame = CapturedFrame::parse(&bytes).ok_or("a record is no captured frame")?;
            frames.push(Frame {
                time: frame.time,
                port,
                transmit: self.transmit,
                queue: self.queue,
                missed: frame.missed.saturating_sub(self.missed),
                loss: frame.loss.map(|loss| {
                    let name = losses.get(usize::from(loss)).cloned();
                    name.unwrap_or_else(|| Arc::from("unknown"))
                }),
                len: frame.len,
                net_header: *frame.net_header,
                bytes: frame.bytes.to_vec(),
            });
            self.missed = frame.missed;
        }
        self.receiver.release().map_err(|why| why.to_string())
    }
}

/// What a port says of itself, if it answers and is one.
fn about(port: &Port) -> Result<About> {
    let name = format!("{}/{}", safe(&port.segment), port.id);
    let Some(document) = port.status() else {
        bail!("Port {name}: {}", show::explain(&port.answer));
    };
    if document.is_shared_uplink() {
        let tap = document.uplink.as_ref().map(|uplink| safe(&uplink.tap));
        bail!(
            "{name} is an uplink, not a port: capture on its tap device, {}",
            tap.unwrap_or_default()
        );
    }
    let Document { mac, mtu, .. } = document;
    let features = document
        .frontend
        .as_ref()
        .and_then(|it| it.features.as_ref());
    Ok(About {
        name,
        mac: mac.as_ref().and_then(|mac| mac.parse().ok()),
        mtu: *mtu,
        features: features.map(|all| all.iter().map(|name| safe(name)).collect()),
    })
}

/// Connects to a port's socket.
fn open(place: &Place, port: &Port) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(&place.segment, flags, Mode::empty())?;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // However long the directory's path is.
    let path = format!(
        "/proc/self/fd/{}/{}.capture",
        directory.as_raw_fd(),
        port.id
    );
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// The next packet of the port, and the descriptors beside it. None: the port hung up.
fn receive(connection: &OwnedFd) -> Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let timeout = Timespec::try_from(TIMEOUT).ok();
    loop {
        let mut fds = [PollFd::new(connection, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => bail!("no answer in time: the port is stopped or overloaded"),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let mut packet = vec![0; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(&mut packet)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        match recvmsg(connection, &mut pieces, &mut control, flags) {
            Ok(message) => {
                let len = message.bytes;
                let fds = control.drain().filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                    _ => None,
                });
                let fds = fds.flatten().collect();
                packet.truncate(len);
                return Ok((len != 0).then_some((packet, fds)));
            }
            // The kernel reports the last one once, ahead of what the port has sent.
            Err(Errno::INTR | Errno::AGAIN | Errno::CONNRESET) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
}

/// The reading end of the next ring that the port hands over.
fn ring(connection: &OwnedFd, capacity: u32) -> Result<Receiver> {
    let (_, fds) = receive(connection)?.context("it hung up")?;
    let [region, page] = <[OwnedFd; 2]>::try_from(fds)
        .map_err(|fds| anyhow!("it sent {} descriptors for a ring", fds.len()))?;
    // Nobody rings: this process looks by itself.
    Ok(Receiver::new(
        Region::open(region, capacity)?,
        ReceiverPage::open_to_write(page)?,
        Doorbell::new()?,
        Doorbell::new()?,
    ))
}

/// The ports of some places, in order, without those that are named twice.
pub(crate) fn single_ports(places: Vec<Place>) -> Result<Vec<Place>, String> {
    let mut ports = Vec::new();
    let mut seen = BTreeSet::new();
    for place in places {
        let Some(id) = place.port.clone() else {
            let name = place.name();
            let example = place.ports.keys().next();
            let example = Path::new(&name).join(example.map_or("PORT", PortId::as_str));
            return Err(format!(
                "{name} is a segment; name a port of it, as in {}",
                example.display()
            ));
        };
        if seen.insert((place.segment.clone(), id)) {
            ports.push(place);
        }
    }
    Ok(ports)
}
