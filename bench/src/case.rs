//! The cases of a run and their names: measurement, environment, ways and sizes.

use serde::{Deserialize, Serialize};

use crate::open_vswitch::LARGEST_FRAME;
use crate::placement::{Grouping, Placement};

/// The groups of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// The two figures of the paper that the idea comes from: streams and transactions over message
    /// sizes.
    Paper,
    /// Latency without and with load, and after idleness.
    Latency,
    /// Datagrams.
    Udp,
    /// The same beside a program that keeps all CPUs busy.
    Busy,
    /// Other ways between processes, in the same topology.
    Peers,
    /// A link without anything around it.
    Link,
    /// Ports with uplinks, and what uplinks cost links.
    Uplink,
    /// Many ports.
    Scale,
}

impl Group {
    /// All, in the order in which they are measured and reported.
    pub const ALL: [Self; 8] = [
        Self::Paper,
        Self::Latency,
        Self::Udp,
        Self::Busy,
        Self::Peers,
        Self::Link,
        Self::Uplink,
        Self::Scale,
    ];

    /// The name on the command line and in JSON.
    pub fn id(self) -> &'static str {
        match self {
            Self::Paper => "paper",
            Self::Latency => "latency",
            Self::Udp => "udp",
            Self::Busy => "busy",
            Self::Peers => "peers",
            Self::Link => "link",
            Self::Uplink => "uplink",
            Self::Scale => "scale",
        }
    }
}

/// The program that runs the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Environment {
    /// Guests of User Mode Linux.
    Uml,
    /// Guests of QEMU, under KVM where that runs stock kernels.
    Qemu,
    /// Guests of Cloud Hypervisor.
    CloudHypervisor,
    /// The same in a nested machine, whose processor QEMU emulates, where this machine has no KVM
    /// for them.
    Nested,
    /// Processes of the host, without guests.
    Host,
}

impl Environment {
    /// The name on the command line and in JSON.
    pub fn id(self) -> &'static str {
        match self {
            Self::Uml => "uml",
            Self::Qemu => "qemu",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Nested => "nested",
            Self::Host => "host",
        }
    }

    /// The name in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uml => "User Mode Linux",
            Self::Qemu => "QEMU",
            Self::CloudHypervisor => "Cloud Hypervisor",
            Self::Nested => "Cloud Hypervisor on an emulated processor",
            Self::Host => "processes of the host",
        }
    }
}

/// A way from one end to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// From a guest to itself: the paper's upper bound.
    Loopback,
    /// Through two ports of virtio-inter.
    Inter,
    /// Through the VMM's own tap device, or two of them, on a Linux bridge.
    Tap,
    /// Through ports of virtio-inter that have uplinks to a Linux bridge: to peers by links, to all
    /// others by an uplink.
    Uplink,
    /// Through one DPDK testpmd with two vhost-user ports.
    NetVhost,
    /// Through one DPDK testpmd with two memif ports.
    Memif,
    /// Through Open vSwitch with DPDK and two vhost-user ports.
    OvsDpdk,
    /// Through a link alone.
    Link,
    /// Through a stream socket of the Unix family.
    UnixStream,
    /// Through a pipe.
    Pipe,
    /// One process that copies the bytes once.
    Memcpy,
}

impl Way {
    /// The name in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Inter => "virtio-inter",
            Self::Tap => "tap + bridge",
            Self::Uplink => "virtio-inter with uplinks",
            Self::NetVhost => "testpmd net_vhost",
            Self::Memif => "testpmd net_memif",
            Self::OvsDpdk => "Open vSwitch with DPDK",
            Self::Link => "link",
            Self::UnixStream => "AF_UNIX stream",
            Self::Pipe => "pipe",
            Self::Memcpy => "memcpy",
        }
    }

    /// Whether frames go through ports of virtio-inter.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Inter | Self::Uplink)
    }

    /// Whether it moves frames of that many bytes.
    pub fn takes(self, size: u32) -> bool {
        self != Self::OvsDpdk || size <= LARGEST_FRAME
    }

    /// The number of copies of each byte that the host makes between the two ends.
    pub fn copies(self) -> u8 {
        match self {
            Self::Loopback => 0,
            Self::Memcpy => 1,
            Self::Inter
            | Self::Tap
            | Self::Uplink
            | Self::NetVhost
            | Self::OvsDpdk
            | Self::Link
            | Self::UnixStream
            | Self::Pipe => 2,
            // Each of its two hops copies in and out.
            Self::Memif => 4,
        }
    }

    /// Processes of the host that each byte passes between the two ends.
    pub fn processes(self) -> u8 {
        match self {
            Self::Inter | Self::Uplink => 2,
            Self::NetVhost | Self::Memif | Self::OvsDpdk => 1,
            Self::Loopback
            | Self::Tap
            | Self::Link
            | Self::UnixStream
            | Self::Pipe
            | Self::Memcpy => 0,
        }
    }
}

/// The measurement of one case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Test {
    /// netperf TCP_STREAM; a size is that of a message.
    TcpStream,
    /// netperf TCP_RR; a size is that of a message each way.
    TcpRr,
    /// sockperf's ping-pong of 64 bytes, over TCP or else UDP, with a bulk stream beside it or not.
    PingPong {
        /// Whether over TCP.
        tcp: bool,
        /// Whether a stream goes the same way at the same time.
        loaded: bool,
    },
    /// A message over TCP every 10 ms: all parties sleep in between.
    AfterIdle,
    /// 16 messages over TCP at once, every 10 ms.
    Burst,
    /// Datagrams as fast as the sender can; a size is that of a datagram's payload.
    Datagrams,
    /// Frames that circle between two virtio-user ports of one testpmd; a size is that of a frame.
    Forward,
    /// iperf3 over TCP from a guest to the host; a size is that of a call of the sender.
    ToHost,
    /// The same from the host to a guest.
    FromHost,
    /// sockperf's ping-pong of 64 bytes over TCP between a guest and the host.
    HostPingPong,
    /// Bytes between two processes; a size is that of one call or record.
    Bytes {
        /// Records published at once on a link.
        batch: u32,
        /// Whether the bytes come from and go to more memory than caches hold.
        cold: bool,
    },
    /// Streams between pairs of guests at once; a size is the number of ports.
    Pairs,
    /// Streams from all guests to one; a size is the number of ports.
    AllToOne,
    /// Memory of ports that have met; a size is the number of ports.
    Memory,
    /// Ports with nothing to do; a size is the number of ports.
    Idle,
    /// Ports that start at once, talk in a ring and are quiet; a size is the number of ports.
    Mesh,
}

impl Test {
    /// Tests whose names begin with another test's.
    const LONGER_NAMES: [Self; 6] = [
        Self::TcpStream,
        Self::TcpRr,
        Self::PingPong {
            tcp: true,
            loaded: true,
        },
        Self::PingPong {
            tcp: false,
            loaded: true,
        },
        Self::AfterIdle,
        Self::Burst,
    ];

    /// Whether a value of this name is one of the test's: its own name, or that and a suffix.
    pub fn has_value(self, metric: &str) -> bool {
        let begins_with = |name: &str| {
            let rest = metric.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        };
        let own = self.id();
        let is_of_longer = |test: Self| {
            let name = test.id();
            name.len() > own.len() && begins_with(&name)
        };
        begins_with(&own) && !Self::LONGER_NAMES.into_iter().any(is_of_longer)
    }

    /// Whether the host is one of the ends: each byte then passes half of what it passes between
    /// two guests.
    pub fn is_with_host(self) -> bool {
        matches!(self, Self::ToHost | Self::FromHost | Self::HostPingPong)
    }

    /// The name on the command line and, as the name of its first value, in JSON.
    pub fn id(self) -> String {
        let name = match self {
            Self::TcpStream => "tcp_stream",
            Self::TcpRr => "tcp_rr",
            Self::PingPong { tcp: true, loaded } if loaded => "tcp_loaded",
            Self::PingPong { tcp: true, .. } => "tcp",
            Self::PingPong { loaded, .. } if loaded => "udp_loaded",
            Self::PingPong { .. } => "udp",
            Self::AfterIdle => "tcp_after_idle",
            Self::Burst => "tcp_burst",
            Self::Datagrams => "datagrams",
            Self::ToHost => "to_host",
            Self::FromHost => "from_host",
            Self::HostPingPong => "host_tcp",
            Self::Forward => "forward",
            Self::Bytes { cold: true, .. } => "cold",
            Self::Bytes { batch, .. } => return format!("batch_{batch}"),
            Self::Pairs => "pairs",
            Self::AllToOne => "all_to_one",
            Self::Memory => "memory",
            Self::Idle => "idle",
            Self::Mesh => "mesh",
        };
        name.to_owned()
    }
}

/// Where values are reported, and what the parties run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The group of the report.
    pub group: Group,
    /// The program that runs the ends.
    pub environment: Environment,
    /// The CPUs of the ends.
    pub placement: Placement,
    /// How the scheduler groups them.
    #[serde(default)]
    pub grouping: Grouping,
}

impl Place {
    /// Its name: `group/environment/placement/grouping`.
    pub fn id(&self) -> String {
        let Self {
            group,
            environment,
            placement,
            grouping,
        } = self;
        format!(
            "{}/{}/{}/{}",
            group.id(),
            environment.id(),
            placement.id(),
            grouping.id()
        )
    }
}

/// One line of the plan: every size on every way, in each round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    /// Where it is reported and measured.
    #[serde(flatten)]
    pub place: Place,
    /// What is measured.
    pub test: Test,
    /// Side by side on these ways.
    pub ways: Vec<Way>,
    /// With these sizes; what a size is depends on the test.
    pub sizes: Vec<u32>,
    /// At most so many rounds.
    pub rounds: u32,
}

impl Case {
    /// Its name: `group/environment/placement/grouping/test`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.place.id(), self.test.id())
    }

    /// Measurements in one round.
    pub fn steps(&self) -> usize {
        let of_size = |size: &u32| self.ways.iter().filter(|way| way.takes(*size)).count();
        self.sizes.iter().map(of_size).sum()
    }
}

/// Whether a name is selected: by no filter, by itself, or by one of the parts that it begins with.
pub fn is_asked_for(id: &str, only: &[String]) -> bool {
    only.is_empty()
        || only.iter().any(|filter| {
            let filter = filter.trim_end_matches('/');
            id == filter
                || id
                    .strip_prefix(filter)
                    .is_some_and(|rest| rest.starts_with('/'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_names_match_by_whole_parts() {
        let asked = |filter: &str| is_asked_for("paper/uml/one-cpu/tcp_rr", &[filter.to_owned()]);
        assert!(asked("paper") && asked("paper/uml/") && asked("paper/uml/one-cpu/tcp_rr"));
        assert!(!asked("pap") && !asked("paper/um") && !asked("uml") && !asked("paper/qemu"));
        assert!(is_asked_for("anything", &[]));
    }
}
