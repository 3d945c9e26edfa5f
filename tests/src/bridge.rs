//! The path that virtio-inter replaces: tap devices on a Linux bridge, in a network namespace of
//! their own.
//!
//! The namespace keeps the host's addresses, firewall and other bridges out of it, and takes the
//! devices with it when it is deleted. It needs root.

use std::process::{Command, id};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail};

use crate::Result;
use crate::cleanup::{Action, Registration};

/// A bridge in its own network namespace, removed when dropped.
pub struct Bridge {
    namespace: String,
    mtu: u16,
    taps: u32,
    _registration: Registration,
}

/// A tap device on a bridge.
#[derive(Clone, Debug)]
pub struct Tap {
    name: String,
    namespace: String,
    mtu: u16,
}

impl Bridge {
    /// Makes a bridge that carries packets of up to `mtu` bytes.
    ///
    /// # Errors
    ///
    /// A user who is not root, a kernel without bridges.
    pub fn new(mtu: u16) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("virtio-inter-{}-{number}", id());
        // First, so that a signal between the two leaves no namespace.
        let registration = Registration::new(Action::DeleteNamespace(namespace.clone()));
        ip(&["netns", "add", &namespace])?;
        let mtu_text = mtu.to_string();
        ip(&[
            "-n", &namespace, "link", "add", "bridge", "mtu", &mtu_text, "type", "bridge",
        ])?;
        ip(&["-n", &namespace, "link", "set", "bridge", "up"])?;
        Ok(Self {
            namespace,
            mtu,
            taps: 0,
            _registration: registration,
        })
    }

    /// Adds a tap device.
    ///
    /// # Errors
    ///
    /// A kernel without tap devices.
    pub fn tap(&mut self) -> Result<Tap> {
        let name = format!("tap{}", self.taps);
        self.taps += 1;
        let (namespace, mtu) = (self.namespace.clone(), self.mtu.to_string());
        ip(&[
            "-n", &namespace, "tuntap", "add", "dev", &name, "mode", "tap",
        ])?;
        ip(&[
            "-n", &namespace, "link", "set", &name, "mtu", &mtu, "master", "bridge", "up",
        ])?;
        Ok(Tap {
            name,
            namespace,
            mtu: self.mtu,
        })
    }
}

impl Tap {
    /// The device's name in its namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Largest packet in bytes, without the Ethernet header.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// The same command, run where the device is.
    pub(crate) fn enter(&self, command: &Command) -> Command {
        let mut inside = self.command(command.get_program());
        inside.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }

    /// A command that runs `program` where the device is.
    pub(crate) fn command(&self, program: &std::ffi::OsStr) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace])
            .arg(program);
        command
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("Running ip")?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", arguments.join(" "), told.trim());
    }
    Ok(())
}
