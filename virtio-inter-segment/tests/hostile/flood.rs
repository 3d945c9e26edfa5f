//! Users that connect without end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Uid;
use virtio_inter_segment::Limits;
use virtio_inter_test_support::skip;

use crate::common::raw;
use crate::common::{Net, capture_log, limits, local, logged};

/// The port refuses connections of a user that makes too many with the reason of a busy port, after
/// which an honest connector tries again soon, and serves that user again some time later.
#[test]
fn connects_beyond_a_users_rate_are_refused_for_now() {
    capture_log();
    let mut net = Net::new();
    let limits = Limits {
        connect_burst: 5,
        connects_per_second: 2,
        ..limits()
    };
    net.join_with(local("rate-m"), limits).unwrap();
    let mut refused = 0;
    for _ in 0..20 {
        let socket = raw::connect(&net, "rate-m");
        raw::send(&socket, &raw::hello("", 1));
        let refusal = raw::until_closed(&mut net, &socket).unwrap();
        if refusal.reason == 10 {
            refused += 1;
            let uid = rustix::process::geteuid().as_raw();
            assert_eq!(
                refusal.text,
                format!(
                    "No room at this moment: user {uid} makes more than 2 connections a second"
                )
            );
        }
    }
    let stats = net.ports["rate-m"].segment.stats();
    assert_eq!((stats.accepted, stats.rate_limited), (20, refused));
    // The test may take a second itself.
    assert!((10..=15).contains(&refused), "{refused}");
    assert_eq!(logged(&["rate-m", "refuses all but 2 a second"]).len(), 1);
    // A port of the same user has to wait a little.
    net.join("n");
    net.until_meshed();
}

/// Connects to m as another user until `stop` is set. Returns the number of connections.
fn flood(net: &Net, stop: &Arc<AtomicBool>) -> thread::JoinHandle<usize> {
    let (directory, stop) = (net.path().to_owned(), Arc::clone(stop));
    thread::spawn(move || {
        // Of this thread only.
        let other = Uid::from_raw(65_533);
        rustix::thread::set_thread_res_uid(other, other, other).unwrap();
        let mut made = 0;
        while !stop.load(Ordering::Relaxed) {
            if raw::try_connect_in(&directory, "m").is_some() {
                made += 1;
            }
        }
        made
    })
}

/// A flood of one user costs a bounded number of accepts a second, and keeps no other user out.
#[test]
fn connect_flood_of_a_user_is_bounded_and_keeps_no_other_user_out() {
    use std::os::unix::fs::PermissionsExt;
    if !rustix::process::geteuid().is_root() {
        skip("only root can connect as another user");
        return;
    }
    let mut net = Net::new();
    std::fs::set_permissions(net.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    net.join_with(local("m"), Limits::default()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let started = Instant::now();
    let flood = flood(&net, &stop);
    let limited = |net: &Net| net.ports["m"].segment.stats().rate_limited;
    net.until("the flood to be noticed", |net| limited(net) > 2000);
    net.join("n");
    net.until_meshed();
    net.check_flow();
    // A second in which there is only the flood.
    let until = Instant::now() + Duration::from_secs(1);
    net.until("time to pass", |_| Instant::now() > until);
    let passed = started.elapsed();
    stop.store(true, Ordering::Relaxed);
    let made = flood.join().unwrap();
    let stats = net.ports["m"].segment.stats();
    let seconds = passed.as_millis() as u64 + 1;
    let refused = 128 + 10_000 * seconds / 1000 + 16;
    assert!(stats.rate_limited <= refused, "{stats:?} in {passed:?}");
    let served = 1024 + 128 * seconds / 1000 + 16;
    let accepted = stats.accepted - stats.rate_limited;
    assert!(accepted <= served, "{stats:?} in {passed:?}");
    assert!(made > 2000, "{made}");
}
