//! Reads the vhost-user network devices of a snapshot, to whose sockets a restored VM connects.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;
use virtio_inter_common::{MacAddr, PortId};

use crate::inter_vm::InterVm;
use crate::options::Options;

/// An error of a snapshot or its devices.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// The value of `--restore` has no URL of a directory.
    #[error("Error parsing --restore: source_url=file://<directory> is needed with --inter-vm")]
    NoUrl,
    /// The snapshot cannot be read.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The snapshot does not have Cloud Hypervisor's format.
    #[error("Cannot understand {}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The snapshot has no such device.
    #[error(
        "Snapshot {} has no vhost-user network device {id}; it has {}",
        path.display(), list(.others)
    )]
    NoDevice {
        /// The file.
        path: PathBuf,
        /// The device.
        id: PortId,
        /// The devices of the snapshot.
        others: Vec<String>,
    },
    /// The snapshot has another value than `--inter-vm`.
    #[error("Device {id} of the snapshot has {key}={there}, not {asked}; leave {key}= out")]
    Differs {
        /// The device.
        id: PortId,
        /// The key.
        key: &'static str,
        /// The value in the snapshot.
        there: String,
        /// The value in `--inter-vm`.
        asked: String,
    },
}

fn list(ids: &[String]) -> String {
    if ids.is_empty() {
        "none".to_owned()
    } else {
        ids.join(", ")
    }
}

/// A snapshot's vhost-user network devices.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
    devices: Vec<Net>,
}

#[derive(Debug, Deserialize)]
struct VmConfig {
    net: Option<Vec<Net>>,
}

/// A device of a snapshot.
#[derive(Clone, Debug, Deserialize)]
pub struct Net {
    id: Option<String>,
    mac: Option<String>,
    mtu: Option<u16>,
    num_queues: Option<u16>,
    queue_size: Option<u16>,
    #[serde(default)]
    vhost_user: bool,
    vhost_socket: Option<PathBuf>,
}

impl Snapshot {
    /// Reads the snapshot that `--restore` names.
    ///
    /// # Errors
    ///
    /// When it cannot be read or understood.
    pub fn read(restore: &str) -> Result<Self, SnapshotError> {
        let url = Options::parse_known(restore)
            .ok()
            .and_then(|options| options.get("source_url"))
            .ok_or(SnapshotError::NoUrl)?;
        let directory = url.strip_prefix("file://").ok_or(SnapshotError::NoUrl)?;
        let path = Path::new(directory).join("config.json");
        let text = fs::read(&path).map_err(|source| SnapshotError::Read {
            path: path.clone(),
            source,
        })?;
        let config: VmConfig =
            serde_json::from_slice(&text).map_err(|source| SnapshotError::Content {
                path: path.clone(),
                source,
            })?;
        let mut devices = config.net.unwrap_or_default();
        devices.retain(|device| device.vhost_user && device.vhost_socket.is_some());
        Ok(Self { path, devices })
    }

    /// Completes a device with the snapshot's values, which the guest and the VMM expect.
    ///
    /// # Errors
    /// When the snapshot has no such device, or other values than the user gave.
    pub fn complete(&self, id: &PortId, asked: &mut InterVm) -> Result<(), SnapshotError> {
        let device = self
            .devices
            .iter()
            .find(|device| device.id.as_deref() == Some(id.as_str()));
        let Some(there) = device.cloned() else {
            return Err(SnapshotError::NoDevice {
                path: self.path.clone(),
                id: id.clone(),
                others: self.devices.iter().filter_map(|d| d.id.clone()).collect(),
            });
        };
        let mac: Option<MacAddr> = there.mac.and_then(|text| text.parse().ok());
        take_over(id, "mac", &mut asked.mac, mac)?;
        take_over(id, "mtu", &mut asked.mtu, there.mtu)?;
        take_over(id, "num_queues", &mut asked.num_queues, there.num_queues)?;
        take_over(id, "queue_size", &mut asked.queue_size, there.queue_size)?;
        let shown = |path: Option<PathBuf>| path.map(|path| path.display().to_string());
        let mut socket = shown(asked.socket.take());
        take_over(id, "socket", &mut socket, shown(there.vhost_socket))?;
        asked.socket = socket.map(PathBuf::from);
        Ok(())
    }
}

fn take_over<T: PartialEq + ToString>(
    id: &PortId,
    key: &'static str,
    asked: &mut Option<T>,
    there: Option<T>,
) -> Result<(), SnapshotError> {
    let Some(there) = there else {
        return Ok(());
    };
    if let Some(asked) = asked.as_ref().filter(|asked| **asked != there) {
        return Err(SnapshotError::Differs {
            id: id.clone(),
            key,
            there: there.to_string(),
            asked: asked.to_string(),
        });
    }
    *asked = Some(there);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(net: &str) -> (tempfile::TempDir, Result<Snapshot, SnapshotError>) {
        let temp = tempfile::TempDir::new().unwrap();
        fs::write(
            temp.path().join("config.json"),
            format!("{{\"cpus\": {{}}, \"net\": {net}}}"),
        )
        .unwrap();
        let url = format!("source_url=file://{},prefault=on", temp.path().display());
        let read = Snapshot::read(&url);
        (temp, read)
    }

    const NET: &str = r#"[
        {"id": "_net0", "vhost_user": false, "tap": "tap0"},
        {"id": "inter-vm0", "vhost_user": true, "vhost_socket": "/run/a",
         "mac": "02:00:00:00:00:07", "num_queues": 4, "queue_size": 256, "mtu": null,
         "offload_tso": true}
    ]"#;

    fn complete(text: &str) -> Result<InterVm, SnapshotError> {
        let (_temp, snapshot) = snapshot(NET);
        let mut asked = InterVm::parse(text).unwrap();
        let id = asked
            .id
            .clone()
            .unwrap_or_else(|| "inter-vm0".parse().unwrap());
        snapshot?.complete(&id, &mut asked)?;
        Ok(asked)
    }

    #[test]
    fn snapshot_completes_its_devices() {
        let device = complete("segment=web").unwrap();
        assert_eq!(device.socket.as_deref(), Some(Path::new("/run/a")));
        assert_eq!(device.mac.unwrap().to_string(), "02:00:00:00:00:07");
        assert_eq!(
            (device.num_queues, device.queue_size, device.mtu),
            (Some(4), Some(256), None)
        );
        complete("segment=web,mac=02:00:00:00:00:07,num_queues=4,socket=/run/a").unwrap();
    }

    #[test]
    fn snapshot_with_other_values_is_refused() {
        let error = complete("segment=web,num_queues=2")
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "Device inter-vm0 of the snapshot has num_queues=4, not 2; leave num_queues= out"
        );
        let error = complete("segment=web,id=x").unwrap_err().to_string();
        assert!(
            error.ends_with("has no vhost-user network device x; it has inter-vm0"),
            "{error}"
        );
    }

    #[test]
    fn snapshot_that_cannot_be_read_is_named() {
        assert!(matches!(
            Snapshot::read("prefault=on"),
            Err(SnapshotError::NoUrl)
        ));
        assert!(matches!(
            Snapshot::read("source_url=http://x"),
            Err(SnapshotError::NoUrl)
        ));
        let error = Snapshot::read("source_url=file:///nowhere")
            .unwrap_err()
            .to_string();
        assert_eq!(error, "Cannot read /nowhere/config.json");
        let (_temp, read) = snapshot("7");
        assert!(matches!(read, Err(SnapshotError::Content { .. })));
    }
}
