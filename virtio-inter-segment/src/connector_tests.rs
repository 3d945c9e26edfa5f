//! Tests of the connector, with times by hand.

use std::os::unix::net::UnixListener;

use super::*;
use crate::directory::Directory;

const SLOW: Duration = Duration::from_secs(30);

fn id(text: &str) -> PortId {
    text.parse().unwrap()
}

/// Two different sockets.
fn sockets() -> [SocketId; 2] {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    ["x", "y"].map(|name| {
        let _ = UnixListener::bind(temp.path().join(format!("{name}.sock"))).unwrap();
        directory.socket(&id(name)).unwrap()
    })
}

#[test]
fn connector_tries_a_socket_once() {
    let (mut connector, [socket, _], now) = (Connector::new(SLOW, 0), sockets(), Instant::now());
    assert_eq!(connector.next_due(), None);
    assert!(connector.seen(&id("b"), socket, now));
    assert_eq!(connector.next_due(), Some(now));
    assert_eq!(connector.take_due(now), Some(id("b")));
    connector.seen(&id("b"), socket, now);
    assert_eq!(
        (connector.take_due(now), connector.next_due()),
        (None, None)
    );
}

#[test]
fn connector_pauses_double_up_to_a_bound_until_a_stable_link() {
    let (mut connector, [socket, _], mut now) =
        (Connector::new(SLOW, 0), sockets(), Instant::now());
    connector.seen(&id("b"), socket, now);
    let mut pauses = Vec::new();
    for outcome in [AttemptOutcome::Failed, AttemptOutcome::Lost(Duration::ZERO)]
        .into_iter()
        .cycle()
        .take(8)
    {
        assert_eq!(connector.take_due(now), Some(id("b")));
        connector.ended(&id("b"), outcome, now);
        let due = connector.next_due().unwrap();
        assert_eq!(connector.take_due(due - Duration::from_nanos(1)), None);
        pauses.push((due - now).as_millis());
        now = due;
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 3200, 3200]);
    connector.take_due(now).unwrap();
    connector.ended(&id("b"), AttemptOutcome::Lost(STABLE), now);
    assert_eq!(connector.next_due(), Some(now + FIRST_RETRY));
}

#[test]
fn connector_retries_refused_peers_rarely_and_dead_ones_never() {
    let (mut connector, [socket, _], now) = (Connector::new(SLOW, 0), sockets(), Instant::now());
    connector.seen(&id("b"), socket, now);
    connector.take_due(now).unwrap();
    connector.ended(&id("b"), AttemptOutcome::Refused, now);
    assert_eq!(connector.next_due(), Some(now + SLOW));
    connector.retry_refused(now);
    assert_eq!(connector.next_due(), Some(now + FIRST_RETRY));
    connector.take_due(now + FIRST_RETRY).unwrap();
    connector.ended(&id("b"), AttemptOutcome::Lost(STABLE), now);
    connector.retry_refused(now - SLOW);
    assert_eq!(connector.next_due(), Some(now + FIRST_RETRY));
    connector.take_due(now + FIRST_RETRY).unwrap();
    connector.ended(&id("b"), AttemptOutcome::WaitForNewSocket, now);
    connector.retry_refused(now);
    assert_eq!(connector.next_due(), None);
    connector.seen(&id("b"), socket, now);
    assert_eq!(connector.next_due(), None);
}

/// The queue of a port that somebody flooded is emptied now and then: attempts at short intervals
/// find it so.
#[test]
fn connector_tries_soon_where_a_queue_is_full() {
    let (mut connector, [socket, _], mut now) =
        (Connector::new(SLOW, 0), sockets(), Instant::now());
    connector.seen(&id("b"), socket, now);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        connector.take_due(now).unwrap();
        connector.ended(&id("b"), AttemptOutcome::QueueFull, now);
        let due = connector.next_due().unwrap();
        pauses.push((due - now).as_millis());
        now = due;
    }
    assert_eq!(pauses, [25, 50, 100, 200, 400, 800, 800, 800]);
    // The peer itself has not failed yet.
    assert!(!connector.keeps_failing(&id("b")));
    connector.take_due(now).unwrap();
    connector.ended(&id("b"), AttemptOutcome::Failed, now);
    assert_eq!(connector.next_due(), Some(now + FIRST_RETRY));
    now += FIRST_RETRY;
    connector.take_due(now).unwrap();
    connector.ended(&id("b"), AttemptOutcome::QueueFull, now);
    assert_eq!(connector.next_due(), Some(now + FIRST_RETRY / 4));
}

/// A limit may be reached for a moment or for good: the first retries come soon, later ones as
/// rarely as after any refusal.
#[test]
fn connector_retries_a_full_peer_more_and_more_rarely() {
    let (mut connector, [socket, _], mut now) =
        (Connector::new(SLOW, 0), sockets(), Instant::now());
    connector.seen(&id("b"), socket, now);
    let mut pauses = Vec::new();
    for _ in 0..11 {
        assert_eq!(connector.keeps_failing(&id("b")), pauses.len() > 2);
        connector.take_due(now).unwrap();
        connector.ended(&id("b"), AttemptOutcome::Full, now);
        let due = connector.next_due().unwrap();
        pauses.push((due - now).as_millis());
        now = due;
    }
    assert_eq!(
        pauses,
        [
            100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000
        ]
    );
}

#[test]
fn connector_spreads_attempts_that_failed_together() {
    let ([socket, _], now) = (sockets(), Instant::now());
    let due: Vec<Duration> = (1..=100u64)
        .map(|seed| {
            let mut connector = Connector::new(SLOW, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            connector.seen(&id("b"), socket, now);
            connector.take_due(now).unwrap();
            connector.ended(&id("b"), AttemptOutcome::Failed, now);
            connector.next_due().unwrap() - now
        })
        .collect();
    assert!(
        due.iter()
            .all(|due| (FIRST_RETRY..FIRST_RETRY * 3 / 2).contains(due)),
        "{due:?}"
    );
    let early = due.iter().filter(|due| **due < FIRST_RETRY * 5 / 4).count();
    assert!((25..75).contains(&early), "{due:?}");
}

#[test]
fn connector_tries_another_socket_at_once_whatever_the_last_one_did() {
    let now = Instant::now();
    let [old, new] = sockets();
    for outcome in [
        AttemptOutcome::Failed,
        AttemptOutcome::Refused,
        AttemptOutcome::WaitForNewSocket,
    ] {
        let mut connector = Connector::new(SLOW, 0);
        connector.seen(&id("b"), old, now);
        connector.take_due(now).unwrap();
        connector.ended(&id("b"), outcome, now);
        connector.seen(&id("b"), new, now);
        assert_eq!(connector.next_due(), Some(now), "{outcome:?}");

        let mut connector = Connector::new(SLOW, 0);
        connector.seen(&id("b"), old, now);
        connector.take_due(now).unwrap();
        connector.seen(&id("b"), new, now);
        connector.ended(&id("b"), outcome, now);
        assert_eq!(connector.next_due(), Some(now), "while busy, {outcome:?}");
    }
}

#[test]
fn connector_forgets_a_socket_that_is_gone() {
    let ([socket, _], now) = (sockets(), Instant::now());
    let mut connector = Connector::new(SLOW, 0);
    connector.seen(&id("b"), socket, now);
    connector.vanished(&id("b"));
    assert_eq!(connector.known(), []);
    connector.seen(&id("b"), socket, now);
    connector.take_due(now).unwrap();
    connector.vanished(&id("b"));
    assert_eq!(connector.known(), [id("b")]);
    connector.ended(&id("b"), AttemptOutcome::Lost(Duration::ZERO), now);
    assert_eq!(connector.known(), []);
    connector.seen(&id("b"), socket, now);
    connector.take_due(now).unwrap();
    connector.ended(&id("b"), AttemptOutcome::Gone, now);
    assert_eq!(connector.known(), []);
}

/// Sockets that never answer, many times as many as there are places, with the first ids.
#[test]
fn connector_does_not_let_silent_peers_delay_others() {
    const PLACES: usize = 64;
    const TIMEOUT: Duration = Duration::from_secs(5);
    let (mut connector, [socket, _], start) = (Connector::new(SLOW, 0), sockets(), Instant::now());
    for i in 0..1024 {
        connector.seen(&id(&format!("b{i}")), socket, start);
    }
    connector.seen(&id("c"), socket, start);
    let mut under_way: Vec<(Instant, PortId)> = Vec::new();
    let (mut now, mut good, mut attempts) = (start, Vec::new(), 0);
    while now < start + Duration::from_secs(1800) {
        while under_way.len() < PLACES
            && let Some(id) = connector.take_due(now)
        {
            attempts += 1;
            if id.as_str().starts_with('b') {
                under_way.push((now + TIMEOUT, id));
            } else {
                // A healthy one that is lost at once, again and again, and one that comes late.
                connector.ended(&id, AttemptOutcome::Lost(Duration::ZERO), now);
                good.push((id, now - start));
            }
        }
        now += Duration::from_millis(100);
        if now - start == Duration::from_secs(300) {
            connector.seen(&id("d"), socket, now);
        }
        let (over, rest): (Vec<_>, _) = under_way.into_iter().partition(|(end, _)| *end <= now);
        under_way = rest;
        for (_, id) in over {
            connector.ended(&id, AttemptOutcome::TimedOut, now);
        }
    }
    let attempts_at = |id: &'static str| good.iter().filter(move |(who, _)| who.as_str() == id);
    // In its turn the first time, and after each pause as soon as a place is free.
    let first = attempts_at("c").next().unwrap().1;
    assert!(first <= TIMEOUT * 17, "{first:?}");
    assert!(
        attempts_at("c").count() > 150,
        "{}",
        attempts_at("c").count()
    );
    let late = attempts_at("d").next().unwrap().1;
    assert!(late <= Duration::from_secs(300) + 2 * TIMEOUT, "{late:?}");
    // The silent ones get their turn too.
    assert!(attempts > 5 * 1024, "{attempts}");
}

#[test]
fn connector_pauses_after_silence_grow_long_and_end_with_it() {
    let (mut connector, [socket, other], mut now) =
        (Connector::new(SLOW, 0), sockets(), Instant::now());
    connector.seen(&id("b"), socket, now);
    for _ in 0..12 {
        connector.take_due(now).unwrap();
        connector.ended(&id("b"), AttemptOutcome::TimedOut, now);
        now = connector.next_due().unwrap();
    }
    connector.take_due(now).unwrap();
    connector.ended(&id("b"), AttemptOutcome::TimedOut, now);
    assert_eq!(connector.next_due(), Some(now + LAST_RETRY_SILENT));
    // It goes behind one that is due later, though not for ever.
    let later = now + LAST_RETRY_SILENT + Duration::from_secs(1);
    connector.seen(&id("c"), socket, later);
    assert_eq!(connector.take_due(later), Some(id("c")));
    connector.seen(&id("d"), socket, later + PRECEDENCE);
    assert_eq!(connector.take_due(later + PRECEDENCE), Some(id("b")));
    // Another socket is another process.
    connector.ended(&id("b"), AttemptOutcome::TimedOut, later);
    connector.seen(&id("b"), other, later);
    assert_eq!(connector.next_due(), Some(later));
}

#[test]
fn connector_bounds_the_number_of_peers() {
    let (mut connector, [socket, _], now) = (Connector::new(SLOW, 0), sockets(), Instant::now());
    for i in 0..MAX_TARGETS {
        assert!(connector.seen(&id(&format!("p{i}")), socket, now));
    }
    assert!(!connector.seen(&id("one-more"), socket, now));
    assert!(connector.seen(&id("p0"), socket, now));
    // A dead one makes room.
    let dead = connector.take_due(now).unwrap();
    connector.ended(&dead, AttemptOutcome::WaitForNewSocket, now);
    assert!(connector.seen(&id("one-more"), socket, now));
    assert_eq!(connector.known().len(), MAX_TARGETS);
    assert!(!connector.known().contains(&dead));
    assert!(!connector.seen(&dead, socket, now));
}

#[test]
fn connector_leaves_a_peer_alone_that_has_connected_itself() {
    let (mut connector, [socket, _], now) = (Connector::new(SLOW, 0), sockets(), Instant::now());
    connector.seen(&id("b"), socket, now);
    connector.take_due(now).unwrap();
    connector.accepted(&id("b"));
    // The end of the attempt that was given up says nothing any more.
    connector.ended(&id("b"), AttemptOutcome::Failed, now);
    assert_eq!(connector.next_due(), None);
    connector.accepted_ended(&id("b"), AttemptOutcome::Lost(STABLE), now);
    assert_eq!(connector.next_due(), Some(now + FIRST_RETRY));
    // Nor does that of a connection that is not the latest one.
    connector.accepted_ended(&id("b"), AttemptOutcome::Gone, now);
    assert_eq!(connector.known(), [id("b")]);
    // Peers that connect to this port and were never looked for are their own affair.
    connector.accepted(&id("c"));
    connector.accepted_ended(&id("c"), AttemptOutcome::Failed, now);
    assert!(!connector.knows(&id("c")));
}

/// Another port of the same attacker that leaves does not shorten the pauses.
#[test]
fn connector_retries_peers_that_broke_a_rule_ever_more_rarely() {
    let (mut connector, [socket, _], mut now) =
        (Connector::new(SLOW, 0), sockets(), Instant::now());
    connector.seen(&id("b"), socket, now);
    let mut violate = || {
        connector.take_due(now).unwrap();
        connector.ended(&id("b"), AttemptOutcome::Violation, now);
        connector.retry_refused(now);
        let due = connector.next_due().unwrap();
        let pause = (due - now).as_secs();
        now = due;
        pause
    };
    let pauses: Vec<_> = (0..9).map(|_| violate()).collect();
    assert_eq!(pauses, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);
    // Only a link that was up for as long makes them short again.
    for (lived, next) in [(3599, 3600), (3600, 30)] {
        connector.take_due(now).unwrap();
        let lived = Duration::from_secs(lived);
        connector.ended(&id("b"), AttemptOutcome::Lost(lived), now);
        now = connector.next_due().unwrap();
        connector.take_due(now).unwrap();
        connector.ended(&id("b"), AttemptOutcome::Violation, now);
        let due = connector.next_due().unwrap();
        assert_eq!((due - now).as_secs(), next);
        now = due;
    }
}

#[test]
fn connector_waits_a_while_for_a_peer_that_connects_itself() {
    let (mut connector, [socket, _], now) = (Connector::new(SLOW, 0), sockets(), Instant::now());
    connector.seen(&id("b"), socket, now);
    connector.take_due(now).unwrap();
    connector.ended(&id("b"), AttemptOutcome::Duplicate, now);
    connector.retry_refused(now);
    assert_eq!(connector.next_due(), Some(now + DUPLICATE_RETRY));
    assert!(!connector.keeps_failing(&id("b")));
    connector.accepted(&id("b"));
    assert_eq!(connector.next_due(), None);
}

#[test]
fn connector_comes_back_to_a_peer_that_was_turned_away_once_that_may_help() {
    let (mut connector, [socket, _], now) = (Connector::new(SLOW, 0), sockets(), Instant::now());
    connector.turned_away(&id("b"), socket);
    assert_eq!(connector.next_due(), None);
    connector.retry_refused(now);
    assert_eq!(connector.next_due(), Some(now + FIRST_RETRY));
    // It does not change what is under way with others.
    connector.seen(&id("c"), socket, now);
    connector.turned_away(&id("c"), socket);
    assert_eq!(connector.take_due(now), Some(id("c")));
    connector.turned_away(&id("c"), socket);
    connector.ended(&id("c"), AttemptOutcome::Failed, now);
    assert_eq!(connector.next_due(), Some(now + FIRST_RETRY));
}

/// Ports that start together do not all begin with the same peer.
#[test]
fn connector_begins_with_peers_in_an_order_of_its_own() {
    let ([socket, _], now) = (sockets(), Instant::now());
    let order = |seed| {
        let mut connector = Connector::new(SLOW, seed);
        for i in 10..42 {
            connector.seen(&id(&format!("p{i}")), socket, now);
        }
        let taken = std::iter::from_fn(|| connector.take_due(now));
        taken.collect::<Vec<_>>()
    };
    let (one, two) = (order(0x9e37_79b9_7f4a_7c15), order(0xd1b5_4a32_d192_ed03));
    assert_eq!((one.len(), two.len()), (32, 32));
    assert_ne!(one, two);
}
