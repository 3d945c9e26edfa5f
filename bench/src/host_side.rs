//! The host as a party: a bridge with an address, and the servers of the tools on it.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use virtio_inter_tests::{Bridge, Process, Tap, Testbed, tools, until};

/// How long a server may take to listen.
const LISTEN_LIMIT: Duration = Duration::from_secs(30);
/// Last byte of the bridge's address.
const HOST: u8 = 254;

/// Programs that the host's side is measured with, and their packages have the same names.
const PROGRAMS: [&str; 2] = ["iperf3", "sockperf"];

/// Whether this machine has the tools that the host's side needs.
pub fn has_tools() -> bool {
    PROGRAMS.iter().all(|program| {
        let mut command = Command::new(program);
        command.arg("--version");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok()
    })
}

/// A bridge, and programs on it that wait for clients. Fields are dropped before those that they
/// depend on.
pub struct HostSide {
    servers: Vec<Process>,
    bridge: Bridge,
    subnet: u8,
}

impl HostSide {
    /// A bridge without an address, as if the host were only a switch.
    ///
    /// # Errors
    ///
    /// As [`Bridge::new`].
    pub fn new(mtu: u16, subnet: u8) -> Result<Self> {
        Ok(Self {
            servers: Vec::new(),
            bridge: Bridge::new(mtu)?,
            subnet,
        })
    }

    /// Adds a tap device.
    ///
    /// # Errors
    ///
    /// As [`Bridge::tap`].
    pub fn tap(&mut self) -> Result<Tap> {
        self.bridge.tap()
    }

    /// Its address in the subnet of the guests' interfaces on this bridge.
    pub fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, self.subnet, HOST)
    }

    /// Gives the bridge its address, and starts the servers.
    ///
    /// # Errors
    ///
    /// A server that does not listen.
    pub fn serve(&mut self, bed: &Testbed) -> Result<()> {
        let address = self.ipv4().to_string();
        self.bridge.shell(&format!(
            "ip addr add {address}/24 dev bridge; ip link set lo up"
        ))?;
        for (name, command, port) in [
            ("iperf3", tools::IPERF3_SERVER, tools::IPERF3_PORT),
            ("sockperf", tools::SOCKPERF_TCP_SERVER, tools::SOCKPERF_PORT),
        ] {
            let log = bed.path(&format!("{name}-{}.log", self.subnet));
            self.servers.push(self.bridge.start(command, &log)?);
            until(&format!("listening {name}"), LISTEN_LIMIT, || {
                let filter = format!("sport = :{port}");
                let sockets = self.bridge.run(&["ss", "-Hltn", &filter])?;
                Ok(sockets.contains(port).then_some(()))
            })?;
        }
        Ok(())
    }

    /// The servers.
    pub fn servers(&self) -> &[Process] {
        &self.servers
    }
}
