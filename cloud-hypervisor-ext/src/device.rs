//! A complete device, and the arguments of Cloud Hypervisor and the port for it.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_inter_common::{Guard, MacAddr, MacSets, PortId};

use crate::child;
use crate::inter_vm::InterVm;
use crate::options::quote;
use crate::port_limits::PortLimits;
use crate::rate_limits::DeviceRateLimits;
use crate::sandbox_mode::SandboxMode;

/// Default number of virtqueues, as with `--net`: one to receive, one to transmit.
const DEFAULT_QUEUES: u16 = 2;

/// A complete device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Cloud Hypervisor's name for it.
    pub id: PortId,
    /// Its port's name on the segment.
    pub port_id: PortId,
    /// The segment's directory.
    pub segment: PathBuf,
    /// The guest's address.
    pub mac: MacAddr,
    /// In bytes; `None`: the port's default.
    pub mtu: Option<u16>,
    /// Virtqueues, two for each pair.
    pub num_queues: u16,
    /// Entries of each virtqueue; `None`: Cloud Hypervisor's default.
    pub queue_size: Option<u16>,
    /// The port's vhost-user socket.
    pub socket: PathBuf,
    /// The port's status socket.
    pub status_socket: PathBuf,
    /// The tap device that is the port's uplink; None: there is none, or `tap_fds`.
    pub tap: Option<String>,
    /// Whether its switch takes offloads; `None`: the port's default.
    pub uplink_offload: Option<bool>,
    /// Addresses that the guest may use beside `mac`.
    pub allow_mac: MacSets,
    /// What the guest must not send.
    pub guard: Guard,
    /// It may use any that no other port has or lists.
    pub trunk: bool,
    /// What peers take of the port at most.
    pub limits: PortLimits,
    /// What the guest may send and get.
    pub rate_limits: DeviceRateLimits,
    /// The port's sandbox; `None`: its default.
    pub sandbox: Option<SandboxMode>,
    /// Descriptors of it.
    pub tap_fds: Option<TapFds>,
    /// As with `--net`.
    pub pci_segment: Option<u16>,
    /// As with `--net`.
    pub pci_device_id: Option<u8>,
}

/// Descriptors of a tap device, which each process of a port gets.
#[derive(Clone, Debug)]
pub struct TapFds(Arc<[OwnedFd]>);

impl TapFds {
    /// Takes over descriptors with which this process was started.
    ///
    /// # Errors
    ///
    /// The number of one that is not open.
    pub fn claim(numbers: &[RawFd]) -> Result<Self, RawFd> {
        let claim = |number: &RawFd| child::claim(*number).ok_or(*number);
        numbers
            .iter()
            .map(claim)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The descriptors.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd)
    }
}

/// The same descriptors, not equal ones.
impl PartialEq for TapFds {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for TapFds {}

/// The device in the format of `vm.add-net` and `vm.create` of Cloud Hypervisor's REST API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// The device's name.
    pub id: String,
    /// Always.
    pub vhost_user: bool,
    /// The port's socket.
    pub vhost_socket: String,
    /// The guest's address.
    pub mac: String,
    /// Virtqueues, two for each pair.
    pub num_queues: u16,
    /// Entries of each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_size: Option<u16>,
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// PCI segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_segment: Option<u16>,
    /// PCI slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
}

impl Device {
    /// Completes the device that the user requested.
    pub fn new(
        id: PortId,
        asked: InterVm,
        mac: MacAddr,
        port_id: PortId,
        socket: PathBuf,
        status_socket: PathBuf,
    ) -> Self {
        Self {
            id,
            port_id,
            segment: asked.segment,
            mac,
            mtu: asked.mtu,
            num_queues: asked.num_queues.unwrap_or(DEFAULT_QUEUES),
            queue_size: asked.queue_size,
            socket,
            status_socket,
            tap: asked.tap,
            uplink_offload: asked.uplink_offload,
            allow_mac: asked.allow_mac,
            guard: asked.guard,
            trunk: asked.trunk.unwrap_or(false),
            limits: asked.limits,
            rate_limits: asked.rate_limits,
            sandbox: asked.sandbox,
            tap_fds: None,
            pci_segment: asked.pci_segment,
            pci_device_id: asked.pci_device_id,
        }
    }

    /// For Cloud Hypervisor's REST API.
    pub fn net_config(&self) -> NetConfig {
        NetConfig {
            id: self.id.to_string(),
            vhost_user: true,
            vhost_socket: self.socket.display().to_string(),
            mac: self.mac.to_string(),
            num_queues: self.num_queues,
            queue_size: self.queue_size,
            mtu: self.mtu,
            pci_segment: self.pci_segment,
            pci_device_id: self.pci_device_id,
        }
    }

    /// For Cloud Hypervisor's `--net`.
    pub fn net_option(&self) -> OsString {
        let mut text = format!("vhost_user=on,id={},mac={}", self.id, self.mac);
        let optional = [
            ("mtu", self.mtu.map(u32::from)),
            ("num_queues", Some(self.num_queues.into())),
            ("queue_size", self.queue_size.map(u32::from)),
            ("pci_segment", self.pci_segment.map(u32::from)),
            ("pci_device_id", self.pci_device_id.map(u32::from)),
        ];
        for (key, value) in optional {
            if let Some(value) = value {
                text.push_str(&format!(",{key}={value}"));
            }
        }
        text.push_str(",socket=");
        text.push_str(&quote(&self.socket.display().to_string()));
        text.into()
    }

    /// For `virtio-inter port`.
    pub fn port_arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = [
            ("--socket", self.socket.as_os_str().to_owned()),
            ("--status-socket", self.status_socket.as_os_str().to_owned()),
            ("--segment", self.segment.as_os_str().to_owned()),
            ("--id", self.port_id.as_str().into()),
            ("--mac", self.mac.to_string().into()),
            ("--queues", (self.num_queues / 2).to_string().into()),
        ]
        .into_iter()
        // Attached with `=`, so that no value is parsed as an option.
        .map(|(name, value)| {
            let mut argument = OsString::from(name);
            argument.push("=");
            argument.push(value);
            argument
        })
        .collect();
        if let Some(mtu) = self.mtu {
            arguments.push(format!("--mtu={mtu}").into());
        }
        if let Some(size) = self.queue_size {
            arguments.push(format!("--queue-size={size}").into());
        }
        if let Some(tap) = &self.tap {
            arguments.push(format!("--uplink=tap={tap}").into());
        }
        if let Some(on) = self.uplink_offload {
            let value = if on { "on" } else { "off" };
            arguments.push(format!("--uplink-offload={value}").into());
        }
        if !self.allow_mac.is_empty() {
            arguments.push(format!("--allow-mac={}", self.allow_mac).into());
        }
        if !self.guard.ips.is_empty() {
            arguments.push(format!("--ip={}", self.guard.ips).into());
        }
        if self.guard.no_dhcp_server {
            arguments.push("--no-dhcp-server".into());
        }
        if self.trunk {
            arguments.push("--trunk".into());
        }
        arguments.extend(self.limits.arguments().map(OsString::from));
        arguments.extend(self.rate_limits.arguments().map(OsString::from));
        if let Some(mode) = self.sandbox {
            arguments.push(format!("--sandbox={mode}").into());
        }
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(text: &str) -> Device {
        let asked = InterVm::parse(text).unwrap();
        Device::new(
            "n0".parse().unwrap(),
            asked,
            MacAddr::new([2, 0, 0, 0, 0, 1]),
            "vm-n0".parse().unwrap(),
            "/tmp/a,b".into(),
            "/tmp/s".into(),
        )
    }

    #[test]
    fn device_has_cloud_hypervisors_formats() {
        assert_eq!(
            device("segment=web").net_option(),
            "vhost_user=on,id=n0,mac=02:00:00:00:00:01,num_queues=2,socket=\"/tmp/a,b\""
        );
        let full =
            device("segment=web,mtu=9000,num_queues=8,queue_size=64,pci_segment=1,pci_device_id=5");
        assert_eq!(
            full.net_option(),
            "vhost_user=on,id=n0,mac=02:00:00:00:00:01,mtu=9000,num_queues=8,queue_size=64,\
             pci_segment=1,pci_device_id=5,socket=\"/tmp/a,b\""
        );
        assert_eq!(
            serde_json::to_value(device("segment=web").net_config()).unwrap(),
            serde_json::json!({
                "id": "n0", "vhost_user": true, "vhost_socket": "/tmp/a,b",
                "mac": "02:00:00:00:00:01", "num_queues": 2
            })
        );
    }

    #[test]
    fn device_has_the_ports_arguments() {
        let text = "segment=web,mtu=9000,num_queues=8,queue_size=64,tap=vm1,\
                    allow_mac=[00:00:5e:00:01:*,02:00:00:00:00:07],\
                    max_link_memory=2M,max_user_share=50,max_peers=9,\
                    ip=[10.0.0.7,fd00::/64],no_dhcp_server=on,\
                    bw_size=[0,125000],bw_refill_time=100,\
                    ops_size=1K,ops_refill_time=1000,ops_one_time_burst=7,sandbox=strict,\
                    uplink_offload=off,trunk=on";
        let arguments = device(text).port_arguments();
        assert_eq!(
            arguments,
            [
                "--socket=/tmp/a,b",
                "--status-socket=/tmp/s",
                "--segment=/run/virtio-inter/web",
                "--id=vm-n0",
                "--mac=02:00:00:00:00:01",
                "--queues=4",
                "--mtu=9000",
                "--queue-size=64",
                "--uplink=tap=vm1",
                "--uplink-offload=off",
                "--allow-mac=00:00:5e:00:01:*,02:00:00:00:00:07",
                "--ip=10.0.0.7,fd00::/64",
                "--no-dhcp-server",
                "--trunk",
                "--max-peers=9",
                "--max-link-memory=2097152",
                "--max-user-share=50",
                "--bandwidth=direction=rx,size=125000,refill_time=100",
                "--packets=size=1024,refill_time=1000,one_time_burst=7",
                "--sandbox=strict",
            ]
        );
    }
}
