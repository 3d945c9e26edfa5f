//! Warnings: conditions and losses that an operator can put right. Each is logged when it comes up
//! and then at a low rate, and stays in the status document until it is gone.
//! Dropped frames are not logged one by one: workers keep the values of the last one
//! ([`virtio_inter_device::Drops`]), and the control thread asks for them at its own pace.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use log::Level;
use virtio_inter_common::{LogLimit, log_limit};

use crate::notify;

/// Pause before the same text is logged again.
const SAME: Duration = Duration::from_secs(3600);
/// Pause before the same warning is logged with other values.
const OTHER_VALUES: Duration = Duration::from_secs(60);

/// Frames that were lost longer ago are a warning that is over. A network tries again sooner.
const CURRENT: Duration = Duration::from_secs(60);

/// Lines of one code, whoever makes its warnings come and go: a line each 10 s in the long run.
/// Each code has a limit of its own, so that a peer that repeats one mistake hides no other.
const INTERVAL: Duration = Duration::from_secs(10);
/// Lines of one code that may come at once.
const BURST: u32 = 10;

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $code:ident = $name:literal,)*) => {
        /// The kinds of warnings; their names are part of the status document.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code {
            $($(#[doc = $doc])* $code,)*
        }

        impl Code {
            /// All, in their order.
            #[cfg(test)]
            const ALL: &[Code] = &[$(Code::$code),*];

            /// Its name.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Code::$code => $name,)*
                }
            }
        }
    };
}

codes! {
    /// The guest's memory is not shared with the port.
    MemoryNotShared = "memory-not-shared",
    /// A queue has all settings and cannot start.
    QueueWaits = "queue-waits",
    /// The guest sends with an address that is not the port's.
    ForeignSource = "foreign-source",
    /// `--allow-mac` lists an address that another port has.
    AllowedMacTaken = "allowed-mac-taken",
    /// The guest claims an IP address that its port does not list.
    ForeignIp = "foreign-ip",
    /// The guest claims an IP address for another hardware address.
    ForeignNeighbor = "foreign-neighbor",
    /// The guest answers as a DHCP server or a router.
    DhcpServer = "dhcp-server",
    /// The guest sends what the port's guard cannot examine.
    NotExamined = "not-examined",
    /// A peer broke a rule, and its link was closed.
    PeerViolation = "peer-violation",
    /// A peer's port does not keep its guest from what it says that it does.
    PeerGuard = "peer-guard",
    /// The guest sends to an address that no peer has.
    NoDestination = "no-destination",
    /// A peer takes no frames.
    PeerStalled = "peer-stalled",
    /// A peer's packets are larger than this port's MTU.
    PacketTooLong = "packet-too-long",
    /// A peer's frames are larger than the guest's buffers.
    BufferTooSmall = "buffer-too-small",
    /// Peers have another MTU.
    MtuMismatch = "mtu-mismatch",
    /// A peer has the same address or the same name.
    Conflict = "conflict",
    /// A file by which others find this port is gone.
    FileLost = "file-lost",
    /// Members of the segment can take each other's names.
    SegmentNotSticky = "segment-not-sticky",
    /// The uplink is down or gone.
    UplinkDown = "uplink-down",
    /// The uplink takes no frames, or too few.
    UplinkFull = "uplink-full",
    /// The uplink's MTU is smaller than this port's.
    UplinkMtu = "uplink-mtu",
}

impl Code {
    /// Whether it tells of frames that were lost or links that were closed, and stays when no more
    /// are. All others hold as long as they are listed.
    fn is_of_losses(self) -> bool {
        match self {
            Code::ForeignSource
            | Code::ForeignIp
            | Code::ForeignNeighbor
            | Code::DhcpServer
            | Code::NotExamined
            | Code::PeerViolation
            | Code::PeerGuard
            | Code::NoDestination
            | Code::PeerStalled
            | Code::PacketTooLong
            | Code::BufferTooSmall
            | Code::UplinkFull => true,
            Code::MemoryNotShared
            | Code::QueueWaits
            | Code::AllowedMacTaken
            | Code::MtuMismatch
            | Code::Conflict
            | Code::FileLost
            | Code::SegmentNotSticky
            | Code::UplinkDown
            | Code::UplinkMtu => false,
        }
    }

    /// Whether a service manager is to know: the port serves, and its guest has no network.
    fn is_trouble(self) -> bool {
        self == Code::Conflict
    }
}

/// A problem that an operator should fix.
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
    /// None: its code's limit has held back all of its lines so far.
    logged: Option<Logged>,
}

impl Warning {
    /// Whether what it tells of is so now; `code` is its kind.
    pub fn is_current(&self, code: Code) -> bool {
        // The clock may have been set back since.
        !code.is_of_losses() || self.last.elapsed().is_ok_and(|ago| ago < CURRENT)
    }
}

/// The last log line of a warning.
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
    limits: BTreeMap<Code, LogLimit>,
}

impl Warnings {
    /// Notes that something is so, or happened again: `count` times by now. `subject` tells
    /// warnings of one code apart.
    pub fn raise(&mut self, code: Code, subject: &str, count: u64, text: String) {
        let (now, time) = (Instant::now(), SystemTime::now());
        let warning = self
            .all
            .entry((code, subject.to_owned()))
            .or_insert_with(|| Warning {
                text: String::new(),
                count: 0,
                since: time,
                last: time,
                logged: None,
            });
        (warning.text, warning.count, warning.last) = (text, count, time);
        let pause = match &warning.logged {
            None => Duration::ZERO,
            Some(logged) if logged.text == warning.text => SAME,
            Some(_) => OTHER_VALUES,
        };
        let since = |logged: &Logged| now.saturating_duration_since(logged.at);
        if warning.logged.as_ref().is_some_and(|l| since(l) < pause) {
            return;
        }
        let limits = &mut self.limits;
        let limit = limits
            .entry(code)
            .or_insert_with(|| LogLimit::new(INTERVAL, BURST));
        // If the limit does not allow it, the next call tries again.
        let Some(held_back) = limit.admit() else {
            return;
        };
        let more = match &warning.logged {
            None => String::new(),
            Some(logged) => {
                let more = count.saturating_sub(logged.count);
                format!(" ({more} more since this was last logged)")
            }
        };
        let line = format_args!("{}{more}", warning.text);
        log_limit::emit(Level::Warn, module_path!(), line, held_back);
        warning.logged = Some(Logged {
            at: now,
            text: warning.text.clone(),
            count,
        });
        if code.is_trouble() {
            notify::trouble(&warning.text);
        }
    }

    /// Notes the state of a condition that has no subject: `text` says what is so, none that it is
    /// not. The text that it has is nothing new.
    pub fn set(&mut self, code: Code, text: Option<&str>) {
        let present = self.all.get(&(code, String::new()));
        if present.map(|warning| &*warning.text) == text {
            return;
        }
        self.clear(code, "");
        if let Some(text) = text {
            self.raise(code, "", 1, text.to_owned());
        }
    }

    /// Notes that something is so no more.
    pub fn clear(&mut self, code: Code, subject: &str) {
        let was = self.all.remove(&(code, subject.to_owned()));
        if code.is_trouble() && was.is_some_and(|warning| warning.logged.is_some()) {
            notify::trouble("");
        }
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
        let logged = warnings.iter().filter_map(|(_, w)| w.logged.as_ref());
        logged.map(|l| (l.text.as_str(), l.count)).collect()
    }

    /// Moves the time of the last log line back.
    fn age(warnings: &mut Warnings, by: Duration) {
        for logged in warnings.all.values_mut().filter_map(|w| w.logged.as_mut()) {
            logged.at = logged.at.checked_sub(by).unwrap();
        }
    }

    #[test]
    fn warnings_of_all_codes_are_described_in_the_document() {
        let document = include_str!("../../docs/port-status.md");
        for name in Code::ALL.iter().map(|code| code.as_str()) {
            let row = format!("\n| `{name}` | ");
            assert!(
                document.contains(&row),
                "docs/port-status.md has no row for the warning {name}"
            );
        }
    }

    #[test]
    fn warnings_of_lost_frames_are_over_after_a_minute_and_others_when_they_are_gone() {
        let mut warnings = Warnings::default();
        for code in [Code::ForeignSource, Code::UplinkDown] {
            warnings.raise(code, "", 1, "x".to_owned());
        }
        let current = |warnings: &Warnings| -> Vec<bool> {
            let all = warnings.iter();
            all.map(|(code, warning)| warning.is_current(code))
                .collect()
        };
        assert_eq!(current(&warnings), [true, true]);
        for warning in warnings.all.values_mut() {
            warning.last -= CURRENT;
        }
        assert_eq!(current(&warnings), [false, true]);
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
    /// Like a peer that joins again and again, each time with another MTU.
    #[test]
    fn warnings_of_one_code_hold_back_no_other() {
        let mut warnings = Warnings::default();
        for mtu in 0..100 {
            warnings.raise(Code::MtuMismatch, &mtu.to_string(), 1, mtu.to_string());
        }
        let of = |warnings: &Warnings, code| {
            let found = warnings.iter().filter(|(of, _)| *of == code);
            let states: Vec<bool> = found.map(|(_, w)| w.logged.is_some()).collect();
            (states.len(), states.iter().filter(|is| **is).count())
        };
        // The status has all; the log as many as the limit admits, and nothing else counts as
        // logged.
        let burst = BURST as usize;
        assert_eq!(of(&warnings, Code::MtuMismatch), (100, burst));
        for code in [Code::ForeignSource, Code::Conflict] {
            warnings.raise(code, "", 1, "x".to_owned());
            assert_eq!(of(&warnings, code), (1, 1));
        }
        // A warning that was held back is logged when it is raised again.
        let limit = LogLimit::new(INTERVAL, BURST);
        warnings.limits.insert(Code::MtuMismatch, limit);
        warnings.raise(Code::MtuMismatch, "99", 2, "99".to_owned());
        assert_eq!(of(&warnings, Code::MtuMismatch), (100, burst + 1));
    }
}
