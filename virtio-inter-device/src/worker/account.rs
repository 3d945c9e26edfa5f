//! The kernel's account of what a thread got of its CPU, and whether that was too little.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Time in which a thread wanted to run, below which a window tells nothing yet.
const TOO_LITTLE: Duration = Duration::from_millis(10);
/// A thread that ran for less than one part in so many of the time in which it wanted to is starved. By its weight one that is ten
/// nicer has one part in ten beside one other thread; a guest is one or two.
const PARTS: u32 = 16;

/// What a thread has got of its CPU so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) ran: Duration,
    /// Could have run, but another thread did.
    pub(super) waited: Duration,
}

impl Share {
    /// How long the thread wanted to run from `former` on, whether it did or not. For `looked_on` of that time there was
    /// nothing to wait for.
    pub(super) fn wanted_since(self, former: Share, looked_on: Duration) -> Duration {
        let waited = self.waited.saturating_sub(former.waited);
        self.ran.saturating_sub(former.ran) + waited.saturating_sub(looked_on)
    }

    /// Whether too little of that was run; none where it cannot be told yet.
    pub(super) fn is_starved_since(self, former: Share, looked_on: Duration) -> Option<bool> {
        let ran = self.ran.saturating_sub(former.ran);
        let wanted = self.wanted_since(former, looked_on);
        (wanted >= TOO_LITTLE).then_some(ran * PARTS < wanted)
    }
}

/// The kernel's account of one thread.
#[derive(Debug)]
pub(crate) struct Account(File);

impl Account {
    /// Of the calling thread. The descriptor stays that thread's account.
    pub(crate) fn of_this_thread() -> io::Result<Self> {
        File::open("/proc/thread-self/schedstat").map(Account)
    }

    /// Three numbers: nanoseconds run, nanoseconds waited, time slices (Linux, `Documentation/scheduler/sched-stats.rst`).
    pub(super) fn read(&self) -> io::Result<Share> {
        let mut text = [0; 64]; // At most 3 × 20 digits, two spaces, a line feed.
        let len = self.0.read_at(&mut text, 0)?;
        parse(&text[..len]).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

fn parse(text: &[u8]) -> Option<Share> {
    let mut numbers = str::from_utf8(text).ok()?.split_ascii_whitespace();
    let mut next = || numbers.next()?.parse().ok();
    let (ran, waited, slices) = (next()?, next()?, next()?);
    // A kernel that does not count leaves all at zero.
    (slices != 0).then_some(Share {
        ran: Duration::from_nanos(ran),
        waited: Duration::from_nanos(waited),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_account_of_a_thread_is_read() {
        let account = Account::of_this_thread().unwrap();
        let before = account.read().unwrap();
        let until = std::time::Instant::now() + MS * 20; // A few ticks of any kernel.
        while std::time::Instant::now() < until {}
        assert!(account.read().unwrap().ran > before.ran);
        assert_eq!(
            parse(b"2000000 3000000 7\n"),
            Some(Share {
                ran: MS * 2,
                waited: MS * 3
            })
        );
        for wrong in [&b""[..], b"1 2", b"1 x 3", b"-1 2 3", b"\xff 2 3", b"0 0 0"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
