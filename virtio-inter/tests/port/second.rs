//! A port and its peer by another implementation: `second/`, in Python, written by
//! docs/segment-protocol.md and docs/region-format.md alone.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;
use virtio_inter_test_support::skip;

use crate::guest::{Guest, octets};
use crate::process::{Place, Port, until};
use crate::status::status;

const PORT_MAC: &str = "52:54:00:00:00:6d";
const PEER_MAC: &str = "52:54:00:00:aa:01";
/// Several times what the smallest ring holds.
const FRAMES: u32 = 150;
const FRAME: usize = 1514;

/// The second implementation, as peer `id` of port m.
struct Peer {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// None where there is no Python: the running test is skipped.
    fn start(place: &Place, id: &str, arguments: &[&str]) -> Option<Self> {
        let child = Command::new("python3")
            .arg("-B")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/port/second"))
            .arg(place.segment())
            .args([id, PEER_MAC, "m", PORT_MAC])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                skip("python3 is not installed");
                return None;
            }
            Err(error) => panic!("python3: {error}"),
        };
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut peer = Self { child, output };
        peer.says("joined");
        Some(peer)
    }

    #[track_caller]
    fn says(&mut self, text: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), text);
    }

    /// What it has experienced, when it has left.
    fn report(mut self) -> Value {
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        assert!(self.child.wait().unwrap().success(), "{text}");
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Ended already, as a rule.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// With a field of HELLO that the second implementation does not know.
fn port(place: &Place) -> Port {
    let command = place.command("m");
    command.with("--allow-mac", "00:00:5e:00:01:*").start()
}

/// A frame that carries its number, as those of the second implementation do.
fn frame(to: &str, from: &str, number: u32, len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = octets(to).into_iter().chain(octets(from)).collect();
    frame.extend([0x88, 0xb5]);
    frame.extend(number.to_le_bytes());
    frame.resize(len, number as u8);
    frame
}

/// The peer's id is smaller and larger than the port's, and it is there before it and after it.
#[test]
fn second_implementation_joins_exchanges_frames_and_leaves() {
    for id in ["a", "z"] {
        for (port_first, role) in [(true, "connector"), (false, "acceptor")] {
            if exchange(id, port_first, role).is_none() {
                return;
            }
        }
    }
}

/// None: the running test is skipped.
fn exchange(id: &str, port_first: bool, role: &str) -> Option<()> {
    let place = Place::new();
    let early = port_first.then(|| port(&place));
    let frames = FRAMES.to_string();
    let arguments = [
        ["--frames", &frames],
        // An unknown field and an unknown message, which may be skipped, and a later head.
        ["--field", "0x1234"],
        ["--message", "0x8077"],
        ["--longer-head", "24"],
    ];
    let mut peer = Peer::start(&place, id, arguments.as_flattened())?;
    let port = early.unwrap_or_else(|| port(&place));
    let mut guest = Guest::new(&port, FRAME as u64);
    peer.says("up");
    // Its workers have the link, too.
    let socket = place.segment().join("m.status");
    until("the port has the peer", || {
        status(&socket)["peers"] != Value::Array(Vec::new())
    });
    // Before there was a guest, the port would have dropped frames.
    peer.child.stdin.take().unwrap().write_all(b"go\n").unwrap();

    guest.send_frame(&frame("ff:ff:ff:ff:ff:ff", PORT_MAC, FRAMES, 60));
    for number in 0..FRAMES - 1 {
        guest.send_frame(&frame(PEER_MAC, PORT_MAC, number, FRAME));
    }
    // The peer's broadcast frame comes outside of its ring: no order between it and others.
    let broadcast = frame("ff:ff:ff:ff:ff:ff", PEER_MAC, FRAMES, 60);
    let (mut number, mut broadcasts) = (0, 0);
    while number < FRAMES || broadcasts == 0 {
        let mut received = None;
        until("a frame", || {
            received = guest.receive();
            received.is_some()
        });
        let received = received.unwrap();
        if received == broadcast {
            broadcasts += 1;
        } else {
            let expected = frame(PORT_MAC, PEER_MAC, number, FRAME);
            assert!(received == expected, "frame {number}");
            number += 1;
        }
    }
    assert_eq!(broadcasts, 1);
    // The last frame comes when the peer sleeps.
    peer.says("sent");
    guest.send_frame(&frame(PEER_MAC, PORT_MAC, FRAMES - 1, FRAME));

    let report = peer.report();
    assert_eq!(report["peers"]["m"], role, "{report}");
    assert_eq!(report["refusals"].as_array().unwrap().len(), 0, "{report}");
    assert_eq!(report["rings_done"], 1, "{report}");
    let of_way = |way: &str| -> Vec<u64> {
        let frames = report["frames"].as_array().unwrap().iter();
        let frames = frames.filter(|frame| frame[0] == way);
        frames.map(|frame| frame[1].as_u64().unwrap()).collect()
    };
    assert_eq!(of_way("message"), [u64::from(FRAMES)]);
    assert_eq!(of_way("ring"), (0..u64::from(FRAMES)).collect::<Vec<_>>());
    port.wait_for(" is down");
    let log = port.log();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    port.end();
    assert_eq!(place.files(), [""; 0]);
    Some(())
}

/// Each is refused with its own reason, by a port that connects and by one that accepts.
#[test]
fn second_implementation_is_refused_for_what_the_documents_forbid() {
    let cases: [(&[&str], u64, &str); 5] = [
        // No common version.
        (&["--version", "3"], 1, "version"),
        // A flag and a field that have to be understood.
        (&["--flags", "16"], 12, ""),
        (&["--field", "0x9234"], 12, ""),
        // A field that runs over the end of HELLO.
        (&["--field", "0x1234", "--cut-field", "1"], 8, ""),
        // An unknown message that may not be skipped.
        (&["--message", "0x77"], 8, ""),
    ];
    let refused = |peer: Peer, arguments: &[&str], reason: u64, word: &str| {
        let report = peer.report();
        let refusal = &report["refusals"][0];
        assert_eq!(refusal["by"], "peer", "{arguments:?}: {report}");
        assert_eq!(refusal["reason"], reason, "{arguments:?}: {report}");
        let text = refusal["text"].as_str().unwrap();
        assert!(text.contains(word), "{arguments:?}: {report}");
    };
    let place = Place::new();
    let acceptor = port(&place);
    for (arguments, reason, word) in cases {
        let Some(peer) = Peer::start(&place, "p", arguments) else {
            return;
        };
        refused(peer, arguments, reason, word);
    }
    acceptor.end();
    for (arguments, reason, word) in cases {
        let place = Place::new();
        let peer = Peer::start(&place, "p", arguments).unwrap();
        let connector = port(&place);
        refused(peer, arguments, reason, word);
        connector.end();
    }
}
