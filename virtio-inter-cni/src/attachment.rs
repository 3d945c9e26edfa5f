//! What is kept of an attached interface until it is detached: a directory of its own below the
//! state directory, with a record, the VMM's socket and the port's log.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use virtio_inter_common::{MacAddr, PortId};

use crate::config::{Config, Supervisor};
use crate::error::{ATTACHED, DECODE, Error, IO};
use crate::names::Names;
use crate::process::Process;
use crate::request::Request;

/// Name of the record in an interface's directory.
const RECORD: &str = "attachment.json";

/// Name of the lock in the state directory. No port's id begins with a dot.
const LOCK: &str = ".lock";

/// An attached interface.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) directory: PathBuf,
    pub(crate) port: PortId,
    pub(crate) record: Record,
}

/// What the end of the attachment depends on, whatever the configuration says by then.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) network: String,
    pub(crate) container: String,
    pub(crate) interface: String,
    pub(crate) segment: PathBuf,
    pub(crate) mac: String,
    /// Kata's file.
    pub(crate) dan_file: PathBuf,
    /// Whether the port is a unit of systemd, not a process.
    pub(crate) is_unit: bool,
    /// The port's process, where it is no unit.
    pub(crate) process: Option<Process>,
}

impl Attachment {
    /// Begins an attachment.
    pub(crate) fn create(
        config: &Config,
        request: &Request,
        names: &Names,
        mac: MacAddr,
    ) -> Result<Self, Error> {
        let record = Record {
            network: config.network.clone(),
            container: request.container.clone(),
            interface: request.interface.clone(),
            segment: config.segment()?,
            mac: mac.to_string(),
            dan_file: dan_file(config, request),
            is_unit: config.supervisor == Supervisor::Systemd,
            process: None,
        };
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        let state = &config.state_directory;
        let make = |builder: &DirBuilder, path| {
            builder
                .create(path)
                .map_err(Error::of_path("make the directory", path))
        };
        make(builder.recursive(true), state)?;
        check_private(state)?;
        let directory = directory(state, &names.port);
        if directory.exists() {
            let message = format!(
                "Interface {} of container {} is attached to network {} already",
                request.interface, request.container, config.network
            );
            return Err(Error::new(ATTACHED, message).detail(directory.display()));
        }
        make(builder.recursive(false), &directory)?;
        let attachment = Self {
            directory,
            port: names.port.clone(),
            record,
        };
        if let Err(error) = attachment.save() {
            return Err(error.and(attachment.remove().err().into_iter().collect()));
        }
        Ok(attachment)
    }

    /// The attachment of that port; `None` if there is none.
    pub(crate) fn load(config: &Config, port: &PortId) -> Result<Option<Self>, Error> {
        let directory = directory(&config.state_directory, port);
        let path = directory.join(RECORD);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(Error::of_path("read", &path))?,
        };
        let record = serde_json::from_slice(&text).map_err(|error| {
            Error::new(
                DECODE,
                format!("{} is not a record: {error}", path.display()),
            )
        })?;
        Ok(Some(Self {
            directory,
            port: port.clone(),
            record,
        }))
    }

    /// All attachments.
    pub(crate) fn all(config: &Config) -> Result<Vec<Self>, Error> {
        let entries = match fs::read_dir(&config.state_directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::of_path("read", &config.state_directory))?,
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let ports = names.filter_map(|name| name.parse().ok());
        ports
            .filter_map(|port| Self::load(config, &port).transpose())
            .collect()
    }

    /// The socket on which the VMM waits for the port.
    pub(crate) fn socket(&self) -> PathBuf {
        socket(&self.directory)
    }

    /// Writes the record.
    pub(crate) fn save(&self) -> Result<(), Error> {
        let text = serde_json::to_vec(&self.record)
            .map_err(|error| Error::new(IO, format!("Cannot write a record: {error}")))?;
        replace(&self.directory.join(RECORD), &text)
    }

    /// Removes all that is kept of it.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        remove_directory(&self.directory)
    }
}

/// The directory of a port's interface.
pub(crate) fn directory(state: &Path, port: &PortId) -> PathBuf {
    state.join(port.as_str())
}

/// The VMM's socket in that directory.
pub(crate) fn socket(directory: &Path) -> PathBuf {
    directory.join("vhost.sock")
}

/// Removes an interface's directory, if there is one.
pub(crate) fn remove_directory(directory: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::of_path("remove", directory)),
    }
}

/// The file from which Kata takes the container's devices.
pub(crate) fn dan_file(config: &Config, request: &Request) -> PathBuf {
    config
        .dan_directory
        .join(format!("{}.json", request.container))
}

/// The right to change files that several interfaces share, until it is dropped.
pub(crate) fn lock(config: &Config) -> Result<File, Error> {
    let path = config.state_directory.join(LOCK);
    let mut options = OpenOptions::new();
    let options = options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(&path).map_err(Error::of_path("open", &path))?;
    flock(&file, FlockOperation::LockExclusive)
        .map_err(|error| Error::of_path("lock", &path)(error.into()))?;
    Ok(file)
}

/// Writes a file that readers see whole: the former content or the new one.
pub(crate) fn replace(path: &Path, text: &[u8]) -> Result<(), Error> {
    let name = path.file_name().unwrap_or_default().display();
    let new = path.with_file_name(format!(".{name}.new"));
    let mut options = OpenOptions::new();
    let options = options.create(true).truncate(true).write(true).mode(0o600);
    let written = options.open(&new).and_then(|mut file| file.write_all(text));
    written
        .and_then(|()| fs::rename(&new, path))
        .map_err(Error::of_path("write", path))
}

/// Refuses a directory in which others could put a socket or a record of theirs.
fn check_private(directory: &Path) -> Result<(), Error> {
    let metadata = directory
        .metadata()
        .map_err(Error::of_path("examine", directory))?;
    if metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    let message = format!(
        "Directory {} is another user's, or others may write to it",
        directory.display()
    );
    Err(Error::new(IO, message).detail("Key \"state_dir\" names a directory of this user alone"))
}
