//! A doorbell wakes, never blocks, and is an eventfd.
#![cfg(not(any(miri, loom)))]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, epoll};
use rustix::fs::OFlags;
use rustix::time::{ClockId, TimerfdClockId, TimerfdFlags, clock_gettime};
use virtio_inter_link::{
    Doorbell, DoorbellError, MIN_CAPACITY, Receiver, ReceiverPage, Record, Region, RingCost,
    Sender, Violation,
};
use virtio_inter_test_support::epoll_watches::watch;
use virtio_inter_test_support::skip;

mod support;
use support::Waiter;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn doorbell_wakes_once_per_ring_without_a_read() {
    let doorbell = Doorbell::new().unwrap();
    let waiter = Waiter::new(doorbell.as_fd());
    assert!(!waiter.wait(Duration::ZERO));
    // More often than an asynchronous I/O context has room for completions.
    for _ in 0..5_000 {
        doorbell.ring();
        assert!(waiter.wait(SOON));
        assert!(!waiter.wait(Duration::ZERO));
    }
}

#[test]
fn clone_and_a_handle_of_the_peer_are_the_same_bell() {
    let doorbell = Doorbell::new().unwrap();
    let theirs = Doorbell::from_fd(doorbell.as_fd().try_clone_to_owned().unwrap()).unwrap();
    let waiter = Waiter::new(doorbell.as_fd());
    waiter.wait(Duration::ZERO);
    for other in [&theirs, &doorbell.try_clone().unwrap()] {
        other.ring();
        assert!(waiter.wait(SOON));
    }
}

#[test]
fn rings_of_many_threads_arrive() {
    let doorbell = Doorbell::new().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..5_000).for_each(|_| doorbell.ring()));
        }
    });
    let mut count = [0; 8];
    rustix::io::read(&doorbell, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 20_000);
}

#[test]
fn peer_that_fills_the_counter_and_asks_for_blocking_holds_nobody_up() {
    let doorbell = Doorbell::new().unwrap();
    let waiter = Waiter::new(doorbell.as_fd());
    rustix::io::write(&doorbell, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    rustix::fs::fcntl_setfl(&doorbell, OFlags::empty()).unwrap();
    waiter.wait(Duration::ZERO);
    let start = Instant::now();
    for _ in 0..1_000 {
        doorbell.ring();
        assert!(waiter.wait(SOON), "and its waiter hears of it all the same");
    }
    assert!(start.elapsed() < SOON);
    let taken = Doorbell::from_fd(doorbell.as_fd().try_clone_to_owned().unwrap());
    assert!(taken.is_ok() && start.elapsed() < SOON);
}

#[test]
fn doorbell_that_is_no_eventfd_is_refused() {
    let (reader, writer) = std::io::pipe().unwrap();
    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC);
    let others: [(&str, OwnedFd); 6] = [
        ("pipe's reader", reader.into()),
        ("pipe's writer", writer.into()),
        ("file", File::open("/proc/self/exe").unwrap().into()),
        ("device", File::create("/dev/null").unwrap().into()),
        ("epoll", epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()),
        ("timer", timer.unwrap()),
    ];
    for (what, fd) in others {
        let error = Doorbell::from_fd(fd).expect_err(what);
        assert!(
            matches!(error, DoorbellError::NotEventfd),
            "{what}: {error}"
        );
        assert_eq!(error.to_string(), "Doorbell's descriptor is not an eventfd");
    }
    Doorbell::from_fd(rustix::event::eventfd(0, EventfdFlags::empty()).unwrap()).unwrap();
}

/// Who has an eventfd can make each signal of it slow, by epoll watches. The thread that rings pays
/// for that once.
#[test]
fn doorbell_with_many_watches_is_a_violation() {
    let cost: Arc<RingCost> = Arc::default();
    let region = Region::create(MIN_CAPACITY).unwrap();
    let theirs = Region::open(region.fd().try_clone_to_owned().unwrap(), MIN_CAPACITY).unwrap();
    let page = ReceiverPage::create().unwrap();
    let answer = ReceiverPage::open(page.fd().try_clone_to_owned().unwrap()).unwrap();
    let data_doorbell = Doorbell::new().unwrap();
    let (theirs_data, bell) = (
        data_doorbell.try_clone().unwrap(),
        data_doorbell.try_clone().unwrap(),
    );
    let space_doorbell = || Doorbell::new().unwrap();
    let mut receiver = Receiver::new(theirs, page, theirs_data, space_doorbell());
    let mut sender = Sender::new(region, data_doorbell.for_peer(&cost), space_doorbell());
    sender.attach(answer).unwrap();
    let mut ring = |times: usize| {
        for i in 0..times {
            while receiver.peek().unwrap().map(Record::consume).is_some() {}
            receiver.release().unwrap();
            assert!(receiver.arm_data_doorbell().unwrap());
            sender.reserve(8).unwrap().unwrap().commit();
            if let Err(violation) = sender.publish() {
                return Err((i, violation));
            }
        }
        Ok(())
    };
    assert_eq!(ring(1000), Ok(()));
    let watches = match watch(bell.as_fd(), 400) {
        Ok(watches) => watches,
        Err(why) => return skip(&why),
    };
    let clock = |id| Duration::try_from(clock_gettime(id)).unwrap();
    let used = || [ClockId::ThreadCPUTime, ClockId::ProcessCPUTime].map(clock);
    let before = used();
    let (rings, violation) = (1..10_000)
        .find_map(|rings| match ring(1) {
            Ok(()) => {
                sleep(Duration::from_millis(1));
                None
            }
            Err((_, violation)) => Some((rings, violation)),
        })
        .unwrap();
    assert_eq!(violation, Violation::SlowDoorbell);
    assert!(cost.wants_ringer() && rings >= 8, "{rings}");
    let [by_this, by_all] = std::array::from_fn(|i| used()[i] - before[i]);
    assert!(by_this < by_all / 2, "{by_this:?} of {by_all:?}");
    drop(watches);
}
