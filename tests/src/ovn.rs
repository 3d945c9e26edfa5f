//! OVN with one logical switch on top of Open vSwitch: databases, `ovn-northd` and
//! `ovn-controller`, with all of their files in the testbed's directory. From packages that are
//! installed, or that `cargo xtask test` has unpacked.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::open_vswitch::{self, OpenVswitch};
use crate::{Process, Result, Testbed, images, wait};

/// Time that each of its programs may take.
const LIMIT: Duration = Duration::from_secs(30);
/// The bridge that the controller makes, and the logical switch.
const BRIDGE: &str = "br-int";
const SWITCH: &str = "net";

/// Where its programs are: below this directory.
#[derive(Clone, Debug)]
pub(crate) struct Packages(PathBuf);

impl Packages {
    /// None: this machine has none that run.
    pub(crate) fn find() -> Option<Self> {
        let runs = |root: &PathBuf| {
            let northd = root.join("usr/bin/ovn-northd");
            let version = Command::new(northd).arg("--version").output();
            version.is_ok_and(|output| output.status.success())
        };
        let mut roots = images::roots_of_package("-ovn").into_iter();
        roots.find(runs).map(Self)
    }
}

/// A logical switch, ended when dropped.
pub(crate) struct Ovn {
    packages: Packages,
    place: PathBuf,
    // In the order in which they are to end.
    _controller: Process,
    _northd: Process,
    switch: OpenVswitch,
    _databases: Process,
}

impl Ovn {
    /// Starts it on a switch without bridges, by commands that `enter` runs where it is to be.
    pub(crate) fn start(
        bed: &Testbed,
        packages: Packages,
        switch: OpenVswitch,
        enter: impl Fn(&Command) -> Command,
    ) -> Result<Self> {
        let place = switch.place().to_path_buf();
        let socket = place.join("ovn.sock");
        let remote = format!("unix:{}", socket.display());
        let mut command = switch.tool("usr/sbin/ovsdb-server");
        for name in ["ovn-nb", "ovn-sb"] {
            let schema = format!("usr/share/ovn/{name}.ovsschema");
            let file = place.join(format!("{name}.db"));
            let mut create = switch.tool("usr/bin/ovsdb-tool");
            create.arg("create").args([&file, &packages.0.join(schema)]);
            open_vswitch::run(create)?;
            command.arg(file);
        }
        command.arg(format!("--remote=punix:{}", socket.display()));
        command.arg("--no-chdir");
        let start = |name: &str, command: &Command| {
            let log = bed.path(&format!("{name}.log"));
            Process::start(name, enter(command), &log, &[])
        };
        let mut databases = start("ovn-databases", &command)?;
        wait::until("socket of OVN's databases", LIMIT, || {
            ensure!(databases.is_running(), "They ended: {}", databases.log());
            Ok(socket.exists().then_some(()))
        })?;
        let mut command = tool(&packages, &place, "ovn-northd");
        command.args([
            format!("--ovnnb-db={remote}"),
            format!("--ovnsb-db={remote}"),
            "--no-chdir".to_owned(),
        ]);
        let northd = start("ovn-northd", &command)?;
        switch.set(&[
            "set",
            "open",
            ".",
            "external-ids:system-id=host",
            "external-ids:hostname=host",
            "external-ids:ovn-encap-type=geneve",
            "external-ids:ovn-encap-ip=127.0.0.1",
            "external-ids:ovn-bridge-datapath-type=netdev",
            &format!("external-ids:ovn-remote={remote}"),
        ])?;
        let mut command = tool(&packages, &place, "ovn-controller");
        command.args([&switch.database(), "--no-chdir"]);
        let controller = start("ovn-controller", &command)?;
        let ovn = Self {
            packages,
            place,
            _controller: controller,
            _northd: northd,
            switch,
            _databases: databases,
        };
        ovn.set(&["ls-add", SWITCH])?;
        wait::until("bridge of ovn-controller", LIMIT, || {
            Ok(ovn.switch.set(&["br-exists", BRIDGE]).ok())
        })?;
        Ok(ovn)
    }

    /// Makes a device the interface of the logical port of the same name.
    pub(crate) fn attach(&self, name: &str) -> Result<()> {
        let binding = format!("external-ids:iface-id={name}");
        let port = ["add-port", BRIDGE, name];
        let interface = ["--", "set", "interface", name, &binding];
        self.switch.set(&[&port[..], &interface].concat())
    }

    /// Sets the addresses of the logical port of a device, and those from which it may send (any if
    /// there are none), and waits until the switch does so.
    pub(crate) fn set_port(&self, name: &str, addresses: &[&str], security: &[&str]) -> Result<()> {
        self.set(&["--may-exist", "lsp-add", SWITCH, name])?;
        self.set(&[&["lsp-set-addresses", name][..], addresses].concat())?;
        self.set(&[&["lsp-set-port-security", name][..], security].concat())?;
        wait::until("logical port", LIMIT, || {
            let up = self.get(&["lsp-get-up", name])?;
            Ok((up.trim() == "up").then_some(()))
        })?;
        self.set(&["--wait=hv", "sync"])
    }

    fn set(&self, arguments: &[&str]) -> Result<()> {
        self.get(arguments).map(drop)
    }

    /// What `ovn-nbctl` says.
    fn get(&self, arguments: &[&str]) -> Result<String> {
        let mut command = tool(&self.packages, &self.place, "ovn-nbctl");
        let socket = self.place.join("ovn.sock");
        command
            .arg(format!("--db=unix:{}", socket.display()))
            .arg(format!("--timeout={}", LIMIT.as_secs()))
            .args(arguments);
        let output = command.output().context("Running ovn-nbctl")?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {}", told.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// One of its programs, with the paths of all files in its environment.
fn tool(packages: &Packages, place: &Path, program: &str) -> Command {
    let mut command = Command::new(packages.0.join("usr/bin").join(program));
    for directory in ["RUNDIR", "DBDIR", "LOGDIR", "SYSCONFDIR"] {
        for name in ["OVS", "OVN"] {
            command.env(format!("{name}_{directory}"), place);
        }
    }
    command
}
