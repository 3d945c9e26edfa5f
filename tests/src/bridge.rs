//! The path that virtio-inter replaces: tap devices on a Linux bridge, or on Open vSwitch, in a
//! network namespace of their own.
//!
//! The namespace keeps the host's addresses, firewall and other bridges out of it, and takes the
//! devices with it when it is deleted. It needs root.

use std::ffi::OsStr;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, id};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, io, thread};

use anyhow::{Context, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cleanup::{Action, Registration};
use crate::open_vswitch::{self, OpenVswitch};
use crate::ovn::{self, Ovn};
use crate::{Process, Result, Testbed};

/// Bytes that VXLAN adds to a packet: Ethernet, IPv4, UDP and its own header.
const VXLAN_OVERHEAD: u16 = 50;

/// A bridge in its own network namespace, removed when dropped.
pub struct Bridge {
    namespace: String,
    mtu: u16,
    taps: u32,
    switch: Switch,
    _outside: Option<Registration>,
    _registration: Registration,
}

/// What the devices of a bridge are on.
enum Switch {
    Kernel,
    OpenVswitch(Box<OpenVswitch>),
    Ovn(Box<Ovn>),
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
        let bridge = Self::without_bridge(mtu)?;
        let mtu = mtu.to_string();
        let namespace = &bridge.namespace;
        ip(&[
            "-n", namespace, "link", "add", "bridge", "mtu", &mtu, "type", "bridge",
        ])?;
        ip(&["-n", namespace, "link", "set", "bridge", "up"])?;
        Ok(bridge)
    }

    /// Makes a bridge of Open vSwitch's userspace datapath instead. It completes no checksums of
    /// what comes from a tap device: guests are to do that. None: there is no Open vSwitch.
    ///
    /// # Errors
    ///
    /// As for [`Bridge::new`], and an Open vSwitch that fails.
    pub fn of_open_vswitch(bed: &Testbed, mtu: u16) -> Result<Option<Self>> {
        let Some(packages) = open_vswitch::Packages::find() else {
            return Ok(None);
        };
        let mut bridge = Self::without_bridge(mtu)?;
        let namespace = bridge.namespace.clone();
        let enter = |command: &Command| enter_command(&namespace, command);
        let switch = OpenVswitch::start(bed, packages, enter)?;
        switch.add_bridge("bridge")?;
        bridge.switch = Switch::OpenVswitch(Box::new(switch));
        ip(&["-n", &bridge.namespace, "link", "set", "bridge", "up"])?;
        Ok(Some(bridge))
    }

    /// Makes a logical switch of OVN instead, on Open vSwitch's userspace datapath. A device
    /// carries frames once it has a logical port ([`Bridge::set_logical_port`]). None: there is no
    /// OVN.
    ///
    /// # Errors
    ///
    /// As for [`Bridge::new`], and an OVN that fails.
    pub fn of_ovn(bed: &Testbed, mtu: u16) -> Result<Option<Self>> {
        let (switch, ovn) = (open_vswitch::Packages::find(), ovn::Packages::find());
        let (Some(switch), Some(ovn)) = (switch, ovn) else {
            return Ok(None);
        };
        let mut bridge = Self::without_bridge(mtu)?;
        let namespace = bridge.namespace.clone();
        ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
        let enter = |command: &Command| enter_command(&namespace, command);
        let switch = OpenVswitch::start(bed, switch, enter)?;
        bridge.switch = Switch::Ovn(Box::new(Ovn::start(bed, ovn, switch, enter)?));
        Ok(Some(bridge))
    }

    /// Sets the addresses of a device's logical port, and those from which it may send: any if
    /// there are none.
    ///
    /// # Errors
    ///
    /// A bridge that is not OVN's.
    pub fn set_logical_port(&self, tap: &Tap, addresses: &[&str], security: &[&str]) -> Result<()> {
        match &self.switch {
            Switch::Ovn(ovn) => ovn.set_port(&tap.name, addresses, security),
            _ => bail!("Only OVN has logical ports"),
        }
    }

    /// Makes the host of a bridge, which something else is to make.
    ///
    /// # Errors
    ///
    /// As for [`Bridge::new`].
    pub fn without_bridge(mtu: u16) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("virtio-inter-{}-{number}", id());
        // First, so that a signal between the two leaves no namespace.
        let registration = Registration::new(Action::DeleteNamespace(namespace.clone()));
        ip(&["netns", "add", &namespace])?;
        Ok(Self {
            namespace,
            mtu,
            taps: 0,
            switch: Switch::Kernel,
            _outside: None,
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
        ip(&["-n", &namespace, "link", "set", &name, "mtu", &mtu, "up"])?;
        self.attach(&name)?;
        Ok(self.tap_named(&name))
    }

    /// A tap device that something else has made.
    pub fn tap_named(&self, name: &str) -> Tap {
        Tap {
            name: name.to_owned(),
            namespace: self.namespace.clone(),
            mtu: self.mtu,
        }
    }

    /// Makes a device a port of the bridge.
    fn attach(&self, name: &str) -> Result<()> {
        match &self.switch {
            Switch::OpenVswitch(switch) => switch.set(&["add-port", "bridge", name]),
            Switch::Ovn(ovn) => ovn.attach(name),
            Switch::Kernel => ip(&[
                "-n",
                &self.namespace,
                "link",
                "set",
                name,
                "master",
                "bridge",
            ]),
        }
    }

    /// Joins two bridges, as of two hosts, by the kernel's VXLAN over a link between them.
    ///
    /// # Errors
    ///
    /// A kernel without VXLAN.
    pub fn join_by_vxlan(&self, other: &Self) -> Result<()> {
        let far = &other.namespace;
        self.shell(&format!(
            "ip link add under0 mtu {0} type veth peer name under0 netns {far} mtu {0}",
            self.mtu + VXLAN_OVERHEAD
        ))?;
        for (bridge, own, peer) in [(self, 1, 2), (other, 2, 1)] {
            bridge.shell(&format!(
                "ip addr add 198.51.100.{own}/24 dev under0; ip link set under0 up
                 ip link add vxlan0 mtu {} type vxlan id 42 dstport 4789 \
                     local 198.51.100.{own} remote 198.51.100.{peer} dev under0
                 ip link set vxlan0 up",
                bridge.mtu
            ))?;
            bridge.attach("vxlan0")?;
        }
        Ok(())
    }

    /// Packets that a device of the bridge's host has carried, in both directions.
    ///
    /// # Errors
    ///
    /// No such device.
    pub fn packets(&self, device: &str) -> Result<u64> {
        let (rx, tx) = packets(&self.namespace, device)?;
        Ok(rx + tx)
    }

    /// The words of a command that runs programs on the bridge's host.
    pub fn words(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.namespace]
            .map(str::to_owned)
            .into()
    }

    /// A socket that listens at an address of the bridge's host, for this process.
    ///
    /// # Errors
    ///
    /// An address that is not there, or is in use.
    pub fn listen(&self, address: SocketAddr) -> Result<TcpListener> {
        let namespace = Path::new("/run/netns").join(&self.namespace);
        let namespace = fs::File::open(namespace).context("Opening a namespace")?;
        // Another thread enters it, and ends there; the socket stays.
        let listener = thread::spawn(move || -> io::Result<TcpListener> {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind)?;
            TcpListener::bind(address)
        });
        let listener = listener.join().ok().context("A thread that listens")?;
        listener.with_context(|| format!("Listening at {address}"))
    }

    /// Runs a program on the bridge's host, to its end. Returns its standard output.
    ///
    /// # Errors
    ///
    /// A program that cannot be run or that fails.
    pub fn run(&self, command: &[&str]) -> Result<String> {
        run(enter(&self.namespace, command.iter().map(OsStr::new)))
    }

    /// Runs a line of shell there.
    ///
    /// # Errors
    ///
    /// A line that fails.
    pub fn shell(&self, line: &str) -> Result<String> {
        self.run(&["sh", "-ec", line])
    }

    /// Starts a program there that runs until it is dropped.
    ///
    /// # Errors
    ///
    /// As for [`Process::start`].
    pub fn start(&self, command: &[&str], log: &Path) -> Result<Process> {
        let inside = enter(&self.namespace, command.iter().map(OsStr::new));
        Process::start(command[0], inside, log, &[])
    }

    /// Attaches the bridge to another network by NAT.
    ///
    /// # Errors
    ///
    /// A machine without nftables.
    pub fn attach_outside(&mut self) -> Result<()> {
        self.connect_outside()?;
        self.shell(
            "echo 1 > /proc/sys/net/ipv4/ip_forward
             nft add table ip nat
             nft add chain ip nat post '{ type nat hook postrouting priority 100; }'
             nft add rule ip nat post oifname out0 masquerade",
        )
        .map(drop)
    }

    /// Connects the bridge's host to another network: a namespace of its own with the address
    /// 192.0.2.1, which has no way to the bridge's network.
    ///
    /// # Errors
    ///
    /// A kernel without veth.
    pub fn connect_outside(&mut self) -> Result<()> {
        let outside = format!("{}-outside", self.namespace);
        self._outside = Some(Registration::new(Action::DeleteNamespace(outside.clone())));
        ip(&["netns", "add", &outside])?;
        self.shell(&format!(
            "ip link add out0 type veth peer name in0; ip link set in0 netns {outside}
             ip addr add 192.0.2.2/24 dev out0; ip link set out0 up"
        ))?;
        ip(&["-n", &outside, "addr", "add", "192.0.2.1/24", "dev", "in0"])?;
        ip(&["-n", &outside, "link", "set", "in0", "up"])
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

    /// Number of packets that the device has carried: to and from its switch.
    ///
    /// # Errors
    ///
    /// A device that is gone.
    pub fn packets(&self) -> Result<(u64, u64)> {
        packets(&self.namespace, &self.name)
    }

    /// The same command, run where the device is.
    pub(crate) fn enter(&self, command: &Command) -> Command {
        enter_command(&self.namespace, command)
    }

    /// A command that runs `program` where the device is.
    pub(crate) fn command(&self, program: &std::ffi::OsStr) -> Command {
        enter(&self.namespace, [program])
    }
}

/// Packets that a device has received and sent.
fn packets(namespace: &str, device: &str) -> Result<(u64, u64)> {
    #[derive(serde::Deserialize)]
    struct Count {
        packets: u64,
    }
    #[derive(serde::Deserialize)]
    struct Counts {
        rx: Count,
        tx: Count,
    }
    #[derive(serde::Deserialize)]
    struct Link {
        stats64: Counts,
    }
    let show = ["ip", "-json", "-statistics", "link", "show", device];
    let text = run(enter(namespace, show.iter().map(OsStr::new)))?;
    let links: Vec<Link> = serde_json::from_str(&text).context("Reading what ip says")?;
    let link = links.first().context("No device")?;
    Ok((link.stats64.rx.packets, link.stats64.tx.packets))
}

/// The same command, run in a namespace.
fn enter_command(namespace: &str, command: &Command) -> Command {
    let words = [command.get_program()]
        .into_iter()
        .chain(command.get_args());
    let mut inside = enter(namespace, words);
    if let Some(directory) = command.get_current_dir() {
        inside.current_dir(directory);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => inside.env(name, value),
            None => inside.env_remove(name),
        };
    }
    inside
}

/// A command in a namespace.
fn enter<'a>(namespace: &str, command: impl IntoIterator<Item = &'a OsStr>) -> Command {
    let mut inside = Command::new("ip");
    inside.args(["netns", "exec", namespace]).args(command);
    inside
}

fn run(mut command: Command) -> Result<String> {
    let output = command.output().context("Running ip")?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}", told.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn ip(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(arguments);
    run(command).map(drop)
}
