//! Uplinks that cannot be used: one clear line, exit status 2, and nothing left behind.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{IFF_NO_PI, IFF_TAP, IFF_TUN, TUNSETIFF, c_int, ifreq};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::process::Place;
use crate::uplink::{enter, inherited, ip, make_tap, tap_fd};
use crate::usage::complaint;

/// A descriptor that is attached to a device with these flags, and that a child process inherits.
#[allow(unsafe_code, reason = "there is no safe TUNSETIFF")]
fn attached(name: &str, flags: c_int) -> OwnedFd {
    let queue = open("/dev/net/tun", OFlags::RDWR, Mode::empty()).unwrap();
    // SAFETY: numbers, characters and a union of those, for all of which zero is a value.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as i16;
    // SAFETY: the request is what the kernel expects, and lives until the call returns.
    let result = unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETIFF, &mut request) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    queue
}

#[test]
fn uplink_that_cannot_be_used_is_a_usage_error() {
    if !enter() {
        return;
    }
    for name in ["one0", "busy0", "small0", "plain0"] {
        make_tap(name, "");
    }
    ip("link set small0 mtu 1400");
    ip("tuntap add dev tun0 mode tun");
    let busy = inherited("busy0", 1);
    let plain = vec![attached("plain0", IFF_TAP | IFF_NO_PI)];
    let tun = vec![attached("tun0", IFF_TUN | IFF_NO_PI)];
    let null: OwnedFd = File::open("/dev/null").unwrap().into();
    fcntl_setfd(&null, FdFlags::empty()).unwrap();
    let null = vec![null];
    let place = Place::new();
    for (uplink, queues, reason) in [
        ("tap=none0", "1", "No tap device none0: create it first"),
        ("tap=lo", "1", "lo is no tap device"),
        ("tap=one0", "2", "has 1 queue, which is less than 2"),
        ("tap=busy0", "1", "in use by another process"),
        (
            "tap=small0",
            "1",
            "MTU 1400, which is smaller than the port's 1500",
        ),
        (&tap_fd(&null), "1", "not attached to a tap device"),
        (
            &tap_fd(&plain),
            "1",
            "plain0 was attached without virtio net headers",
        ),
        (&tap_fd(&tun), "1", "tun0 is no tap device"),
        (
            &tap_fd(&busy),
            "2",
            "1 descriptor(s) of a tap device do not fit 2",
        ),
        ("tap-fd=999", "1", "descriptor 999 of tap-fd= is not open"),
        ("tap-fd=1", "1", "no descriptor from 3 on"),
        ("up0", "1", "tap=NAME or tap-fd=N"),
    ] {
        let command = place.command("a").with("--uplink", uplink);
        let text = complaint(&place, &command.with("--queues", queues), 2);
        assert!(text.contains(reason), "{uplink}: {text}");
    }
}

/// The same device as the uplink of ports that have none.
#[test]
fn uplink_that_is_shared_and_cannot_be_used_is_a_usage_error() {
    if !enter() {
        return;
    }
    make_tap("one0", "");
    make_tap("small0", "");
    ip("link set small0 mtu 1400");
    let place = Place::new();
    for (tap, queues, reason) in [
        ("none0", "1", "No tap device none0: create it first"),
        ("lo", "1", "lo is no tap device"),
        ("one0", "2", "has 1 queue, which is less than 2"),
        ("small0", "1", "MTU 1400, which is smaller than"),
    ] {
        let command = place.uplink("u", tap).with("--queues", queues);
        let text = complaint(&place, &command, 2);
        assert!(text.contains(reason), "{tap}: {text}");
    }
}
