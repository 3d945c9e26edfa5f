//! Streams of data between mock VMs: one from each to each other, in order, hashed, repeated until
//! it is acknowledged. They are what TCP connections are to guests: a frame may be lost where a
//! port is killed, a stream may not.

use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::frame::{self, Fields, MAX_DATA, mix};
use super::progress::{PeerProgress, Progress};
use crate::Result;
use virtio_inter_test_support::Rng;

/// Frames of a stream that are under way at a time.
pub const WINDOW: u64 = 32;
/// Digests that are remembered: those of the window, and the one before it.
const DIGESTS: usize = 2 * WINDOW as usize;
/// Least and greatest time without an acknowledgement after which the window is sent again. Between
/// them, it is some times the round trip, and doubled by each attempt. A machine that does other
/// things has round trips of a second; what is sent again too early makes them longer.
const RETRY: u64 = Duration::from_millis(30).as_nanos() as u64;
const LAST_RETRY: u64 = Duration::from_secs(2).as_nanos() as u64;
const ROUND_TRIPS: u64 = 4;
/// Time in which a stream may send one more frame, up to a window at once: bursts fill rings, and
/// between them the machine has time for whatever else it runs.
const PACE: u64 = Duration::from_micros(500).as_nanos() as u64;

/// The streams from and to one other VM.
#[derive(Debug)]
struct Peer {
    number: u8,
    /// Its incarnation; 0: not known yet.
    epoch: u64,
    /// Number of the data to be sent next, and of those that it expects.
    next: u64,
    acknowledged: u64,
    /// One more than the greatest number that was ever sent.
    end: u64,
    digests: [u64; DIGESTS],
    /// When it last acknowledged data, or was sent all again, or a greeting.
    progress_at: u64,
    /// Time after that until the window is sent again.
    retry: u64,
    /// A frame that was sent once, and when: its acknowledgement tells the round trip.
    probe: Option<(u64, u64)>,
    /// When a frame of it came last.
    heard_at: u64,
    /// When a window may be sent at once: the time of each frame moves it on.
    full_at: u64,
    /// Number of the data that is expected of it, and the digest of those before.
    expected: u64,
    digest: u64,
    acknowledgement_due: bool,
    report: PeerProgress,
}

impl Peer {
    fn new(number: u8) -> Self {
        Self {
            number,
            epoch: 0,
            next: 0,
            acknowledged: 0,
            end: 0,
            digests: [0; DIGESTS],
            progress_at: 0,
            retry: RETRY,
            probe: None,
            heard_at: 0,
            full_at: 0,
            expected: 0,
            digest: 0,
            acknowledgement_due: false,
            report: PeerProgress::default(),
        }
    }

    /// Begins both streams again, with another incarnation.
    fn restart(&mut self, epoch: u64, now: u64) {
        *self = Self {
            epoch,
            progress_at: now,
            heard_at: now,
            full_at: self.full_at,
            acknowledgement_due: true,
            report: PeerProgress {
                last_delivery: 0,
                ..self.report
            },
            ..Self::new(self.number)
        };
    }

    fn digest_at(&mut self, number: u64) -> &mut u64 {
        &mut self.digests[(number % DIGESTS as u64) as usize]
    }
}

/// The streams of one VM.
#[derive(Debug)]
pub(super) struct Streams {
    own: u8,
    epoch: u64,
    peers: Vec<Peer>,
    /// The peer whose frame goes next.
    turn: usize,
    data: Vec<u64>,
    progress: Progress,
}

impl Streams {
    /// Streams of VM `own` to these others. Each incarnation of it has a greater epoch than all
    /// before.
    pub(super) fn new(own: u8, peers: &[u8], epoch: u64) -> Self {
        Self {
            own,
            epoch,
            peers: peers.iter().map(|number| Peer::new(*number)).collect(),
            turn: 0,
            data: Vec::new(),
            progress: Progress {
                epoch,
                ..Progress::default()
            },
        }
    }

    /// What has come in and gone out so far.
    pub(super) fn progress(&self) -> Progress {
        let mut progress = self.progress;
        for peer in &self.peers {
            progress.peers[usize::from(peer.number)] = peer.report;
        }
        progress
    }

    /// Handles a frame that came in.
    ///
    /// # Errors
    ///
    /// A frame that is not as it was sent, or that does not belong here.
    pub(super) fn receive(&mut self, frame: &[u8], now: u64) -> Result<()> {
        let (fields, hash) = frame::read(frame)?;
        let (own, epoch) = (self.own, self.epoch);
        ensure!(fields.to == own, "A frame for another: {fields:?}");
        let mut peers = self.peers.iter_mut();
        let peer = peers.find(|peer| peer.number == fields.from);
        let peer = peer.with_context(|| format!("A frame from nobody: {fields:?}"))?;
        self.progress.received += 1;
        if fields.from_epoch < peer.epoch {
            self.progress.stale += 1;
            return Ok(());
        }
        if fields.from_epoch > peer.epoch {
            peer.restart(fields.from_epoch, now);
        }
        if now - peer.heard_at > peer.retry {
            // It is back, after it was silent for so long that the time between attempts has grown.
            peer.retry = RETRY;
        }
        peer.heard_at = now;
        if fields.to_epoch != epoch {
            // It does not know this incarnation yet.
            ensure!(fields.to_epoch < epoch, "From the future: {fields:?}");
            self.progress.stale += 1;
            peer.acknowledgement_due = true;
            return Ok(());
        }
        if fields.acknowledged > peer.acknowledged {
            ensure!(
                fields.acknowledged <= peer.end,
                "Acknowledges more than the {} that were sent: {fields:?}",
                peer.end
            );
            peer.acknowledged = fields.acknowledged;
            peer.next = peer.next.max(fields.acknowledged);
            peer.progress_at = now;
            if let Some((number, sent)) = peer.probe
                && number < fields.acknowledged
            {
                peer.probe = None;
                peer.retry = (ROUND_TRIPS * (now - sent)).clamp(RETRY, LAST_RETRY);
            }
        }
        let Some(sequence) = fields.sequence else {
            return Ok(());
        };
        peer.acknowledgement_due = true;
        if sequence < peer.expected {
            self.progress.repeated += 1;
            return Ok(());
        }
        if sequence > peer.expected {
            self.progress.missing += 1;
            return Ok(());
        }
        let digest = mix(peer.digest, hash);
        if digest != fields.digest {
            bail!("The stream has the digest {digest:#x} and should have: {fields:?}");
        }
        peer.digest = digest;
        peer.expected += 1;
        let report = &mut peer.report;
        report.delivered += 1;
        if report.last_delivery != 0 {
            report.worst_gap = report.worst_gap.max(now - report.last_delivery);
        }
        report.last_delivery = now;
        Ok(())
    }

    /// Writes the next frame that is to go out. False: there is none.
    pub(super) fn send(&mut self, now: u64, out: &mut Vec<u8>) -> bool {
        for _ in 0..self.peers.len() {
            let turn = self.turn;
            self.turn = (turn + 1) % self.peers.len();
            if let Some(fields) = self.next_of(turn, now) {
                frame::write(&fields, &self.data, out);
                self.progress.sent += 1;
                return true;
            }
        }
        false
    }

    fn next_of(&mut self, turn: usize, now: u64) -> Option<Fields> {
        let (own, epoch) = (self.own, self.epoch);
        let peer = &mut self.peers[turn];
        let late = now.saturating_sub(peer.progress_at) > peer.retry;
        self.data.clear();
        let mut fields = Fields {
            from: own,
            to: peer.number,
            from_epoch: epoch,
            to_epoch: peer.epoch,
            sequence: None,
            acknowledged: peer.expected,
            digest: 0,
        };
        if peer.epoch == 0 {
            if late {
                peer.progress_at = now;
                return Some(fields);
            }
            return None;
        }
        if late && peer.next > peer.acknowledged {
            peer.next = peer.acknowledged;
            peer.progress_at = now;
            peer.retry = (2 * peer.retry).min(LAST_RETRY);
            peer.probe = None;
            self.progress.retries += 1;
        }
        let is_paced = peer.full_at > now + (WINDOW - 1) * PACE;
        if is_paced || peer.next >= peer.acknowledged + WINDOW {
            return std::mem::take(&mut peer.acknowledgement_due).then_some(fields);
        }
        if peer.next == peer.acknowledged {
            // Nothing was under way, so nothing was late.
            peer.progress_at = now;
        }
        let number = peer.next;
        let seed = mix(mix(epoch, peer.epoch), number);
        let mut rng = Rng::new(seed ^ u64::from(own) << 8 ^ u64::from(peer.number));
        let len = match rng.below(3) {
            0 => rng.below(8),
            1 => MAX_DATA as u64 - rng.below(8),
            _ => rng.below(MAX_DATA as u64 + 1),
        };
        self.data.extend((0..len).map(|_| rng.word()));
        let before = match number {
            0 => 0,
            _ => *peer.digest_at(number - 1),
        };
        fields.digest = mix(before, frame::hash(self.data.iter().copied()));
        *peer.digest_at(number) = fields.digest;
        fields.sequence = Some(number);
        peer.next = number + 1;
        if peer.next > peer.end {
            peer.end = peer.next;
            peer.probe = peer.probe.or(Some((number, now)));
        }
        peer.acknowledgement_due = false;
        peer.full_at = peer.full_at.max(now) + PACE;
        Some(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: u64 = 1_000_000;

    /// Two VMs, with `lose` to say which frames between them are lost, for so many steps of 1 ms.
    fn exchange(
        vms: &mut [Streams; 2],
        now: &mut u64,
        steps: u64,
        mut lose: impl FnMut(&mut Vec<u8>) -> bool,
    ) -> Result<()> {
        let mut frame = Vec::new();
        for _ in 0..steps {
            *now += STEP;
            for from in 0..2 {
                for _ in 0..20 {
                    if vms[from].send(*now, &mut frame) && !lose(&mut frame) {
                        vms[1 - from].receive(&frame, *now)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn pair() -> [Streams; 2] {
        [Streams::new(1, &[2], 100), Streams::new(2, &[1], 200)]
    }

    fn delivered(vms: &[Streams; 2]) -> [u64; 2] {
        [(0, 2), (1, 1)].map(|(at, from): (usize, usize)| {
            let progress = vms[at].progress();
            progress.peers[from].delivered
        })
    }

    #[test]
    fn mock_vm_streams_without_loss_repeat_nothing() {
        let (mut vms, mut now) = (pair(), STEP);
        exchange(&mut vms, &mut now, 200, |_| false).unwrap();
        // Two frames in each millisecond after the greeting, and a window before.
        let expected = 340..=400 + WINDOW;
        let delivered = delivered(&vms);
        assert!(
            delivered.iter().all(|count| expected.contains(count)),
            "{delivered:?}"
        );
        for vm in &vms {
            let Progress {
                missing, repeated, ..
            } = vm.progress();
            assert_eq!((missing, repeated), (0, 0));
        }
    }

    #[test]
    fn mock_vm_streams_survive_loss() {
        let (mut vms, mut now, mut rng) = (pair(), STEP, Rng::new(1));
        exchange(&mut vms, &mut now, 2000, |_| rng.below(50) == 0).unwrap();
        assert!(delivered(&vms).iter().all(|count| *count > 1000));
        assert_ne!(vms[0].progress().missing, 0);
    }

    #[test]
    fn mock_vm_streams_begin_again_with_another_incarnation() {
        let (mut vms, mut now) = (pair(), STEP);
        exchange(&mut vms, &mut now, 100, |_| false).unwrap();
        let before = delivered(&vms);
        vms[1] = Streams::new(2, &[1], 300);
        exchange(&mut vms, &mut now, 100, |_| false).unwrap();
        let after = delivered(&vms);
        assert!(after[0] > before[0] + WINDOW, "{before:?} {after:?}");
        assert!(after[1] > WINDOW, "{before:?} {after:?}");
    }

    #[test]
    fn mock_vm_stream_reports_a_frame_with_a_wrong_hash() {
        let (mut vms, mut now, mut count) = (pair(), STEP, 0);
        let error = exchange(&mut vms, &mut now, 100, |frame| {
            count += 1;
            if count == 300 {
                frame[40] ^= 1;
            }
            false
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("says"), "{error}");
    }

    #[test]
    fn mock_vm_stream_reports_data_that_was_never_sent() {
        let (mut vms, mut now) = (pair(), STEP);
        exchange(&mut vms, &mut now, 100, |_| false).unwrap();
        // A frame that is right in itself, with a part of the stream left out.
        let (mut frame, peer) = (Vec::new(), &vms[1].peers[0]);
        let fields = Fields {
            from: 1,
            to: 2,
            from_epoch: 100,
            to_epoch: 200,
            sequence: Some(peer.expected),
            acknowledged: 0,
            digest: 1,
        };
        frame::write(&fields, &[1], &mut frame);
        let error = vms[1].receive(&frame, now).unwrap_err().to_string();
        assert!(error.contains("digest"), "{error}");
    }
}
