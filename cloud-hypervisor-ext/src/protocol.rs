//! What `ch-remote-ext` and a supervisor say to each other: one JSON value a line, each request answered by one reply.
//! Described in docs/control-protocol.md.

use serde::{Deserialize, Serialize};

use crate::device::NetConfig;

/// Of the protocol; counts up when something changes its meaning or goes away, not when something is added.
pub const VERSION: u32 = 1;

/// Longest line, in bytes.
pub const MAX_LINE: usize = 64 * 1024;

/// Asked of a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// All ports.
    List,
    /// A port for one more device, as after `--inter-vm`. Answered when it serves.
    Add(String),
    /// The end of the connection that is kept for a device's port, if the port is away: what Cloud
    /// Hypervisor asks of it fails then, and waits for nobody. Answered at once.
    Release(String),
    /// The end of a device's port. Answered when it has ended.
    Remove(String),
}

/// Answered by a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::List`].
    List {
        /// [`VERSION`].
        version: u32,
        /// In the order in which they came.
        ports: Vec<PortInfo>,
    },
    /// To [`Request::Add`].
    Added(Box<PortInfo>),
    /// To [`Request::Release`].
    Released,
    /// To [`Request::Remove`].
    Removed,
    /// It cannot be: why, the cause last.
    Error(Vec<String>),
}

/// A port, as its supervisor knows it.
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
    /// Its process, when there is one.
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u32,
    /// Where it awaits Cloud Hypervisor, absolute; `net` may have it relative to the VMM's working directory.
    #[serde(default)]
    pub socket: String,
    /// Where it tells its status (docs/port-status.md).
    pub status_socket: String,
    /// The device, for Cloud Hypervisor's REST API.
    pub net: NetConfig,
}

/// What a port does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    /// It was started, and does not serve yet.
    Starting,
    /// It serves.
    Serving,
    /// It died, and is about to be started again.
    Down,
    /// It was asked to end.
    Ending,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_the_wire() {
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
