//! A package of an older version: this one, with a lower number and another configuration file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::system::System;
use super::trial::use_package;
use crate::root::run_in_root;

/// The configuration file that differs.
const CONFFILE: &str = "etc/apparmor.d/virtio-inter";
/// Its last line in the older package; the script of the units knows it, too.
const OLDER_LINE: &str = "# Of the older version.\n";

/// Makes the older package, beside the given one.
///
/// # Errors
///
/// When it cannot be made.
pub(super) fn make(package: &Path) -> Result<PathBuf> {
    let place = package.with_file_name("older");
    let (from, files) = (package.display().to_string(), place.display().to_string());
    run_in_root("dpkg-deb", &["--raw-extract", &from, &files])?;
    let control = place.join("DEBIAN/control");
    let fields = older(&fs::read_to_string(&control)?).context("The package has no version")?;
    fs::write(&control, fields).context("Writing the version")?;
    let conffile = place.join(CONFFILE);
    let text = fs::read_to_string(&conffile)? + OLDER_LINE;
    fs::write(&conffile, text).context("Writing the configuration file")?;
    let made = package.with_file_name("older.deb");
    let to = made.display().to_string();
    run_in_root("dpkg-deb", &["--root-owner-group", "--build", &files, &to])?;
    Ok(made)
}

/// The fields of a package with a version before theirs.
fn older(control: &str) -> Option<String> {
    let (before, version) = control.split_once("Version: ")?;
    let (version, after) = version.split_once('\n')?;
    Some(format!("{before}Version: {version}~0\n{after}"))
}

/// Installs the older package in a system, changes the configuration file as its user, and upgrades
/// to the package in its /tmp while ports run.
///
/// # Errors
///
/// What does not work.
pub(super) fn upgrade(older: &Path, system: &System) -> Result<()> {
    fs::copy(older, system.path("tmp/older.deb")).context("Copying the older package")?;
    system.run(&format!(
        "apt-get -qq --allow-downgrades install /tmp/older.deb >/dev/null
        grep -q '^{}' /{CONFFILE}
        echo '# Of the user.' >>/{CONFFILE}",
        OLDER_LINE.trim_end()
    ))?;
    // Nobody is there to answer; without the option, dpkg would ask.
    let upgrade = "apt-get -qq -o Dpkg::Options::=--force-confold install /tmp/virtio-inter_*.deb";
    use_package(system, upgrade)?;
    system.run(&format!(
        "version() {{ dpkg-deb --field $1 Version; }}
        test \"$(dpkg-query --show --showformat '${{Version}}' virtio-inter)\" \\
            = \"$(version /tmp/virtio-inter_*.deb)\"
        dpkg --compare-versions \"$(version /tmp/older.deb)\" lt \\
            \"$(version /tmp/virtio-inter_*.deb)\"
        # The user's file is kept, the new one is beside it.
        grep -q '^# Of the user' /{CONFFILE}
        test -s /{CONFFILE}.dpkg-dist -a -z \"$(grep '^# Of the' /{CONFFILE}.dpkg-dist)\"
        rm /tmp/older.deb"
    ))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_package_has_a_lower_version_and_else_the_same_fields() {
        let control = "Package: a\nVersion: 0.1.0-1\nDepends: b\n";
        let fields = "Package: a\nVersion: 0.1.0-1~0\nDepends: b\n";
        assert_eq!(older(control).as_deref(), Some(fields));
        assert_eq!(older("Package: a\n"), None);
    }
}
