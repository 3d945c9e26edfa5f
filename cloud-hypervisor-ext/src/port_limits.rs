//! Limits of what peers take of a port, which the port itself enforces.

use std::ops::RangeInclusive;

use crate::inter_vm::{InterVmError, Key, size};
use crate::options::Options;

/// The keys.
pub const KEYS: [Key; 3] = [
    Key {
        name: "max_peers",
        value: "<number_of_peers>",
        help: "Most peers at a time. Default: 1024",
    },
    Key {
        name: "max_link_memory",
        value: "<bytes>",
        help: "Most memory of the rings for frames to peers, 64K or more. Default: 1G",
    },
    Key {
        name: "max_user_share",
        value: "<percent>",
        help: "Most of these two that peers of one user take. Default: 98",
    },
];

/// Values of the keys, as the port's own options have them.
const RANGES: [RangeInclusive<u64>; 3] = [1..=65535, 64 << 10..=u64::MAX, 1..=100];

/// The limits that the user gives, in the order of [`KEYS`]; `None`: the port's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortLimits([Option<u64>; 3]);

impl PortLimits {
    pub(crate) fn parse(options: &Options) -> Result<PortLimits, InterVmError> {
        let mut limits = PortLimits::default();
        for ((limit, key), range) in limits.0.iter_mut().zip(KEYS).zip(RANGES) {
            *limit = size(options, key.name, range)?;
        }
        Ok(limits)
    }

    /// Keys and values of those that are given.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let given = KEYS.map(|key| key.name).into_iter().zip(self.0);
        given.filter_map(|(key, limit)| Some((key, limit?)))
    }

    /// Options of `virtio-inter port`.
    pub(crate) fn arguments(&self) -> impl Iterator<Item = String> {
        let argument = |(key, limit): (&str, u64)| format!("--{}={limit}", key.replace('_', "-"));
        self.iter().map(argument)
    }
}
