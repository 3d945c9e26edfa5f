//! `cargo xtask test`: all checks and tests, from formatting to real guests, with one summary.
//!
//! A step that cannot run here is listed as skipped, with the reason; it never looks like a pass.
//! The same goes for a single test: it writes its name and reason into the file that
//! `VIRTIO_INTER_SKIPS` names, and counts as skipped although its harness saw it return. A test
//! with named parts, as the cells of a matrix, writes each into the file that `VIRTIO_INTER_PARTS`
//! names.

mod cargo;
mod harness;
mod newest_kernel;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::disk::has_room;
use crate::root::root;
use crate::style::{Tree, findings};
use crate::{book, fuzz, image, package, setup, soak};

use cargo::cargo;
use harness::{TestResult, read_results};

/// Options that leave parts out.
#[derive(Args)]
pub(crate) struct Options {
    /// Leave out the tests that boot guests, and their set-up.
    #[arg(long)]
    no_guests: bool,
    /// Only the steps whose name contains this word.
    #[arg(long, value_name = "WORD", value_parser = part_of_a_step)]
    only: Option<String>,
}

/// MiB that a whole run on a fresh clone writes to `target/`, and what a later one adds at most.
const FIRST_RUN: u64 = 10 << 10;
const LATER_RUN: u64 = 2 << 10;
/// A file in `target/` that says that there was a whole run.
const WHOLE_RUN: &str = "tested";

/// All steps, in their order.
const STEPS: [&str; 17] = [
    "format",
    "style",
    "clippy",
    "dependencies",
    "documentation",
    "book",
    "unit and property tests",
    "doc tests",
    "loom",
    "miri",
    "asan",
    "fuzz",
    "soak",
    "guest set-up",
    "newest kernel",
    "guests",
    "package",
];

/// A word that no step's name contains would run nothing, and that would look like a pass.
fn part_of_a_step(word: &str) -> Result<String, String> {
    if STEPS.iter().any(|name| name.contains(word)) {
        Ok(word.into())
    } else {
        Err(format!(
            "no step's name contains it; the steps are {}",
            STEPS.join(", ")
        ))
    }
}

/// How a step or a test ended.
enum End {
    Passed,
    Failed,
    Skipped(String),
}

impl End {
    /// Of what ran.
    fn of(passed: bool) -> Self {
        if passed { End::Passed } else { End::Failed }
    }
}

/// The entries of a file of `name<TAB>text` lines that tests wrote.
fn told(file: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .collect()
}

/// A line of the summary.
struct Line {
    name: String,
    end: End,
    took: Duration,
}

/// The whole run.
struct Run {
    options: Options,
    lines: Vec<Line>,
    /// Tests report here that they were skipped: `name<TAB>reason` lines.
    skips: PathBuf,
    /// Tests write notes here, for the summary: `name<TAB>note` lines.
    notes: PathBuf,
    /// Tests write the results of their parts here: `name<TAB>part<TAB>ok|failed<TAB>milliseconds`
    /// lines.
    parts: PathBuf,
}

/// Prints what the tree's files have that they should not.
///
/// # Errors
///
/// When there is something, or the files cannot be read.
pub(crate) fn style() -> Result<()> {
    let found = findings(&Tree::read(&root())?);
    for finding in &found {
        println!("{finding}");
    }
    if !found.is_empty() {
        bail!("{} lines or documents are to be mended", found.len());
    }
    Ok(())
}

/// Runs all steps and prints the summary.
///
/// # Errors
///
/// When a step or a test failed, or the disk has no room for the run.
pub(crate) fn run(options: Options) -> Result<()> {
    let skips = root().join("target").join("skipped-tests");
    let target = root().join("target");
    fs::create_dir_all(&target).context("Cannot make target/")?;
    if options.only.is_none() {
        let is_later = target.join(WHOLE_RUN).exists();
        has_room(&target, if is_later { LATER_RUN } else { FIRST_RUN })?;
    }
    let mut run = Run {
        options,
        lines: Vec::new(),
        skips,
        notes: root().join("target").join("test-notes"),
        parts: root().join("target").join("test-parts"),
    };
    run.all();
    if run.options.only.is_none() {
        fs::write(target.join(WHOLE_RUN), "").context("Cannot write to target/")?;
    }
    run.summary()
}

impl Run {
    fn all(&mut self) {
        self.step("format", |run| run.cargo(&["fmt", "--all", "--check"], &[]));
        self.step("style", |_| style().map(|()| End::Passed));
        self.step("clippy", |run| {
            run.cargo(
                &[
                    "clippy",
                    "--workspace",
                    "--all-targets",
                    // Tests that need a feature are built, too.
                    "--features",
                    "virtio-inter-tests/guests",
                    "--locked",
                    "--",
                    "-D",
                    "warnings",
                ],
                &[],
            )
        });
        self.step("dependencies", |run| {
            if !succeeds("cargo", &["deny", "--version"]) {
                return Ok(End::Skipped("cargo-deny is not installed".into()));
            }
            // It reads all of Cargo.lock, also what no build for this system fetches.
            if !succeeds("cargo", &["fetch", "--locked", "--offline"]) {
                run.cargo(&["fetch", "--locked"], &[])?;
            }
            // The advisories are in a repository, which a machine that runs tests need not reach.
            run.cargo(
                &["deny", "--offline", "check", "bans", "licenses", "sources"],
                &[],
            )
        });
        self.step("documentation", |run| {
            run.cargo(
                &[
                    "doc",
                    "--workspace",
                    "--no-deps",
                    "--document-private-items",
                    "--locked",
                ],
                &[("RUSTDOCFLAGS", "-D warnings")],
            )
        });
        self.step("book", |_| book::make().map(|_| End::Passed));
        self.step("unit and property tests", |run| {
            setup::ensure_readers();
            run.tests(
                "unit",
                &["--workspace", "--exclude", "virtio-inter-tests"],
                &[],
            )
        });
        self.step("doc tests", |run| {
            run.cargo(&["test", "--doc", "--workspace", "--locked"], &[])
        });
        self.step("loom", |run| {
            run.tests(
                "loom",
                &["--release", "--package", "virtio-inter-link", "--lib"],
                // A target directory of its own, or every run would rebuild everything.
                &[
                    ("RUSTFLAGS", "--cfg loom"),
                    ("CARGO_TARGET_DIR", "target/loom"),
                ],
            )
        });
        self.step("miri", |run| {
            if !succeeds("cargo", &["+nightly", "miri", "--version"]) {
                return Ok(End::Skipped(
                    "no toolchain here has the miri component".into(),
                ));
            }
            run.cargo(
                &[
                    "+nightly",
                    "miri",
                    "test",
                    "--package",
                    "virtio-inter-link",
                    "--lib",
                ],
                &[
                    ("MIRIFLAGS", "-Zmiri-disable-isolation"),
                    ("CARGO_TARGET_DIR", "target/miri"),
                ],
            )
        });
        self.step("asan", Run::asan);
        self.step("fuzz", Run::fuzz);
        self.step("soak", |_| {
            soak::run(&soak::Options::of_test()).map(|()| End::Passed)
        });
        if self.options.no_guests {
            for name in ["newest kernel", "guests", "package"] {
                self.lines.push(Line {
                    name: name.into(),
                    end: End::Skipped("asked for by --no-guests".into()),
                    took: Duration::ZERO,
                });
            }
            return;
        }
        self.step("guest set-up", |run| {
            setup::ensure_for_tests()?;
            image::ensure()?;
            let mut build = vec![
                "build",
                "--release",
                "--locked",
                "--package",
                "virtio-inter",
            ];
            // Their tests with guests are skipped otherwise.
            if virtio_inter_tests::cloud_hypervisor_program().is_some() {
                build.extend(["--package", "cloud-hypervisor-ext"]);
                build.extend(["--package", "ch-remote-ext"]);
            }
            run.cargo(&build, &[])
        });
        self.step("newest kernel", Run::newest_kernel);
        self.step("guests", |run| {
            let port = root().join("target/release/virtio-inter");
            run.tests(
                "guests",
                // The harness waits most of the time: unoptimised, it builds in a tenth of the
                // time. The port is optimised.
                &["--package", "virtio-inter-tests", "--features", "guests"],
                &[("VIRTIO_INTER_BIN", &port.display().to_string())],
            )
        });
        self.step("package", |_| {
            if let Some(reason) = setup::ensure_for_packages() {
                return Ok(End::Skipped(reason));
            }
            // The files of a release cost more time than this run has.
            let options = package::Options {
                check: true,
                release_files: false,
            };
            package::run(&options).map(|()| End::Passed)
        });
    }

    /// Runs the tests of the crates that have unsafe code under AddressSanitizer, but those of the
    /// programs: their sandbox does not allow the sanitizer's system calls.
    fn asan(&mut self) -> Result<End> {
        if let Some(reason) = fuzz::no_sanitizer("rustc")? {
            return Ok(End::Skipped(reason));
        }
        if !succeeds("cargo", &["nextest", "--version"]) {
            return Ok(End::Skipped(
                "cargo-nextest is not here, which leaves tests out that measure CPU time".into(),
            ));
        }
        let host = fuzz::host()?;
        // With a target, programs of the build itself are not instrumented.
        let mut arguments = vec!["--target", &host];
        for package in [
            "virtio-inter-link",
            "virtio-inter-device",
            "virtio-inter-common",
            "virtio-inter-log",
        ] {
            arguments.extend(["--package", package]);
        }
        self.tests(
            "asan",
            &arguments,
            &[
                // Sanitizers are no stable option of the compiler.
                ("RUSTC_BOOTSTRAP", "1"),
                ("RUSTFLAGS", "-Zsanitizer=address"),
                // Tests leak memory on purpose.
                ("ASAN_OPTIONS", "detect_leaks=0"),
                ("CARGO_TARGET_DIR", "target/asan"),
            ],
        )
    }

    /// Runs the fuzz targets, and records each by name.
    fn fuzz(&mut self) -> Result<End> {
        if let Some(reason) = fuzz::unavailable()? {
            return Ok(End::Skipped(reason));
        }
        let outcomes = fuzz::run(&fuzz::Options::of_test())?;
        let results = outcomes.into_iter();
        Ok(self.record(
            "fuzz",
            results.map(|outcome| (outcome.text, outcome.passed, outcome.took)),
        ))
    }

    /// Runs the sandbox's tests on another kernel, and records each by name.
    fn newest_kernel(&mut self) -> Result<End> {
        setup::ensure()?;
        if let Err(error) = image::ensure_newest() {
            return Ok(End::Skipped(format!("there is no such kernel: {error:#}")));
        }
        let results = newest_kernel::run()?;
        Ok(self.record("newest kernel", results.into_iter()))
    }

    /// Records results of a step by name. Returns how the step ended.
    fn record(&mut self, what: &str, results: impl Iterator<Item = TestResult>) -> End {
        let mut all_passed = true;
        self.lines.extend(results.map(|(name, passed, took)| {
            all_passed &= passed;
            Line {
                name: format!("  {what}: {name}"),
                end: End::of(passed),
                took,
            }
        }));
        End::of(all_passed)
    }

    /// Runs one step, whether or not the ones before passed.
    fn step(&mut self, name: &str, body: impl FnOnce(&mut Run) -> Result<End>) {
        assert!(STEPS.contains(&name), "{name} is missing from the list");
        if self
            .options
            .only
            .as_ref()
            .is_some_and(|word| !name.contains(word.as_str()))
        {
            return;
        }
        println!("\n=== {name}");
        let start = Instant::now();
        let end = body(self).unwrap_or_else(|e| {
            println!("{e:#}");
            End::Failed
        });
        self.lines.push(Line {
            name: name.to_owned(),
            end,
            took: start.elapsed(),
        });
    }

    fn cargo(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Result<End> {
        let status = cargo(arguments, environment)
            .status()
            .with_context(|| format!("Cannot run cargo {}", arguments.join(" ")))?;
        Ok(End::of(status.success()))
    }

    /// Runs tests by nextest where it is installed, else by cargo's own harness, and records each
    /// by name.
    fn tests(
        &mut self,
        what: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<End> {
        let nextest = succeeds("cargo", &["nextest", "--version"]);
        let mut all = if nextest {
            vec![
                "nextest",
                "run",
                "--no-fail-fast",
                "--status-level",
                "all",
                "--color",
                "never",
            ]
        } else {
            vec!["test", "--no-fail-fast", "--color", "never"]
        };
        all.push("--locked");
        all.extend(arguments);
        if nextest {
            all.extend(["--profile", what]);
        } else {
            all.extend(["--tests"]);
        }
        if !nextest && what == "guests" {
            // They share two cores and the host's clock: nextest's profile limits their number,
            // here to one.
            all.extend(["--", "--test-threads=1"]);
        }
        let _ = fs::remove_file(&self.skips);
        let _ = fs::remove_file(&self.notes);
        let _ = fs::remove_file(&self.parts);
        let mut child = cargo(&all, environment)
            .env("VIRTIO_INTER_SKIPS", &self.skips)
            .env("VIRTIO_INTER_NOTES", &self.notes)
            .env("VIRTIO_INTER_PARTS", &self.parts)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("Cannot run cargo {}", all.join(" ")))?;
        // Nextest reports on standard error, cargo's harness on standard output: a thread reads
        // each.
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let reader = std::thread::spawn(move || stdout.map(read_results).unwrap_or_default());
        let mut results = stderr.map(read_results).unwrap_or_default();
        results.extend(reader.join().unwrap_or_default());
        let status = child.wait().context("Cannot wait for the tests")?;

        // Nextest repeats its failures at the end, and shows the inner harness's lines of those.
        let mut seen = std::collections::HashSet::new();
        results.retain(|(name, ..)| (!nextest || name.contains(' ')) && seen.insert(name.clone()));
        let skipped = told(&self.skips);
        let notes = told(&self.notes);
        let parts = self.parts();
        for (name, passed, took) in &mut results {
            let end = match skipped
                .iter()
                .find(|(skipped, _)| name.ends_with(skipped.as_str()))
            {
                Some((_, reason)) => End::Skipped(reason.clone()),
                None => End::of(*passed),
            };
            let notes: String = notes
                .iter()
                .filter(|(test, _)| name.ends_with(test.as_str()))
                .map(|(_, note)| format!("; {note}"))
                .collect();
            self.lines.push(Line {
                name: format!("  {what}: {name}{notes}"),
                end,
                took: *took,
            });
            for (test, part, took) in &parts {
                if name.ends_with(test.as_str()) {
                    self.lines.push(Line {
                        name: format!("    {what}: {name}: {}", part.0),
                        end: End::of(part.1),
                        took: *took,
                    });
                }
            }
        }
        if results.is_empty() {
            bail!("No test was run");
        }
        Ok(End::of(status.success()))
    }

    /// The parts that tests reported: the test, the part and whether it passed, and its time.
    fn parts(&self) -> Vec<(String, (String, bool), Duration)> {
        let text = fs::read_to_string(&self.parts).unwrap_or_default();
        text.lines()
            .filter_map(|line| {
                let mut fields = line.split('\t').map(str::to_owned);
                let (test, part, ending) = (fields.next()?, fields.next()?, fields.next()?);
                let took = Duration::from_millis(fields.next()?.parse().ok()?);
                Some((test, (part, ending == "ok"), took))
            })
            .collect()
    }

    fn summary(&self) -> Result<()> {
        println!("\n=== summary");
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        for line in &self.lines {
            let seconds = line.took.as_secs_f64();
            match &line.end {
                End::Passed => {
                    passed += 1;
                    println!("ok       {seconds:8.1} s  {}", line.name);
                }
                End::Failed => {
                    failed += 1;
                    println!("FAILED   {seconds:8.1} s  {}", line.name);
                }
                End::Skipped(reason) => {
                    skipped += 1;
                    println!("skipped  {seconds:8.1} s  {}: {reason}", line.name);
                }
            }
        }
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        if failed != 0 {
            bail!("{failed} failed");
        }
        Ok(())
    }
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_that_no_step_has_is_refused() {
        assert_eq!(part_of_a_step("guest"), Ok("guest".into()));
        let error = part_of_a_step("cloud").unwrap_err();
        assert!(
            error.contains("loom, miri, asan, fuzz, soak, guest set-up"),
            "{error}"
        );
    }
}
