//! Open vSwitch with its userspace datapath (`datapath_type=netdev`), which needs nothing of the
//! kernel: in place of a Linux bridge, in the same network namespace. From packages that are
//! installed, or that `cargo xtask test` has unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::{Process, Result, Testbed, images, wait};

/// Time that each of its programs may take.
const LIMIT: Duration = Duration::from_secs(20);
/// The switches of Debian's packages, one of which is enough.
const SWITCHES: [&str; 3] = [
    "usr/sbin/ovs-vswitchd",
    "usr/lib/openvswitch-switch/ovs-vswitchd",
    "usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk",
];

/// Where its programs are.
#[derive(Clone, Debug)]
pub(crate) struct Packages {
    root: PathBuf,
    switch: PathBuf,
}

impl Packages {
    /// None: this machine has none that run.
    pub(crate) fn find() -> Option<Self> {
        images::roots_of_package("-openvswitch")
            .into_iter()
            .flat_map(|root| SWITCHES.map(|switch| (root.clone(), root.join(switch))))
            .map(|(root, switch)| Self { root, switch })
            .find(|packages| {
                let version = Command::new(&packages.switch).arg("--version").output();
                version.is_ok_and(|output| output.status.success())
            })
    }
}

/// A switch, ended when dropped.
pub(crate) struct OpenVswitch {
    packages: Packages,
    place: PathBuf,
    // In the order in which they are to end.
    switch: Process,
    _database: Process,
}

impl OpenVswitch {
    /// Starts a switch without bridges, by commands that `enter` runs where it is to be.
    pub(crate) fn start(
        bed: &Testbed,
        packages: Packages,
        enter: impl Fn(&Command) -> Command,
    ) -> Result<Self> {
        let place = bed.path("ovs");
        fs::create_dir(&place).context("Making Open vSwitch's directory")?;
        let schema = packages
            .root
            .join("usr/share/openvswitch/vswitch.ovsschema");
        let (file, socket) = (place.join("conf.db"), place.join("db.sock"));
        let tools = Tools {
            packages: &packages,
            place: &place,
        };
        let mut create = tools.command("usr/bin/ovsdb-tool");
        create.arg("create").args([&file, &schema]);
        run(create)?;
        let mut command = tools.command("usr/sbin/ovsdb-server");
        command.arg(&file).arg("--no-chdir");
        command.arg(format!("--remote=punix:{}", socket.display()));
        let log = bed.path("ovsdb-server.log");
        let mut database = Process::start("ovsdb-server", enter(&command), &log, &[])?;
        wait::until("socket of ovsdb-server", LIMIT, || {
            ensure!(database.is_running(), "It ended: {}", database.log());
            Ok(socket.exists().then_some(()))
        })?;
        tools.set(&["--no-wait", "init"])?;
        let mut command = tools.command(&packages.switch.to_string_lossy());
        command.args([&tools.database(), "--no-chdir"]);
        let log = bed.path("ovs-vswitchd.log");
        let switch = Process::start("ovs-vswitchd", enter(&command), &log, &[])?;
        Ok(Self {
            packages,
            place,
            switch,
            _database: database,
        })
    }

    /// Adds a bridge.
    pub(crate) fn add_bridge(&self, name: &str) -> Result<()> {
        let datapath = ["--", "set", "bridge", name, "datapath_type=netdev"];
        self.set(&[&["add-br", name][..], &datapath].concat())
            .with_context(|| format!("ovs-vswitchd wrote: {}", self.switch.log()))
    }

    /// Runs `ovs-vsctl`.
    pub(crate) fn set(&self, arguments: &[&str]) -> Result<()> {
        self.tools().set(arguments)
    }

    /// One of its programs, by its path in the packages.
    pub(crate) fn tool(&self, program: &str) -> Command {
        self.tools().command(program)
    }

    /// The directory of its files.
    pub(crate) fn place(&self) -> &Path {
        &self.place
    }

    /// Where its database is reached.
    pub(crate) fn database(&self) -> String {
        self.tools().database()
    }

    fn tools(&self) -> Tools<'_> {
        Tools {
            packages: &self.packages,
            place: &self.place,
        }
    }
}

/// Its programs, with the paths of all files in their environment.
struct Tools<'a> {
    packages: &'a Packages,
    place: &'a Path,
}

impl Tools<'_> {
    /// `program`: a path in the packages, or an absolute one.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.packages.root.join(program));
        for directory in ["RUNDIR", "DBDIR", "LOGDIR", "SYSCONFDIR"] {
            command.env(format!("OVS_{directory}"), self.place);
        }
        command
    }

    fn database(&self) -> String {
        format!("unix:{}", self.place.join("db.sock").display())
    }

    fn set(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.command("usr/bin/ovs-vsctl");
        command
            .arg(format!("--db={}", self.database()))
            .arg(format!("--timeout={}", LIMIT.as_secs()))
            .args(arguments);
        run(command)
    }
}

pub(crate) fn run(mut command: Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("Running {command:?}"))?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", told.trim());
    Ok(())
}
