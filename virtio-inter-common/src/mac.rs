//! The hardware address of a port: six bytes, IEEE 802.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// An Ethernet address, in the order in which its bytes travel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr([u8; 6]);

/// Why a text or an address is not the address of a port.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MacError {
    /// Not six groups of two hexadecimal digits.
    #[error("MAC address {0:?} is not six pairs of hexadecimal digits separated by colons")]
    Syntax(String),
    /// The group bit (lowest bit of the first byte) is set.
    #[error("MAC address {0} is a multicast address, a port needs a unicast one")]
    Multicast(MacAddr),
    /// All bytes are zero.
    #[error("MAC address {0} is zero")]
    Zero(MacAddr),
}

impl MacAddr {
    /// The address that reaches every port.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

    /// Makes an address of any kind; [`MacAddr::check_port`] says whether a port may have it.
    pub const fn new(octets: [u8; 6]) -> MacAddr {
        MacAddr(octets)
    }

    /// Parses an address of any kind.
    pub(crate) fn parse_any(text: &str) -> Option<MacAddr> {
        parse(text)
    }

    /// The six bytes.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Whether frames to this address go to more than one port (broadcast included).
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether all six bytes are zero.
    pub const fn is_zero(self) -> bool {
        matches!(self.0, [0, 0, 0, 0, 0, 0])
    }

    /// Tells whether a port may have this address.
    ///
    /// # Errors
    /// [`MacError::Multicast`] or [`MacError::Zero`].
    pub fn check_port(self) -> Result<(), MacError> {
        if self.is_multicast() {
            Err(MacError::Multicast(self))
        } else if self.is_zero() {
            Err(MacError::Zero(self))
        } else {
            Ok(())
        }
    }
}

impl From<[u8; 6]> for MacAddr {
    fn from(octets: [u8; 6]) -> MacAddr {
        MacAddr(octets)
    }
}

/// Parses the address of a port, `52:54:00:12:34:56`: unicast and not zero.
impl FromStr for MacAddr {
    type Err = MacError;

    fn from_str(text: &str) -> Result<MacAddr, MacError> {
        let mac = parse(text).ok_or_else(|| MacError::Syntax(text.to_owned()))?;
        mac.check_port()?;
        Ok(mac)
    }
}

fn parse(text: &str) -> Option<MacAddr> {
    let mut octets = [0; 6];
    let mut groups = text.split(':');
    for octet in &mut octets {
        let group = groups.next()?;
        // from_str_radix alone would take "+5".
        if group.len() != 2 || !group.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        *octet = u8::from_str_radix(group, 16).ok()?;
    }
    groups.next().is_none().then_some(MacAddr(octets))
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_address_parses_what_it_prints() {
        let mac: MacAddr = "52:54:00:aB:cD:0f".parse().unwrap();
        assert_eq!(mac.octets(), [0x52, 0x54, 0, 0xab, 0xcd, 0x0f]);
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:0f");
        assert_eq!(mac.to_string().parse(), Ok(mac));
    }

    #[test]
    fn mac_address_of_bad_syntax_is_refused_and_named() {
        let bad = [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52-54-00-12-34-56",
            "5:54:00:12:34:56",
            "+2:54:00:12:34:56",
            "52:54:00:12:34:5g",
            "52:54:00:12:34:56 ",
            "525400123456",
        ];
        for text in bad {
            let error = text.parse::<MacAddr>().unwrap_err();
            assert_eq!(error, MacError::Syntax(text.to_owned()));
            assert!(error.to_string().contains(text));
        }
    }

    #[test]
    fn mac_address_that_no_port_may_have_is_refused() {
        let error = "01:00:5e:00:00:01".parse::<MacAddr>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "MAC address 01:00:5e:00:00:01 is a multicast address, a port needs a unicast one"
        );
        assert!(matches!(
            "ff:ff:ff:ff:ff:ff".parse::<MacAddr>(),
            Err(MacError::Multicast(_))
        ));
        let error = "00:00:00:00:00:00".parse::<MacAddr>().unwrap_err();
        assert_eq!(error.to_string(), "MAC address 00:00:00:00:00:00 is zero");
    }
}
