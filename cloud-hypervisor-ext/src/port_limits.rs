//! Limits of what peers take of a port, which the port itself enforces.

use std::ops::RangeInclusive;

/// The keys, and their values as the port's own options have them.
pub const KEYS: [(&str, RangeInclusive<u64>); 3] = [
    ("max_peers", 1..=65535),
    ("max_link_memory", 64 << 10..=u64::MAX),
    ("max_user_share", 1..=100),
];

/// The limits that the user gives, in the order of [`KEYS`]; `None`: the port's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortLimits([Option<u64>; 3]);

impl PortLimits {
    /// The limits that `value` has for each key.
    ///
    /// # Errors
    ///
    /// Those of `value`.
    pub fn new<E>(
        value: impl Fn(&str, RangeInclusive<u64>) -> Result<Option<u64>, E>,
    ) -> Result<PortLimits, E> {
        let mut limits = PortLimits::default();
        for (limit, (key, range)) in limits.0.iter_mut().zip(KEYS) {
            *limit = value(key, range)?;
        }
        Ok(limits)
    }

    /// Keys and values of those that are given.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let given = KEYS.map(|(key, _)| key).into_iter().zip(self.0);
        given.filter_map(|(key, limit)| Some((key, limit?)))
    }

    /// Options of `virtio-inter port`.
    pub fn arguments(&self) -> impl Iterator<Item = String> {
        let argument = |(key, limit): (&str, u64)| format!("--{}={limit}", key.replace('_', "-"));
        self.iter().map(argument)
    }
}
