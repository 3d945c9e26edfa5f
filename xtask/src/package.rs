//! `cargo xtask package`: builds a Debian package, and tries it in clean Debian systems.

mod check;
mod first_vms;
mod system;
mod units;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::root::{root, run_in_root};
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
    /// Install, use, upgrade and purge the package in clean Debian systems, and run its units and
    /// the commands of docs/first-vms.md in one (needs root and mmdebstrap)
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
        check::check(&package)?;
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
