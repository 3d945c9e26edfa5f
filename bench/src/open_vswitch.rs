//! Open vSwitch with DPDK as the switch between two vhost-user ports, from packages that were
//! unpacked, not installed: all its files are in the testbed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use virtio_inter_tests::{Process, Testbed, until};

/// Frames above this are not taken (`NETDEV_DPDK_MAX_PKT_LEN` in its netdev-dpdk.c).
pub const LARGEST_FRAME: u32 = 9728;

/// How long each of its programs may take.
const LIMIT: Duration = Duration::from_secs(20);
/// Without `--legacy-mem` it adds `--in-memory`, with which DPDK needs huge pages. It asks for
/// 262144 buffers.
const EAL: &str = "--no-huge --legacy-mem -m 2048 --no-pci --no-telemetry --no-shconf";
const PORTS: [&str; 2] = ["p0", "p1"];
const SWITCH: &str = "usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";

/// A running switch with two ports, ended when dropped.
pub struct OpenVswitch {
    packages: PathBuf,
    place: PathBuf,
    // In the order in which they are to end.
    switch: Process,
    _database: Process,
}

impl OpenVswitch {
    /// Starts a switch that polls on `cpu` and passes frames from one port to the other: two flows,
    /// no learning.
    ///
    /// # Errors
    ///
    /// A program that is missing or fails; its log is in the message.
    pub fn start(bed: &Testbed, packages: &Path, cpu: usize) -> Result<Self> {
        let place = bed.path("ovs");
        std::fs::create_dir(&place).context("Making Open vSwitch's directory")?;
        let tools = Tools {
            packages,
            place: &place,
        };
        let schema = packages.join("usr/share/openvswitch/vswitch.ovsschema");
        let (file, socket) = (place.join("conf.db"), place.join("db.sock"));
        let text = |path: &Path| path.display().to_string();
        tools.run("ovsdb-tool", &["create", &text(&file), &text(&schema)])?;
        let mut command = tools.command("usr/sbin/ovsdb-server");
        command.arg(&file).arg("--no-chdir");
        command.arg(format!("--remote=punix:{}", socket.display()));
        let log = bed.path("ovsdb-server.log");
        let mut database = Process::start("ovsdb-server", command, &log, &[cpu])?;
        until("socket of ovsdb-server", LIMIT, || {
            ensure!(database.is_running(), "It ended: {}", database.log());
            Ok(socket.exists().then_some(()))
        })?;
        let set = |arguments: &[&str]| tools.set(arguments);
        set(&["--no-wait", "init"])?;
        let (eal, mask) = (
            format!("other_config:dpdk-extra=\"{EAL}\""),
            1u128.checked_shl(u32::try_from(cpu)?).context("CPU")?,
        );
        let (poll, main) = (
            format!("other_config:pmd-cpu-mask={mask:x}"),
            format!("other_config:dpdk-lcore-mask={mask:x}"),
        );
        let open = ["--no-wait", "set", "Open_vSwitch", "."];
        let init = "other_config:dpdk-init=true";
        set(&[&open[..], &[init, &eal, &poll, &main]].concat())?;
        let mut command = tools.command(SWITCH);
        command.args([&tools.database(), "--no-chdir"]);
        let log = bed.path("ovs-vswitchd.log");
        // It binds its own threads.
        let mut switch = Process::start("ovs-vswitchd", command, &log, &[])?;
        let configure = || -> Result<()> {
            let datapath = "datapath_type=netdev";
            set(&["add-br", "br", "--", "set", "bridge", "br", datapath])?;
            for port in PORTS {
                let kind = "type=dpdkvhostuser";
                let interface = ["--", "set", "Interface", port, kind];
                set(&[&["add-port", "br", port][..], &interface].concat())?;
            }
            tools.run("ovs-ofctl", &["del-flows", "br"])?;
            tools.run("ovs-ofctl", &["add-flow", "br", "in_port=p0,actions=p1"])?;
            tools.run("ovs-ofctl", &["add-flow", "br", "in_port=p1,actions=p0"])
        };
        configure().with_context(|| format!("ovs-vswitchd wrote: {}", switch.log()))?;
        ensure!(switch.is_running(), "It ended: {}", switch.log());
        Ok(Self {
            packages: packages.to_path_buf(),
            place,
            switch,
            _database: database,
        })
    }

    /// The directory of the ports' sockets.
    pub fn sockets(&self) -> [PathBuf; 2] {
        PORTS.map(|port| self.place.join(port))
    }

    /// Waits until it has taken the drivers that connected: it drops what it would send before.
    ///
    /// # Errors
    ///
    /// A port that nobody drives.
    pub fn wait_for_drivers(&self) -> Result<()> {
        let tools = Tools {
            packages: &self.packages,
            place: &self.place,
        };
        PORTS
            .iter()
            .try_for_each(|port| tools.set(&["wait-until", "Interface", port, "link_state=up"]))
    }

    /// The process that moves the frames.
    pub fn process(&self) -> &Process {
        &self.switch
    }
}

/// One of its programs, with the paths of all files in its environment.
struct Tools<'a> {
    packages: &'a Path,
    place: &'a Path,
}

impl Tools<'_> {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.packages.join(program));
        for directory in ["RUNDIR", "DBDIR", "LOGDIR", "SYSCONFDIR"] {
            command.env(format!("OVS_{directory}"), self.place);
        }
        command
    }

    fn database(&self) -> String {
        format!("unix:{}", self.place.join("db.sock").display())
    }

    /// Runs `ovs-vsctl`.
    fn set(&self, arguments: &[&str]) -> Result<()> {
        let at = format!("--db={}", self.database());
        let limit = format!("--timeout={}", LIMIT.as_secs());
        self.run("ovs-vsctl", &[&[&*at, &*limit], arguments].concat())
    }

    fn run(&self, name: &str, arguments: &[&str]) -> Result<()> {
        let mut command = self.command(&format!("usr/bin/{name}"));
        command.args(arguments);
        let log = self.place.join(format!("{name}.log"));
        let mut process = Process::start(name, command, &log, &[])?;
        let status = process.wait(LIMIT + Duration::from_secs(5))?;
        let line = arguments.join(" ");
        ensure!(status.success(), "{name} {line}: {}", process.log().trim());
        Ok(())
    }
}
