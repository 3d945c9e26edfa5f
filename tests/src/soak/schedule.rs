//! What is done to whom, and for how long: the same for the same seed, whatever comes of it.

use std::fmt;
use std::time::Duration;

use virtio_inter_test_support::Rng;

/// Stations, each a port with its VM.
pub(super) const STATIONS: usize = 4;
/// The port of this station is never ended, so that what it leaks adds up.
pub(super) const SURVIVOR: usize = STATIONS - 1;

/// Something that happens to a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// SIGKILL to the port; it is started again.
    KillPort,
    /// SIGTERM to the port; it is started again.
    EndPort,
    /// SIGSTOP to the port, then SIGCONT.
    StopPort,
    /// SIGKILL to the VM; another one follows.
    KillVm,
    /// SIGSTOP to the VM, then SIGCONT.
    StopVm,
    /// The VMM ends its connection to the port, and connects again.
    Disconnect,
    /// The guest boots again.
    Reset,
    /// A fifth port joins, and is killed.
    Visitor,
    /// No room in the file system of sockets, segment and logs.
    FullDisk,
    /// No further descriptors for the port.
    NoDescriptors,
    /// No further address space for the port.
    NoAddressSpace,
    /// No further memory for the port's control group.
    NoMemory,
}

/// All faults, how often each is chosen, and how it is counted.
const FAULTS: [(Fault, u64, &str); 12] = [
    (Fault::KillPort, 30, "kills of ports"),
    (Fault::EndPort, 8, "ends of ports"),
    (Fault::StopPort, 14, "stops of ports"),
    (Fault::KillVm, 10, "kills of VMs"),
    (Fault::StopVm, 10, "stops of VMs"),
    (Fault::Disconnect, 8, "disconnections"),
    (Fault::Reset, 8, "resets of guests"),
    (Fault::Visitor, 5, "visits of a fifth port"),
    (Fault::FullDisk, 3, "full disks"),
    (Fault::NoDescriptors, 4, "lacks of descriptors"),
    (Fault::NoAddressSpace, 3, "lacks of address space"),
    (Fault::NoMemory, 3, "lacks of memory"),
];

impl Fault {
    /// How often it came, in words.
    pub(super) fn counted(self) -> &'static str {
        let entry = FAULTS.iter().find(|(fault, ..)| *fault == self);
        entry.map_or("", |(.., text)| text)
    }

    /// Whether a port may end by itself of it.
    pub(super) fn starves(self) -> bool {
        use Fault::{FullDisk, NoAddressSpace, NoMemory};
        [FullDisk, NoAddressSpace, NoMemory].contains(&self)
    }

    /// Whether the port may be another one afterwards.
    fn ends_a_port(self) -> bool {
        [Fault::KillPort, Fault::EndPort].contains(&self) || self.starves()
    }

    /// Whether it shows best while another port comes back.
    fn needs_a_newcomer(self) -> bool {
        use Fault::{FullDisk, NoAddressSpace, NoDescriptors, NoMemory};
        [FullDisk, NoAddressSpace, NoDescriptors, NoMemory].contains(&self)
    }
}

/// Faults that come together, and how long they last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Each concerns another station.
    pub(super) faults: Vec<(Fault, usize)>,
    /// Time from the last beginning to the first end.
    pub(super) hold: Duration,
    /// Time from the recovery to the next step.
    pub(super) pause: Duration,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (fault, station)) in self.faults.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{fault:?} {}", name(*station))?;
        }
        write!(f, " for {:?}", self.hold)
    }
}

/// The name of a station, and of its port.
pub(super) fn name(station: usize) -> String {
    format!("vm{}", station + 1)
}

/// The steps of a seed, without end.
#[derive(Debug)]
pub(super) struct Schedule {
    rng: Rng,
    /// Ports are killed, and nothing else happens.
    only_kills: bool,
}

impl Schedule {
    pub(super) fn new(seed: u64, only_kills: bool) -> Self {
        Self {
            rng: Rng::new(seed),
            only_kills,
        }
    }

    fn fault(&mut self) -> Fault {
        let sum: u64 = FAULTS.iter().map(|(_, weight, _)| weight).sum();
        let mut left = self.rng.below(sum);
        for (fault, weight, _) in FAULTS {
            if left < weight {
                return fault;
            }
            left -= weight;
        }
        Fault::KillPort
    }

    /// A station that is not among these, and for which `fault` is something.
    fn station(&mut self, fault: Fault, taken: &[(Fault, usize)]) -> usize {
        loop {
            let station = self.rng.below(STATIONS as u64) as usize;
            let is_taken = taken.iter().any(|(_, other)| *other == station);
            let is_spared = station == SURVIVOR && fault.ends_a_port();
            if !is_taken && !is_spared {
                return station;
            }
        }
    }

    fn kill(&mut self) -> Step {
        Step {
            faults: vec![(Fault::KillPort, self.station(Fault::KillPort, &[]))],
            hold: Duration::from_millis(self.rng.below(2) * self.rng.below(40)),
            pause: Duration::from_millis(self.rng.below(20)),
        }
    }
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.only_kills {
            return Some(self.kill());
        }
        let first = self.fault();
        let mut faults = vec![(first, self.station(first, &[]))];
        if first.needs_a_newcomer() {
            let other = if self.rng.below(2) == 0 {
                Fault::KillPort
            } else {
                Fault::KillVm
            };
            faults.push((other, self.station(other, &faults)));
        } else if self.rng.below(3) == 0 {
            let second = self.fault();
            if !second.needs_a_newcomer() && second != Fault::Visitor {
                faults.push((second, self.station(second, &faults)));
            }
        }
        let hold = match self.rng.below(4) {
            0 => 0,
            1 => self.rng.below(20),
            2 => self.rng.below(200),
            _ => self.rng.below(1500),
        };
        Some(Step {
            faults,
            hold: Duration::from_millis(hold),
            pause: Duration::from_millis(self.rng.below(100)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn steps(seed: u64, only_kills: bool) -> Vec<Step> {
        Schedule::new(seed, only_kills).take(1000).collect()
    }

    #[test]
    fn soak_schedule_is_the_same_for_the_same_seed() {
        assert_eq!(steps(1, false), steps(1, false));
        assert_ne!(steps(1, false), steps(2, false));
    }

    #[test]
    fn soak_schedule_has_all_faults_and_spares_the_survivor() {
        let mut seen = BTreeSet::new();
        for step in steps(3, false) {
            let stations: BTreeSet<usize> = step.faults.iter().map(|(_, at)| *at).collect();
            assert_eq!(stations.len(), step.faults.len(), "{step}");
            for (fault, station) in step.faults {
                seen.insert(fault);
                assert!(station != SURVIVOR || !fault.ends_a_port());
                assert_ne!(fault.counted(), "");
            }
        }
        assert_eq!(seen.len(), FAULTS.len());
    }

    #[test]
    fn soak_schedule_of_kills_has_nothing_else() {
        for step in steps(4, true) {
            let [(Fault::KillPort, station)] = step.faults[..] else {
                panic!("{step}");
            };
            assert_ne!(station, SURVIVOR);
        }
    }
}
