//! Which of the host's CPUs guests and ports may run on, and how the scheduler groups them.

use std::fs;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use virtio_inter_tests::ControlGroups;

/// The CPUs of guests and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// Both guests and both ports on one CPU.
    OneCpu,
    /// A CPU for each guest and its port.
    PerGuest,
    /// A CPU for each guest and for each port.
    PerProcess,
    /// Wherever the host's scheduler puts them.
    Free,
}

/// How the host's scheduler groups guests and ports. Nice values and yields count within a group
/// only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grouping {
    /// All in one session, as programs that a shell starts. Results from before there were groups
    /// are these.
    #[default]
    Session,
    /// Each guest and each port in a control group of its own, of equal CPU weight, as services
    /// are.
    Groups,
}

impl Grouping {
    /// The one that goals rest on first.
    pub const ALL: [Self; 2] = [Self::Groups, Self::Session];

    /// What it is called on the command line and in JSON.
    pub fn id(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Groups => "groups",
        }
    }

    /// What it is called in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Session => "in one session",
            Self::Groups => "each in a group of its own",
        }
    }
}

/// The CPUs of each party; of the first guest in the first place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// Those of the guests.
    pub guests: [Vec<usize>; 2],
    /// Those of their ports.
    pub ports: [Vec<usize>; 2],
}

/// What the parties of a measurement are bound to.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Their CPUs.
    pub cpus: Cpus,
    /// Each has a group of its own here; none: they stay in the session of this process.
    pub groups: Option<Arc<ControlGroups>>,
}

impl Placement {
    /// How many CPUs it needs.
    pub fn needs(self) -> usize {
        match self {
            Self::OneCpu | Self::Free => 1,
            Self::PerGuest => 2,
            Self::PerProcess => 4,
        }
    }

    /// Assigns the existing CPUs to the parties. It takes the last ones: the first one often has
    /// the interrupts. None where there are too few.
    pub fn cpus(self, there: &[usize]) -> Option<Cpus> {
        let taken = &there[there.len().checked_sub(self.needs())?..];
        let one = |index: usize| vec![taken[index]];
        Some(match self {
            Self::OneCpu => Cpus {
                guests: [one(0), one(0)],
                ports: [one(0), one(0)],
            },
            Self::PerGuest => Cpus {
                guests: [one(0), one(1)],
                ports: [one(0), one(1)],
            },
            Self::PerProcess => Cpus {
                guests: [one(0), one(1)],
                ports: [one(2), one(3)],
            },
            Self::Free => Cpus {
                guests: [there.to_vec(), there.to_vec()],
                ports: [there.to_vec(), there.to_vec()],
            },
        })
    }

    /// The name on the command line and in JSON.
    pub fn id(self) -> &'static str {
        match self {
            Self::OneCpu => "one-cpu",
            Self::PerGuest => "per-guest",
            Self::PerProcess => "per-process",
            Self::Free => "free",
        }
    }

    /// The name in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::OneCpu => "all on one CPU",
            Self::PerGuest => "a CPU for each guest with its port",
            Self::PerProcess => "a CPU for each guest and each port",
            Self::Free => "placed by the host",
        }
    }
}

/// The CPUs that this process may use.
///
/// # Errors
///
/// A kernel that does not report them.
pub fn allowed_cpus() -> Result<Vec<usize>> {
    let status = fs::read_to_string("/proc/self/status").context("Reading /proc/self/status")?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .and_then(|list| parse_list(list.trim()))
        .context("No list of CPUs in /proc/self/status")
}

/// Reads a list such as `0-3,8` (cpuset(7), "list format").
fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read() {
        assert_eq!(parse_list("0-3,8,10-11").unwrap(), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(parse_list("5").unwrap(), [5]);
        assert_eq!(parse_list(""), None);
    }

    #[test]
    fn placement_gives_each_party_its_cpus() {
        let there = [0, 2, 5, 7];
        let of = |placement: Placement| placement.cpus(&there).unwrap();
        assert_eq!(of(Placement::OneCpu).guests, of(Placement::OneCpu).ports);
        assert_eq!(of(Placement::OneCpu).ports, [[7], [7]]);
        assert_eq!(of(Placement::PerGuest).guests, [[5], [7]]);
        assert_eq!(of(Placement::PerGuest).ports, [[5], [7]]);
        assert_eq!(of(Placement::PerProcess).ports, [[5], [7]]);
        assert_eq!(of(Placement::PerProcess).guests, [[0], [2]]);
        assert_eq!(of(Placement::Free).ports, [there, there]);
    }

    #[test]
    fn placement_that_does_not_fit_the_machine_is_none() {
        assert_eq!(Placement::PerGuest.cpus(&[3]), None);
        assert_eq!(Placement::PerProcess.cpus(&[0, 1, 2]), None);
        assert!(Placement::OneCpu.cpus(&[3]).is_some());
    }
}
