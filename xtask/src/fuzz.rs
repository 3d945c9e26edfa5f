//! `cargo xtask fuzz`: builds the fuzz targets in `fuzz/` by `fuzz/build.sh`, and runs each for a
//! while, two at a time.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::root::root;

/// The targets, each a file in `fuzz/fuzz_targets` with seeds in `fuzz/corpus`.
const TARGETS: [&str; 5] = ["link_ends", "offload", "vhost_user", "wire", "worker"];
/// Targets that run at a time.
const AT_ONCE: usize = 2;
/// Lines that are printed of the log of a target that found something.
const LINES: usize = 60;

/// Options of the run.
#[derive(Args)]
pub(crate) struct Options {
    /// Time in seconds for which each target runs.
    #[arg(long, value_name = "N", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Build and run only this target.
    #[arg(long, value_name = "TARGET", value_parser = TARGETS)]
    only: Option<String>,
}

impl Options {
    /// The step of `cargo xtask test`.
    pub(crate) fn of_test() -> Self {
        Self {
            seconds: 60,
            only: None,
        }
    }

    fn targets(&self) -> Vec<&'static str> {
        let is_chosen = |name: &&str| self.only.as_ref().is_none_or(|only| only == name);
        TARGETS.into_iter().filter(is_chosen).collect()
    }
}

/// How the run of a target ended.
pub(crate) struct Outcome {
    /// Its name, and how many inputs it ran.
    pub(crate) text: String,
    /// Whether it found nothing.
    pub(crate) passed: bool,
    pub(crate) took: Duration,
}

/// The reason why the targets cannot be built here, if there is one.
///
/// # Errors
///
/// When that cannot be found out.
pub(crate) fn unavailable() -> Result<Option<String>> {
    let cxx = env::var("CXX").unwrap_or_else(|_| "c++".into());
    unavailable_by(&cxx, "rustc")
}

fn runs(command: &mut Command) -> bool {
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn unavailable_by(cxx: &str, rustc: &str) -> Result<Option<String>> {
    if !runs(Command::new(cxx).arg("--version")) {
        return Ok(Some(
            "there is no C++ compiler, which libFuzzer needs".into(),
        ));
    }
    no_sanitizer(rustc)
}

/// The reason why nothing can be built with AddressSanitizer here, if there is one.
///
/// # Errors
///
/// When that cannot be found out.
pub(crate) fn no_sanitizer(rustc: &str) -> Result<Option<String>> {
    let directory = directory();
    let (source, program) = (directory.join("probe.rs"), directory.join("probe"));
    fs::create_dir_all(&directory)
        .and_then(|()| fs::write(&source, "fn main() {}\n"))
        .with_context(|| format!("Cannot write {}", source.display()))?;
    let mut probe = Command::new(rustc);
    probe
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["-Zsanitizer=address", "-o"])
        .args([&program, &source]);
    let reason = "the toolchain here has no AddressSanitizer (rustc -Zsanitizer=address)";
    Ok((!runs(&mut probe) || !runs(&mut Command::new(&program))).then(|| reason.into()))
}

/// Builds and runs the targets, and prints how each ended.
///
/// # Errors
///
/// When a target cannot be built or run, or found something.
pub(crate) fn command(options: &Options) -> Result<()> {
    if let Some(reason) = unavailable()? {
        bail!("The fuzz targets cannot be built: {reason}");
    }
    let outcomes = run(options)?;
    for outcome in &outcomes {
        println!("{}", outcome.text);
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
    ensure!(failed == 0, "{failed} targets found something");
    Ok(())
}

/// Builds and runs the targets.
///
/// # Errors
///
/// When a target cannot be built or run.
pub(crate) fn run(options: &Options) -> Result<Vec<Outcome>> {
    let targets = options.targets();
    let mut build = Command::new("bash");
    build.current_dir(root()).arg("fuzz/build.sh");
    // Set by the cargo that runs this program, and wrong for another toolchain.
    build.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
    for name in &targets {
        build.args(["--bin", name]);
    }
    let status = build.status().context("Cannot run fuzz/build.sh")?;
    ensure!(status.success(), "fuzz/build.sh ended with {status}");
    let programs = directory().join(host()?).join("release");
    let waiting = Mutex::new(targets.into_iter());
    let next = || waiting.lock().ok().and_then(|mut names| names.next());
    let lists = thread::scope(|scope| {
        let one = || {
            scope.spawn(|| -> Result<Vec<Outcome>> {
                let mut outcomes = Vec::new();
                while let Some(name) = next() {
                    let program = Command::new(programs.join(name));
                    outcomes.push(run_target(name, program, &directory(), options.seconds)?);
                }
                Ok(outcomes)
            })
        };
        let threads: Vec<_> = (0..AT_ONCE).map(|_| one()).collect();
        let ends = threads.into_iter().map(|thread| match thread.join() {
            Ok(outcomes) => outcomes,
            Err(_) => bail!("A thread that ran a target panicked"),
        });
        ends.collect::<Result<Vec<_>>>()
    })?;
    let mut outcomes: Vec<Outcome> = lists.into_iter().flatten().collect();
    outcomes.sort_by(|a, b| a.text.cmp(&b.text));
    Ok(outcomes)
}

/// Runs a target on its seeds and on inputs that libFuzzer makes of them. Inputs that are new go
/// below `directory`, as does the target's log, and the input at which it failed.
fn run_target(name: &str, mut program: Command, directory: &Path, seconds: u32) -> Result<Outcome> {
    let inputs = directory.join("corpus").join(name);
    let log = directory.join(format!("{name}.log"));
    let findings = directory.join("findings");
    for directory in [&inputs, &findings] {
        fs::create_dir_all(directory)
            .with_context(|| format!("Cannot make {}", directory.display()))?;
    }
    let file = File::create(&log).with_context(|| format!("Cannot make {}", log.display()))?;
    let start = Instant::now();
    let status = program
        .current_dir(root())
        // libFuzzer writes to the first directory only.
        .args([&inputs, &root().join("fuzz").join("corpus").join(name)])
        .arg(format!("-max_total_time={seconds}"))
        .args(["-timeout=300", "-rss_limit_mb=4096", "-print_final_stats=1"])
        // Looking for leaks after each input takes a hundred times as long as the input.
        .arg("-detect_leaks=0")
        .arg(format!("-artifact_prefix={}/{name}-", findings.display()))
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("Cannot run the target {name}"))?;
    let text = fs::read(&log).with_context(|| format!("Cannot read {}", log.display()))?;
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines();
    let count = lines.find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let count = count.map_or("an unknown number of", str::trim);
    let mut outcome = Outcome {
        text: format!("{name}: {count} executions"),
        passed: status.success(),
        took: start.elapsed(),
    };
    if !status.success() {
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            println!("{name}: {line}");
        }
        outcome.text += &format!(", {status}; the input is in {}", findings.display());
    }
    Ok(outcome)
}

/// The target directory of `fuzz/build.sh`.
fn directory() -> PathBuf {
    root().join("target").join("fuzz")
}

/// The target triple of this machine.
pub(crate) fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output();
    let output = output.context("Cannot run rustc")?.stdout;
    let text = String::from_utf8_lossy(&output);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not print its host")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_targets_are_those_of_the_tree_and_have_seeds() {
        let fuzz = root().join("fuzz");
        let mut files: Vec<String> = fs::read_dir(fuzz.join("fuzz_targets"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        files.sort();
        assert_eq!(files, TARGETS.map(|name| format!("{name}.rs")));
        for name in TARGETS {
            let seeds = fs::read_dir(fuzz.join("corpus").join(name)).unwrap();
            assert!(seeds.count() > 10, "{name}");
        }
    }

    #[test]
    fn fuzz_targets_without_a_toolchain_are_unavailable_for_a_reason() {
        let reason = |cxx, rustc| unavailable_by(cxx, rustc).unwrap().unwrap();
        assert!(reason("no-such-program", "rustc").contains("C++"));
        assert!(reason("true", "false").contains("AddressSanitizer"));
    }

    /// Runs a script in the place of a target, with the target's arguments.
    fn run_script(script: &str, directory: &Path) -> Outcome {
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "wire"]);
        run_target("wire", shell, directory, 7).unwrap()
    }

    #[test]
    fn fuzz_run_writes_new_inputs_outside_of_the_tree() {
        let script = "touch \"$1/new\"; ls \"$2\" >&2; echo \"$3\" | grep -q =7$ &&
            echo stat::number_of_executed_units: 42";
        let directory = tempfile::tempdir().unwrap();
        let outcome = run_script(script, directory.path());
        assert!(outcome.passed);
        assert_eq!(outcome.text, "wire: 42 executions");
        assert!(directory.path().join("corpus/wire/new").exists());
        let log = fs::read_to_string(directory.path().join("wire.log")).unwrap();
        assert!(log.contains("hello-uplink"), "{log}");
    }

    #[test]
    fn fuzz_finding_fails_the_run_and_its_input_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let outcome = run_script("exit 77", directory.path());
        assert!(!outcome.passed);
        assert!(outcome.text.contains("exit status: 77"), "{}", outcome.text);
        assert!(outcome.text.contains("/findings"), "{}", outcome.text);
    }
}
