//! Sets of hardware addresses that a port may use beside its own.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::mac::{MacAddr, MacError};
use crate::set_list::SetList;

/// Most sets that a port may list.
pub const MAX_MAC_SETS: usize = 64;

/// Fewest bytes of a prefix: the identifier of an organization (OUI).
const MIN_PREFIX: u8 = 3;
/// Bytes of a whole address.
const WHOLE: u8 = 6;

/// One address, or all addresses that begin with the same 3 to 5 bytes. Unicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacSet {
    /// Number of bytes that count: 6 for one address.
    octets: u8,
    /// The others are zero.
    address: MacAddr,
}

/// Why something is not a list of addresses that a port may use.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MacSetError {
    /// Not an address or a prefix as text.
    #[error(
        "{0:?} is neither a MAC address nor the first 3 to 5 bytes of one with an asterisk, as in \
         00:00:5e:00:01:*"
    )]
    Syntax(String),
    /// An address that no port may have.
    #[error(transparent)]
    Address(#[from] MacError),
    /// A prefix of multicast addresses.
    #[error("{0} is a set of multicast addresses, a port needs unicast ones")]
    Multicast(MacSet),
    /// A prefix of another length.
    #[error("Prefix of {0} bytes, allowed are {MIN_PREFIX} to {WHOLE}")]
    Length(u8),
    /// One set twice.
    #[error("{0} is listed twice")]
    Twice(MacSet),
    /// Too many.
    #[error("{0} addresses and prefixes are listed, at most {MAX_MAC_SETS} are allowed")]
    TooMany(usize),
}

impl MacSet {
    /// The addresses that have the first `octets` bytes of `address`: 3 to 6.
    ///
    /// # Errors
    /// When the prefix has another length, or is one of addresses that no port may have.
    pub fn new(octets: u8, address: MacAddr) -> Result<MacSet, MacSetError> {
        if !(MIN_PREFIX..=WHOLE).contains(&octets) {
            return Err(MacSetError::Length(octets));
        }
        let set = MacSet {
            octets,
            address: masked(address, octets),
        };
        if set.is_exact() {
            set.address.check_port()?;
        } else if set.address.is_multicast() {
            return Err(MacSetError::Multicast(set));
        }
        Ok(set)
    }

    /// The set of one address.
    #[must_use]
    pub fn is_exact(self) -> bool {
        self.octets == WHOLE
    }

    /// The address, if it is one.
    pub fn exact(self) -> Option<MacAddr> {
        self.is_exact().then_some(self.address)
    }

    /// Number of bytes that count.
    pub fn octets(self) -> u8 {
        self.octets
    }

    /// The bytes that count, and zeros.
    pub fn address(self) -> MacAddr {
        self.address
    }
}

fn masked(address: MacAddr, octets: u8) -> MacAddr {
    let mut bytes = address.octets();
    bytes[usize::from(octets)..].fill(0);
    MacAddr::new(bytes)
}

/// `52:54:00:12:34:56`, or `00:00:5e:00:01:*`.
impl FromStr for MacSet {
    type Err = MacSetError;

    fn from_str(text: &str) -> Result<MacSet, MacSetError> {
        let syntax = || MacSetError::Syntax(text.to_owned());
        let Some(prefix) = text.strip_suffix(":*") else {
            return match text.parse() {
                Ok(address) => MacSet::new(WHOLE, address),
                Err(MacError::Syntax(_)) => Err(syntax()),
                Err(error) => Err(error.into()),
            };
        };
        let groups = prefix.split(':').count();
        let octets = u8::try_from(groups).map_err(|_| syntax())?;
        if !(MIN_PREFIX..WHOLE).contains(&octets) {
            return Err(syntax());
        }
        let whole = format!("{prefix}{}", ":00".repeat(usize::from(WHOLE - octets)));
        let address = MacAddr::parse_any(&whole).ok_or_else(syntax)?;
        MacSet::new(octets, address)
    }
}

impl fmt::Display for MacSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_exact() {
            return write!(f, "{}", self.address);
        }
        let bytes = self.address.octets();
        for byte in &bytes[..usize::from(self.octets)] {
            write!(f, "{byte:02x}:")?;
        }
        f.write_str("*")
    }
}

/// A list of sets, in order, each once. Clones share it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MacSets(SetList<MacSet>);

impl MacSets {
    /// Whether the list has nothing.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an address is in one of the sets.
    pub fn contains(&self, address: MacAddr) -> bool {
        (MIN_PREFIX..=WHOLE).any(|octets| {
            let set = MacSet {
                octets,
                address: masked(address, octets),
            };
            self.0.as_slice().binary_search(&set).is_ok()
        })
    }

    /// The sets.
    pub fn iter(&self) -> impl Iterator<Item = MacSet> {
        self.0.iter()
    }

    /// The sets of one address.
    pub fn exact(&self) -> impl Iterator<Item = MacAddr> {
        self.iter().filter_map(MacSet::exact)
    }
}

/// All sets, however many, without duplicates.
impl FromIterator<MacSet> for MacSets {
    fn from_iter<I: IntoIterator<Item = MacSet>>(sets: I) -> Self {
        MacSets(sets.into_iter().collect())
    }
}

/// Sets that a port may list, separated by commas.
impl FromStr for MacSets {
    type Err = MacSetError;

    fn from_str(text: &str) -> Result<MacSets, MacSetError> {
        let check = |count| match count {
            ..=MAX_MAC_SETS => Ok(()),
            _ => Err(MacSetError::TooMany(text.split(',').count())),
        };
        SetList::parse(text, MacSetError::Twice, check).map(MacSets)
    }
}

/// The format that is parsed.
impl fmt::Display for MacSets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(text: &str) -> MacAddr {
        text.parse().unwrap()
    }

    #[test]
    fn mac_sets_contain_their_addresses_and_prefixes() {
        let sets: MacSets = "52:54:00:00:00:01, 00:00:5E:00:01:*,02:42:ac:*"
            .parse()
            .unwrap();
        for inside in [
            "52:54:00:00:00:01",
            "00:00:5e:00:01:00",
            "00:00:5e:00:01:ff",
            "02:42:ac:11:00:02",
        ] {
            assert!(sets.contains(mac(inside)), "{inside}");
        }
        for outside in [
            "52:54:00:00:00:02",
            "00:00:5e:00:02:01",
            "02:42:ad:11:00:02",
        ] {
            assert!(!sets.contains(mac(outside)), "{outside}");
        }
        let exact: Vec<_> = sets.exact().collect();
        assert_eq!(exact, [mac("52:54:00:00:00:01")]);
        assert!(!MacSets::default().contains(mac("52:54:00:00:00:01")));
    }

    #[test]
    fn mac_sets_parse_what_they_print() {
        let text = "02:42:ac:*,00:00:5e:00:01:*,52:54:00:00:00:01";
        let sets: MacSets = text.parse().unwrap();
        assert_eq!(sets.to_string(), text);
        assert_eq!(sets.to_string().parse(), Ok(sets));
    }

    #[test]
    fn mac_sets_that_no_port_may_list_are_refused_and_named() {
        let many = |count: usize| {
            let all: Vec<_> = (0..count)
                .map(|i| format!("02:00:00:00:00:{i:02x}"))
                .collect();
            all.join(",").parse::<MacSets>()
        };
        assert!(many(MAX_MAC_SETS).is_ok());
        assert_eq!(many(MAX_MAC_SETS + 1), Err(MacSetError::TooMany(65)));
        for (text, part) in [
            ("", "neither a MAC address"),
            ("52:54:00:00:00:01,", "neither a MAC address"),
            ("52:54", "neither a MAC address"),
            ("*", "neither a MAC address"),
            ("52:54:*", "neither a MAC address"),
            ("52:54:00:00:00:01:*", "neither a MAC address"),
            ("52:54:0:*", "neither a MAC address"),
            ("52:54:00:*:01:02", "neither a MAC address"),
            ("01:00:5e:00:00:01", "multicast address"),
            ("33:33:00:*", "33:33:00:* is a set of multicast addresses"),
            ("00:00:00:00:00:00", "is zero"),
            (
                "02:00:00:00:00:01,02:00:00:00:00:01",
                "02:00:00:00:00:01 is listed twice",
            ),
            ("00:00:5e:00:01:*,00:00:5E:00:01:*", "listed twice"),
        ] {
            let error = text.parse::<MacSets>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let address = mac("02:00:00:00:00:01");
        for octets in [0, 2, 7, 255] {
            assert_eq!(
                MacSet::new(octets, address),
                Err(MacSetError::Length(octets))
            );
        }
    }
}
