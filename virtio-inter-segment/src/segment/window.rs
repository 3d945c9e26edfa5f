//! Limits how many attempts to connect are under way: few at a time while peers answer, so that
//! each handshake is over soon.
//!
//! If many ports start at once and each connected to all others together, the connections would
//! queue up at the peers, and many would time out there, only to be made again. A peer that never
//! answers must not keep others waiting either: so the window opens while no peer answers, and an
//! attempt that later ones have overtaken does not count.
//!
//! See decision 0018.

use std::time::{Duration, Instant};

/// Attempts under way while peers answer.
const FEW: usize = 8;
/// With no answer for so long, as many more may be begun.
const STEP: Duration = Duration::from_millis(500);
/// Age at which an attempt that was overtaken no longer counts.
const SLOW: Duration = Duration::from_secs(1);

/// What is known of how peers answer.
#[derive(Debug)]
pub(super) struct ConnectWindow {
    /// When a peer last answered, or the first of the attempts under way was begun.
    progress: Instant,
    /// When the latest of the attempts that were answered had been begun.
    latest_answered: Option<Instant>,
}

impl ConnectWindow {
    pub(super) fn new(now: Instant) -> ConnectWindow {
        ConnectWindow {
            progress: now,
            latest_answered: None,
        }
    }

    /// An attempt begins, beside so many that are under way.
    pub(super) fn begun(&mut self, under_way: usize, now: Instant) {
        if under_way == 0 {
            self.progress = now;
        }
    }

    /// A peer has given any answer to the attempt that was begun then.
    pub(super) fn answered(&mut self, begun: Instant, now: Instant) {
        self.progress = now;
        self.latest_answered = self.latest_answered.max(Some(begun));
    }

    /// Whether a further attempt may begin beside those that are under way, which were begun then.
    pub(super) fn is_open(&self, attempts: impl Iterator<Item = Instant>, now: Instant) -> bool {
        let overtaken = |begun| {
            self.latest_answered > Some(begun) && now.saturating_duration_since(begun) >= SLOW
        };
        let count = attempts.filter(|&begun| !overtaken(begun));
        let steps = self.steps(now);
        count.count() < FEW.saturating_mul(steps.saturating_add(1))
    }

    /// When it opens further if nobody answers.
    pub(super) fn opens_at(&self, now: Instant) -> Instant {
        let steps = u32::try_from(self.steps(now)).unwrap_or(u32::MAX);
        self.progress + STEP * steps.saturating_add(1)
    }

    fn steps(&self, now: Instant) -> usize {
        let idle = now.saturating_duration_since(self.progress);
        usize::try_from(idle.as_millis() / STEP.as_millis()).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_opens_only_while_nobody_answers() {
        let start = Instant::now();
        let mut window = ConnectWindow::new(start);
        let room = |window: &ConnectWindow, now| {
            (0..).find(|&n| !window.is_open(std::iter::repeat_n(start, n), now))
        };
        assert_eq!(room(&window, start), Some(FEW));
        assert_eq!(window.opens_at(start), start + STEP);
        assert_eq!(room(&window, start + STEP), Some(2 * FEW));
        assert_eq!(room(&window, start + STEP * 7), Some(8 * FEW));
        assert_eq!(window.opens_at(start + STEP * 7), start + STEP * 8);
        window.answered(start, start + STEP * 8);
        assert_eq!(room(&window, start + STEP * 8), Some(FEW));
        // Time in which nothing was under way says nothing.
        window.begun(1, start + STEP * 9);
        assert_eq!(room(&window, start + STEP * 9), Some(2 * FEW));
        window.begun(0, start + STEP * 9);
        assert_eq!(room(&window, start + STEP * 9), Some(FEW));
    }

    #[test]
    fn window_is_not_closed_by_attempts_that_were_overtaken() {
        let start = Instant::now();
        let mut window = ConnectWindow::new(start);
        let silent = || std::iter::repeat_n(start, FEW);
        window.answered(start + STEP / 2, start + STEP);
        assert!(!window.is_open(silent(), start + STEP));
        window.answered(start + STEP, start + SLOW);
        assert!(window.is_open(silent(), start + SLOW));
    }
}
