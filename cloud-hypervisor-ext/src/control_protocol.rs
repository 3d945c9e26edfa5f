//! The control protocol between `ch-remote-ext` and the launcher: one JSON value per line, one
//! reply per request (docs/control-protocol.md).

use serde::{Deserialize, Serialize};

use crate::device::NetConfig;

/// Version of the protocol. It increases when something changes its meaning or is removed, not when
/// something is added.
pub const VERSION: u32 = 1;

/// Maximum length of a line, in bytes.
pub const MAX_LINE: usize = 64 * 1024;

/// A request to a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// List all ports.
    List,
    /// Start a port for one more device; the text is a value of `--inter-vm`. The reply comes when
    /// the port is ready.
    Add(String),
    /// Shut down the stored connection of a device's port, if the port is not ready: requests of
    /// Cloud Hypervisor to it then fail at once. The reply comes at once.
    Release(String),
    /// End the port of a device. The reply comes when it has ended.
    Remove(String),
}

/// A reply of a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::List`].
    List {
        /// [`VERSION`].
        version: u32,
        /// In the order of their start.
        ports: Vec<PortInfo>,
    },
    /// To [`Request::Add`].
    Added(Box<PortInfo>),
    /// To [`Request::Release`].
    Released,
    /// To [`Request::Remove`].
    Removed,
    /// The request failed: the errors, the cause last.
    Error(Vec<String>),
}

/// The state of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortInfo {
    /// Cloud Hypervisor's name for the device.
    pub id: String,
    /// The port's name on the segment.
    pub port_id: String,
    /// The segment's directory.
    pub segment: String,
    /// The guest's address.
    pub mac: String,
    /// Whether it runs.
    pub state: PortState,
    /// Its process, if there is one.
    pub pid: Option<u32>,
    /// Number of restarts.
    pub restarts: u32,
    /// Its vhost-user socket, absolute; in `net` it may be relative to the VMM's working directory.
    #[serde(default)]
    pub socket: String,
    /// Its status socket (docs/port-status.md).
    pub status_socket: String,
    /// The device, for Cloud Hypervisor's REST API.
    pub net: NetConfig,
}

/// The state of a port's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    /// Started, not ready yet.
    Starting,
    /// Ready.
    Serving,
    /// It died, and will be restarted.
    Down,
    /// It was asked to exit.
    Ending,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_protocol_has_the_documented_format() {
        for (request, text) in [
            (Request::List, r#""list""#),
            (
                Request::Add("segment=web".into()),
                r#"{"add":"segment=web"}"#,
            ),
            (Request::Release("net1".into()), r#"{"release":"net1"}"#),
            (Request::Remove("net1".into()), r#"{"remove":"net1"}"#),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        }
        let error = Reply::Error(vec!["a".into(), "b".into()]);
        assert_eq!(
            serde_json::to_string(&error).unwrap(),
            r#"{"error":["a","b"]}"#
        );
        assert_eq!(
            serde_json::to_string(&Reply::Removed).unwrap(),
            r#""removed""#
        );
    }
}
