//! Peers that lie, babble, stay silent or come in crowds: each loses its own connection, nothing else
//! is harmed.

mod common;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use common::raw::{self, HELLO, REFUSE, RING, Refusal};
use common::{Net, PATIENCE, capture_log, limits, local, logged, readable};
use rustix::event::EventfdFlags;
use rustix::pipe::PipeFlags;
use virtio_inter_link::{Doorbell, Region};
use virtio_inter_segment::{Limits, Segment};

const MIB: u32 = 1 << 20;

/// Two healthy ports; what is done to "m" must not disturb them.
fn net() -> Net {
    let mut net = Net::new();
    // Some of the tests' packets are good as far as they go: not 5 s for each of them.
    let limits = Limits {
        handshake_timeout: Duration::from_millis(500),
        ..limits()
    };
    net.join_with(local("m"), limits).unwrap();
    net.join("n");
    net.until_meshed();
    net
}

fn check_unharmed(net: &mut Net) {
    net.check_flow();
    assert!(
        net.ports
            .values()
            .all(|port| port.downs.is_empty() && port.links.len() == 1)
    );
}

/// What m sends first, so that a connection can be known to have been taken.
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
    assert_eq!((packet.len(), packet[4]), (128, HELLO as u8));
    assert_eq!(&packet[44..46], b"m\0");
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

#[test]
fn packets_that_are_no_hello() {
    let mut net = net();
    let mut seed = 1u64;
    let mut noise = |len: usize| -> Vec<u8> {
        let byte = |seed: &mut u64| {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (*seed >> 56) as u8
        };
        (0..len).map(|_| byte(&mut seed)).collect()
    };
    let hello = raw::hello("a", 1);
    let mut packets: Vec<Vec<u8>> = vec![
        noise(1),
        noise(8),
        noise(128),
        noise(1024),
        noise(1025),
        noise(60_000),
        hello[..127].to_vec(),
        [hello.as_slice(), &[0]].concat(),
        raw::header(RING, 8),
        raw::ring(0, 1, MIB),
        raw::header(99, 8),
    ];
    // Whatever one byte is changed to, the outcome is an answer or silence, never harm.
    for at in [
        0, 3, 4, 6, 7, 8, 12, 14, 15, 24, 27, 28, 36, 37, 38, 44, 45, 107, 108, 127,
    ] {
        let mut packet = hello.clone();
        packet[at] ^= 0xff;
        packets.push(packet);
    }
    for packet in packets {
        let refusal = provoke(&mut net, &[(&packet, &[])]);
        let refusal = refusal.unwrap_or_else(|| panic!("not told why: {packet:?}"));
        assert_eq!(refusal.versions, [1, 1]);
        assert!(!refusal.text.is_empty());
    }
    // An empty packet cannot be told from the end.
    provoke(&mut net, &[(&[], &[])]);
    // A REFUSE is believed.
    let mut refuse = raw::header(REFUSE, 192);
    refuse.resize(192, 0xff);
    assert!(provoke(&mut net, &[(&refuse, &[])]).is_none());
    check_unharmed(&mut net);
}

#[test]
fn descriptors_where_none_belong() {
    let mut net = net();
    let hello = raw::hello("a", 1);
    let fd = net.directory.path().to_owned();
    let file = std::fs::File::open(fd).unwrap();
    let many = [file.as_fd(); 64];
    for count in [1, 3, 64] {
        let refusal = provoke(&mut net, &[(&hello, &many[..count])]).unwrap();
        assert_eq!(refusal.text, format!("HELLO with {count} descriptors"));
    }
    check_unharmed(&mut net);
}

#[test]
fn rings_that_are_not_right() {
    let mut net = net();
    let hello = raw::hello("a", 1);
    let region = Region::create(MIB).unwrap();
    let small = Region::create(MIB / 2).unwrap();
    let bell = Doorbell::new().unwrap();
    let (pipe, _other) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    let unsealed = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&unsealed, region_size(&region)).unwrap();
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
    let semaphore = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();

    let (r, b) = (region.fd(), bell.as_fd());
    let good = raw::ring(0, 1, MIB);
    let cases: Vec<(&str, Vec<u8>, Vec<BorrowedFd<'_>>)> = vec![
        ("no descriptors", good.clone(), vec![]),
        ("two descriptors", good.clone(), vec![r, b]),
        ("four descriptors", good.clone(), vec![r, b, b, b]),
        ("sixty descriptors", good.clone(), vec![r; 60]),
        ("index", raw::ring(1, 1, MIB), vec![r, b, b]),
        ("count", raw::ring(0, 2, MIB), vec![r, b, b]),
        (
            "another capacity",
            raw::ring(0, 1, MIB / 2),
            vec![small.fd(), b, b],
        ),
        ("a capacity that lies", good.clone(), vec![small.fd(), b, b]),
        (
            "an unsealed region",
            good.clone(),
            vec![unsealed.as_fd(), b, b],
        ),
        ("a pipe as region", good.clone(), vec![pipe.as_fd(), b, b]),
        ("a pipe as bell", good.clone(), vec![r, pipe.as_fd(), b]),
        ("an epoll as bell", good.clone(), vec![r, b, epoll.as_fd()]),
        ("a region as bell", good.clone(), vec![r, b, r]),
        ("swapped", good.clone(), vec![b, r, b]),
        ("HELLO again", hello.clone(), vec![]),
        ("no message", vec![1, 2, 3], vec![r, b, b]),
    ];
    for (what, packet, fds) in cases {
        let refusal = provoke(&mut net, &[(&hello, &[]), (&packet, &fds)]);
        let refusal = refusal.unwrap_or_else(|| panic!("{what}: not told why"));
        assert_eq!(refusal.reason, 8, "{what}: {}", refusal.text);
    }
    check_unharmed(&mut net);

    // The right thing, by hand, is accepted; the same once more is one too many.
    let socket = raw::connect(&net, "m");
    raw::send(&socket, &hello);
    raw::try_send(&socket, &good, &[r, b, semaphore.as_fd()]).unwrap();
    net.until("the link", |net| net.ports["m"].links.contains_key("a"));
    raw::try_send(&socket, &good, &[r, b, b]).unwrap();
    net.until("its end", |net| !net.ports["m"].links.contains_key("a"));
    assert_eq!(
        net.ports["m"].downs[0].1,
        "Peer sent data after the handshake"
    );
}

fn region_size(region: &Region) -> u64 {
    rustix::fs::fstat(region.fd())
        .unwrap()
        .st_size
        .cast_unsigned()
}

#[test]
fn identities_that_are_not_the_callers() {
    let mut net = net();
    let cases = [
        (raw::hello("m", 1), "Peer has this port's own id m"),
        (
            raw::hello("z", 1),
            "Peer z called, but has the larger id and is to be called",
        ),
        (
            raw::hello("../x", 1),
            "Peer's id is not valid: Port id \"../x\" starts with a dot",
        ),
    ];
    for (hello, text) in cases {
        let refusal = provoke(&mut net, &[(&hello, &[])]).unwrap();
        assert_eq!((refusal.reason, refusal.text.as_str()), (3, text));
    }
    let mut clash = raw::hello("a", 1);
    clash[38..44].copy_from_slice(&local("n").mac.octets());
    let refusal = provoke(&mut net, &[(&clash, &[])]).unwrap();
    assert_eq!(
        refusal.text,
        format!("MAC address {} belongs to n", local("n").mac)
    );

    // An id with a live link is refused; once that link's other end has closed, it is let in, even
    // if both are seen at the same moment.
    net.join("a");
    net.until_meshed();
    let refusal = provoke(&mut net, &[(&raw::hello("a", 1), &[])]).unwrap();
    assert_eq!(refusal.text, "Id a has a live link");
    assert_eq!(net.ports["m"].peers(), ["a", "n"]);
    net.leave("a");
    let socket = raw::connect(&net, "m");
    raw::send(&socket, &raw::hello("a", 1));
    expect_hello(&mut net, &socket);
    // Rings cost memory: none for who only says HELLO.
    net.until("quiet", |net| {
        !readable(net.ports["m"].segment.fd(), Duration::ZERO)
    });
    assert!(matches!(raw::try_receive(&socket), Err(())));
    let (region, bell) = (Region::create(MIB).unwrap(), Doorbell::new().unwrap());
    let fds = [region.fd(), bell.as_fd(), bell.as_fd()];
    raw::try_send(&socket, &raw::ring(0, 1, MIB), &fds).unwrap();
    net.until(
        "a ring",
        |_| matches!(raw::try_receive(&socket), Ok(Some(p)) if p[4] == RING as u8),
    );
    assert_eq!(net.ports["m"].downs.len(), 1);
}

/// A TCP socket that waits on close for data that nobody takes (`SO_LINGER`).
fn lingering_socket() -> (OwnedFd, std::net::TcpStream) {
    use std::io::Write;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (taker, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    while stream.write(&[0; 65_536]).is_ok() {}
    stream.set_nonblocking(false).unwrap();
    rustix::net::sockopt::set_socket_linger(&stream, Some(PATIENCE)).unwrap();
    (stream.into(), taker)
}

/// Closing a descriptor can take as long as who sent it likes. It must not take us with it, wherever
/// the descriptor is met: in a message, beside one, or in a queue that nobody has read.
#[test]
fn descriptors_that_do_not_close() {
    let mut net = net();
    let region = Region::create(MIB).unwrap();
    let bell = Doorbell::new().unwrap();
    let mut takers = Vec::new();
    let mut slow = || {
        let (socket, taker) = lingering_socket();
        takers.push(taker);
        socket
    };
    let hello = raw::hello("a", 1);
    let ring = raw::ring(0, 1, MIB);
    let started = Instant::now();
    {
        let socket = raw::connect(&net, "m");
        raw::try_send(&socket, &hello, &[slow().as_fd()]).unwrap();
        raw::until_closed(&mut net, &socket);
    }
    {
        let socket = raw::connect(&net, "m");
        raw::send(&socket, &hello);
        let bad = slow();
        raw::try_send(&socket, &ring, &[region.fd(), bell.as_fd(), bad.as_fd()]).unwrap();
        drop(bad);
        raw::until_closed(&mut net, &socket);
    }
    {
        let socket = raw::connect(&net, "m");
        raw::send(&socket, &hello);
        let bad = slow();
        raw::try_send(&socket, &ring, &[bad.as_fd(), bell.as_fd(), bell.as_fd()]).unwrap();
        drop(bad);
        raw::until_closed(&mut net, &socket);
    }
    {
        let socket = raw::connect(&net, "m");
        let many = [slow(), slow(), slow(), slow(), slow(), slow()];
        let fds: Vec<BorrowedFd<'_>> = many.iter().map(AsFd::as_fd).collect();
        raw::try_send(&socket, &ring, &fds).unwrap();
        drop(many);
        raw::until_closed(&mut net, &socket);
    }
    {
        let socket = raw::connect(&net, "m");
        raw::send(&socket, b"garbage");
        raw::try_send(&socket, &ring, &[slow().as_fd()]).unwrap();
        raw::until_closed(&mut net, &socket);
    }
    {
        // In the queue of the listener when the port leaves.
        let socket = raw::connect(&net, "m");
        raw::try_send(&socket, &ring, &[slow().as_fd()]).unwrap();
        check_unharmed(&mut net);
        net.leave("m");
    }
    net.join("m");
    net.until_meshed();
    assert!(started.elapsed() < PATIENCE / 4, "{:?}", started.elapsed());
}

/// Conversations thrown together at random from good and bad packets: the healthy link stays, and
/// nothing stays open.
#[test]
fn random_conversations() {
    // With the default time limit: the speed of the machine is to decide little.
    let mut net = Net::new();
    net.join("m");
    net.join("n");
    net.until_meshed();
    let region = Region::create(MIB).unwrap();
    let bell = Doorbell::new().unwrap();
    let (r, b) = (region.fd(), bell.as_fd());
    let mut refuse = raw::header(REFUSE, 192);
    refuse.resize(192, 0);
    let ring = raw::ring(0, 1, MIB);
    let packets: Vec<(Vec<u8>, Vec<BorrowedFd<'_>>)> = vec![
        (raw::hello("a", 1), vec![]),
        (raw::hello("b", 2), vec![]),
        (raw::hello("a", 1), vec![b]),
        (ring.clone(), vec![r, b, b]),
        (ring.clone(), vec![b, r, b]),
        (ring, vec![]),
        (refuse, vec![]),
        (vec![0; 40], vec![r]),
    ];
    let mut seed = 42u32;
    let mut next = move |below: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 16) as usize % below
    };
    let mut open: Vec<OwnedFd> = Vec::new();
    // So much that the port may take breaks; enough conversations have to get through all the same.
    let (mut left, started) = (20_000, Instant::now());
    while left > 0 || net.ports["m"].segment.stats().up <= 10 {
        left = i32::max(left - 1, 0);
        assert!(
            started.elapsed() < PATIENCE,
            "{:?}",
            net.ports["m"].segment.stats()
        );
        match next(8) {
            0 | 1 if open.len() < 20 => open.extend(raw::try_connect(&net, "m")),
            2 if !open.is_empty() => drop(open.swap_remove(next(open.len()))),
            3 => net.run_once(Duration::ZERO),
            _ if !open.is_empty() => {
                // A good start is likely: deeper states are reached.
                let (bytes, fds) = &packets[[0, 3, next(packets.len())][next(3)]];
                let _ = raw::try_send(&open[next(open.len())], bytes, fds);
            }
            _ => {}
        }
    }
    drop(open);
    net.until("the guests to be gone", |net| {
        net.ports["m"].peers() == ["n"]
    });
    net.check_flow();
    assert_eq!(net.ports["n"].downs, []);
}

/// Silence at each point of the handshake ends it.
#[test]
fn silence_ends_in_time() {
    let mut net = Net::new();
    let limits = Limits {
        handshake_timeout: Duration::from_millis(200),
        ..limits()
    };
    net.join_with(local("m"), limits).unwrap();
    for packets in [vec![], vec![raw::hello("a", 1)]] {
        let started = Instant::now();
        let socket = raw::connect(&net, "m");
        for packet in packets {
            raw::send(&socket, &packet);
        }
        let refusal = raw::until_closed(&mut net, &socket).unwrap();
        assert_eq!(refusal.text, "No valid handshake within 200 ms");
        assert!(started.elapsed() >= Duration::from_millis(200));
    }
    assert_eq!(net.ports["m"].segment.stats().timeouts, 2);
}

/// A socket that accepts and says nothing is called again, with pauses, and does no harm.
#[test]
fn a_silent_listener() {
    let mut net = Net::new();
    let listener = raw::listen(net.path(), "z");
    let limits = Limits {
        handshake_timeout: Duration::from_millis(50),
        ..limits()
    };
    net.join_with(local("m"), limits).unwrap();
    net.join("n");
    net.until("two calls", |net| {
        net.ports["m"].segment.stats().timeouts >= 2
    });
    drop(listener);
    // Refused connections are not retried: the next socket of that name is.
    net.until("both to have found out", |net| {
        net.run_once(Duration::from_millis(1));
        net.ports["m"].peers() == ["n"]
    });
    std::fs::remove_file(net.path().join("z.sock")).unwrap();
    net.join("z");
    net.until_meshed();
    net.check_flow();
}

/// Many more silent listeners than calls may be under way, all with ids ahead of the good ones.
#[test]
fn a_crowd_of_silent_listeners() {
    let mut net = Net::new();
    let _crowd: Vec<OwnedFd> = (0..128)
        .map(|i| raw::listen(net.path(), &format!("s{i:03}")))
        .collect();
    net.join("y");
    let limits = Limits {
        handshake_timeout: Duration::from_millis(400),
        max_half_open: 12,
        ..limits()
    };
    net.join_with(local("m"), limits).unwrap();
    let linked = |net: &Net, id: &str| net.ports["m"].links.contains_key(id);
    net.until("a link with y", |net| linked(net, "y"));
    // By now all have been called, and every place is taken again.
    net.join("z");
    net.until("a link with z", |net| linked(net, "z"));
}

#[test]
fn a_crowd_of_half_open_connections() {
    let mut net = net();
    let crowd: Vec<OwnedFd> = (0..200).map(|_| raw::connect(&net, "m")).collect();
    // An honest port gets through nevertheless.
    net.join("b");
    net.until_meshed();
    net.check_flow();
    let crowded_out = net.ports["m"].segment.stats().crowded_out;
    assert!((136..=137).contains(&crowded_out), "{crowded_out}");
    let refused = crowd.iter().filter(|socket| {
        let first = raw::try_receive(socket);
        assert!(
            matches!(first, Ok(Some(ref packet)) if packet[4] == HELLO as u8),
            "{first:?}"
        );
        matches!(raw::try_receive(socket), Ok(Some(packet)) if packet[4] == REFUSE as u8)
    });
    assert_eq!(refused.count() as u64, crowded_out);
}

#[test]
fn limits_hold() {
    let mut net = Net::new();
    let few = Limits {
        max_peers: 2,
        ..limits()
    };
    net.join_with(local("m"), few).unwrap();
    for id in ["a", "b", "c"] {
        net.join(id);
    }
    net.until("one to be refused", |net| {
        net.ports["m"].segment.stats().refused > 0
    });
    net.until("the others", |net| net.ports["m"].links.len() == 2);

    let mut net = Net::new();
    // Two rings of 256 KiB each, one to each side.
    let little = Limits {
        max_ring_bytes: 512 << 10,
        ..limits()
    };
    net.join_with(local("m"), little).unwrap();
    net.join("a");
    net.until_meshed();
    net.join("b");
    net.until("a refusal", |net| {
        net.ports["m"].segment.stats().refused > 0
    });
    assert_eq!(net.ports["m"].peers(), ["a"]);
    net.leave("a");
    net.until_meshed();
}

#[test]
fn a_peer_of_another_version_is_refused_by_both() {
    capture_log();
    let mut net = Net::new();
    net.join("ver-m");
    // It calls us …
    let mut hello = raw::hello("ver-a", 1);
    hello[8..12].copy_from_slice(&[2, 0, 3, 0]);
    hello.truncate(60);
    hello[6] = 60;
    let socket = raw::connect(&net, "ver-m");
    raw::send(&socket, &hello);
    let refusal = raw::until_closed(&mut net, &socket).unwrap();
    let text = "Peer speaks version 2 to 3 of the segment protocol, this port speaks 1";
    assert_eq!(refusal.text, text);
    assert_eq!(
        (refusal.versions, refusal.seen, refusal.reason),
        ([1, 1], [2, 3], 1)
    );
    let lines = logged(&["Port ver-m", "refused", text]);
    assert_eq!(lines.len(), 1, "{lines:?}");

    // … or we call it, and it is the one to refuse.
    let listener = raw::listen(net.path(), "ver-z");
    net.until("a call", |_| common::readable(&listener, Duration::ZERO));
    let socket = rustix::net::accept(&listener).unwrap();
    let mut refuse = raw::header(REFUSE, 192);
    refuse.extend([2, 0, 3, 0, 1, 0, 1, 0, 1, 0, 10, 0]);
    refuse.extend(b"I speak 2\n");
    refuse.resize(192, 0);
    raw::send(&socket, &refuse);
    net.until("a log line", |_| {
        !logged(&["Port ver-m", "refused by ver-z"]).is_empty()
    });
    let lines = logged(&["Port ver-m: refused by ver-z"]);
    // What the peer wrote is quoted: it cannot forge lines of the log.
    assert!(
        lines[0].ends_with("\"I speak 2\\n\", speaks version 2 to 3"),
        "{lines:?}"
    );
    drop(socket);

    // Refused ones are called again, rarely.
    net.until("a second call", |_| {
        common::readable(&listener, Duration::ZERO)
    });
}

#[test]
fn a_region_of_another_format_is_refused() {
    let mut net = net();
    let mut hello = raw::hello("a", 1);
    hello[12] = 9;
    let refusal = provoke(&mut net, &[(&hello, &[])]).unwrap();
    assert_eq!(refusal.text, "Peer has region format 9, this port has 1");
    assert_eq!(refusal.reason, 2);
}

/// A peer that never reads cannot hold anybody up.
#[test]
fn a_peer_that_does_not_read() {
    let mut net = Net::new();
    let mut port = local("m");
    port.queues = 64;
    net.join_as(port).unwrap();
    let mut sockets = Vec::new();
    for i in 0..20 {
        let id = format!("a{i}");
        let mut hello = raw::hello(&id, i);
        hello[14] = 64;
        let socket = raw::connect(&net, "m");
        raw::send(&socket, &hello);
        sockets.push(socket);
        let started = Instant::now();
        net.run_once(Duration::from_millis(100));
        assert!(started.elapsed() < Duration::from_secs(2));
    }
    net.join("z");
    net.until("a link with z", |net| {
        net.ports["m"].links.contains_key("z")
    });
}

#[test]
fn users_that_may_not_join_are_turned_away() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    capture_log();
    // A process of another user, which the mode of the directory does not let in, but which gets at
    // the socket because somebody has opened it up.
    let mut net = Net::new();
    let open = |path: &std::path::Path, mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    net.join("cred-m");
    open(net.path(), 0o755);
    open(&net.path().join("cred-m.sock"), 0o666);
    let connect_as_nobody = |net: &Net| {
        use std::os::unix::process::CommandExt;
        let script = "import socket,sys\n\
            s=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET)\n\
            s.connect(sys.argv[1])\n\
            s.settimeout(20)\n\
            while True:\n\
            \x20 p=s.recv(1024)\n\
            \x20 if not p: break\n\
            \x20 if p[4]==2: print(p[20:20+p[18]].decode())\n\
            \x20 if p[4]==1: print('HELLO'); break\n";
        std::process::Command::new("python3")
            .args(["-c", script])
            .arg(net.path().join("cred-m.sock"))
            .uid(65_534)
            .gid(65_534)
            .stdout(std::process::Stdio::piped())
            .spawn()
    };
    let says = |net: &mut Net| -> Option<String> {
        let mut child = connect_as_nobody(net).ok()?;
        net.until("the child's end", |_| child.try_wait().unwrap().is_some());
        Some(std::io::read_to_string(child.stdout.take().unwrap()).unwrap())
    };
    let Some(first) = says(&mut net) else { return };
    assert!(
        first.starts_with("User 65534 (group 65534) may not join"),
        "{first}"
    );
    assert_eq!(net.ports["cred-m"].segment.stats().strangers, 1);
    assert_eq!(logged(&["Port cred-m", "User 65534"]).len(), 1);
    // The rule is looked up for each connection.
    open(net.path(), 0o777);
    assert_eq!(says(&mut net).unwrap(), "HELLO\n");
}

/// The default time limit is the documented one.
#[test]
fn defaults() {
    let limits = Limits::default();
    assert_eq!(limits.handshake_timeout, Duration::from_secs(5));
    assert_eq!((limits.max_half_open, limits.max_peers), (64, 1024));
    assert!(PATIENCE > limits.handshake_timeout);
    let temp = tempfile::tempdir().unwrap();
    let segment = Segment::join(temp.path(), local("m")).unwrap();
    assert!(format!("{segment:?}").contains("\"m\""));
}
