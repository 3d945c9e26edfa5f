//! Kata's file of directly attachable networks (DAN), which lists the devices of one pod.
//!
//! Other plug-ins may have devices in it: they stay as they are.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use crate::attachment::replace;
use crate::config::Config;
use crate::error::{DAN, Error};
use crate::ipam::Lease;

/// Entries of a queue. What Kata takes if the file has none.
const QUEUE_SIZE: u16 = 256;

/// The device of an interface, as Kata's Rust runtime reads it.
pub(crate) fn device(
    config: &Config,
    name: &str,
    mac: &str,
    socket: &Path,
    lease: Option<&Lease>,
) -> Value {
    json!({
        "name": name,
        "guest_mac": mac,
        "device": {
            "type": "vhost-user",
            "path": socket,
            // Kata 4 counts pairs, as the port does; Kata 3 counts queues, and refuses 1. Both take
            // one pair for 0, unless Kata 4 is configured otherwise (`network_queues`).
            "queue_num": config.queues.unwrap_or_default(),
            "queue_size": QUEUE_SIZE,
        },
        "network_info": {
            "interface": {
                "ip_addresses": lease.map(Lease::addresses).unwrap_or_default(),
                "mtu": config.mtu,
                "ntype": "",
                "flags": 0,
            },
            "routes": lease.map(routes).unwrap_or_default(),
            "neighbors": [],
        },
    })
}

fn routes(lease: &Lease) -> Vec<Value> {
    let routes = lease.routes.iter().map(|route| {
        let gateway = lease.gateway_of(route);
        json!({
            "dest": route.destination,
            "gateway": gateway.map_or_else(String::new, |gateway| gateway.to_string()),
            "source": "",
            "scope": route.scope.unwrap_or_default(),
            "flags": 0,
            "mtu": route.mtu.unwrap_or_default(),
        })
    });
    routes.collect()
}

/// Adds a device. The caller has the lock.
pub(crate) fn add(path: &Path, device: &Value) -> Result<(), Error> {
    let mut document = read(path)?.unwrap_or_else(|| json!({ "netns": null, "devices": [] }));
    let devices = devices(&mut document, path)?;
    if devices.iter().any(|other| other["name"] == device["name"]) {
        let message = format!("{} has a device {} already", path.display(), device["name"]);
        return Err(Error::new(DAN, message));
    }
    devices.push(device.clone());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(Error::of_path("make the directory", directory))?;
    }
    write(path, &document)
}

/// Removes the device with that name and socket, if there is one, and the file with the last one.
/// The caller has the lock.
pub(crate) fn remove(path: &Path, name: &str, socket: &Path) -> Result<(), Error> {
    let Some(mut document) = read(path)? else {
        return Ok(());
    };
    let devices = devices(&mut document, path)?;
    let all = devices.len();
    devices.retain(|device| !is(device, name, socket));
    if devices.len() == all {
        return Ok(());
    }
    match devices.is_empty() {
        true => fs::remove_file(path).map_err(Error::of_path("remove", path)),
        false => write(path, &document),
    }
}

/// Finds out whether the device is in the file, with that address.
pub(crate) fn check(path: &Path, name: &str, mac: &str, socket: &Path) -> Result<(), Error> {
    let mut document = read(path)?.unwrap_or_else(|| json!({ "devices": [] }));
    let devices = devices(&mut document, path)?;
    let is_there = |device: &Value| is(device, name, socket) && device["guest_mac"] == *mac;
    if devices.iter().any(is_there) {
        return Ok(());
    }
    let message = format!(
        "{} has no device {name} with address {mac} and socket {}",
        path.display(),
        socket.display()
    );
    Err(Error::new(DAN, message))
}

fn is(device: &Value, name: &str, socket: &Path) -> bool {
    let path = device["device"]["path"].as_str();
    device["name"] == *name && path.is_some_and(|path| Path::new(path) == socket)
}

fn read(path: &Path) -> Result<Option<Value>, Error> {
    let text = match fs::read(path) {
        Err(error) if is_missing(&error) => return Ok(None),
        text => text.map_err(Error::of_path("read", path))?,
    };
    let document = serde_json::from_slice(&text);
    document.map(Some).map_err(|error| {
        let message = format!("{} is not a file of devices: {error}", path.display());
        Error::new(DAN, message)
    })
}

/// Whether there is no such file, nor can be one.
fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn devices<'a>(document: &'a mut Value, path: &Path) -> Result<&'a mut Vec<Value>, Error> {
    let devices = document.get_mut("devices").and_then(Value::as_array_mut);
    devices.ok_or_else(|| {
        let message = format!(
            "{} is not a file of devices: it has no list of them",
            path.display()
        );
        Error::new(DAN, message)
    })
}

fn write(path: &Path, document: &Value) -> Result<(), Error> {
    replace(path, format!("{document:#}\n").as_bytes())
}
