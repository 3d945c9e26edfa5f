//! What a port holds, and whether that grows.

use std::fmt;
use std::fs;

use anyhow::Context;

use crate::{Process, Result};

/// What a port may hold more than ports that met no fault: descriptors that are being closed,
/// mappings of threads that were started, rings that were full once and are larger since.
const MORE_FILES: usize = 4;
const MORE_MAPPINGS: usize = 16;
const MORE_KIB: u64 = 8 * 1024;

/// What a process holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Footprint {
    pub(super) files: usize,
    pub(super) mappings: usize,
    pub(super) kib: u64,
}

impl Footprint {
    pub(super) fn of(process: &Process) -> Result<Self> {
        let path = format!("/proc/{}/maps", process.pid());
        let maps = fs::read_to_string(&path).with_context(|| format!("Reading {path}"))?;
        Ok(Self {
            files: process.open_files()?,
            mappings: maps.lines().count(),
            kib: process.proportional_memory()? / 1024,
        })
    }

    /// The greater of both, one by one.
    pub(super) fn max(self, other: Self) -> Self {
        Self {
            files: self.files.max(other.files),
            mappings: self.mappings.max(other.mappings),
            kib: self.kib.max(other.kib),
        }
    }

    /// Whether this is no more than `before`, apart from what may come and go.
    pub(super) fn is_within(self, before: Self) -> bool {
        self.files <= before.files + MORE_FILES
            && self.mappings <= before.mappings + MORE_MAPPINGS
            && self.kib <= before.kib + MORE_KIB
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            files,
            mappings,
            kib,
        } = self;
        write!(f, "{files} descriptors, {mappings} mappings, {kib} KiB")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soak_footprint_that_grew_is_not_within_the_former_one() {
        let before = Footprint {
            files: 40,
            mappings: 100,
            kib: 3000,
        };
        assert!(before.is_within(before));
        for more in [
            Footprint {
                files: 45,
                ..before
            },
            Footprint {
                mappings: 117,
                ..before
            },
            Footprint {
                kib: 3001 + 8 * 1024,
                ..before
            },
        ] {
            assert!(!more.is_within(before), "{more}");
            assert!(more.max(before) == more);
        }
    }
}
