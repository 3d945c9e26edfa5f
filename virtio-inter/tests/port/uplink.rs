//! `--uplink`: a port with a tap device, in a network namespace of each test's thread, which the
//! programs that it starts share.

use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::{Value, json};
use virtio_inter_device::backend::TapDevice;
use virtio_inter_test_support::skip;

use crate::guest::Guest;
use crate::process::{Place, Port, PortCommand, address, until};
use crate::sandbox::{of_threads, walls};
use crate::status::status;
use crate::usage::complaint;

/// Enters a namespace. False: the running test is skipped.
#[allow(
    unsafe_code,
    reason = "there is no safe unshare(2) for all of its flags"
)]
pub(crate) fn enter() -> bool {
    // SAFETY: changes which network this thread's further system calls see; no descriptor or
    // memory of other threads is concerned.
    let entered = unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.is_ok();
    if !entered {
        skip("network namespaces need root");
    }
    entered
}

#[track_caller]
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

pub(crate) fn make_tap(name: &str, options: &str) {
    ip(format!("tuntap add dev {name} mode tap {options}").trim_end());
    ip(&format!("link set {name} up"));
}

/// Descriptors of a device that a child process inherits.
pub(crate) fn inherited(name: &str, queues: u16) -> Vec<OwnedFd> {
    let queues = TapDevice::open(name, queues).unwrap();
    let queues = queues.into_descriptors();
    for queue in &queues {
        fcntl_setfd(queue, FdFlags::empty()).unwrap();
    }
    queues
}

pub(crate) fn tap_fd(queues: &[OwnedFd]) -> String {
    let numbers = queues.iter().map(|queue| queue.as_raw_fd().to_string());
    format!("tap-fd={}", numbers.collect::<Vec<_>>().join(":"))
}

/// A port with this uplink, and with the status that the tests read.
fn uplinked(place: &Place, uplink: &str) -> PortCommand {
    let command = place.command("a").with("--uplink", uplink);
    command.with("--status-socket", place.path("a.status"))
}

/// Waits until both directions work.
#[track_caller]
pub(crate) fn assert_carries(place: &Place, port: &Port) {
    let mut guest = Guest::new(port, 1514);
    guest.send("52:54:00:00:00:61", "52:54:00:00:00:99", 100);
    // The kernel itself sends neighbour discovery by a device that is up.
    until("frames pass both ways", || {
        let counters = &status(&place.path("a.status"))["counters"][0];
        counters["tx_frames"] == 1
            && counters["uplink_tx_frames"] == 2
            && counters["uplink_rx_frames"].as_u64() > Some(0)
    });
}

pub(crate) fn warning(document: &Value, code: &str) -> Option<String> {
    let warnings = document["warnings"].as_array().unwrap();
    let warning = warnings.iter().find(|warning| warning["code"] == code)?;
    Some(warning["text"].as_str().unwrap().to_owned())
}

#[test]
fn uplink_by_name_carries_frames() {
    if !enter() {
        return;
    }
    make_tap("up0", "");
    let place = Place::new();
    let port = uplinked(&place, "tap=up0").start();
    let uplink = &status(&place.path("a.status"))["uplink"];
    let expected = serde_json::json!({"tap": "up0", "state": "up", "mtu": 1500});
    assert_eq!(*uplink, expected);
    assert_carries(&place, &port);
    port.end();
    // It is the user's.
    assert!(TapDevice::state("up0").is_some());
}

#[test]
fn uplink_by_descriptors_carries_frames_for_an_ordinary_user() {
    if !enter() {
        return;
    }
    make_tap("up0", "multi_queue");
    let place = Place::new();
    let queues = inherited("up0", 2);
    let port = uplinked(&place, &tap_fd(&queues));
    let Some(port) = port.with("--queues", "2").by_ordinary_user() else {
        return skip("no ordinary user can run the program");
    };
    let port = port.start();
    drop(queues);
    assert_carries(&place, &port);
    port.end();
}

#[test]
fn uplink_of_an_ordinary_user_is_opened_by_name() {
    if !enter() {
        return;
    }
    make_tap("mine", "user 65534");
    make_tap("others", "user 4711");
    let place = Place::new();
    let Some(port) = uplinked(&place, "tap=mine").by_ordinary_user() else {
        return skip("no ordinary user can run the program");
    };
    let refused = port.with("--uplink", "tap=others");
    let text = complaint(&place, &refused, 2);
    assert!(text.contains("others may not be opened"), "{text}");
    let port = refused.with("--uplink", "tap=mine").start();
    assert_carries(&place, &port);
    port.end();
}

/// The recipe of docs/networking.md: bridge, NAT and tap device of a user without any rights.
#[test]
fn uplink_in_pasta_carries_frames_for_an_ordinary_user() {
    if Command::new("pasta").arg("--version").output().is_err() {
        return skip("pasta is not installed");
    }
    let place = Place::new();
    let network = "ip link add br0 type bridge; ip addr add 10.9.0.1/24 dev br0; \
                   ip link set br0 up; ip tuntap add dev up0 mode tap; \
                   ip link set up0 master br0 up";
    let port = place.command("a").with("--uplink", "tap=up0");
    let port = port.with("--status-socket", place.path("a.status"));
    let port = port.limited(&format!(
        "exec pasta --config-net --quiet -- bash -ec '{network}; exec \"$0\" \"$@\"' \"$0\" \"$@\""
    ));
    let Some(port) = port.by_ordinary_user() else {
        return skip("no ordinary user can run the program");
    };
    let mut port = port.start();
    assert_carries(&place, &port);
    // It is pasta's child, which ends with it.
    let children = format!("/proc/{0}/task/{0}/children", port.pid());
    let children = std::fs::read_to_string(children).unwrap();
    let child = children.split_whitespace().next().unwrap();
    let child = Pid::from_raw(child.parse().unwrap()).unwrap();
    kill_process(child, Signal::TERM).unwrap();
    assert_eq!(port.wait().code(), Some(0), "{}", port.log());
}

#[test]
fn uplink_that_is_deleted_or_down_is_shown_and_comes_back() {
    if !enter() {
        return;
    }
    make_tap("up0", "");
    let place = Place::new();
    let port = uplinked(&place, "tap=up0").start();
    let is = |state: &str| {
        let now = status(&place.path("a.status"));
        now["uplink"]["state"] == state && warning(&now, "uplink-down").is_none() == (state == "up")
    };
    ip("link set up0 down");
    until("it is shown to be down", || is("down"));
    ip("link set up0 mtu 1400 up");
    until("it is shown to be up", || is("up"));
    let text = warning(&status(&place.path("a.status")), "uplink-mtu").unwrap();
    assert!(text.contains("1500") && text.contains("1400"), "{text}");
    ip("link delete up0");
    until("it is shown to be gone", || is("gone"));
    make_tap("up0", "");
    until("it is opened again", || is("up"));
    let now = status(&place.path("a.status"));
    assert_eq!(warning(&now, "uplink-mtu"), None);
    assert_carries(&place, &port);
    port.end();
}

/// It attaches to its device again, which may be another user's.
#[test]
fn uplink_keeps_the_capability_for_networks_alone() {
    if !enter() {
        return;
    }
    make_tap("up0", "");
    let place = Place::new();
    let port = uplinked(&place, "tap=up0").start();
    let sets = of_threads(&port, "CapPrm");
    // NET_ADMIN.
    let network = |set: &String| set == "0000000000001000";
    assert!(sets.values().all(network), "{sets:?}");
    port.end();
}

#[test]
fn uplink_that_is_shared_has_a_sandbox_around_each_thread() {
    if !enter() {
        return;
    }
    make_tap("u0", "");
    let place = Place::new();
    let uplink = with_status(&place, "u", place.uplink("u", "u0"));
    let document = status(&place.path("u.status"));
    assert_eq!(document["sandbox"]["mode"], "on");
    let walls = walls(&document);
    for wall in ["no_new_privileges", "capabilities", "system_calls"] {
        assert!(walls.contains(&wall), "{document}");
    }
    // Seccomp by a filter; NET_ADMIN alone.
    for (field, expected) in [
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("CapPrm", "0000000000001000"),
    ] {
        let threads = of_threads(&uplink, field);
        assert!(threads.contains_key("queue-0"), "{threads:?}");
        assert!(
            threads.values().all(|value| value == expected),
            "{threads:?}"
        );
    }
    uplink.end();
}

/// A port that takes the place of another one gets its device as well.
#[test]
fn uplink_passes_to_the_next_port() {
    if !enter() {
        return;
    }
    make_tap("up0", "");
    let place = Place::new();
    let command = uplinked(&place, "tap=up0");
    for _ in 0..3 {
        let port = command.start();
        port.signal(Signal::KILL);
        let next = command.start();
        assert_carries(&place, &next);
        next.end();
    }
}

/// Turns off what kernels say by themselves, on all devices to come.
pub(crate) fn silence() {
    for name in ["all", "default"] {
        let setting = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
        let _ = std::fs::write(setting, "1");
    }
}

/// A bridge with tap devices on it.
fn make_bridge(taps: &[&str]) {
    silence();
    ip("link add br0 type bridge");
    ip("link set br0 up");
    ip("addr add 10.0.0.254/24 dev br0");
    for tap in taps {
        make_tap(tap, "");
        ip(&format!("link set {tap} master br0"));
    }
}

/// A port or uplink with a status socket.
pub(crate) fn with_status(place: &Place, id: &str, command: PortCommand) -> Port {
    command
        .with("--status-socket", place.path(&format!("{id}.status")))
        .start()
}

fn counter(place: &Place, id: &str, name: &str) -> u64 {
    let now = status(&place.path(&format!("{id}.status")));
    now["counters"][0][name].as_u64().unwrap()
}

fn knows(place: &Place, id: &str, count: usize) -> bool {
    let now = status(&place.path(&format!("{id}.status")));
    now["peers"].as_array().unwrap().len() == count
}

const BROADCAST: &str = "ff:ff:ff:ff:ff:ff";
const ELSEWHERE: &str = "52:54:00:00:00:99";

/// What each of these ports has delivered to its guest.
fn delivered(place: &Place, ids: &[&str]) -> Vec<u64> {
    let count = |id: &&str| counter(place, id, "rx_frames");
    ids.iter().map(count).collect()
}

/// Ports with and without uplinks of their own, and shared uplinks: each broadcast reaches each
/// guest once, and the network once.
#[test]
fn uplink_that_is_shared_carries_each_broadcast_once() {
    if !enter() {
        return;
    }
    make_bridge(&["c0", "d0", "u0", "v0"]);
    let place = Place::new();
    let ids = ["a", "b", "c", "d"];
    let tap = |id| format!("tap={id}0");
    let ports: Vec<Port> = ids
        .iter()
        .map(|id| match *id {
            "a" | "b" => with_status(&place, id, place.command(id)),
            _ => with_status(&place, id, place.command(id).with("--uplink", tap(id))),
        })
        .collect();
    let uplink = with_status(&place, "u", place.uplink("u", "u0"));
    let standby = with_status(&place, "v", place.uplink("v", "v0").with("--priority", "9"));
    for id in ["a", "b", "c", "d", "u", "v"] {
        until("all know each other", || knows(&place, id, 5));
    }
    let is_active = |id: &str| status(&place.path(&format!("{id}.status")))["active"] == true;
    until("one is active", || is_active("u") && !is_active("v"));
    let mut guests: Vec<Guest> = ports.iter().map(|port| Guest::new(port, 1514)).collect();
    // Each has announced itself, to the network and so to those that are there already.
    let settled = |place: &Place| {
        let mut last = delivered(place, &ids);
        until("all is quiet", || {
            std::thread::sleep(std::time::Duration::from_millis(300));
            let now = delivered(place, &ids);
            std::mem::replace(&mut last, now.clone()) == now
        });
        last
    };
    let mut before = settled(&place);
    for (sender, id) in ids.iter().enumerate() {
        guests[sender].send(&address(id), BROADCAST, 100);
        let mut expected = before.clone();
        for (receiver, count) in expected.iter_mut().enumerate() {
            *count += u64::from(receiver != sender);
        }
        until(&format!("{expected:?} from {id}"), || {
            let now = delivered(&place, &ids);
            assert!(
                now.iter().zip(&expected).all(|(now, wanted)| now <= wanted),
                "{now:?}"
            );
            now == expected
        });
        before = settled(&place);
        assert_eq!(before, expected, "from {id}");
    }
    // Once from the port of each of these, and not from the others.
    for (id, count) in [("u", 2), ("v", 0)] {
        let sent = counter(&place, id, "uplink_tx_frames");
        assert!(sent >= count && (count != 0 || sent == 0), "{id}: {sent}");
    }
    drop((uplink, standby));
}

/// Ports without an uplink of their own use a shared one, and another one when it is gone.
#[test]
fn uplink_that_is_shared_is_replaced_by_the_next_one() {
    if !enter() {
        return;
    }
    make_bridge(&["u0", "v0"]);
    let place = Place::new();
    let port = with_status(&place, "a", place.command("a"));
    let mut uplink = with_status(&place, "u", place.uplink("u", "u0"));
    let _standby = with_status(&place, "v", place.uplink("v", "v0").with("--priority", "9"));
    for id in ["a", "u", "v"] {
        until("all know each other", || knows(&place, id, 2));
    }
    let mut guest = Guest::new(&port, 1514);
    let sent = |id: &str| counter(&place, id, "uplink_tx_frames");
    // The announcement.
    until("the guest is announced", || sent("u") > 0);
    let before = sent("u");
    guest.send(&address("a"), ELSEWHERE, 100);
    until("a frame for elsewhere goes by it", || {
        sent("u") == before + 1
    });
    // From the network to the guest.
    let neighbour = format!("neigh add 10.0.0.1 lladdr {} dev br0", address("a"));
    ip(&neighbour);
    let received = || counter(&place, "a", "rx_frames");
    let to_guest = || {
        let socket = UdpSocket::bind("10.0.0.254:0").unwrap();
        socket.send_to(b"x", "10.0.0.1:9").unwrap();
    };
    let before = received();
    to_guest();
    until("a frame comes by it", || received() == before + 1);
    uplink.signal(Signal::KILL);
    uplink.wait();
    until("the other one has taken over", || {
        status(&place.path("v.status"))["active"] == true && sent("v") > 0
    });
    let before = (sent("v"), received());
    guest.send(&address("a"), ELSEWHERE, 100);
    until("a frame for elsewhere goes by the other one", || {
        sent("v") == before.0 + 1
    });
    to_guest();
    until("a frame comes by the other one", || {
        received() == before.1 + 1
    });
}

/// A guest may be on another host, as before or after a migration.
#[test]
fn uplink_gets_frames_for_a_port_whose_guest_is_away() {
    if !enter() {
        return;
    }
    make_bridge(&["c0"]);
    let place = Place::new();
    let port = with_status(&place, "a", place.command("a"));
    let sender = with_status(&place, "c", place.command("c").with("--uplink", "tap=c0"));
    until("they know each other", || knows(&place, "c", 1));
    let mut guest = Guest::new(&sender, 1514);
    let counts = || {
        let uplink = counter(&place, "c", "uplink_tx_frames");
        (
            uplink,
            counter(&place, "a", "rx_frames"),
            counter(&place, "a", "rx_no_guest"),
        )
    };
    let is_away = || status(&place.path("c.status"))["peers"][0]["away"] == true;
    until("the guest is announced", || counts().0 > 0);
    for _ in 0..2 {
        until("it is away", is_away);
        let before = counts();
        guest.send(&address("c"), &address("a"), 100);
        until("its frame goes by the uplink", || {
            counts().0 == before.0 + 1
        });
        let other = Guest::new(&port, 1514);
        until("it is here", || !is_away());
        let before = counts();
        guest.send(&address("c"), &address("a"), 100);
        until("its frame goes by link", || {
            counts() == (before.0, before.1 + 1, before.2)
        });
        drop(other);
    }
    port.end();
}

/// The network knows a guest on another host by the same address.
#[test]
fn uplink_that_is_shared_lets_frames_of_a_guest_in_that_is_away() {
    if !enter() {
        return;
    }
    make_bridge(&["u0", "far0"]);
    let place = Place::new();
    let _away = with_status(&place, "a", place.command("a"));
    let port = with_status(&place, "b", place.command("b"));
    let _uplink = with_status(&place, "u", place.uplink("u", "u0"));
    for id in ["a", "b", "u"] {
        until("all know each other", || knows(&place, id, 2));
    }
    until("it is active", || {
        status(&place.path("u.status"))["active"] == true
    });
    let mut guest = Guest::new(&port, 1514);
    until("the guest is announced", || {
        counter(&place, "u", "uplink_tx_frames") > 0
    });
    // The guest of the same address, elsewhere.
    let elsewhere = Place::new();
    let far = elsewhere.command("a").with("--uplink", "tap=far0");
    let far = with_status(&elsewhere, "a", far);
    let mut moved = Guest::new(&far, 1514);
    let announced = || counter(&elsewhere, "a", "uplink_tx_frames") > 0;
    until("it is announced", announced);
    let received = || counter(&place, "b", "rx_frames");
    let before = received();
    moved.send(&address("a"), BROADCAST, 100);
    until("a frame comes from it", || received() > before);
    let there = || counter(&elsewhere, "a", "rx_frames");
    let before = there();
    guest.send(&address("b"), &address("a"), 100);
    until("a frame reaches it", || there() > before);
}

/// Addresses beside the ports' own, which move between two ports as with VRRP.
#[test]
fn uplink_that_is_shared_serves_allowed_addresses_where_they_are() {
    if !enter() {
        return;
    }
    make_bridge(&["u0"]);
    let place = Place::new();
    let allowing = |id| place.command(id).with("--allow-mac", "00:00:5e:00:01:*");
    let ports = ["a", "b"].map(|id| with_status(&place, id, allowing(id)));
    let _uplink = with_status(&place, "u", place.uplink("u", "u0"));
    for id in ["a", "b", "u"] {
        until("all know each other", || knows(&place, id, 2));
    }
    until("it is active", || {
        status(&place.path("u.status"))["active"] == true
    });
    let router = "00:00:5e:00:01:07";
    ip(&format!("neigh add 10.0.0.1 lladdr {router} dev br0"));
    let mut guests = ports.each_ref().map(|port| Guest::new(port, 1514));
    let sent = || counter(&place, "u", "uplink_tx_frames");
    until("the guests are announced", || sent() >= 2);
    let received = |id: &str| counter(&place, id, "rx_frames");
    for holder in [0, 1, 0] {
        let (id, other) = (["a", "b"][holder], ["b", "a"][holder]);
        let before = (sent(), received(other));
        guests[holder].send(router, BROADCAST, 100);
        until("all hear the router", || {
            sent() > before.0 && received(other) > before.1
        });
        let before = (received(id), received(other));
        let socket = UdpSocket::bind("10.0.0.254:0").unwrap();
        socket.send_to(b"x", "10.0.0.1:9").unwrap();
        until("a frame reaches the router", || received(id) > before.0);
        assert_eq!(received(other), before.1, "{other} is not the router");
    }
}

#[test]
fn uplink_that_is_shared_is_for_root_and_the_owner() {
    if !enter() {
        return;
    }
    make_tap("up0", "user 65534");
    let place = Place::new();
    let Some(command) = place.uplink("u", "up0").by_ordinary_user() else {
        return skip("no ordinary user can run the program");
    };
    // The owner.
    let command = command.with("--status-socket", place.path("u.status"));
    command.start().end();
    let uplink = command.start();
    // The directory becomes another user's: a port refuses what it finds there.
    std::os::unix::fs::chown(place.segment(), Some(0), Some(0)).unwrap();
    let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(place.segment(), anybody).unwrap();
    let port = with_status(&place, "a", place.command("a"));
    until("the port refuses the uplink", || {
        let now = status(&place.path("a.status"));
        let refused = now["refused"].to_string();
        refused.contains("User 65534 may not run an uplink") && now["peers"] == json!([])
    });
    until("the uplink knows", || {
        let refused = status(&place.path("u.status"))["refused"].to_string();
        refused.contains("may not run an uplink of this segment")
    });
    drop((port, uplink));
    let text = complaint(&place, &command, 2);
    assert!(text.contains("User 65534 may not run an uplink"), "{text}");
}
