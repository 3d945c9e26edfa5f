//! A hostile member of a segment beside honest ports, each a process of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use virtio_inter_test_support::note;

use crate::members::{self, Member, frame, number};
use crate::process::{Place, TIMEOUT};
use crate::vandal;

/// Who sends to whom.
const PAIRS: [(usize, usize); 4] = [(0, 1), (1, 0), (2, 3), (3, 2)];
/// Frames that each pair has to exchange beside the vandal, and the least time that they have.
const FRAMES: u32 = 2000;
const TIME: Duration = Duration::from_secs(3);
/// Time for which the pairs exchange frames without the vandal.
const ALONE: Duration = Duration::from_secs(1);
/// One frame of so many is for the vandal, so that ports have rings to it.
const FOR_THE_VANDAL: u32 = 16;

/// The frames of two pairs arrive as they were sent and in order, whatever the vandal does; those
/// that ports drop where a ring is full are missing. Nothing comes from anybody but the partner and
/// the vandal, honest ports stay linked with each other, and all end in good order.
#[test]
fn hostile_port_beside_two_honest_pairs_spoils_no_payload() {
    let place = Place::new();
    let mut members = members::start(&place, 4, |command| command);
    let mut traffic = Traffic::default();
    let alone = traffic.run(&mut members, ALONE, 1);
    let is_over = AtomicBool::new(false);
    let (deeds, beside) = thread::scope(|scope| {
        let (segment, is_over) = (place.segment(), &is_over);
        let vandal =
            scope.spawn(move || vandal::run(segment, 1, || is_over.load(Ordering::Relaxed)));
        let _over = OnDrop(is_over);
        let beside = traffic.run(&mut members, TIME, FRAMES);
        is_over.store(true, Ordering::Relaxed);
        (vandal.join().unwrap(), beside)
    });
    note(&format!(
        "{alone:.0} frames a second alone, {beside:.0} beside {deeds:?}, {} missing of {}",
        traffic.missing(),
        traffic.next.iter().sum::<u32>(),
    ));
    assert!(deeds.joins > 1 && deeds.records > 100, "{deeds:?}");
    assert!(deeds.forged > 0, "{deeds:?}");
    assert!(
        deeds.words > 0 || !vandal::is_alone_in_process(),
        "{deeds:?}"
    );
    for (this, member) in members.iter().enumerate() {
        let log = member.port.log();
        for other in (0..members.len()).filter(|other| *other != this) {
            // There is a line for each link that comes up or goes down.
            let link = format!("link with {}", members::name(other));
            assert_eq!(log.matches(&link).count(), 1, "{this} and {other}: {log}");
        }
    }
    for member in members {
        member.port.end();
    }
}

/// Ends the vandal also where an assertion fails.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What the pairs have exchanged.
#[derive(Default)]
struct Traffic {
    sent: [u32; 4],
    received: [u32; 4],
    /// The least number that the next frame may have.
    next: [u32; 4],
}

impl Traffic {
    /// Has all pairs send, until this time has passed and each has received so many frames.
    /// Returns the frames a second of all pairs together.
    fn run(&mut self, members: &mut [Member], time: Duration, frames: u32) -> f64 {
        let (start, before) = (Instant::now(), self.received);
        let mut progress = start;
        let has_too_few = |received: &[u32; 4]| {
            let mut pairs = received.iter().zip(&before);
            pairs.any(|(now, before)| now - before < frames)
        };
        while has_too_few(&self.received) || start.elapsed() < time {
            self.send(members);
            if self.receive(members) {
                progress = Instant::now();
            }
            assert!(progress.elapsed() < TIMEOUT, "{:?} came", self.received);
        }
        let moved = self.received.iter().sum::<u32>() - before.iter().sum::<u32>();
        f64::from(moved) / start.elapsed().as_secs_f64()
    }

    fn send(&mut self, members: &mut [Member]) {
        for (&(from, to), sent) in PAIRS.iter().zip(&mut self.sent) {
            let guest = &mut members[from].guest;
            if *sent % FOR_THE_VANDAL == 0 && guest.can_post() {
                guest.post(&frame_to_vandal(from));
            }
            if guest.can_post() {
                guest.post(&frame(from, to, *sent));
                *sent += 1;
            }
        }
    }

    /// True: at least one frame came.
    fn receive(&mut self, members: &mut [Member]) -> bool {
        let mut came = false;
        for (pair, &(from, to)) in PAIRS.iter().enumerate() {
            while let Some(bytes) = members[to].guest.receive() {
                if bytes[6..12] == vandal::MAC.octets() {
                    continue;
                }
                let (number, next) = (number(&bytes), self.next[pair]);
                assert!(
                    number >= next,
                    "{from} to {to}: {number} came, {next} is due"
                );
                assert_eq!(bytes, frame(from, to, number), "{from} to {to}: {number}");
                self.next[pair] = number + 1;
                self.received[pair] += 1;
                came = true;
            }
        }
        came
    }

    /// Frames that others have overtaken.
    fn missing(&self) -> u32 {
        self.next.iter().sum::<u32>() - self.received.iter().sum::<u32>()
    }
}

fn frame_to_vandal(from: usize) -> Vec<u8> {
    let mut bytes = frame(from, from, 0);
    bytes[..6].copy_from_slice(&vandal::MAC.octets());
    bytes
}
