//! `cargo xtask package`: builds a Debian package and, for a release, an rpm and lists of the
//! dependencies, and tries them in clean Debian systems.

mod check;
mod files;
mod first_vms;
mod manual;
mod older;
mod release;
mod system;
mod trial;
mod units;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use self::files::{PROGRAMS, Packages, find};
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
    /// Also make what a release has: an rpm of the same files, an SBOM of each program in both
    /// packages, and programs that carry the list of their dependencies. Compiles three tools, and
    /// the programs once more
    #[arg(long)]
    pub(crate) release_files: bool,
}

/// Builds the package, and checks it if that is asked for.
///
/// # Errors
///
/// When it cannot be built, or does not work.
pub(crate) fn run(options: &Options) -> Result<()> {
    let packages = build(options.release_files)?;
    for package in [Some(&packages.deb), packages.rpm.as_ref()]
        .into_iter()
        .flatten()
    {
        println!("{}", package.display());
    }
    if options.check {
        check::check(&packages)?;
    }
    Ok(())
}

/// Builds the programs, their man pages and completions, and the packages.
fn build(for_release: bool) -> Result<Packages> {
    let cargo = |arguments: &[&str]| run_in_root("cargo", arguments);
    let mut programs = vec!["build", "--release", "--locked"];
    for program in PROGRAMS {
        programs.extend(["--package", program]);
    }
    match for_release {
        true => release::build_programs(&programs)?,
        false => cargo(&programs)?,
    }
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
        "cloud-hypervisor",
    )?;
    page_of_help(
        "ch-remote-ext",
        "control a VM that cloud-hypervisor-ext started",
        "ch-remote",
    )?;
    link_for_qemu(&place)?;
    stage_extcap(&place)?;
    let version = env!("CARGO_PKG_VERSION");
    fs::write(place.join("changelog"), changelog(version)?)?;
    fs::write(place.join("copyright"), copyright()?)?;
    let documents = place.join("doc");
    fs::create_dir(&documents).context("Making target/package/doc")?;
    fs::copy(root().join("CHANGELOG.md"), documents.join("changelog"))
        .context("Copying the changelog")?;
    if for_release {
        release::write_sboms(&documents)?;
    }
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
    let deb = find(&place, "deb").context("cargo-deb made no package")?;
    let rpm = for_release.then(|| release::make_rpm(&deb)).transpose()?;
    Ok(Packages { deb, rpm })
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

/// Puts what Wireshark starts where Debian's looks, which depends on the processor.
fn stage_extcap(place: &Path) -> Result<()> {
    let program = place.join("lib").join(files::EXTCAP_BELOW_LIB);
    let directory = program.parent().context("The program has no directory")?;
    fs::create_dir_all(directory).context("Making target/package/lib")?;
    fs::copy(root().join("dist/wireshark/virtio-inter"), &program)
        .map(drop)
        .context("Copying what Wireshark starts")
}

/// Writes the man page of a program that is not clap's alone, from its help.
fn page_of_help(program: &str, summary: &str, stock: &str) -> Result<()> {
    let output = Command::new(root().join("target/release").join(program))
        .arg("--help")
        // Without the stock program, whose options are documented elsewhere.
        .env_clear()
        .output()
        .with_context(|| format!("Cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} --help: {}",
        output.status
    );
    let help = String::from_utf8(output.stdout)?;
    let path = root().join(format!("target/package/man/{program}.1"));
    fs::write(&path, manual::page(program, summary, stock, &help))
        .with_context(|| format!("Cannot write {}", path.display()))
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
