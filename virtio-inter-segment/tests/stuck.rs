//! A peer whose descriptors do not close, more of them than may wait: its user is turned away,
//! other users are not held up. Alone in its process, since it takes hundreds of descriptors.

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::raw;
use common::{Net, PATIENCE, limits, local};
use virtio_inter_segment::Limits;
use virtio_inter_test_support::skip;

/// Connects so often, each time with a TCP socket in the queue that waits on close for data that
/// nobody takes; says so, and keeps all of it until it is killed.
const SCRIPT: &str = r#"
import os, socket, struct, sys, time
path, count = sys.argv[1], int(sys.argv[2])
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
listener.bind(("127.0.0.1", 0))
listener.listen(8)
takers = []
for _ in range(count):
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    slow.connect(listener.getsockname())
    takers.append(listener.accept()[0])
    slow.setblocking(False)
    try:
        while True:
            slow.send(bytes(65536))
    except BlockingIOError:
        pass
    slow.setblocking(True)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.connect(path)
    # A child sends it: if the port is quicker to close it, the last close is that of a process that
    # exits, which does not wait.
    go, went = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(go, 1)
        try:
            socket.send_fds(s, [b"garbage"], [slow.fileno()])
        except (BrokenPipeError, ConnectionResetError):
            # Turned away before.
            pass
        os._exit(0)
    slow.close()
    s.close()
    os.write(went, b"x")
    os.waitpid(child, 0)
    os.close(go)
    os.close(went)
print("done", flush=True)
time.sleep(600)
"#;

/// Killed when the test is over, whatever its end: what lingers then stops lingering.
struct Attacker(Child);

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn attack(net: &mut Net, count: usize, uid: u32) -> Option<Attacker> {
    let child = Command::new("python3")
        .args(["-c", SCRIPT])
        .arg(net.path().join("m.sock"))
        .arg(count.to_string())
        .uid(uid)
        .gid(uid)
        .stdout(Stdio::piped())
        .spawn();
    let mut child = Attacker(child.ok()?);
    let output = child.0.stdout.take().unwrap();
    let said = std::thread::spawn(move || {
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).map(|_| line)
    });
    net.until("the attack", |_| said.is_finished());
    assert_eq!(said.join().unwrap().unwrap(), "done\n");
    Some(child)
}

#[test]
fn user_whose_descriptors_do_not_close_is_turned_away_alone() {
    if !rustix::process::geteuid().is_root() {
        skip("only root can start processes of other users");
        return;
    }
    // As a port does; what may wait follows from it.
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: Some(16_384),
            maximum: Some(16_384),
        },
    )
    .unwrap();
    let mut net = Net::new();
    std::fs::set_permissions(net.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let limits = Limits {
        hello_timeout: Duration::from_secs(2),
        ..limits()
    };
    net.join_with(local("m"), limits).unwrap();
    net.join("n");
    net.until_meshed();
    let Some(attacker) = attack(&mut net, 400, 65_534) else {
        skip("python3 is not installed");
        return;
    };
    net.until("all to be refused", |net| {
        net.ports["m"].segment.stats().refused == 400
    });
    // None of them is closed, and another user's ports come and go as ever, also past the bound of
    // those that may wait.
    let started = Instant::now();
    for _ in 0..300 {
        net.join("a");
        net.until_meshed();
        net.leave("a");
        net.until_meshed();
        net.ports.values_mut().for_each(|port| port.downs.clear());
    }
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    net.join("z");
    net.until_meshed();
    net.check_flow();
    // The user is told why, and by whose doing; as soon as that one is gone it is let in again.
    let says = |net: &mut Net| {
        let mut child = Command::new("python3")
            .args(["-c", HELLO])
            .arg(net.path().join("m.sock"))
            .arg(raw::hex(&raw::hello("a", 1)))
            .uid(65_534)
            .gid(65_534)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        net.until("the child's end", |_| child.try_wait().unwrap().is_some());
        std::io::read_to_string(child.stdout.take().unwrap()).unwrap()
    };
    let text = says(&mut net);
    assert!(
        text.starts_with("No room: ")
            && text
                .contains(" descriptors of user 65534 wait to be closed, behind one of process ")
            && text.ends_with(&format!("{}\n", attacker.0.id())),
        "{text}"
    );
    drop(attacker);
    net.until("all to be closed", |net| {
        let socket = raw::connect(net, "m");
        drop(socket);
        std::fs::read_dir("/proc/self/fd").unwrap().count() < 100
    });
    assert_eq!(says(&mut net), "HELLO\n");
}

/// Prints how a port answers.
const HELLO: &str = r#"
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
s.settimeout(20)
try:
    s.send(bytes.fromhex(sys.argv[2]))
except BrokenPipeError:
    pass
p = s.recv(1024)
print(p[20:20 + p[18]].decode() if p[4] == 2 else "HELLO")
"#;
