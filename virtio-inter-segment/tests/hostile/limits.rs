//! How many, how much, and who: what a port's limits and the directory's mode allow.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use virtio_inter_link::{Doorbell, Region};
use virtio_inter_segment::{Limits, LinkError, Segment};
use virtio_inter_test_support::skip;

use crate::MIB;
use crate::common::raw::{self, DONE};
use crate::common::{Net, PATIENCE, capture_log, limits, local, logged};

#[test]
fn limits_of_a_segment_hold() {
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

    // Two rings of 256 KiB, one to each of two peers.
    let mut net = Net::new();
    let little = Limits {
        max_ring_bytes: 512 << 10,
        ..limits()
    };
    net.join_with(local("m"), little).unwrap();
    net.join("a");
    net.join("b");
    net.until_meshed();
    let key = |net: &Net, id: &str| net.ports["m"].links[id].peer.key;
    let open = |net: &mut Net, key| {
        let port = net.ports.get_mut("m").unwrap();
        port.segment.open_link(key, 0, 1 << 20)
    };
    let a = key(&net, "a");
    let error = open(&mut net, a).unwrap_err();
    assert_eq!(
        error.to_string(),
        "No room: more than 524288 bytes of rings"
    );
    net.leave("b");
    net.until("room", |net| net.ports["m"].links.len() == 1);
    open(&mut net, a).unwrap();
    let error = open(&mut net, a).unwrap_err();
    assert!(matches!(error, LinkError::Full { .. }), "{error}");
    net.leave("a");
    net.until("nobody", |net| net.ports["m"].links.is_empty());
    let error = open(&mut net, a).unwrap_err();
    assert!(matches!(error, LinkError::NoPeer), "{error}");

    // A port that may have two rings takes none beyond, and lives on.
    let few = Limits {
        max_rings: 2,
        ..limits()
    };
    net.leave("m");
    net.join_with(local("m"), few).unwrap();
    net.join("a");
    net.until_meshed();
    net.join("b");
    net.until("a ring to be declined", |net| {
        net.ports["b"].done == [(1, true)]
    });
    assert_eq!(net.ports["m"].peers(), ["a", "b"]);
}

/// What peers of one user may take of a port: the rest is there for others.
#[test]
fn limits_leave_a_part_to_other_users() {
    use std::os::unix::fs::PermissionsExt;
    if !rustix::process::geteuid().is_root() {
        skip("only root can connect as another user");
        return;
    }
    let mut net = Net::new();
    std::fs::set_permissions(net.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let shared = Limits {
        max_peers: 4,
        max_ring_bytes: 1 << 20,
        max_rings: 8,
        user_share: 50,
        ..limits()
    };
    net.join_with(local("m"), shared).unwrap();
    // Connected by another user, to whom they count whoever speaks.
    let directory = net.path().to_owned();
    let others: Vec<OwnedFd> = std::thread::spawn(move || {
        let other = rustix::process::Uid::from_raw(65_533);
        rustix::thread::set_thread_res_uid(other, other, other).unwrap();
        let connect = |_| raw::try_connect_in(&directory, "m").unwrap();
        (0..3).map(connect).collect()
    })
    .join()
    .unwrap();
    for (i, socket) in (0..).zip(&others[..2]) {
        raw::send(socket, &raw::hello(&format!("x{i}"), i));
    }
    net.until("two", |net| net.ports["m"].links.len() == 2);
    raw::send(&others[2], &raw::hello("x2", 2));
    let refusal = raw::until_closed(&mut net, &others[2]).unwrap();
    let words = (refusal.reason, refusal.text.as_str());
    assert_eq!(words, (7, "No room: more than 2 peers of one user"));
    // m has made a ring to each when it was up, of 256 KiB; no further one to this user.
    let key = net.ports["m"].links["x0"].peer.key;
    let port = net.ports.get_mut("m").unwrap();
    let error = port.segment.open_link(key, 0, 1 << 18).unwrap_err();
    assert_eq!(
        error.to_string(),
        "No room: more than 524288 bytes of rings to peers of one user"
    );
    // Two rings of four that the peers open beside these two.
    let region = Region::create(MIB / 4).unwrap();
    let doorbell = Doorbell::new().unwrap();
    let fds = [region.fd(), doorbell.as_fd(), doorbell.as_fd()];
    for (number, socket) in [(1, &others[0]), (2, &others[0]), (1, &others[1])] {
        let link = raw::link(0, MIB / 4, number);
        raw::try_send(socket, &link, &fds).unwrap();
    }
    let mut declined = Vec::new();
    net.until("an answer to the third", |_| {
        while let Ok(Some(packet)) = raw::try_receive(&others[1]) {
            declined.extend((packet[4] == DONE as u8).then(|| packet[16]));
        }
        !declined.is_empty()
    });
    assert_eq!(declined, [1]);
    let usage = net.ports["m"].segment.usage();
    assert_eq!((usage.peers.used, usage.peers.max), (2, 4));
    assert_eq!(
        (usage.link_memory.used, usage.link_memory.max),
        (1 << 19, 1 << 20)
    );
    assert_eq!((usage.rings.used, usage.rings.max), (4, 8));
    // There is room for others, rings included.
    net.join("n");
    net.until("n", |net| {
        let links = &net.ports["m"].links;
        links.get("n").is_some_and(|link| link.is_complete())
    });
}

#[test]
fn users_that_may_not_join_are_turned_away() {
    if !rustix::process::geteuid().is_root() {
        skip("only root can start processes of other users");
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
            try: s.send(bytes.fromhex(sys.argv[2]))\n\
            except BrokenPipeError: pass\n\
            while True:\n\
            \x20 p=s.recv(1024)\n\
            \x20 if not p: break\n\
            \x20 if p[4]==2: print(p[20:20+p[18]].decode())\n\
            \x20 if p[4]==1: print('HELLO'); break\n";
        std::process::Command::new("python3")
            .args(["-c", script])
            .arg(net.path().join("cred-m.sock"))
            .arg(raw::hex(&raw::hello("a", 1)))
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
    let Some(first) = says(&mut net) else {
        skip("python3 is not installed");
        return;
    };
    assert!(
        first.starts_with("User 65534 (group 65534) may not join"),
        "{first}"
    );
    assert_eq!(net.ports["cred-m"].segment.stats().unauthorized, 1);
    assert_eq!(logged(&["Port cred-m", "User 65534"]).len(), 1);
    // The rule is looked up for each connection.
    open(net.path(), 0o777);
    assert_eq!(says(&mut net).unwrap(), "HELLO\n");
}

/// The default limits are those of the table in docs/threat-model.md. Other tests here lower them.
#[test]
fn segment_has_the_documented_defaults() {
    let limits = Limits::default();
    assert_eq!(limits.hello_timeout, Duration::from_secs(5));
    assert_eq!((limits.max_accepting, limits.max_connecting), (256, 64));
    assert_eq!((limits.max_peers, limits.max_rings), (1024, 8192));
    assert_eq!((limits.max_ring_bytes, limits.user_share), (1 << 30, 98));
    let connects = (limits.connect_burst, limits.connects_per_second);
    assert_eq!(connects, (1024, 128));
    assert!(PATIENCE > limits.hello_timeout);
    let temp = tempfile::tempdir().unwrap();
    let segment = Segment::join(temp.path(), local("m")).unwrap();
    assert!(format!("{segment:?}").contains("\"m\""));
}
