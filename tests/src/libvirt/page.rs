//! The XML of docs/libvirt.md, with the sockets and addresses of a test: what users copy is what
//! runs.

use anyhow::{Context, ensure};

use crate::{Nic, Port, Result};

const PAGE: &str = include_str!("../../../docs/libvirt.md");

/// The page's example of a port's socket, on which the port listens.
const SOCKET_OF_PORT: &str = "/run/virtio-inter-port/vm1/vhost.sock";
/// The page's example of a VMM's socket, on which the VMM listens.
const SOCKET_OF_VMM: &str = "/run/vm2/net.sock";

/// The page's XML that has `text` in it.
fn block(text: &str) -> Result<&'static str> {
    let blocks = PAGE.split("```xml\n").skip(1);
    let mut blocks = blocks.filter_map(|rest| rest.split_once("```").map(|(block, _)| block));
    let found = blocks.find(|block| block.contains(text));
    found.with_context(|| format!("No XML in docs/libvirt.md has {text}"))
}

/// Replaces what is there once.
fn replaced(xml: &str, from: &str, to: &str) -> Result<String> {
    let count = xml.matches(from).count();
    ensure!(
        count == 1,
        "{from} is in this XML of docs/libvirt.md {count} times:\n{xml}"
    );
    Ok(xml.replace(from, to))
}

/// The element by which a domain shares its memory.
pub(super) fn memory_backing() -> Result<&'static str> {
    block("<memoryBacking>")
}

/// An interface on a port that listens.
///
/// # Errors
///
/// When the page has no such XML.
pub fn interface_of_client(port: &Port, nic: &Nic) -> Result<String> {
    interface(port, nic, SOCKET_OF_PORT, "52:54:00:00:00:01")
}

/// An interface that listens, for a port with `--client`.
///
/// # Errors
///
/// When the page has no such XML.
pub fn interface_of_server(port: &Port, nic: &Nic) -> Result<String> {
    interface(port, nic, SOCKET_OF_VMM, "52:54:00:00:00:02")
}

fn interface(port: &Port, nic: &Nic, socket: &str, mac: &str) -> Result<String> {
    let xml = block(&format!("path='{socket}'"))?;
    let xml = replaced(xml, socket, &port.socket().display().to_string())?;
    replaced(&xml, mac, &nic.mac.to_string())
}
