//! Network interfaces of guests: what is behind them, and their addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use crate::{Mac, Offloads, Port, PortConfig, Segment, Tap};

/// The path of an interface's frames.
#[derive(Clone, Debug)]
pub enum Backend {
    /// A vhost-user back-end that listens on this socket.
    VhostUser(PathBuf),
    /// A tap device.
    Tap(Tap),
    /// A port on the segment of this directory, run by `cloud-hypervisor-ext`; Cloud Hypervisor
    /// only.
    InterVm(PathBuf),
}

/// A guest's network interface.
#[derive(Clone, Debug)]
pub struct Nic {
    /// The path of its frames.
    pub backend: Backend,
    /// The uplink of the port that the launcher starts for it. All of one guest are in one
    /// namespace.
    pub uplink: Option<Tap>,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Largest packet in bytes, without the Ethernet header.
    pub mtu: u16,
    /// Queue pairs.
    pub queues: u16,
    /// Descriptors of each ring; QEMU only, User Mode Linux takes what the back-end allows.
    pub queue_size: u16,
    /// The offloads that its device offers to the guest; QEMU only.
    pub offloads: Offloads,
    /// Further properties of its device, as `mrg_rxbuf=off,in_order=on`; QEMU only. They override
    /// the others.
    pub properties: String,
    /// Third byte of its IPv4 address, 10.0.`subnet`.`host`/24, and second group of
    /// fd00:`subnet`::`host`/64.
    pub subnet: u8,
    /// Last byte of its addresses.
    pub host: u8,
}

impl Nic {
    /// An interface on a port, with the port's address, MTU and queues, as host `host` of subnet 0.
    pub fn on_port(port: &Port, host: u8) -> Self {
        Self::on_socket(port.socket(), port.config(), host)
    }

    /// The same on a port with these flags that listens on `socket`, or will.
    pub fn on_socket(socket: &Path, config: &PortConfig, host: u8) -> Self {
        Self {
            mac: config.mac,
            queues: config.queues,
            queue_size: config.queue_size,
            ..Self::new(Backend::VhostUser(socket.to_path_buf()), config.mtu, host)
        }
    }

    /// An interface with one queue pair and all offloads, as host `host` of subnet 0; its address
    /// ends in that too.
    pub fn new(backend: Backend, mtu: u16, host: u8) -> Self {
        Self {
            backend,
            uplink: None,
            mac: Mac::local(host),
            mtu,
            queues: 1,
            queue_size: 256,
            offloads: Offloads::Segmentation,
            properties: String::new(),
            subnet: 0,
            host,
        }
    }

    /// An interface on a tap device, as host `host` of subnet 0.
    pub fn on_tap(tap: &Tap, host: u8) -> Self {
        Self::new(Backend::Tap(tap.clone()), tap.mtu(), host)
    }

    /// An interface with `--inter-vm` on a segment, as host `host` of subnet 0.
    pub fn inter_vm(segment: &Segment, host: u8) -> Self {
        Self::new(Backend::InterVm(segment.path().to_path_buf()), 1500, host)
    }

    /// The same interface of the launcher with an uplink of its port.
    #[must_use]
    pub fn uplink(self, tap: &Tap) -> Self {
        Self {
            uplink: Some(tap.clone()),
            ..self
        }
    }

    /// The same interface in another subnet.
    #[must_use]
    pub fn in_subnet(self, subnet: u8) -> Self {
        Self { subnet, ..self }
    }

    /// Its IPv4 address.
    pub fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, self.subnet, self.host)
    }

    /// Its IPv6 address.
    pub fn ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, self.subnet.into(), 0, 0, 0, 0, 0, self.host.into())
    }

    /// Both of its addresses: what holds for one family is to hold for the other.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.ipv4().into(), self.ipv6().into()]
    }
}
