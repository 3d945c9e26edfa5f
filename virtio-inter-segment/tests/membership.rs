//! Ports that come and go, in every order: who gets which links, what flows over them.

mod common;

use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Net, PATIENCE, limits, local, readable};
use virtio_inter_common::MacAddr;
use virtio_inter_segment::{JoinError, Limits, LocalPort, Segment};

/// The owner may keep a segment on a thread of its own.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Segment>();
};

#[test]
fn two_ports_find_each_other_whoever_comes_first() {
    for order in [["a", "b"], ["b", "a"]] {
        let mut net = Net::new();
        for id in order {
            net.join(id);
        }
        net.until_meshed();
        net.check_flow();
        assert_eq!(net.ports["a"].links["b"].peer.mac, local("b").mac);
        assert_eq!(net.files(), ["a.lock", "a.sock", "b.lock", "b.sock"]);
        net.leave(order[0]);
        net.until_meshed();
        assert_eq!(net.ports[order[1]].downs.len(), 1);
        assert_eq!(net.ports[order[1]].downs[0].1, "Peer closed the connection");
        net.leave(order[1]);
        assert_eq!(net.files(), [""; 0]);
    }
}

#[test]
fn queues_of_different_numbers_are_paired() {
    let mut net = Net::new();
    for (id, queues) in [("a", 2), ("b", 3), ("c", 64)] {
        let mut port = local(id);
        port.queues = queues;
        net.join_as(port).unwrap();
    }
    net.until_meshed();
    net.check_flow();
    let numbers = |id: &str, peer: &str| {
        let link = &net.ports[id].links[peer];
        (link.senders.len(), link.receivers.len(), link.peer.queues)
    };
    assert_eq!(numbers("a", "b"), (2, 3, 3));
    assert_eq!(numbers("b", "a"), (3, 2, 2));
    assert_eq!(numbers("a", "c"), (2, 64, 64));
    assert_eq!(numbers("c", "b"), (64, 3, 3));
}

#[test]
fn guest_that_is_away_or_here_is_known_to_old_and_new_peers() {
    let mut net = Net::new();
    net.join("m");
    net.ports.get_mut("m").unwrap().segment.set_away(true);
    // One connects to it, and it connects to the other.
    for id in ["a", "z"] {
        net.join(id);
    }
    net.until_meshed();
    let away = |net: &Net, of: &str| net.ports[of].links["m"].peer.away;
    assert!(away(&net, "a") && away(&net, "z"));
    assert!(!net.ports["m"].links["a"].peer.away);
    for is_away in [false, true, false] {
        net.ports.get_mut("m").unwrap().segment.set_away(is_away);
        net.until("peers know", |net| {
            ["a", "z"].iter().all(|of| away(net, of) == is_away)
        });
    }
    assert_eq!(net.ports["a"].guest_events, 3);
}

#[test]
fn addresses_of_a_trunk_are_known_to_old_and_new_peers() {
    let mut net = Net::new();
    let trunk = |id: &str| LocalPort {
        trunk: true,
        ..local(id)
    };
    net.join_as(trunk("m")).unwrap();
    net.join("a");
    net.until_meshed();
    let addresses: Vec<MacAddr> = (0..100).map(|last| [2, 0, 0, 0, 1, last].into()).collect();
    let known = |net: &Net, of: &str| {
        let last = net.ports[of].addresses.last();
        last.map_or(0, |(_, addresses)| addresses.len())
    };
    for count in [1, 64, 100, 0, 3] {
        let segment = &mut net.ports.get_mut("m").unwrap().segment;
        segment.set_addresses(&addresses[..count]);
        net.until("the peer knows", |net| known(net, "a") == count.min(64));
    }
    assert!(net.ports["a"].links["m"].peer.trunk);
    net.join("z");
    net.until("the new peer knows", |net| known(net, "z") == 3);
    assert_eq!(net.ports["z"].addresses[0].1, addresses[..3]);
    // A port that is no trunk has none.
    let segment = &mut net.ports.get_mut("a").unwrap().segment;
    segment.set_addresses(&addresses);
    segment.set_away(true);
    net.until("the peer has heard", |net| net.ports["m"].guest_events == 1);
    assert!(net.ports["m"].addresses.is_empty());
}

#[test]
fn guest_that_comes_and_goes_in_a_loop_is_told_of_ten_times_a_second() {
    let mut net = Net::new();
    net.join("a");
    net.join("b");
    net.until_meshed();
    let start = Instant::now();
    for change in 0..10_001 {
        let segment = &mut net.ports.get_mut("a").unwrap().segment;
        segment.set_away(change % 2 == 0);
        if change % 100 == 0 {
            net.run_once(Duration::ZERO);
        }
    }
    net.until("the last state is known", |net| {
        net.ports["b"].links["a"].peer.away
    });
    let most = start.elapsed().as_millis() / 100 + 2;
    let events = net.ports["b"].guest_events as u128;
    assert!(events <= most, "{events} in {:?}", start.elapsed());
}

#[test]
fn three_ports_join_and_leave_in_every_order() {
    let orders = [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ];
    let ids = ["a", "b", "c"];
    for join in orders {
        for leave in orders {
            // Each step seen by all before the next one, or all steps at once.
            for settle in [true, false] {
                let mut net = Net::new();
                for i in join {
                    net.join(ids[i]);
                    if settle {
                        net.until_meshed();
                    }
                }
                net.until_meshed();
                net.check_flow();
                for i in leave {
                    net.leave(ids[i]);
                    if settle {
                        net.until_meshed();
                    }
                }
                assert_eq!(net.files(), [""; 0]);
            }
        }
    }
}

#[test]
fn ports_join_and_leave_in_shuffled_order() {
    let mut seed = 0x1234_5678_u32;
    let mut next = move |below: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 16) as usize % below
    };
    for _ in 0..5 {
        let mut net = Net::new();
        let mut ids: Vec<String> = (0..8).map(|i| format!("port-{i}")).collect();
        while !ids.is_empty() {
            net.join(&ids.swap_remove(next(ids.len())));
            if next(2) == 0 {
                net.run_once(Duration::ZERO);
            }
        }
        net.until_meshed();
        net.check_flow();
        let mut present: Vec<String> = net.ports.keys().cloned().collect();
        while !present.is_empty() {
            net.leave(&present.swap_remove(next(present.len())));
            if next(2) == 0 {
                net.until_meshed();
                net.check_flow();
            }
        }
        assert_eq!(net.files(), [""; 0]);
    }
}

/// All at the same time, from threads of their own.
#[test]
fn ports_join_all_at_once() {
    let net = Net::new();
    let joined: Vec<Segment> = std::thread::scope(|scope| {
        let path = net.path();
        let threads: Vec<_> = (0..8)
            .map(|i| {
                scope.spawn(move || {
                    Segment::join_with(path, local(&format!("p{i}")), limits()).unwrap()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let mut net = net;
    for (i, segment) in joined.into_iter().enumerate() {
        let mut port = common::Port::new(segment);
        port.queues = 1;
        net.ports.insert(format!("p{i}"), port);
    }
    net.until_meshed();
    net.check_flow();
}

#[test]
fn port_that_comes_back_gets_new_links() {
    for restarted in ["a", "b"] {
        let mut net = Net::new();
        net.join("a");
        net.join("b");
        net.until_meshed();
        let stays = if restarted == "a" { "b" } else { "a" };
        for _ in 0..10 {
            let before = net.ports[stays].links[restarted].peer.key;
            net.leave(restarted);
            net.join(restarted);
            net.until_meshed();
            net.until("the old link to go", |net| {
                net.ports[stays]
                    .links
                    .get(restarted)
                    .is_some_and(|l| l.peer.key != before)
            });
            net.until_meshed();
            net.check_flow();
        }
        assert_eq!(net.ports[stays].downs.len(), 10);
    }
}

#[test]
fn two_segments_hear_nothing_of_each_other() {
    let (mut one, mut two) = (Net::new(), Net::new());
    one.join("a");
    two.join("b");
    // Something that does happen on both, to have waited for.
    one.join("c");
    two.join("d");
    one.until_meshed();
    two.until_meshed();
    assert_eq!(one.ports["a"].peers(), ["c"]);
    assert_eq!(two.ports["b"].peers(), ["d"]);
}

#[test]
fn id_and_mac_address_are_had_once() {
    let mut net = Net::new();
    net.join("a");
    net.join("b");
    net.until_meshed();
    assert!(matches!(
        net.join_as(local("a")),
        Err(JoinError::IdTaken { .. })
    ));

    // Another id with the address of b: a and b both refuse it, and go on.
    for id in ["0", "c"] {
        let mut clash = local(id);
        clash.mac = local("b").mac;
        net.join_as(clash).unwrap();
        net.until("both to refuse it", |net| {
            let refusals = |port: &str| {
                let stats = net.ports[port].segment.stats();
                stats.refused + stats.refused_by_peer
            };
            refusals("a") > 0 && refusals("b") > 0 && refusals(id) >= 2
        });
        assert_eq!(net.ports["a"].peers(), ["b"]);
        assert_eq!(net.ports[id].peers(), [""; 0]);
        net.leave(id);
    }
}

/// Without waiting for the next slow retry.
#[test]
fn mac_address_that_gets_free_goes_to_who_waits_for_it() {
    let mut net = Net::new();
    let patient = Limits {
        slow_retry: Duration::from_secs(3600),
        ..limits()
    };
    net.join_with(local("a"), patient.clone()).unwrap();
    net.join_with(local("b"), patient.clone()).unwrap();
    net.until_meshed();
    let mut heir = local("c");
    heir.mac = local("b").mac;
    net.join_with(heir, patient).unwrap();
    net.until("a to refuse it", |net| {
        net.ports["a"].segment.stats().refused > 0
    });
    net.leave("b");
    net.until_meshed();
    net.check_flow();
}

/// A violation may be a false alarm, and a hostile peer only has to join again.
#[test]
fn peer_that_broke_a_rule_is_let_in_again_after_a_pause() {
    for offender in ["a", "b"] {
        let other = if offender == "a" { "b" } else { "a" };
        let mut net = Net::new();
        let patient = Limits {
            slow_retry: Duration::from_secs(3),
            ..limits()
        };
        for id in ["a", "b", "c"] {
            net.join_with(local(id), patient.clone()).unwrap();
        }
        net.until_meshed();
        let port = net.ports.get_mut(other).unwrap();
        let key = port.links[offender].peer.key;
        let closed = Instant::now();
        port.segment.close_peer(key, "Position 7 is behind 9");
        port.links.remove(offender);
        port.segment.close_peer(key, "a key that is gone already");
        let refused = &port.segment.refused()[0];
        assert_eq!(refused.reason, "Position 7 is behind 9");
        assert!(!refused.by_peer);
        net.until("the offender to learn of it", |net| {
            !net.ports[offender].links.contains_key(other)
        });
        let reason = &net.ports[offender].downs[0].1;
        assert_eq!(reason, "Peer refused the link: \"Position 7 is behind 9\"");
        // Others are not concerned.
        assert_eq!(net.ports[other].peers(), ["c"]);
        assert_eq!(net.ports[other].downs, []);
        assert_eq!(net.ports["c"].peers(), ["a", "b"]);
        net.until_meshed();
        assert!(closed.elapsed() >= patient.slow_retry);
        net.check_flow();
        assert_eq!(net.ports[other].segment.refused(), []);
    }
}

/// Of whichever of its ports the user's violations are, and whoever connects.
#[test]
fn user_that_breaks_rules_has_fewer_connections() {
    let mut net = Net::new();
    net.join("b");
    net.join("c");
    // 2 s in advance for a violation.
    let strict = Limits {
        slow_retry: Duration::from_millis(50),
        connect_burst: 256,
        connects_per_second: 128,
        ..limits()
    };
    net.join_with(local("a"), strict).unwrap();
    net.until_meshed();
    let a = net.ports.get_mut("a").unwrap();
    let closed = Instant::now();
    let key = a.links["b"].peer.key;
    a.segment.close_peer(key, "Position 7 is behind 9");
    a.links.remove("b");
    net.until("b to learn of it", |net| {
        !net.ports["b"].links.contains_key("a")
    });
    net.until_meshed();
    let passed = closed.elapsed();
    assert!(passed >= Duration::from_millis(1900), "{passed:?}");
}

/// Nothing to do, nothing readable: an idle segment costs no CPU.
#[test]
fn idle_segment_sleeps() {
    let mut net = Net::new();
    net.join("a");
    net.join("b");
    net.until_meshed();
    // What is still under way when the links are up: changes that concern nobody.
    net.until("quiet", |net| {
        net.ports
            .values()
            .all(|port| !readable(port.segment.fd(), Duration::ZERO))
    });
    for port in net.ports.values() {
        assert!(!readable(port.segment.fd(), Duration::from_millis(700)));
    }
}

#[test]
fn links_outlive_the_directory() {
    let mut net = Net::new();
    net.join("a");
    net.join("b");
    net.until_meshed();
    std::fs::remove_dir_all(net.path()).unwrap();
    net.run_once(Duration::ZERO);
    net.check_flow();
    net.until("quiet", |net| {
        net.ports
            .values()
            .all(|port| !readable(port.segment.fd(), Duration::ZERO))
    });
    net.leave("b");
    net.until_meshed();
}

/// Not a test: a port in a process of its own, for tests that kill it.
#[test]
fn child_port() {
    let Ok(directory) = std::env::var("SEGMENT_CHILD_DIRECTORY") else {
        return;
    };
    let mut net = Net::new();
    let segment = Segment::join_with(directory.as_ref(), local("child"), limits()).unwrap();
    net.ports
        .insert("child".to_owned(), common::Port::new(segment));
    // Ends by itself if its parent does not end it.
    net.until("the end", |_| false);
}

fn spawn_child(net: &Net) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_port", "--nocapture"])
        .env("SEGMENT_CHILD_DIRECTORY", net.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn killed_process_is_noticed_at_once_and_its_id_taken_over() {
    let mut net = Net::new();
    // One that accepts the child's connection, and one that connects to it.
    net.join("zzz");
    net.join("a");
    for round in 0..3 {
        let mut child = spawn_child(&net);
        let has_child = |net: &Net| net.ports.values().all(|p| p.links.contains_key("child"));
        net.until("the child", |net| has_child(net));
        let taken = net.join_as(local("child")).unwrap_err().to_string();
        assert!(
            taken.contains(&format!("process {}", child.id())),
            "{taken}"
        );
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd: OwnedFd =
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        assert!(readable(&pidfd, PATIENCE), "the child does not die");
        let died = Instant::now();
        child.wait().unwrap();
        net.until("its end", |net| {
            net.ports.values().all(|p| !p.links.contains_key("child"))
        });
        assert!(
            died.elapsed() < Duration::from_secs(1),
            "{:?}",
            died.elapsed()
        );
        assert!(
            net.files().contains(&"child.sock".to_owned()),
            "round {round}"
        );
        assert!(
            net.files().contains(&"child.lock".to_owned()),
            "round {round}"
        );
    }
    net.join("child");
    net.until_meshed();
    net.check_flow();
    net.leave("child");
    net.until_meshed();
    assert_eq!(net.files(), ["a.lock", "a.sock", "zzz.lock", "zzz.sock"]);
}

/// What this side fails at is not the peer's fault: both find each other again, whichever of them
/// calls, and other links stay.
#[test]
fn peer_dropped_for_want_of_resources_comes_back() {
    let mut net = Net::new();
    for id in ["a", "b", "c"] {
        net.join(id);
    }
    net.until_meshed();
    for (dropping, other) in [("a", "b"), ("b", "a")] {
        let started = Instant::now();
        let port = net.ports.get_mut(dropping).unwrap();
        let key = port.links.remove(other).unwrap().peer.key;
        port.segment.drop_peer(key, "Too many open files");
        port.segment.drop_peer(key, "a key that is gone already");
        net.until("the other side to hear why", |net| {
            !net.ports[other].downs.is_empty()
        });
        assert_eq!(
            net.ports.get_mut(other).unwrap().downs.remove(0).1,
            "Peer lacks resources for the link: \"Out of resources: Too many open files\""
        );
        net.until_meshed();
        assert_ne!(net.ports[dropping].links[other].peer.key, key);
        // Not the pause after a refusal, nor at once.
        assert!(started.elapsed() >= Duration::from_millis(100));
        assert_eq!(net.ports["c"].downs, []);
        assert_eq!(net.ports[dropping].downs, []);
    }
    net.check_flow();
}

/// Both go on without the other, and each knows of whom and why.
#[test]
fn refused_peers_are_known_to_both_sides_until_they_leave() {
    let mut net = Net::new();
    let mut twin = local("b");
    twin.mac = local("a").mac;
    net.join("a");
    net.join_as(twin).unwrap();
    net.join("c");
    net.until("each of the two knows of the other", |net| {
        [("a", "b"), ("b", "a")].iter().all(|(id, other)| {
            let refused = net.ports[*id].segment.refused();
            refused.iter().any(|peer| {
                let is_other = peer.peer.as_ref().is_some_and(|id| id.as_str() == *other);
                let mac = local("a").mac.to_string();
                // A second attempt, after a pause, is counted with the first.
                is_other && peer.is_conflict && peer.reason.contains(&mac) && peer.count > 1
            })
        })
    });
    net.leave("b");
    net.until("a is not concerned any more", |net| {
        net.ports["a"].segment.refused().is_empty() && net.ports["a"].links.contains_key("c")
    });
    assert!(net.ports["c"].segment.refused().is_empty());
}
