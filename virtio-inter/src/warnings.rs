//! Warnings: conditions and losses that an operator can put right. Each is logged when it comes up
//! and then at a low rate, and stays in the status document until it is gone.
//!
//! Nobody logs a dropped frame: workers keep the values of the last one
//! ([`virtio_inter_device::Drops`]), and the control thread asks for them at its own pace.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use log::Level;
use virtio_inter_common::{LogLimit, log_limited};

/// Pause before the same text is logged again.
const SAME: Duration = Duration::from_secs(3600);
/// Pause before the same warning is logged with other values.
const OTHER_VALUES: Duration = Duration::from_secs(60);

/// All warnings of all kinds, whoever makes them come and go.
static LIMIT: LogLimit = LogLimit::new(Duration::from_secs(10), 20);

/// What a warning is about; the names are part of the status document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// The guest's memory is not shared with the port.
    MemoryNotShared,
    /// The guest sends with an address that is not the port's.
    ForeignSource,
    /// The guest sends to an address that no peer has.
    NoDestination,
    /// A peer takes no frames.
    PeerStalled,
    /// A peer's packets are larger than this port's MTU.
    PacketTooLong,
    /// A peer's frames are larger than the guest's buffers.
    BufferTooSmall,
    /// Peers have another MTU.
    MtuMismatch,
    /// A peer has the same address or the same name.
    Conflict,
    /// A file by which others find this port is gone.
    FileLost,
}

impl Code {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::MemoryNotShared => "memory-not-shared",
            Code::ForeignSource => "foreign-source",
            Code::NoDestination => "no-destination",
            Code::PeerStalled => "peer-stalled",
            Code::PacketTooLong => "packet-too-long",
            Code::BufferTooSmall => "buffer-too-small",
            Code::MtuMismatch => "mtu-mismatch",
            Code::Conflict => "conflict",
            Code::FileLost => "file-lost",
        }
    }
}

/// Something that somebody should put right.
#[derive(Debug)]
pub struct Warning {
    /// With both values, and the way out.
    pub text: String,
    /// How many: frames, peers or attempts, whichever the code counts.
    pub count: u64,
    /// When it came up.
    pub since: SystemTime,
    /// When it was last seen.
    pub last: SystemTime,
    logged: Logged,
}

/// What the log has of a warning.
#[derive(Debug)]
struct Logged {
    at: Instant,
    text: String,
    count: u64,
}

/// All warnings of a port: of each code one for each subject.
#[derive(Debug, Default)]
pub struct Warnings {
    all: BTreeMap<(Code, String), Warning>,
}

impl Warnings {
    /// Notes that something is so, or happened again: `count` times by now. `subject` tells
    /// warnings of one code apart.
    pub fn raise(&mut self, code: Code, subject: &str, count: u64, text: String) {
        let (now, time) = (Instant::now(), SystemTime::now());
        let key = (code, subject.to_owned());
        let Some(warning) = self.all.get_mut(&key) else {
            log_limited!(LIMIT, Level::Warn, "{text}");
            let logged = Logged {
                at: now,
                text: text.clone(),
                count,
            };
            let warning = Warning {
                text,
                count,
                since: time,
                last: time,
                logged,
            };
            self.all.insert(key, warning);
            return;
        };
        (warning.text, warning.count, warning.last) = (text, count, time);
        let pause = if warning.text == warning.logged.text {
            SAME
        } else {
            OTHER_VALUES
        };
        if now.saturating_duration_since(warning.logged.at) < pause {
            return;
        }
        let more = count.saturating_sub(warning.logged.count);
        log_limited!(
            LIMIT,
            Level::Warn,
            "{} ({more} more since this was last logged)",
            warning.text
        );
        warning.logged = Logged {
            at: now,
            text: warning.text.clone(),
            count,
        };
    }

    /// Notes that something is so no more.
    pub fn clear(&mut self, code: Code, subject: &str) {
        self.all.remove(&(code, subject.to_owned()));
    }

    /// Drops those of a code whose subjects are not wanted any more.
    pub fn retain(&mut self, code: Code, wanted: impl Fn(&str) -> bool) {
        self.all
            .retain(|(of, subject), _| *of != code || wanted(subject));
    }

    /// All there are, in the order of their codes.
    pub fn iter(&self) -> impl Iterator<Item = (Code, &Warning)> {
        self.all.iter().map(|((code, _), warning)| (*code, warning))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(warnings: &Warnings) -> Vec<(&str, u64)> {
        let of = |(_, warning)| {
            let Warning { logged, .. }: &Warning = warning;
            (logged.text.as_str(), logged.count)
        };
        warnings.iter().map(of).collect()
    }

    /// As if it had been logged so long ago.
    fn age(warnings: &mut Warnings, by: Duration) {
        for warning in warnings.all.values_mut() {
            warning.logged.at = warning.logged.at.checked_sub(by).unwrap();
        }
    }

    #[test]
    fn warnings_are_logged_first_and_then_rarely() {
        let mut warnings = Warnings::default();
        let raise = |warnings: &mut Warnings, count, text: &str| {
            warnings.raise(Code::ForeignSource, "", count, text.to_owned());
        };
        raise(&mut warnings, 1, "from x");
        assert_eq!(logged(&warnings), [("from x", 1)]);
        raise(&mut warnings, 5, "from y");
        assert_eq!(logged(&warnings), [("from x", 1)]);
        // The status has the latest in any case.
        let (_, warning) = warnings.iter().next().unwrap();
        assert_eq!((warning.text.as_str(), warning.count), ("from y", 5));
        age(&mut warnings, OTHER_VALUES);
        raise(&mut warnings, 6, "from x");
        assert_eq!(logged(&warnings), [("from x", 1)]);
        raise(&mut warnings, 7, "from y");
        assert_eq!(logged(&warnings), [("from y", 7)]);
        age(&mut warnings, SAME);
        raise(&mut warnings, 8, "from y");
        assert_eq!(logged(&warnings), [("from y", 8)]);
    }

    #[test]
    fn warnings_come_back_as_new_ones() {
        let mut warnings = Warnings::default();
        for subject in ["1500", "9000"] {
            warnings.raise(Code::MtuMismatch, subject, 1, subject.to_owned());
        }
        warnings.clear(Code::Conflict, "1500");
        warnings.retain(Code::MtuMismatch, |subject| subject == "1500");
        assert_eq!(logged(&warnings), [("1500", 1)]);
        warnings.clear(Code::MtuMismatch, "1500");
        assert_eq!(warnings.iter().count(), 0);
        warnings.raise(Code::MtuMismatch, "1500", 2, "again".to_owned());
        assert_eq!(logged(&warnings), [("again", 2)]);
    }
}
