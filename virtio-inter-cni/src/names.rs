//! The id and the MAC address of an interface's port: always the same for one interface.

use std::fmt::Write;

use sha2::{Digest, Sha256};
use virtio_inter_common::{MacAddr, PortId};

use crate::config::Config;
use crate::request::Request;

/// Part of a container's id that a port's id begins with, in bytes. What runtimes print of it.
const CONTAINER: usize = 12;

/// Hexadecimal digits of the hash in a port's id.
const DIGITS: usize = 12;

/// Names of one interface of a container in a network.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) port: PortId,
    pub(crate) mac: MacAddr,
}

impl Names {
    /// The names of the interface that a request is about.
    pub(crate) fn new(config: &Config, request: &Request) -> Self {
        Self::of(&config.network, &request.container, &request.interface)
    }

    /// The container's id begins with a letter or digit and has characters of port ids only.
    fn of(network: &str, container: &str, interface: &str) -> Self {
        // None of the three contains a zero.
        let text = [network, container, interface].join("\0");
        let hash = Sha256::digest(text.as_bytes());
        let mut id: String = container.chars().take(CONTAINER).collect();
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        id.push('-');
        id.extend(
            interface
                .chars()
                .map(|c| if is_allowed(c) { c } else { '_' }),
        );
        id.push('-');
        for byte in &hash[..DIGITS / 2] {
            // Writing to a string does not fail.
            let _ = write!(id, "{byte:02x}");
        }
        let octets = &hash[DIGITS / 2..][..6];
        let mut mac = [0; 6];
        mac.copy_from_slice(octets);
        // Unicast and locally administered.
        mac[0] = mac[0] & 0xfc | 2;
        Self {
            port: id
                .parse()
                .expect("at most 12 + 15 + 12 bytes, all allowed, and two hyphens"),
            mac: MacAddr::new(mac),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_differ_by_network_container_and_interface() {
        let container = "0123456789abcdef".repeat(4);
        let names = |network, container: &str, interface| {
            let names = Names::of(network, container, interface);
            (names.port.to_string(), names.mac.to_string())
        };
        let all = [
            names("net", &container, "eth0"),
            names("other", &container, "eth0"),
            names("net", &container[..63], "eth0"),
            names("net", &container, "eth1"),
        ];
        assert_eq!(all[0], names("net", &container, "eth0"));
        for (index, one) in all.iter().enumerate() {
            assert!(one.0.starts_with("0123456789ab-eth"), "{one:?}");
            for other in &all[..index] {
                assert!(one.0 != other.0 && one.1 != other.1, "{one:?} {other:?}");
            }
            let mac: MacAddr = one.1.parse().unwrap();
            assert_eq!(mac.octets()[0] & 3, 2, "{mac}");
        }
    }

    #[test]
    fn port_id_has_no_character_of_the_interface_that_ids_may_not_have() {
        let names = Names::of("net", "a", "a@b\u{e9}");
        assert!(names.port.as_str().starts_with("a-a_b_-"), "{}", names.port);
    }
}
