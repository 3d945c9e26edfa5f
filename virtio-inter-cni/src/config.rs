//! The network configuration, which the runtime writes to standard input.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use virtio_inter_args::segment_directory;
use virtio_inter_common::{MAX_QUEUE_PAIRS, MacAddr};

use crate::error::{CONFIG, DECODE, Error, INCOMPATIBLE_VERSION};
use crate::program::find_program;
use crate::request::is_container;

/// The versions of CNI whose results have one form, from the oldest to the newest.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Key of the attachments that are to stay, in the configuration of GC.
const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

/// Maximum size of an IP packet, if the configuration says nothing.
const MTU: u16 = 1500;

/// By what a port is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Supervisor {
    /// A transient unit of systemd.
    Systemd,
    /// Nothing: a process that nobody restarts.
    None,
}

/// The network configuration. Keys that are not known here are the runtime's or another plug-in's.
#[derive(Debug)]
pub(crate) struct Config {
    /// The document itself, for the IPAM plug-in.
    pub(crate) document: Map<String, Value>,
    /// Index into [`VERSIONS`].
    version: usize,
    /// Name of the network; empty if there is none.
    pub(crate) network: String,
    segment: Option<String>,
    pub(crate) mtu: u16,
    /// Queue pairs of the port, if configured.
    pub(crate) queues: Option<u16>,
    /// More arguments of the port.
    pub(crate) options: Vec<String>,
    /// Whether the pod may use the addresses only that IPAM gave.
    pub(crate) guard: bool,
    /// Address that the runtime wants (`capabilities: {"mac": true}`).
    pub(crate) mac: Option<MacAddr>,
    /// The IPAM plug-in's name.
    pub(crate) ipam: Option<String>,
    pub(crate) dan_directory: PathBuf,
    pub(crate) state_directory: PathBuf,
    pub(crate) supervisor: Supervisor,
    port_program: String,
}

impl Config {
    /// Parses the configuration. What only some commands need may be missing.
    pub(crate) fn parse(input: &[u8]) -> Result<Self, Error> {
        let document: Value = serde_json::from_slice(input).map_err(|error| {
            Error::new(DECODE, "The network configuration is not JSON").detail(error)
        })?;
        let Value::Object(document) = document else {
            let message = "The network configuration is not a JSON object";
            return Err(Error::new(DECODE, message));
        };
        let version = version(&document)?;
        let ipam: Option<Map<String, Value>> = take(&document, "ipam")?;
        let ipam = match &ipam {
            Some(ipam) => take::<String>(ipam, "type")?.filter(|name| !name.is_empty()),
            None => None,
        };
        let queues = take(&document, "queues")?;
        if let Some(queues) = queues
            && !(1..=MAX_QUEUE_PAIRS).contains(&queues)
        {
            let message = format!("Key \"queues\" is {queues}, 1 to {MAX_QUEUE_PAIRS} are allowed");
            return Err(Error::new(CONFIG, message));
        }
        Ok(Self {
            version,
            network: take(&document, "name")?.unwrap_or_default(),
            segment: take(&document, "segment")?,
            mtu: take(&document, "mtu")?.unwrap_or(MTU),
            queues,
            options: take(&document, "options")?.unwrap_or_default(),
            guard: take(&document, "guard")?.unwrap_or_default(),
            mac: runtime_mac(&document)?,
            ipam,
            dan_directory: directory(&document, "dan_dir", "/run/kata-containers/dans")?,
            state_directory: directory(&document, "state_dir", "/run/virtio-inter-cni")?,
            supervisor: supervisor(&document)?,
            port_program: take(&document, "port_program")?
                .unwrap_or_else(|| "virtio-inter".to_owned()),
            document,
        })
    }

    /// The configuration's version of CNI.
    pub(crate) fn version(&self) -> &'static str {
        VERSIONS[self.version]
    }

    /// Whether the configuration is of that version or a later one.
    pub(crate) fn is_at_least(&self, version: &str) -> bool {
        VERSIONS[..=self.version].contains(&version)
    }

    /// The directory of the segment.
    pub(crate) fn segment(&self) -> Result<PathBuf, Error> {
        let Some(segment) = &self.segment else {
            let message = "The network configuration has no key \"segment\", which names the \
                           segment to join";
            return Err(Error::new(CONFIG, message));
        };
        segment_directory(OsStr::new(segment))
            .map_err(|error| Error::new(CONFIG, format!("Key \"segment\": {error}")))
    }

    /// Refuses a network without a name: its interfaces could not be told from those of others.
    pub(crate) fn check_name(&self) -> Result<(), Error> {
        if is_container(&self.network) {
            return Ok(());
        }
        let message = format!(
            "Key \"name\" is {:?}: a network needs a name of letters, digits, '_', '.' and '-'",
            self.network
        );
        Err(Error::new(CONFIG, message))
    }

    /// The path of the port's program.
    pub(crate) fn port_program(&self) -> Result<PathBuf, Error> {
        let found = find_program(OsStr::new(&self.port_program));
        found.ok_or_else(|| {
            let message = format!(
                "Key \"port_program\": there is no program {:?}",
                self.port_program
            );
            Error::new(CONFIG, message)
        })
    }

    /// The result of the plug-in before this one, or of ADD.
    pub(crate) fn previous_result(&self) -> Result<Option<Map<String, Value>>, Error> {
        take(&self.document, "prevResult")
    }

    /// The attachments that GC is to leave alone: pairs of container and interface.
    pub(crate) fn valid_attachments(&self) -> Result<BTreeSet<(String, String)>, Error> {
        #[derive(Deserialize)]
        struct Attachment {
            #[serde(rename = "containerID")]
            container: String,
            #[serde(rename = "ifname")]
            interface: String,
        }
        let Some(valid) = take::<Vec<Attachment>>(&self.document, VALID_ATTACHMENTS)? else {
            // Without the list everything would be removed.
            let message = format!("The network configuration has no key {VALID_ATTACHMENTS:?}");
            return Err(Error::new(CONFIG, message));
        };
        let pairs = valid.into_iter().map(|one| (one.container, one.interface));
        Ok(pairs.collect())
    }
}

/// The version that answers to this configuration have, even if it is not valid otherwise.
pub(crate) fn version_of(input: &[u8]) -> String {
    let document = serde_json::from_slice::<Value>(input).unwrap_or_default();
    match document["cniVersion"].as_str() {
        Some(version) => version.to_owned(),
        None => VERSIONS[VERSIONS.len() - 1].to_owned(),
    }
}

fn version(document: &Map<String, Value>) -> Result<usize, Error> {
    let version: String = take(document, "cniVersion")?.unwrap_or_default();
    let known = VERSIONS.iter().position(|known| *known == version);
    known.ok_or_else(|| {
        let message = format!("CNI version {version:?} of the configuration is not supported");
        Error::new(INCOMPATIBLE_VERSION, message)
            .detail(format!("Supported: {}", VERSIONS.join(", ")))
    })
}

/// The value of a key; `None` if it is missing or null.
fn take<T: DeserializeOwned>(document: &Map<String, Value>, key: &str) -> Result<Option<T>, Error> {
    let value = document.get(key).cloned().unwrap_or_default();
    serde_json::from_value(value)
        .map_err(|error| Error::new(CONFIG, format!("Key {key:?} is not valid: {error}")))
}

fn directory(document: &Map<String, Value>, key: &str, default: &str) -> Result<PathBuf, Error> {
    let path = take(document, key)?.unwrap_or_else(|| PathBuf::from(default));
    match path.is_absolute() {
        true => Ok(path),
        false => {
            let message = format!("Key {key:?} is {path:?}, which is not an absolute path");
            Err(Error::new(CONFIG, message))
        }
    }
}

fn supervisor(document: &Map<String, Value>) -> Result<Supervisor, Error> {
    match take::<String>(document, "supervisor")?.as_deref() {
        Some("systemd") => Ok(Supervisor::Systemd),
        Some("none") => Ok(Supervisor::None),
        // As sd_booted(3) has it.
        None if Path::new("/run/systemd/system").is_dir() => Ok(Supervisor::Systemd),
        None => Ok(Supervisor::None),
        Some(other) => {
            let message =
                format!("Key \"supervisor\" is {other:?}: \"systemd\" or \"none\" is needed");
            Err(Error::new(CONFIG, message))
        }
    }
}

fn runtime_mac(document: &Map<String, Value>) -> Result<Option<MacAddr>, Error> {
    let runtime: Option<Map<String, Value>> = take(document, "runtimeConfig")?;
    let mac = match &runtime {
        Some(runtime) => take::<String>(runtime, "mac")?.filter(|mac| !mac.is_empty()),
        None => None,
    };
    let parsed = mac.map(|mac| mac.parse()).transpose();
    parsed.map_err(|error| Error::new(CONFIG, format!("Key \"mac\" of \"runtimeConfig\": {error}")))
}
