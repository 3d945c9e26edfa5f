//! Sets of IP addresses that a port's guest may use.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use thiserror::Error;

use crate::set_list::SetList;

/// Most sets that a port may list.
pub const MAX_IP_SETS: usize = 16;

/// One address, or all addresses that begin with the same bits. Unicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpSet {
    /// The bits behind the prefix are zero.
    address: IpAddr,
    /// Number of bits that count.
    prefix: u8,
}

/// Why something is not a list of addresses that a guest may use.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IpSetError {
    /// Not an address or a prefix as text.
    #[error("{0:?} is neither an IP address nor a prefix, as in 10.0.0.7, 10.0.0.0/24 or fd00::7")]
    Syntax(String),
    /// A prefix that is longer than the address.
    #[error("/{prefix} is longer than the address {address}")]
    Prefix {
        /// The address.
        address: IpAddr,
        /// The length given.
        prefix: u8,
    },
    /// Bits behind the prefix.
    #[error("{address}/{prefix} has bits behind its prefix; {network} has none")]
    Bits {
        /// The address.
        address: IpAddr,
        /// The length given.
        prefix: u8,
        /// The same without them.
        network: IpSet,
    },
    /// An address that no guest may have.
    #[error("{0} is not a unicast address of one interface")]
    Unusable(IpAddr),
    /// One set twice.
    #[error("{0} is listed twice")]
    Twice(IpSet),
    /// Too many.
    #[error("{0} IP addresses and prefixes are listed, at most {MAX_IP_SETS} are allowed")]
    TooMany(usize),
}

impl IpSet {
    /// The addresses that have the first `prefix` bits of `address`.
    ///
    /// # Errors
    /// When the prefix is too long, other bits are set, or it is no address of an interface.
    pub fn new(address: IpAddr, prefix: u8) -> Result<IpSet, IpSetError> {
        let bits = bits_of(address);
        if prefix > bits {
            return Err(IpSetError::Prefix { address, prefix });
        }
        let network = IpSet {
            address: masked(address, prefix),
            prefix,
        };
        if network.address != address {
            return Err(IpSetError::Bits {
                address,
                prefix,
                network,
            });
        }
        let is_mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
        let is_whole = prefix == bits;
        if address.is_multicast() || is_mapped || (is_whole && is_nobodys(address)) {
            return Err(IpSetError::Unusable(address));
        }
        Ok(network)
    }

    /// The first address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Number of bits that count.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && masked(address, self.prefix) == self.address
    }
}

fn bits_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn is_nobodys(address: IpAddr) -> bool {
    address.is_unspecified() || address == IpAddr::V4(Ipv4Addr::BROADCAST)
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

/// `10.0.0.7`, or `10.0.0.0/24`.
impl FromStr for IpSet {
    type Err = IpSetError;

    fn from_str(text: &str) -> Result<IpSet, IpSetError> {
        let syntax = || IpSetError::Syntax(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| syntax())?;
        let prefix = match prefix {
            // u8::from_str also takes a sign.
            Some(prefix) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => {
                prefix.parse().map_err(|_| syntax())?
            }
            Some(_) => return Err(syntax()),
            None => bits_of(address),
        };
        IpSet::new(address, prefix)
    }
}

impl fmt::Display for IpSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == bits_of(self.address) {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.prefix)
        }
    }
}

/// A list of sets, in order, each once. Clones share it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpSets(SetList<IpSet>);

impl IpSets {
    /// Whether the list has nothing.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an address is in one of the sets.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|set| set.contains(address))
    }

    /// Whether there is any IPv6 address.
    pub fn has_ipv6(&self) -> bool {
        self.0.iter().any(|set| set.address.is_ipv6())
    }

    /// The sets.
    pub fn iter(&self) -> impl Iterator<Item = IpSet> {
        self.0.iter()
    }
}

/// All sets, without duplicates.
impl FromIterator<IpSet> for IpSets {
    fn from_iter<I: IntoIterator<Item = IpSet>>(sets: I) -> Self {
        IpSets(sets.into_iter().collect())
    }
}

/// Sets that a port may list, separated by commas.
impl FromStr for IpSets {
    type Err = IpSetError;

    fn from_str(text: &str) -> Result<IpSets, IpSetError> {
        let sets = SetList::parse(text, IpSetError::Twice, |_| Ok(()))?;
        // The faults of single sets come first.
        match sets.as_slice().len() {
            count if count > MAX_IP_SETS => Err(IpSetError::TooMany(count)),
            _ => Ok(IpSets(sets)),
        }
    }
}

/// The format that is parsed.
impl fmt::Display for IpSets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn ip_sets_contain_their_addresses_and_prefixes() {
        let sets: IpSets = "10.0.0.7, 10.1.0.0/16,fd00::7,2001:db8:1::/48"
            .parse()
            .unwrap();
        for inside in ["10.0.0.7", "10.1.255.255", "fd00::7", "2001:db8:1:2::3"] {
            assert!(sets.contains(ip(inside)), "{inside}");
        }
        for outside in ["10.0.0.8", "10.2.0.0", "fd00::8", "2001:db8:2::", "::a00:7"] {
            assert!(!sets.contains(ip(outside)), "{outside}");
        }
        assert!(sets.has_ipv6());
        let all: IpSets = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(ip("192.0.2.1")) && !all.contains(ip("::1")));
        assert!(!all.has_ipv6());
        assert!(!IpSets::default().contains(ip("10.0.0.7")));
    }

    #[test]
    fn ip_sets_parse_what_they_print() {
        let text = "0.0.0.0/0,10.0.0.7,10.1.0.0/16,::/0,fd00::7";
        let sets: IpSets = text.parse().unwrap();
        assert_eq!(sets.to_string(), text);
        assert_eq!(sets.to_string().parse(), Ok(sets));
    }

    #[test]
    fn ip_sets_that_no_port_may_list_are_refused_and_named() {
        for (text, part) in [
            ("", "neither an IP address"),
            ("10.0.0", "neither an IP address"),
            ("10.0.0.7,", "neither an IP address"),
            ("10.0.0.0/x", "neither an IP address"),
            ("10.0.0.0/+8", "neither an IP address"),
            ("10.0.0.0/", "neither an IP address"),
            ("fe80::1%eth0", "neither an IP address"),
            ("10.0.0.0/33", "/33 is longer than the address 10.0.0.0"),
            ("fd00::/129", "/129 is longer"),
            (
                "10.0.0.7/24",
                "bits behind its prefix; 10.0.0.0/24 has none",
            ),
            ("224.0.0.1", "not a unicast address"),
            ("ff02::/16", "not a unicast address"),
            ("0.0.0.0", "not a unicast address"),
            ("255.255.255.255", "not a unicast address"),
            ("::", "not a unicast address"),
            ("::ffff:10.0.0.7", "not a unicast address"),
            ("10.0.0.7,10.0.0.7/32", "10.0.0.7 is listed twice"),
        ] {
            let error = text.parse::<IpSets>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let many = |count: usize| {
            let all: Vec<_> = (0..count).map(|i| format!("10.0.0.{i}")).collect();
            all.join(",").parse::<IpSets>()
        };
        // 10.0.0.0 is an address like any other.
        assert!(many(MAX_IP_SETS).is_ok());
        assert_eq!(many(MAX_IP_SETS + 1), Err(IpSetError::TooMany(17)));
    }
}
