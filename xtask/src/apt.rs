//! Debian packages without a trace in the machine's own package configuration.
//!
//! apt runs with lists, sources and caches of its own below `target/`. The mirror is the one from
//! which this machine was installed; apt checks each suite's signature with the archive's keyring.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Times that a step over the network is tried.
const TRIES: u32 = 3;

/// The mirror of this machine's packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    /// Code name of the running release, such as `bookworm`.
    pub(crate) codename: String,
    /// Base address of the archive that has it.
    archive: String,
    /// Base address of the archive of its security updates, if the machine takes any.
    security: Option<String>,
}

/// One address and suite of an apt source.
struct Source {
    uri: String,
    suite: String,
}

impl Mirror {
    /// Reads the machine's own release and sources.
    pub(crate) fn of_this_machine() -> Result<Self> {
        let release = fs::read_to_string("/etc/os-release").context("Reading the OS release")?;
        let codename = release
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .context("No VERSION_CODENAME in /etc/os-release: needs Debian 12 or 13")?
            .trim_matches('"')
            .to_owned();
        let mut sources = Vec::new();
        let directory = fs::read_dir("/etc/apt/sources.list.d");
        let files = directory
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        for path in files.chain([PathBuf::from("/etc/apt/sources.list")]) {
            let Ok(text) = fs::read_to_string(&path) else {
                continue;
            };
            match path.extension().and_then(OsStr::to_str) {
                Some("sources") => sources.extend(parse_stanzas(&text)),
                Some("list") => sources.extend(parse_lines(&text)),
                _ => {}
            }
        }
        Self::select(codename, &sources)
    }

    /// Base address of the archive.
    pub(crate) fn archive(&self) -> &str {
        &self.archive
    }

    fn select(codename: String, sources: &[Source]) -> Result<Self> {
        let of = |suite: &str| {
            sources
                .iter()
                .find(|source| source.suite == suite)
                .map(|source| source.uri.clone())
        };
        let archive = of(&codename)
            .with_context(|| format!("No apt source of this machine has the suite {codename}"))?;
        let security = of(&format!("{codename}-security"));
        Ok(Self {
            codename,
            archive,
            security,
        })
    }

    fn source(&self, suites: &[&str]) -> String {
        let mut text = String::new();
        for suite in suites {
            let uri = match (suite.strip_suffix("-security"), &self.security) {
                (Some(_), Some(security)) => security,
                (Some(_), None) => continue,
                (None, _) => &self.archive,
            };
            text += &format!("deb [signed-by={KEYRING}] {uri} {suite} main\n");
        }
        text
    }
}

/// Sources in the one-line format (sources.list(5)).
fn parse_lines(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let Some(mut rest) = line.trim().strip_prefix("deb ").map(str::trim_start) else {
            continue;
        };
        if let Some(options) = rest.strip_prefix('[') {
            rest = options.split_once(']').map_or("", |(_, rest)| rest);
        }
        let mut words = rest.split_whitespace();
        if let (Some(uri), Some(suite)) = (words.next(), words.next())
            && words.any(|component| component == "main")
        {
            sources.push(Source {
                uri: uri.to_owned(),
                suite: suite.to_owned(),
            });
        }
    }
    sources
}

/// Sources in the stanza format (sources.list(5), deb822).
fn parse_stanzas(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let plain: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for stanza in plain.split(|line| line.trim().is_empty()) {
        let stanza = stanza.join("\n").replace("\n ", " ").replace("\n\t", " ");
        let field = |name: &str| {
            stanza
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.split_whitespace().collect::<Vec<_>>())
                .unwrap_or_default()
        };
        let usable = field("Types").contains(&"deb")
            && field("Components").contains(&"main")
            && field("Enabled") != ["no"];
        for uri in field("URIs").iter().filter(|_| usable) {
            for suite in field("Suites") {
                sources.push(Source {
                    uri: (*uri).to_owned(),
                    suite: suite.to_owned(),
                });
            }
        }
    }
    sources
}

/// apt with sources and state of its own.
pub(crate) struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// An apt that knows only `suites`, and no installed package: its downloads are complete.
    pub(crate) fn isolated(directory: &Path, mirror: &Mirror, suites: &[&str]) -> Result<Self> {
        let apt = Self::with_lists(directory, mirror, suites)?;
        let status = directory.join("status");
        fs::write(&status, "").context("Writing an empty package status")?;
        Ok(apt.option("Dir::State::status", &status.display().to_string()))
    }

    /// An apt that installs on this machine, from `suites`.
    pub(crate) fn for_this_machine(
        directory: &Path,
        mirror: &Mirror,
        suites: &[&str],
    ) -> Result<Self> {
        Self::with_lists(directory, mirror, suites)
    }

    fn with_lists(directory: &Path, mirror: &Mirror, suites: &[&str]) -> Result<Self> {
        ensure!(
            Path::new(KEYRING).exists(),
            "No {KEYRING}: install debian-archive-keyring"
        );
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part)).context("Making apt's directories")?;
        }
        let list = directory.join("sources.list");
        fs::write(&list, mirror.source(suites)).context("Writing apt's sources")?;
        let apt = Self {
            options: Vec::new(),
        }
        .option("Dir::Etc::sourcelist", &list.display().to_string())
        .option("Dir::Etc::sourceparts", "/dev/null")
        .option(
            "Dir::State::Lists",
            &directory.join("lists").display().to_string(),
        )
        .option("Dir::Cache", &directory.join("cache").display().to_string())
        .option("Acquire::Languages", "none")
        .option("Acquire::Retries", "3")
        .option("DPkg::Lock::Timeout", "120")
        // The unprivileged download user may not be allowed to enter the work tree.
        .option("APT::Sandbox::User", "root");
        apt.run("update", &[], directory)?;
        Ok(apt)
    }

    fn option(mut self, name: &str, value: &str) -> Self {
        self.options.push(format!("-o{name}={value}"));
        self
    }

    /// Downloads `packages` and all that they depend on into `directory`, which must be empty.
    pub(crate) fn download_with_dependencies(
        &self,
        packages: &[&str],
        directory: &Path,
    ) -> Result<()> {
        fs::create_dir_all(directory.join("partial")).context("Making a package directory")?;
        let archives = format!("-oDir::Cache::archives={}", directory.display());
        let fixed = [
            &archives,
            "--yes",
            "--no-install-recommends",
            "--download-only",
        ];
        self.run("install", &[&fixed, packages].concat(), directory)
    }

    /// Downloads `package` alone into `directory`.
    pub(crate) fn download(&self, package: &str, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).context("Making a package directory")?;
        self.run("download", &[package], directory)
    }

    /// Installs `packages`, from `release` where one is given and has them.
    pub(crate) fn install(&self, packages: &[&str], release: Option<&str>) -> Result<()> {
        let mut arguments = vec!["--yes", "--no-install-recommends"];
        if let Some(release) = release {
            arguments.extend(["--target-release", release]);
        }
        arguments.extend(packages);
        self.run("install", &arguments, Path::new("/"))
    }

    /// The packages on which `package` depends.
    pub(crate) fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let output = Command::new("apt-cache")
            .args(&self.options)
            .args(["depends", package])
            .output()
            .context("Running apt-cache")?;
        ensure!(
            output.status.success(),
            "apt-cache does not know {package}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let text = String::from_utf8_lossy(&output.stdout);
        let lines = text.lines().map(str::trim);
        Ok(lines
            .filter_map(|line| line.strip_prefix("Depends: "))
            .map(str::to_owned)
            .collect())
    }

    fn run(&self, command: &str, arguments: &[&str], directory: &Path) -> Result<()> {
        let mut told = String::new();
        for _ in 0..TRIES {
            let output = Command::new("apt-get")
                .args(&self.options)
                .arg("--quiet")
                .arg(command)
                .args(arguments)
                .env("DEBIAN_FRONTEND", "noninteractive")
                .current_dir(directory)
                .output()
                .context("Running apt-get")?;
            told = String::from_utf8_lossy(&output.stderr).into_owned();
            // A failed update leaves old lists and exits with 0.
            if output.status.success() && !told.contains("Some index files failed") {
                return Ok(());
            }
        }
        bail!(
            "apt-get {command} {} failed:\n{}",
            arguments.join(" "),
            told.trim()
        )
    }
}

/// Unpacks all packages of `packages` into `directory`.
pub(crate) fn unpack(packages: &Path, directory: &Path) -> Result<()> {
    let mut count = 0;
    for entry in fs::read_dir(packages).context("Reading a package directory")? {
        let path = entry.context("Reading a package directory")?.path();
        if path.extension() != Some(OsStr::new("deb")) {
            continue;
        }
        let status = Command::new("dpkg-deb")
            .arg("--extract")
            .args([&path, directory])
            .status()
            .context("Running dpkg-deb")?;
        ensure!(status.success(), "Unpacking {} failed", path.display());
        count += 1;
    }
    ensure!(count > 0, "No package in {}", packages.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_of_the_running_release_is_found_in_either_format() {
        let lines = "# deb http://old.example bookworm main\n\
                     deb [arch=amd64 signed-by=/k] http://a.example/debian bookworm main contrib\n\
                     deb-src http://a.example/debian bookworm main\n\
                     deb http://s.example/sec bookworm-security main # why\n";
        let stanzas = "Types: deb\n# comment\nURIs: http://a.example/debian\n\
                       Suites: bookworm\n bookworm-updates\n\
                       Components: main\n\nTypes: deb deb-src\nURIs: http://s.example/sec\n\
                       Suites: bookworm-security\nComponents: main\n\nTypes: deb\nEnabled: no\n\
                       URIs: http://off.example\nSuites: bookworm\nComponents: main\n";
        let expected = Mirror {
            codename: "bookworm".to_owned(),
            archive: "http://a.example/debian".to_owned(),
            security: Some("http://s.example/sec".to_owned()),
        };
        for sources in [parse_lines(lines), parse_stanzas(stanzas)] {
            assert_eq!(
                Mirror::select("bookworm".to_owned(), &sources).unwrap(),
                expected
            );
        }
    }

    #[test]
    fn sources_of_other_suites_are_not_taken_for_the_archive() {
        let sources = parse_lines("deb http://x.example stable main\n");
        assert!(Mirror::select("bookworm".to_owned(), &sources).is_err());
    }

    #[test]
    fn security_suites_are_left_out_where_the_machine_has_none() {
        let mirror = Mirror {
            codename: "bookworm".to_owned(),
            archive: "http://a.example".to_owned(),
            security: None,
        };
        let text = mirror.source(&["bookworm", "bookworm-security"]);
        assert_eq!(text.lines().count(), 1);
    }
}
