//! The MTU of an uplink's tap device, which changes while ports run.

use std::net::UdpSocket;
use std::time::Duration;

use serde_json::Value;

use crate::guest::{Guest, octets};
use crate::process::{Place, Port, address, until};
use crate::status::status;
use crate::uplink::{enter, ip, make_tap, silence, warning, with_status};

/// Bytes of the headers of IPv4 and UDP.
const HEADERS: usize = 20 + 8;
/// The hardware address of the tap device.
const TAP: &str = "52:54:00:00:00:99";

fn now(place: &Place, id: &str) -> Value {
    status(&place.path(&format!("{id}.status")))
}

/// Waits until the status shows the tap's MTU, and the warning of one that is smaller than 1500.
#[track_caller]
fn assert_shown(place: &Place, id: &str, mtu: u16) {
    until(&format!("{id} shows an MTU of {mtu}"), || {
        let now = now(place, id);
        let warns = warning(&now, "uplink-mtu").is_some();
        now["uplink"]["mtu"] == mtu && warns == (mtu < 1500)
    });
    let now = now(place, id);
    assert_eq!(now["uplink"]["state"], "up");
    if let Some(text) = warning(&now, "uplink-mtu") {
        let has = |mtu: u16| text.contains(&mtu.to_string());
        assert!(has(1500) && has(mtu), "{text}");
    }
}

/// A frame with a packet of `mtu` bytes by UDP, from the guest to a port of the host.
fn frame(mtu: u16, port: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(mtu.to_be_bytes());
    // No fragment, 64 hops, UDP, no checksum yet.
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 254]);
    let words = packet.chunks_exact(2);
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet.extend([0, 9]);
    packet.extend(port.to_be_bytes());
    packet.extend((mtu - 20).to_be_bytes());
    packet.extend([0, 0]);
    packet.resize(mtu.into(), b'x');
    let header = octets(TAP).into_iter().chain(octets(&address("a")));
    header.chain([8, 0]).chain(packet).collect()
}

/// Packets of `mtu` bytes pass in both directions.
#[track_caller]
fn assert_carries(guest: &mut Guest, host: &UdpSocket, mtu: u16) {
    let payload = vec![b'x'; usize::from(mtu) - HEADERS];
    guest.send_frame(&frame(mtu, host.local_addr().unwrap().port()));
    let mut received = [0; 2000];
    let len = host.recv(&mut received).expect("The host gets a packet");
    assert_eq!(received[..len], payload);
    while guest.receive().is_some() {}
    host.send_to(&payload, "10.0.0.1:9").unwrap();
    until("the guest gets a frame", || {
        let frame = guest.receive();
        frame.is_some_and(|frame| frame.len() == 14 + usize::from(mtu) && frame.ends_with(b"xxx"))
    });
}

/// Changes the MTU of `up0`, the uplink of the program with this id, and changes it back.
fn change(place: &Place, uplink: &str, port: &Port) {
    let host = UdpSocket::bind("10.0.0.254:0").unwrap();
    host.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut guest = Guest::new(port, 1514);
    for mtu in [1500, 1400, 1280, 1500, 1400] {
        ip(&format!("link set up0 mtu {mtu}"));
        assert_shown(place, uplink, mtu);
        assert_carries(&mut guest, &host, mtu);
    }
    ip("link set up0 mtu 9000");
    assert_shown(place, uplink, 9000);
    assert_carries(&mut guest, &host, 1500);
}

/// Enters a namespace with the tap device `up0`. False: the running test is skipped.
fn enter_with_tap() -> bool {
    if !enter() {
        return false;
    }
    silence();
    make_tap("up0", "");
    ip(&format!("link set up0 address {TAP}"));
    ip("addr add 10.0.0.254/24 dev up0");
    ip(&format!(
        "neigh add 10.0.0.1 lladdr {} dev up0",
        address("a")
    ));
    true
}

#[test]
fn uplink_whose_mtu_changes_is_shown_and_carries_on() {
    if !enter_with_tap() {
        return;
    }
    let place = Place::new();
    let port = with_status(&place, "a", place.command("a").with("--uplink", "tap=up0"));
    change(&place, "a", &port);
    port.end();
}

#[test]
fn uplink_that_is_shared_and_whose_mtu_changes_is_shown_and_carries_on() {
    if !enter_with_tap() {
        return;
    }
    let place = Place::new();
    let port = with_status(&place, "a", place.command("a"));
    let uplink = with_status(&place, "u", place.uplink("u", "up0"));
    until("it is active", || {
        now(&place, "u")["active"] == true && now(&place, "a")["peers"][0]["id"] == "u"
    });
    change(&place, "u", &port);
    port.end();
    uplink.end();
}
