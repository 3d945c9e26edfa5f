//! Datagrams whose content is checked, there and back; and single ones for broadcast and multicast.
//!
//! A checked datagram is its number (8 bytes, little-endian) followed by the [`Pattern`] of seed
//! and number.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use virtio_inter_agent::pattern::Pattern;

use crate::failure::Failure;

const NUMBER_LEN: usize = 8;
/// A datagram that is not back after this time counts as lost. The first waits for address
/// resolution too.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
const LARGEST: usize = 65_535;

/// Sends every datagram back to where it came from, until killed.
pub(crate) fn echo(port: u16) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    println!("{{\"listening\":{port}}}");
    let mut buffer = vec![0; LARGEST];
    loop {
        let (len, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..len], from)?;
    }
}

/// Sends `count` datagrams of `len` bytes to an echo at `peer`, one by one, and checks the answers.
pub(crate) fn check(peer: SocketAddr, count: u64, len: usize, seed: u64) -> Result<(), Failure> {
    if !(NUMBER_LEN..=LARGEST).contains(&len) {
        return Err(format!("Datagrams of {len} bytes are not possible").into());
    }
    let socket = UdpSocket::bind((unspecified(peer), 0))?;
    socket.connect(peer)?;
    let (mut sent, mut got) = (vec![0; len], vec![0; LARGEST]);
    let (mut returned, mut wrong, mut late) = (0_u64, 0_u64, 0_u64);
    for number in 0..count {
        sent[..NUMBER_LEN].copy_from_slice(&number.to_le_bytes());
        Pattern::new(seed ^ number.rotate_left(32)).fill(&mut sent[NUMBER_LEN..]);
        socket.send(&sent)?;
        let start = Instant::now();
        loop {
            let left = ANSWER_LIMIT.saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            match socket.recv(&mut got) {
                Ok(size) if got[..size] == sent[..] => {
                    returned += 1;
                    break;
                }
                Ok(size) if size == len && number_of(&got) < number => late += 1,
                Ok(_) => wrong += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    println!(
        "{{\"sent\":{count},\"returned\":{returned},\"lost\":{},\"late\":{late},\
         \"wrong\":{wrong}}}",
        count - returned
    );
    if wrong > 0 {
        Err(format!("{wrong} datagrams came back changed").into())
    } else {
        Ok(())
    }
}

fn number_of(datagram: &[u8]) -> u64 {
    let mut number = [0; NUMBER_LEN];
    number.copy_from_slice(&datagram[..NUMBER_LEN]);
    u64::from_le_bytes(number)
}

fn unspecified(peer: SocketAddr) -> IpAddr {
    match peer {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Prints source and text of the next `count` datagrams, those for `group` among them.
pub(crate) fn receive(port: u16, count: u64, group: Option<IpAddr>) -> io::Result<()> {
    let local: IpAddr = match group {
        Some(IpAddr::V4(_)) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((local, port))?;
    match group {
        Some(IpAddr::V4(group)) => {
            socket.join_multicast_v4(&group, &std::net::Ipv4Addr::UNSPECIFIED)?;
        }
        Some(IpAddr::V6(group)) => socket.join_multicast_v6(&group, 0)?,
        None => {}
    }
    println!("{{\"listening\":{port}}}");
    let mut buffer = vec![0; LARGEST];
    for _ in 0..count {
        let (len, from) = socket.recv_from(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..len]);
        println!(
            "{{\"from\":\"{}\",\"text\":\"{}\"}}",
            from.ip(),
            text.escape_default()
        );
    }
    Ok(())
}

/// Sends `text` in one datagram; `peer` may be a broadcast address.
pub(crate) fn send(peer: SocketAddr, text: &str) -> io::Result<()> {
    let socket = UdpSocket::bind((unspecified(peer), 0))?;
    socket.set_broadcast(true)?;
    socket.send_to(text.as_bytes(), peer)?;
    Ok(())
}
