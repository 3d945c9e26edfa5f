//! The commands of the protocol. See decision 0112.

use std::io;
use std::path::Path;

use serde_json::{Value, json};
use virtio_inter_common::MacAddr;

use crate::attachment::{self, Attachment};
use crate::config::{self, Config, VERSIONS};
use crate::dan;
use crate::error::{CONFIG, Error, INCOMPATIBLE_VERSION, NOT_AVAILABLE, PORT};
use crate::ipam::Ipam;
use crate::names::Names;
use crate::request::{Command, Request};
use crate::{port, port_status, result};

/// Answers a call, for which `print` writes a result.
pub(crate) fn run(
    request: &Request,
    input: &[u8],
    print: &dyn Fn(&Value) -> io::Result<()>,
) -> Result<(), Error> {
    let print =
        |result: &Value| print(result).map_err(|error| Error::io("Cannot write the result", error));
    if request.command == Command::Version {
        return print(&json!({
            "cniVersion": config::version_of(input),
            "supportedVersions": VERSIONS,
        }));
    }
    let config = Config::parse(input)?;
    match request.command {
        Command::Add => add(&config, request, &print),
        Command::Del => delete(&config, request),
        Command::Check => check(&config, request),
        Command::Status => status(&config, request),
        Command::Gc => collect_garbage(&config, request),
        Command::Version => Ok(()),
    }
}

type Print<'a> = &'a dyn Fn(&Value) -> Result<(), Error>;

/// Attaches an interface. If that fails, nothing is left of it.
fn add(config: &Config, request: &Request, print: Print<'_>) -> Result<(), Error> {
    config.check_name()?;
    check_segment(&config.segment()?, CONFIG)?;
    config.port_program()?;
    let ipam = Ipam::of(config, request)?;
    let names = Names::new(config, request);
    let mac: MacAddr = config.mac.or(request.mac).unwrap_or(names.mac);
    let mut attachment = Attachment::create(config, request, &names, mac)?;
    let mut to_release = None;
    let attached = attach(
        config,
        request,
        &mut attachment,
        ipam.as_ref(),
        &mut to_release,
    );
    attached.and_then(|result| print(&result)).map_err(|error| {
        let mut failures = detach(config, &attachment);
        failures.extend(to_release.and_then(|ipam| ipam.call("DEL").err()));
        error.and(failures)
    })
}

/// Attaches an interface, of which there is a record. `to_release` is set while IPAM's addresses
/// are taken.
fn attach<'a>(
    config: &Config,
    request: &Request,
    attachment: &mut Attachment,
    ipam: Option<&'a Ipam<'a>>,
    to_release: &mut Option<&'a Ipam<'a>>,
) -> Result<Value, Error> {
    let lease = ipam.map(Ipam::add).transpose()?;
    *to_release = ipam;
    let socket = attachment.socket();
    let mac = attachment.record.mac.clone();
    let shown = socket.display().to_string();
    let result = result::compose(config, request, &mac, &shown, lease.as_ref())?;
    port::start(config, attachment, lease.as_ref())?;
    let device = dan::device(config, &request.interface, &mac, &socket, lease.as_ref());
    let _lock = attachment::lock(config)?;
    dan::add(&attachment.record.dan_file, &device)?;
    Ok(result)
}

/// Detaches an interface: all but IPAM. What is kept of it stays if something fails, for the next
/// attempt.
fn detach(config: &Config, attachment: &Attachment) -> Vec<Error> {
    let record = &attachment.record;
    let mut failures: Vec<Error> = port::end(attachment).err().into_iter().collect();
    let removed = attachment::lock(config)
        .and_then(|_lock| dan::remove(&record.dan_file, &record.interface, &attachment.socket()));
    failures.extend(removed.err());
    if failures.is_empty() {
        failures.extend(attachment.remove().err());
    }
    failures
}

/// Detaches an interface, or what is left of one.
fn delete(config: &Config, request: &Request) -> Result<(), Error> {
    let names = Names::new(config, request);
    let mut failures = match Attachment::load(config, &names.port) {
        Ok(Some(attachment)) => detach(config, &attachment),
        Ok(None) => forget(config, request, &names).err().into_iter().collect(),
        Err(error) => vec![error],
    };
    match Ipam::of(config, request) {
        Ok(Some(ipam)) => failures.extend(ipam.call("DEL").err()),
        Ok(None) => {}
        Err(error) => failures.push(error),
    }
    Error::all(failures)
}

/// Removes what may be left of an interface of which there is no record.
fn forget(config: &Config, request: &Request, names: &Names) -> Result<(), Error> {
    if !config.state_directory.exists() {
        return Ok(());
    }
    let directory = attachment::directory(&config.state_directory, &names.port);
    {
        let _lock = attachment::lock(config)?;
        let file = attachment::dan_file(config, request);
        dan::remove(&file, &request.interface, &attachment::socket(&directory))?;
    }
    attachment::remove_directory(&directory)
}

/// Looks whether an interface is as ADD left it.
fn check(config: &Config, request: &Request) -> Result<(), Error> {
    check_version(config, "0.4.0", "CHECK")?;
    let names = Names::new(config, request);
    let Some(attachment) = Attachment::load(config, &names.port)? else {
        let message = format!(
            "Interface {} of container {} is not attached to network {}",
            request.interface, request.container, config.network
        );
        return Err(Error::new(PORT, message));
    };
    let record = &attachment.record;
    result::check(config, request, &record.mac)?;
    dan::check(
        &record.dan_file,
        &record.interface,
        &record.mac,
        &attachment.socket(),
    )?;
    port_status::check(&attachment)?;
    forward(config, request, "CHECK")
}

/// Looks whether interfaces could be attached.
fn status(config: &Config, request: &Request) -> Result<(), Error> {
    check_version(config, "1.1.0", "STATUS")?;
    check_segment(&config.segment()?, NOT_AVAILABLE)?;
    config.port_program()?;
    forward(config, request, "STATUS")
}

/// Detaches this network's interfaces that the runtime does not know.
fn collect_garbage(config: &Config, request: &Request) -> Result<(), Error> {
    check_version(config, "1.1.0", "GC")?;
    config.check_name()?;
    let valid = config.valid_attachments()?;
    let mut failures = Vec::new();
    for attachment in Attachment::all(config)? {
        let record = &attachment.record;
        let key = (record.container.clone(), record.interface.clone());
        if record.network == config.network && !valid.contains(&key) {
            failures.extend(detach(config, &attachment));
        }
    }
    failures.extend(forward(config, request, "GC").err());
    Error::all(failures)
}

/// Forwards a command without a result to the IPAM plug-in, if there is one.
fn forward(config: &Config, request: &Request, command: &str) -> Result<(), Error> {
    match Ipam::of(config, request)? {
        Some(ipam) => ipam.call(command).map(drop),
        None => Ok(()),
    }
}

fn check_version(config: &Config, version: &str, command: &str) -> Result<(), Error> {
    if config.is_at_least(version) {
        return Ok(());
    }
    let message = format!(
        "CNI {} has no {command}, version {version} has",
        config.version()
    );
    Err(Error::new(INCOMPATIBLE_VERSION, message))
}

fn check_segment(directory: &Path, code: u32) -> Result<(), Error> {
    if directory.is_dir() {
        return Ok(());
    }
    let message = format!("There is no segment {}", directory.display());
    Err(Error::new(code, message).detail("Make it: virtio-inter segment create"))
}
