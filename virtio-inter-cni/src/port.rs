//! The port of an interface: its arguments, its start and its end.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use virtio_inter_args::check_socket_path;
use virtio_inter_common::PortId;

use crate::attachment::Attachment;
use crate::config::Config;
use crate::error::{CONFIG, Error};
use crate::ipam::Lease;
use crate::{port_process, port_unit};

/// Endings of a port's files in its segment's directory, but for that of its lock.
const FILES: [&str; 3] = ["sock", "status", "capture"];

/// Starts the port, and waits until it is ready.
pub(crate) fn start(
    config: &Config,
    attachment: &mut Attachment,
    lease: Option<&Lease>,
) -> Result<(), Error> {
    let program = config.port_program()?;
    let arguments = arguments(config, attachment, lease)?;
    match attachment.record.is_unit {
        true => port_unit::start(attachment, &program, &arguments),
        false => port_process::start(attachment, &program, &arguments),
    }
}

/// Ends the port, if it runs, and removes what it left.
pub(crate) fn end(attachment: &Attachment) -> Result<(), Error> {
    match (&attachment.record.process, attachment.record.is_unit) {
        (_, true) => port_unit::stop(&attachment.port)?,
        (Some(process), _) => process.end()?,
        (None, _) => {}
    }
    remove_files(&attachment.record.segment, &attachment.port)
}

/// Arguments of the port. The VMM of Kata listens: its runtime refuses a socket that exists.
fn arguments(
    config: &Config,
    attachment: &Attachment,
    lease: Option<&Lease>,
) -> Result<Vec<OsString>, Error> {
    let socket = attachment.socket();
    check_socket_path(&socket)
        .map_err(|error| Error::new(CONFIG, format!("Key \"state_dir\": {error}")))?;
    let mut arguments: Vec<OsString> = vec!["port".into(), "--client".into()];
    let mut add = |name: &str, value: OsString| {
        arguments.push(name.into());
        arguments.push(value);
    };
    add("--socket", socket.into());
    add("--segment", attachment.record.segment.clone().into());
    add("--id", attachment.port.as_str().into());
    add("--mac", attachment.record.mac.clone().into());
    add("--mtu", config.mtu.to_string().into());
    add("--queues", config.queues.unwrap_or(1).to_string().into());
    if config.guard {
        let Some(lease) = lease else {
            let message = "Key \"guard\" needs addresses from IPAM (key \"ipam\")";
            return Err(Error::new(CONFIG, message));
        };
        let hosts: Vec<String> = lease.hosts().iter().map(ToString::to_string).collect();
        add("--ip", hosts.join(",").into());
        arguments.push("--no-dhcp-server".into());
    }
    arguments.extend(config.options.iter().map(OsString::from));
    Ok(arguments)
}

/// Removes the files that a killed port left on its segment. Those of a living one are locked.
fn remove_files(segment: &Path, port: &PortId) -> Result<(), Error> {
    let lock = segment.join(format!("{port}.lock"));
    let mut options = OpenOptions::new();
    // Others may write to the directory, and put anything there.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = match options.read(true).custom_flags(flags).open(&lock) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file.map_err(Error::of_path("open", &lock))?,
    };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(());
    }
    // The lock goes last: whoever finds it free takes the others over.
    let files = FILES.map(|ending| segment.join(format!("{port}.{ending}")));
    for path in files.iter().chain([&lock]) {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.map_err(Error::of_path("remove", path))?,
        }
    }
    Ok(())
}
