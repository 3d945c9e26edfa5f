//! `cargo xtask mutants`: changes the data path's code in one small way after the other, and
//! reports the changes that no test notices.
//!
//! `cargo-mutants` (<https://mutants.rs/>) makes the changes in a copy of the working tree. It
//! tries them in random order, so that a run of limited time is a sample.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::root::root;
use crate::tools::Tool;

/// Options of the run.
#[derive(Args)]
pub(crate) struct Options {
    /// Minutes after which no more changes are tried; all changes take many hours.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    minutes: u64,
    /// Change only files whose path contains TEXT; several with commas.
    #[arg(long, value_name = "TEXT", value_delimiter = ',')]
    only: Vec<String>,
    /// List the files that would be changed, and exit.
    #[arg(long)]
    list: bool,
}

/// Files of the data path, and the tests that have to notice a change in them.
struct Part {
    package: &'static str,
    /// Files and directories below the package's `src/`.
    sources: &'static [&'static str],
    tests: &'static [&'static str],
}

const PARTS: [Part; 2] = [
    Part {
        package: "virtio-inter-link",
        sources: &["receiver.rs", "region.rs", "sender.rs", "signal.rs"],
        tests: &["--lib", "--test", "hostile", "--test", "region"],
    },
    Part {
        package: "virtio-inter-device",
        sources: &[
            "backend",
            "backend/link",
            "backend/link/tx",
            "backend/uplink",
            "frame.rs",
            "offload",
            "queue",
            "rx",
            "tx",
        ],
        tests: &["--lib", "--test", "device", "--test", "uplink"],
    },
];

const CARGO_MUTANTS: Tool = Tool {
    name: "cargo-mutants",
    version: &["mutants", "--version"],
    install: &[],
};

/// Files that hold tests and what they need.
const TEST_FILES: [&str; 4] = ["fixture.rs", "tests.rs", "_tests.rs", "testing.rs"];

/// Exit status of `timeout` when the time was up.
const TIME_IS_UP: i32 = 124;
/// Exit statuses of `cargo mutants`: all changes were noticed, some were not, some tests hung.
const DONE: [i32; 3] = [0, 2, 3];

/// Tries changes and prints those that survive.
///
/// # Errors
///
/// When `cargo-mutants` cannot be installed, or the tests fail without any change.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut parts = Vec::new();
    for part in &PARTS {
        let files = files(part, &options.only)?;
        if !files.is_empty() {
            parts.push((part, files));
        }
    }
    ensure!(
        !parts.is_empty(),
        "No file of the data path has {:?} in its path; --list shows the files",
        options.only
    );
    if options.list {
        for file in parts.iter().flat_map(|(_, files)| files) {
            println!("{file}");
        }
        return Ok(());
    }
    let program = CARGO_MUTANTS.program()?;
    let end = Instant::now() + Duration::from_secs(options.minutes.saturating_mul(60));
    let mut survivors = Vec::new();
    for (rest, (part, files)) in (1..=parts.len() as u32).rev().zip(&parts) {
        let time = end.saturating_duration_since(Instant::now()) / rest;
        let output = root().join("target").join("mutants").join(part.package);
        try_changes(&program, part, files, time, &output)?;
        survivors.extend(lines(&output, "missed")?);
        let count = |name| Ok::<_, anyhow::Error>(lines(&output, name)?.len());
        println!(
            "{}: {} noticed, {} by a timeout, {} survived, {} do not compile",
            part.package,
            count("caught")?,
            count("timeout")?,
            count("missed")?,
            count("unviable")?
        );
    }
    println!("Survivors: {}", survivors.len());
    for survivor in survivors {
        println!("  {survivor}");
    }
    Ok(())
}

/// The files of a part whose paths contain one of these texts, or all files if there is no text.
fn files(part: &Part, only: &[String]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for source in part.sources {
        let path = format!("{}/src/{source}", part.package);
        if path.ends_with(".rs") {
            ensure!(root().join(&path).is_file(), "{path} does not exist");
            found.push(path);
            continue;
        }
        let directory = root().join(&path);
        let entries =
            fs::read_dir(&directory).with_context(|| format!("Reading {}", directory.display()))?;
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.ends_with(".rs") && !TEST_FILES.iter().any(|ending| name.ends_with(ending)) {
                found.push(format!("{path}/{name}"));
            }
        }
    }
    found.retain(|path| only.is_empty() || only.iter().any(|text| path.contains(text)));
    found.sort();
    Ok(found)
}

/// Runs `cargo mutants` for as long as `time`.
fn try_changes(
    program: &Path,
    part: &Part,
    files: &[String],
    time: Duration,
    output: &Path,
) -> Result<()> {
    fs::create_dir_all(output).with_context(|| format!("Making {}", output.display()))?;
    let nextest = Command::new("cargo")
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let tool = match nextest {
        Ok(status) if status.success() => "--test-tool=nextest",
        _ => "--test-tool=cargo",
    };
    // On an interrupt, cargo-mutants ends its children and keeps its results.
    let mut command = Command::new("timeout");
    command
        .current_dir(root())
        // Without debug information the copy of the tree is built sooner.
        .env("CARGO_PROFILE_DEV_DEBUG", "none")
        .env_remove("CARGO_TARGET_DIR")
        // cargo-mutants would print where it was when the time was up.
        .env("RUST_BACKTRACE", "0")
        .args(["--signal=INT", &time.as_secs().max(1).to_string()])
        .arg(program)
        .args(["mutants", "--shuffle", "--package", part.package, tool])
        .args(["--colors=never", "--cap-lints=true", "--no-times"])
        .arg("--output")
        .arg(output);
    for file in files {
        command.args(["--file", file]);
    }
    command.arg("--").args(part.tests);
    let status = command.status().context("Cannot run timeout")?;
    match status.code() {
        Some(TIME_IS_UP) => Ok(()),
        Some(code) if DONE.contains(&code) => Ok(()),
        _ => bail!(
            "cargo mutants failed with {status}; its logs are in {}",
            output.display()
        ),
    }
}

/// The lines of one of the lists that `cargo mutants` writes.
fn lines(output: &Path, name: &str) -> Result<Vec<String>> {
    let path = output.join("mutants.out").join(format!("{name}.txt"));
    let text = fs::read_to_string(&path).with_context(|| format!("Reading {}", path.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutants_change_files_of_the_data_path_only() {
        let only = |text: &str| {
            let texts: Vec<String> = text.split_terminator(',').map(str::to_owned).collect();
            let files = PARTS.iter().map(|part| files(part, &texts).unwrap());
            files.flatten().collect::<Vec<_>>()
        };
        let all = only("");
        assert!(all.contains(&"virtio-inter-link/src/sender.rs".to_owned()));
        assert!(all.contains(&"virtio-inter-device/src/backend/link/tx_link.rs".to_owned()));
        assert!(
            !all.iter()
                .any(|file| file.contains("test") || file.contains("fixture"))
        );
        let some = only("link/src/sender,src/frame.rs");
        let expected = [
            "virtio-inter-link/src/sender.rs",
            "virtio-inter-device/src/frame.rs",
        ];
        assert_eq!(some, expected);
        assert_eq!(only("no such file"), [""; 0]);
    }
}
