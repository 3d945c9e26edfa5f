//! Signals by which the kernel answers a write: ignored, so that the write fails instead.
#![allow(
    unsafe_code,
    reason = "signal(2) is unsafe for handlers; this module sets none"
)]

use std::sync::atomic::{AtomicU8, Ordering};

/// A file would grow beyond RLIMIT_FSIZE: by default the process dies. A terminal with
/// `stty tostop` is written to, or changed, or read from in the background: by default the process
/// stops.
const SIGNALS: [libc::c_int; 3] = [libc::SIGXFSZ, libc::SIGTTOU, libc::SIGTTIN];

/// Which of [`SIGNALS`] were not ignored before, as bits.
static CHANGED: AtomicU8 = AtomicU8::new(0);

/// Ignores them. A process that is executed would inherit that: see [`restore`].
pub(crate) fn ignore() {
    for (bit, signal) in SIGNALS.into_iter().enumerate() {
        // SAFETY: an ignored signal runs no handler.
        let before = unsafe { libc::signal(signal, libc::SIG_IGN) };
        if before != libc::SIG_IGN {
            CHANGED.fetch_or(1 << bit, Ordering::Relaxed);
        }
    }
}

/// Makes the signals what they were when this process was started. Only makes system calls, so it
/// may be called between fork and exec.
pub(crate) fn restore() {
    let changed = CHANGED.load(Ordering::Relaxed);
    for (bit, signal) in SIGNALS.into_iter().enumerate() {
        if changed & 1 << bit != 0 {
            // SAFETY: the default action runs no handler.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}
