//! Identifies a VM by its command line, for MAC addresses and names that stay the same over
//! restarts.
//!
//! See decision 0021.

use std::fs;
use std::path::PathBuf;

use sha2::{Digest, Sha256};
use virtio_inter_common::{MacAddr, PortId};

use crate::command_line::CommandLine;
use crate::options::Options;

/// Maximum length of the VM's and of the device's part of a port's name, in bytes.
const MAX_NAME: usize = 24;

/// A property that identifies this VM, also at its next start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The kind of property: `uuid`, `api-socket`, `disk`, or `process`, which does not persist.
    pub source: &'static str,
    value: String,
    name: String,
}

impl Identity {
    /// The first of these that exists: `--platform`'s UUID, the API socket, the first writable
    /// disk. Each of them belongs to one running VM at a time. Without any of them: this process.
    pub fn new(line: &CommandLine, api_socket: Option<&PathBuf>) -> Self {
        let platform = line.texts("--platform").last();
        let uuid = platform
            .and_then(|text| Options::parse_known(text).ok())
            .and_then(|options| options.get("system_uuid").or_else(|| options.get("uuid")));
        if let Some(uuid) = uuid {
            let uuid = uuid.to_ascii_lowercase();
            return Self::of("uuid", uuid.clone(), &uuid);
        }
        if let Some(socket) = api_socket {
            return Self::of_file("api-socket", socket);
        }
        if let Some(disk) = line.texts("--disk").find_map(writable_disk) {
            return Self::of_file("disk", &disk);
        }
        let process = std::process::id().to_string();
        let start = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |time| time.as_nanos());
        Self::of(
            "process",
            format!("{process} {start}"),
            &format!("vm{process}"),
        )
    }

    fn of(source: &'static str, value: String, name: &str) -> Self {
        Self {
            source,
            value,
            name: file_name(name),
        }
    }

    fn of_file(source: &'static str, path: &PathBuf) -> Self {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::of(source, absolute.to_string_lossy().into_owned(), &stem)
    }

    /// Whether it is the same at the next start.
    pub fn persists(&self) -> bool {
        self.source != "process"
    }

    /// The address of a device: locally administered, unicast, and always the same for one VM and
    /// device of this machine.
    pub fn mac(&self, device: &str) -> MacAddr {
        // VMs of two machines with the same paths get different addresses.
        let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let mut hash = Sha256::new();
        for part in [
            "virtio-inter",
            machine.trim(),
            self.source,
            &self.value,
            device,
        ] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        let hash = hash.finalize();
        let mut octets = [0; 6];
        octets.copy_from_slice(&hash[..6]);
        // IEEE 802: bit 1 of the first byte for local administration, bit 0 for groups.
        octets[0] = octets[0] & !0b11 | 0b10;
        MacAddr::new(octets)
    }

    /// The name of a device's port on the segment: readable, and unique like the address.
    pub fn port_id(&self, device: &str, mac: MacAddr) -> PortId {
        let [.., a, b, c] = mac.octets();
        let text = format!("{}-{}-{a:02x}{b:02x}{c:02x}", self.name, file_name(device));
        // Contains only valid characters: see `file_name`.
        text.parse().unwrap_or_else(|_| unreachable!("{text}"))
    }
}

fn writable_disk(text: &str) -> Option<PathBuf> {
    let options = Options::parse_known(text).ok()?;
    if options.toggle("readonly").ok()? == Some(true) {
        return None;
    }
    options.get("path").map(PathBuf::from)
}

/// A text with `-` for all but letters, digits and `_`, at most [`MAX_NAME`] bytes.
fn file_name(text: &str) -> String {
    let name: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '_' {
                c
            } else {
                '-'
            }
        })
        .take(MAX_NAME)
        .collect();
    if name.is_empty() {
        "vm".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(arguments: &[&str], api_socket: Option<&str>) -> Identity {
        let line = CommandLine::new(arguments.iter().map(Into::into));
        Identity::new(&line, api_socket.map(PathBuf::from).as_ref())
    }

    #[test]
    fn identity_is_the_most_certain_source() {
        let all = ["--platform", "system_uuid=AB", "--disk", "path=/d.img"];
        assert_eq!(identity(&all, Some("/a.sock")).source, "uuid");
        assert_eq!(identity(&all[2..], Some("/a.sock")).source, "api-socket");
        let disks = ["--disk", "path=/ro.img,readonly=on", "path=/d.img"];
        assert_eq!(identity(&disks, None).source, "disk");
        assert_eq!(
            identity(&disks, None),
            identity(&["--disk=path=/d.img"], None)
        );
        assert_eq!(identity(&disks[..2], None).source, "process");
        assert!(!identity(&[], None).persists());
    }

    #[test]
    fn addresses_are_local_unicast_and_stay() {
        for number in 0..64 {
            let device = format!("inter-vm{number}");
            let mac = identity(&[], Some("/a.sock")).mac(&device);
            assert_eq!(mac.octets()[0] & 0b11, 0b10);
            assert_eq!(mac, identity(&[], Some("/a.sock")).mac(&device));
            assert_ne!(mac, identity(&[], Some("/b.sock")).mac(&device));
            assert_ne!(mac, identity(&[], Some("/a.sock")).mac("other"));
        }
    }

    #[test]
    fn names_are_made_of_what_may_be_in_them() {
        let odd = identity(&[], Some("/tmp/.VM of Jörg, with a very long name.sock"));
        let id = odd.port_id(&"x".repeat(64), MacAddr::new([2, 0, 0, 0xab, 0xcd, 0xef]));
        assert_eq!(
            id.as_str(),
            "-VM-of-J-rg--with-a-very-xxxxxxxxxxxxxxxxxxxxxxxx-abcdef"
        );
    }
}
