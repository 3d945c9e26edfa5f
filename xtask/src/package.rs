//! `cargo xtask package`: builds a Debian package, and tries it in a clean Debian system.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::apt::Mirror;
use crate::root::root;
use crate::tools::Tool;

/// The tool that makes the package.
const CARGO_DEB: Tool = Tool {
    name: "cargo-deb",
    version: &["--version"],
    install: &["--quiet", "--version", "3.8.0"],
};

/// Options of `cargo xtask package`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Install, use, upgrade and purge the package in a clean Debian system (needs root and
    /// mmdebstrap)
    #[arg(long)]
    pub(crate) check: bool,
}

/// Builds the package, and checks it if that is asked for.
///
/// # Errors
///
/// When it cannot be built, or does not work.
pub(crate) fn run(options: &Options) -> Result<()> {
    let package = build()?;
    println!("{}", package.display());
    if options.check {
        check(&package)?;
    }
    Ok(())
}

/// Builds the programs, their man pages and completions, and the package.
fn build() -> Result<PathBuf> {
    let cargo = |arguments: &[&str]| run_in_root("cargo", arguments);
    let mut programs = vec!["build", "--release", "--locked"];
    for program in ["virtio-inter", "cloud-hypervisor-ext", "ch-remote-ext"] {
        programs.extend(["--package", program]);
    }
    cargo(&programs)?;
    let place = root().join("target/package");
    match fs::remove_dir_all(&place) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("Cannot empty target/package");
        }
        _ => fs::create_dir_all(&place)?,
    }
    let pages = [
        "run",
        "--quiet",
        "--locked",
        "--package",
        "virtio-inter-package",
        "--",
    ];
    cargo(&[&pages[..], &["target/package"]].concat())?;
    page_of_help(
        "cloud-hypervisor-ext",
        "Cloud Hypervisor with network devices that reach other VMs through shared memory",
    )?;
    page_of_help(
        "ch-remote-ext",
        "control a VM that cloud-hypervisor-ext started",
    )?;
    link_for_qemu(&place)?;
    let version = env!("CARGO_PKG_VERSION");
    fs::write(place.join("changelog"), changelog(version)?)?;
    fs::write(place.join("copyright"), copyright()?)?;
    let tool = CARGO_DEB.program()?;
    run_in_root(
        &tool.display().to_string(),
        &[
            "deb",
            "--no-build",
            "--strip",
            "--package",
            "virtio-inter",
            "--output",
            "target/package/",
        ],
    )?;
    let mut packages = fs::read_dir(&place)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension() == Some(OsStr::new("deb")));
    packages.next().context("cargo-deb made no package")
}

/// Makes the link `virtio-inter-port`, by which the program is a back-end of QEMU's conventions: it
/// has no subcommands then.
fn link_for_qemu(place: &Path) -> Result<()> {
    let directory = place.join("bin");
    fs::create_dir(&directory).context("Making target/package/bin")?;
    // Beside what it names, as a link to nothing is not found.
    let program = root().join("target/release/virtio-inter");
    fs::hard_link(&program, directory.join("virtio-inter")).context("Linking the program")?;
    symlink("virtio-inter", directory.join("virtio-inter-port")).context("Making a link")
}

/// Writes the man page of a program that is not clap's alone: its help, as it is.
fn page_of_help(program: &str, summary: &str) -> Result<()> {
    let output = Command::new(root().join("target/release").join(program))
        .arg("--help")
        // Without the stock program, whose options have a page of their own.
        .env_clear()
        .output()
        .with_context(|| format!("Cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} --help: {}",
        output.status
    );
    let help = String::from_utf8(output.stdout)?;
    let version = env!("CARGO_PKG_VERSION");
    let mut page = format!(
        ".TH {program} 1 \"\" \"virtio-inter {version}\" virtio-inter\n.SH NAME\n{program} \\- \
         {summary}\n.SH DESCRIPTION\n.nf\n"
    );
    for line in help.lines() {
        let line = line.replace('\\', "\\\\").replace('-', "\\-");
        // A dot or an apostrophe at the beginning would be a request.
        page += &format!("\\&{line}\n");
    }
    page += ".fi\n";
    let path = root().join(format!("target/package/man/{program}.1"));
    fs::write(&path, page).with_context(|| format!("Cannot write {}", path.display()))
}

/// Debian's form of the changelog: the version alone, as the project's own one has the changes.
fn changelog(version: &str) -> Result<String> {
    let output = Command::new("date")
        .args(["-R"])
        .output()
        .context("Cannot run date")?;
    let date = String::from_utf8(output.stdout)?;
    Ok(format!(
        "virtio-inter ({version}-1) unstable; urgency=medium\n\n  * See \
         /usr/share/doc/virtio-inter/changelog.gz.\n\n -- virtio-inter developers \
         <virtio-inter@localhost>  {date}"
    ))
}

/// Debian's machine-readable form (DEP-5) of the licences.
fn copyright() -> Result<String> {
    let bsd = fs::read_to_string(root().join("LICENSES/BSD-3-Clause.txt"))?;
    let indented: String = bsd
        .lines()
        .map(|line| {
            if line.is_empty() {
                " .\n".to_owned()
            } else {
                format!(" {line}\n")
            }
        })
        .collect();
    Ok(format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
         Upstream-Name: virtio-inter\n\nFiles: *\nCopyright: 2026 the virtio-inter developers\n\
         License: Apache-2.0 and BSD-3-Clause\n\nLicense: Apache-2.0\n On Debian systems, the text \
         is in /usr/share/common-licenses/Apache-2.0.\n\nLicense: BSD-3-Clause\n{indented}"
    ))
}

/// A clean Debian system in a directory; removed at its end.
struct System(PathBuf);

impl Drop for System {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl System {
    fn new() -> Result<Self> {
        let mirror = Mirror::of_this_machine()?;
        let system = Self(root().join("target/package/system"));
        let directory = system.0.display().to_string();
        let arguments = [
            "--variant=minbase",
            // As on a host: the package's scripts use them.
            "--include=systemd,systemd-sysv",
            &mirror.codename,
            &directory,
            mirror.archive(),
        ];
        run_in_root("mmdebstrap", &[&["--quiet"][..], &arguments].concat())?;
        Ok(system)
    }

    /// Runs a command in it, and returns its output.
    fn run(&self, command: &str) -> Result<String> {
        let output = Command::new("chroot")
            .arg(&self.0)
            .args(["/bin/sh", "-ec", command])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .context("Cannot run chroot")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command}\n{text}{errors}");
        Ok(text)
    }

    fn has(&self, path: &str) -> bool {
        self.0.join(path).symlink_metadata().is_ok()
    }
}

/// What users do with the package, from installing to purging.
const USE: &str = "
    cd /
    virtio-inter --version
    # What management software does by QEMU's conventions.
    files=/usr/share/qemu/vhost-user/*-virtio-inter-net.json
    backend=$(sed -n 's/.*\"binary\": \"\\(.*\\)\".*/\\1/p' $files)
    \"$backend\" --print-capabilities | grep -q '\"type\": \"net\"'
    \"$backend\" --socket-path=/run/x.sock 2>&1 | grep -q -e --segment
    install -d -m 0700 /run/vm1 /run/vm2
    for vm in 1 2; do
        virtio-inter port --socket /run/vm$vm/net --segment default --id vm$vm \\
            --mac 52:54:00:00:00:0$vm 2>>/run/log & pids=\"$pids $!\"
    done
    for try in 1 2 3 4 5 6 7 8 9 10; do
        virtio-inter show default/vm1 | grep -q 'peer: vm2' && break
        sleep 1
    done
    virtio-inter show default/vm1 | grep 'peer: vm2' || { cat /run/log; exit 1; }
    # The new program replaces the file of the running ports.
    apt-get -qq --reinstall install /tmp/virtio-inter.deb >/dev/null
    virtio-inter list default | grep -c 'no VMM'
    kill $pids
    wait
";

/// Findings of lintian that are no faults here: the project has no mail address, and the package is
/// not uploaded to Debian.
const SUPPRESSED: [&str; 3] = [
    "bogus-mail-host",
    "bogus-mail-host-in-debian-changelog",
    "initial-upload-closes-no-bugs",
];

/// Tries the package: `lintian`, then install, use, reinstall under running ports, remove, purge.
fn check(package: &Path) -> Result<()> {
    let name = package.display().to_string();
    let suppressed = format!("--suppress-tags={}", SUPPRESSED.join(","));
    run_in_root("lintian", &["--fail-on=error,warning", &suppressed, &name])?;
    let system = System::new()?;
    fs::copy(package, system.0.join("tmp/virtio-inter.deb"))?;
    // Ports link by /proc; the program's messages need no more.
    system.run("mount -t proc proc /proc")?;
    let result = try_package(&system);
    system.run("umount /proc")?;
    result
}

fn try_package(system: &System) -> Result<()> {
    system.run("apt-get -qq install /tmp/virtio-inter.deb >/dev/null")?;
    for file in [
        "usr/bin/virtio-inter",
        "usr/bin/cloud-hypervisor-ext",
        "usr/bin/ch-remote-ext",
        "usr/lib/systemd/system/virtio-inter-port@.service",
        "usr/lib/systemd/system/virtio-inter-uplink@.service",
        "usr/lib/systemd/system/virtio-inter-exporter.service",
        "usr/share/man/man1/virtio-inter-port.1.gz",
        "usr/share/bash-completion/completions/virtio-inter",
        "usr/share/qemu/vhost-user/50-virtio-inter-net.json",
        "run/virtio-inter/default",
    ] {
        ensure!(system.has(file), "The installed package has no {file}");
    }
    let owner = system.run("stat -c '%a %U %G' /run/virtio-inter/default")?;
    ensure!(
        owner.trim() == "3770 virtio-inter-uplink virtio-inter",
        "{owner}"
    );
    system.run(
        "systemd-analyze verify --man=no virtio-inter-port@x.service virtio-inter-uplink@x.service \
         virtio-inter-exporter.service",
    )?;
    for unit in [
        "virtio-inter-port@.service",
        "virtio-inter-uplink@.service",
        "virtio-inter-exporter.service",
    ] {
        let command = format!(
            "systemd-analyze security --offline=true --threshold=15 /usr/lib/systemd/system/{unit}"
        );
        system.run(&command)?;
    }
    let used = system.run(USE)?;
    ensure!(used.trim_end().ends_with('2'), "{used}");
    system.run("apt-get -qq remove virtio-inter >/dev/null")?;
    ensure!(
        !system.has("usr/bin/virtio-inter"),
        "The package was removed, its program not"
    );
    system.run("apt-get -qq purge virtio-inter >/dev/null")?;
    let left = system.run("find / -xdev -path /proc -prune -o -name '*virtio-inter*' -print")?;
    let left: Vec<&str> = left
        .lines()
        .filter(|path| !path.starts_with("/tmp/"))
        .collect();
    if !left.is_empty() {
        bail!("The package was purged and left {}", left.join(", "));
    }
    println!("Installed, used, reinstalled under running ports, removed and purged");
    Ok(())
}

/// Runs a program in the project's directory.
fn run_in_root(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .status()
        .with_context(|| format!("Cannot run {program}"))?;
    ensure!(
        status.success(),
        "{program} {}: {status}",
        arguments.join(" ")
    );
    Ok(())
}
