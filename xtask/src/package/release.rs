//! What a release has beside the Debian package: an rpm of the same files, a list of the
//! dependencies (SBOM) of each program in both, and programs that carry such a list themselves.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::files::{EXTCAP_BELOW_LIB, EXTCAP_OF_RPM, PROGRAMS, find, installed};
use super::system::System;
use super::trial::{check_nothing_left, use_package};
use crate::root::{root, run_in_root};
use crate::tools::Tool;

/// Writes the list of its dependencies into each program that it builds.
const CARGO_AUDITABLE: Tool = Tool {
    name: "cargo-auditable",
    version: &["auditable", "--version"],
    install: &["--quiet", "--version", "0.7.7"],
};
/// Writes lists of dependencies in the format CycloneDX.
const CARGO_CYCLONEDX: Tool = Tool {
    name: "cargo-cyclonedx",
    version: &["cyclonedx", "--version"],
    install: &["--quiet", "--version", "0.5.9"],
};
/// Makes the rpm.
const CARGO_GENERATE_RPM: Tool = Tool {
    name: "cargo-generate-rpm",
    version: &["--version"],
    install: &["--quiet", "--version", "0.21.1"],
};

/// The section of a program that has its dependencies: JSON, compressed.
const SECTION: &str = ".dep-v0";

/// Compares the rpm with the Debian package, and reads its scripts, as programs of a distribution
/// with rpm do.
const CHECK: &str = r#"
    cd /tmp
    deb=$(ls virtio-inter_*.deb) rpm=$(ls virtio-inter-*.rpm)
    rpm --checksig --nosignature "$rpm"
    mkdir deb rpm
    dpkg-deb --extract "$deb" deb
    (cd rpm && rpm2cpio "../$rpm" | cpio --extract --make-directories --quiet)
    # Fedora's Wireshark looks there.
    mkdir deb/usr/libexec
    mv deb/usr/lib/*-linux-gnu/wireshark deb/usr/libexec
    rmdir deb/usr/lib/*-linux-gnu
    for format in deb rpm; do
        (cd $format && find . ! -type d | sort) > $format.files
        (cd $format && find . -type f ! -name virtio-inter-port -printf '%m %p\n' | sort) \
            > $format.modes
    done
    diff deb.files rpm.files
    diff deb.modes rpm.modes
    rpm --query --package --list "$rpm" | sed 's/^/./' | sort | diff rpm.files -
    # That one is a link in the Debian package.
    diff --recursive --no-dereference --exclude virtio-inter-port deb rpm
    sh -n rpm/usr/bin/virtio-inter-port
    for script in POSTIN PREUN POSTUN; do
        rpm --query --package --queryformat "%{$script}" "$rpm" > script
        grep -q systemd script || { echo "The script $script is missing"; exit 1; }
        sh -n script
    done
    rpm --query --package --configfiles "$rpm" | grep -x /etc/apparmor.d/virtio-inter
    rpm --query --package --requires "$rpm" | grep '^libc.so.6'
"#;

/// Installs the rpm where no package of it is. Debian has no packages by that format, so its
/// dependencies are not looked at. Plug-ins of rpm fail where the root directory is no mount point.
const INSTALL: &str = "rpm --noplugins --nodeps --install /tmp/virtio-inter-*.rpm";
/// An upgrade as rpm does one: scripts of the new package run before those of the old one.
const REINSTALL: &str = "rpm --noplugins --nodeps --upgrade --replacepkgs /tmp/virtio-inter-*.rpm";
const ERASE: &str = "rpm --noplugins --erase virtio-inter";

/// Builds the programs, which then carry the list of their dependencies.
///
/// # Errors
///
/// When they cannot be built.
pub(super) fn build_programs(arguments: &[&str]) -> Result<()> {
    let tool = CARGO_AUDITABLE.program()?.display().to_string();
    run_in_root(&tool, &[&["auditable"], arguments].concat())
}

/// Writes a list of the dependencies of each program into a directory.
///
/// # Errors
///
/// When the tool fails.
pub(super) fn write_sboms(directory: &Path) -> Result<()> {
    let tool = CARGO_CYCLONEDX.program()?;
    // It writes a file beside the manifest of each crate of the workspace.
    let written = sboms_of_workspace()?;
    let ran = run_in_root(
        &tool.display().to_string(),
        &[
            "cyclonedx",
            "--quiet",
            "--format=json",
            "--spec-version=1.5",
            "--no-build-deps",
        ],
    );
    for path in &written {
        let name = path.file_name().unwrap_or_default();
        let is_wanted = PROGRAMS
            .iter()
            .any(|program| name == sbom_of(program).as_str());
        if is_wanted && ran.is_ok() {
            let sbom = fs::read_to_string(path)?;
            // Where it was built is nobody's affair.
            let sbom = sbom.replace(&root().display().to_string(), "/virtio-inter");
            fs::write(directory.join(name), sbom).context("Writing an SBOM")?;
        }
        if path.exists() {
            fs::remove_file(path).with_context(|| format!("Removing {}", path.display()))?;
        }
    }
    ran
}

fn sbom_of(program: &str) -> String {
    format!("{program}.cdx.json")
}

/// The files that the tool writes.
fn sboms_of_workspace() -> Result<Vec<PathBuf>> {
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--locked", "--format-version=1"])
        .current_dir(root())
        .stderr(Stdio::inherit())
        .output()
        .context("Cannot run cargo")?;
    ensure!(output.status.success(), "cargo metadata: {}", output.status);
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("No packages")?;
    let paths = packages.iter().map(|package| {
        let manifest = Path::new(package["manifest_path"].as_str()?);
        Some(manifest.with_file_name(sbom_of(package["name"].as_str()?)))
    });
    paths
        .collect::<Option<_>>()
        .context("cargo metadata lacks names")
}

/// Makes an rpm of the files of a Debian package, in the same directory.
///
/// # Errors
///
/// When the tool fails.
pub(super) fn make_rpm(deb: &Path) -> Result<PathBuf> {
    let tool = CARGO_GENERATE_RPM.program()?;
    let place = deb.parent().context("The package has no directory")?;
    let files = place.join("rpm");
    let (from, to) = (deb.display().to_string(), files.display().to_string());
    run_in_root("dpkg-deb", &["--extract", &from, &to])?;
    // The tool makes no links.
    let program = files.join("usr/bin/virtio-inter-port");
    fs::remove_file(&program).context("Removing the link")?;
    fs::copy(root().join("dist/rpm/virtio-inter-port"), &program).context("Copying")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let extcap = files.join(EXTCAP_OF_RPM);
    fs::create_dir_all(extcap.parent().context("It has no directory")?)?;
    fs::rename(files.join("usr/lib").join(EXTCAP_BELOW_LIB), &extcap)
        .context("Moving what Wireshark starts")?;
    let mut assets = String::from("assets = [\n");
    list_assets(&files, &files, &mut assets)?;
    assets += "]\n";
    let metadata = place.join("rpm.toml");
    fs::write(&metadata, assets).context("Writing the list of files")?;
    run_in_root(
        &tool.display().to_string(),
        &[
            "generate-rpm",
            "--package=virtio-inter",
            "--auto-req=builtin",
            &format!("--metadata-overwrite={}", metadata.display()),
            &format!("--output={}", place.display()),
        ],
    )?;
    find(place, "rpm").context("cargo-generate-rpm made no package")
}

/// Appends the files of a directory, as the tool's list of assets has them.
fn list_assets(files: &Path, directory: &Path, assets: &mut String) -> Result<()> {
    let mut paths = fs::read_dir(directory)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        let kind = path.symlink_metadata()?;
        if kind.is_dir() {
            list_assets(files, &path, assets)?;
            continue;
        }
        ensure!(kind.is_file(), "{} is no file", path.display());
        let mode = kind.permissions().mode() & 0o777;
        let place = path.strip_prefix(files)?;
        // Users change it: an upgrade keeps their file.
        let config = match place.starts_with("etc") {
            true => ", config = \"noreplace\"",
            false => "",
        };
        *assets += &format!(
            "    {{ source = {:?}, dest = \"/{}\", mode = \"{mode:o}\"{config} }},\n",
            path.display().to_string(),
            place.display()
        );
    }
    Ok(())
}

/// Checks the rpm against the Debian package, and the lists of dependencies against each other.
///
/// # Errors
///
/// What is wrong with them.
pub(super) fn check(deb: &Path, rpm: &Path, system: &System) -> Result<()> {
    for package in [deb, rpm] {
        let name = package.file_name().unwrap_or_default();
        fs::copy(package, system.path("tmp").join(name)).context("Copying a package")?;
    }
    system.run("apt-get -qq install rpm cpio >/dev/null")?;
    system.run(CHECK)?;
    println!(
        "{}: the rpm has the files of the Debian package",
        system.release
    );
    try_rpm(system)?;
    check_lists(deb)
}

/// A command of rpm that fails if a script of the package does: to rpm, that is a warning.
fn checked(command: &str) -> String {
    format!(
        "{command} 2>/run/rpm || {{ cat /run/rpm >&2; exit 1; }}
        cat /run/rpm >&2
        ! grep -q scriptlet /run/rpm"
    )
}

/// Installs the rpm, uses it, reinstalls it under running ports, and removes it.
fn try_rpm(system: &System) -> Result<()> {
    check_nothing_left(system)?;
    system.run(&checked(INSTALL))?;
    use_package(system, &checked(REINSTALL))?;
    system.run(&checked(ERASE))?;
    check_nothing_left(system)?;
    println!(
        "{}: rpm installed, used, reinstalled under running ports and removed",
        system.release
    );
    Ok(())
}

/// Checks that the SBOM of each program has what the program carries.
fn check_lists(deb: &Path) -> Result<()> {
    let files = deb.with_file_name("rpm");
    for program in PROGRAMS {
        let carried = dependencies_of(&files.join(installed(program)))?;
        let sbom = files
            .join("usr/share/doc/virtio-inter")
            .join(sbom_of(program));
        let listed = components(&serde_json::from_slice(&fs::read(sbom)?)?);
        let missing: Vec<_> = carried.difference(&listed).collect();
        ensure!(
            carried.len() > 10 && missing.is_empty(),
            "The SBOM of {program} has {} components, the program {}; not listed: {missing:?}",
            listed.len(),
            carried.len()
        );
        println!(
            "{program}: carries the names of {} crates, all in its SBOM",
            carried.len()
        );
    }
    Ok(())
}

/// Name and version of a crate.
type Crate = (String, String);

/// The crates of which a program says that it has them, itself included.
fn dependencies_of(program: &Path) -> Result<BTreeSet<Crate>> {
    let place = root().join("target/package");
    let (section, copy) = (place.join("dependencies"), place.join("program"));
    let (from, to) = (program.display().to_string(), copy.display().to_string());
    let dump = format!("{SECTION}={}", section.display());
    run_in_root("objcopy", &["--dump-section", &dump, &from, &to])
        .with_context(|| format!("{from} has no list of its dependencies"))?;
    let list: Value = serde_json::from_slice(&inflate(&section)?)?;
    let packages = list["packages"].as_array().context("No packages")?;
    // Others are of build scripts and macros.
    let runtime = packages.iter().filter(|package| {
        package["kind"]
            .as_str()
            .is_none_or(|kind| kind == "runtime")
    });
    Ok(runtime.filter_map(name_and_version).collect())
}

fn name_and_version(of: &Value) -> Option<Crate> {
    let text = |key: &str| of[key].as_str().map(str::to_owned);
    Some((text("name")?, text("version")?))
}

/// The components of an SBOM, and what it is about.
fn components(sbom: &Value) -> BTreeSet<Crate> {
    let all = sbom["components"].as_array().into_iter().flatten();
    all.chain([&sbom["metadata"]["component"]])
        .filter_map(name_and_version)
        .collect()
}

/// What a file in zlib's format has: gzip reads it behind eight bytes of its own header.
fn inflate(file: &Path) -> Result<Vec<u8>> {
    let script = "{ printf '\\037\\213\\010\\000\\000\\000\\000\\000'; cat \"$1\"; } | gzip -dc";
    // Its checksum is of another kind, which gzip takes for a damaged end.
    let output = Command::new("sh")
        .args(["-c", script, "inflate"])
        .arg(file)
        .stderr(Stdio::null())
        .output()
        .context("Cannot run gzip")?;
    if output.stdout.is_empty() {
        bail!("Cannot decompress {}", file.display());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn release_compares_names_and_versions() {
        let sbom = json!({
            "metadata": {"component": {"name": "a", "version": "1"}},
            "components": [{"name": "b", "version": "2", "purl": "x"}, {"name": "c"}],
        });
        let pair = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        assert_eq!(components(&sbom), [pair("a", "1"), pair("b", "2")].into());
    }

    #[test]
    fn release_lists_files_with_their_modes() {
        let temp = tempfile::tempdir().unwrap();
        let file = |name: &str, mode: u32| {
            let path = temp.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        file("usr/bin/a", 0o755);
        file("etc/b", 0o644);
        let mut assets = String::new();
        list_assets(temp.path(), temp.path(), &mut assets).unwrap();
        let lines: Vec<&str> = assets.lines().collect();
        assert!(lines[0].contains(r#"dest = "/etc/b", mode = "644", config = "noreplace" }"#));
        assert!(
            lines[1].contains(r#"dest = "/usr/bin/a", mode = "755" }"#),
            "{lines:?}"
        );
    }
}
