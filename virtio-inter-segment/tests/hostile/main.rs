//! Peers that lie, babble, stay silent or come in crowds: each loses its own connection, nothing
//! else is harmed.

#[path = "../common/mod.rs"]
mod common;

mod descriptors;
mod flood;
mod handshakes;
mod limits;
mod silence;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use common::raw::{self, HELLO, Refusal};
use common::{Net, limits, local};
use virtio_inter_segment::Limits;

const MIB: u32 = 1 << 20;

/// Two healthy ports; what is done to "m" must not disturb them.
fn net() -> Net {
    let mut net = Net::new();
    // Some of the tests' packets are good as far as they go: not 5 s for each of them.
    let limits = Limits {
        hello_timeout: Duration::from_millis(500),
        ..limits()
    };
    net.join_with(local("m"), limits).unwrap();
    net.join("n");
    net.until_meshed();
    net
}

fn check_unharmed(net: &mut Net) {
    net.check_flow();
    net.until("the others to be gone", |net| {
        net.ports["m"].peers() == ["n"]
    });
    assert_eq!(net.ports["n"].downs, []);
}

/// Waits for m's answer to a HELLO.
fn expect_hello(net: &mut Net, socket: &OwnedFd) {
    let mut packet = None;
    net.until("HELLO", |_| match raw::try_receive(socket) {
        Ok(received) => {
            packet = Some(received.expect("closed instead of HELLO"));
            true
        }
        Err(()) => false,
    });
    let packet = packet.unwrap();
    assert_eq!((packet.len(), packet[4]), (53, HELLO as u8));
    assert_eq!(&packet[48..], b"\x01\x80\x01\0m");
}

/// Sends these packets on a new connection and returns with what words it is closed.
fn provoke(net: &mut Net, packets: &[(&[u8], &[BorrowedFd<'_>])]) -> Option<Refusal> {
    let socket = raw::connect(net, "m");
    for (bytes, fds) in packets {
        // m may have closed already.
        let _ = raw::try_send(&socket, bytes, fds);
    }
    raw::until_closed(net, &socket)
}
