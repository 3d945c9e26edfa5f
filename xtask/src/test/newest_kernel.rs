//! The tests of the sandbox once more, on the newest kernel of Debian's backports: it has all
//! walls, of which the kernel of the machine that runs the tests may lack some.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use virtio_inter_tests::{Machine, Supplies, Testbed};

use super::cargo::cargo;
use super::harness::{TestResult, result_in};

/// The test programs, by package and name, and what of each is run: of ports, those that have a
/// sandbox of their own kind.
const PROGRAMS: [(&str, &str, &[&str]); 4] = [
    ("virtio-inter-sandbox", "supervisor", &[]),
    ("virtio-inter", "sandbox", &[]),
    ("virtio-inter-host", "sandbox", &[]),
    (
        "virtio-inter",
        "port",
        // Programs that the machine does not have.
        &["sandbox", "uplink::", "user::", "--skip", "pasta"],
    ),
];
/// Time of one test program: the processor is emulated.
const LIMIT: Duration = Duration::from_secs(300);
/// Machines tried: QEMU fails now and then, and a test that fails is not tried again.
const TRIES: u32 = 2;

/// Where the machine has the programs: directories such as `/tmp` are mounted over what it is
/// given.
const FILES: &str = "/host/files";

/// What the machine's script prints before the name of a test that was skipped.
const SKIPPED: &str = "SKIPPED ";

/// Runs the tests, and returns how each ended. One that is skipped has failed: this is the kernel
/// on which none has a reason to be.
pub(super) fn run() -> Result<Vec<TestResult>> {
    let programs = build()?;
    let mut attempt = 1;
    loop {
        let bed = Testbed::new("newest-kernel")?;
        match run_in_machine(&bed, &programs) {
            Err(error) if attempt < TRIES => {
                println!("Machine {attempt} of {TRIES} is given up: {error:#}");
                attempt += 1;
            }
            result => return result.inspect_err(|_| bed.keep()),
        }
    }
}

/// The same in one machine. An error is the machine's.
fn run_in_machine(bed: &Testbed, programs: &Programs) -> Result<Vec<TestResult>> {
    let script = bed.path("script");
    fs::write(&script, script_of(programs.values())?).context("Writing the machine's script")?;
    let place = |path: &PathBuf| (format!("{FILES}{}", path.display()), path.clone());
    let others: Vec<_> = programs.values().map(place).collect();
    let machine = Machine::boot(bed, &Supplies::of_newest_kernel(&script, &others)?)?;
    let mut results = Vec::new();
    for (package, name, filters) in PROGRAMS {
        let label = format!("{package}::{name}");
        let program = program(programs, package, name)?.display().to_string();
        let arguments = [&[&*program, "--test-threads=1"], filters].concat();
        let Some(output) = machine.run(&arguments, LIMIT, true)? else {
            // It may still run there, and be in the way of the next one.
            results.push((format!("{label} ended in time"), false, LIMIT));
            break;
        };
        let ended = results_of(&output.stdout, output.success());
        let named = |(test, passed, took)| (format!("{label} {test}"), passed, took);
        results.extend(ended.into_iter().map(named));
    }
    Ok(results)
}

/// The script with which the machine runs a test program: the programs have the paths that they
/// have here, and the tests that were skipped are named at the end.
fn script_of<'a>(programs: impl Iterator<Item = &'a PathBuf>) -> Result<String> {
    let mut script = "#!/bin/sh\n".to_owned();
    for path in programs {
        let (text, parent) = (path.to_str(), path.parent().and_then(Path::to_str));
        let (text, parent) = text.zip(parent).context("A path that is no UTF-8")?;
        ensure!(!text.contains('\''), "A path with a quote: {text}");
        script += &format!("mkdir -p '{parent}' && ln -sf '{FILES}{text}' '{text}'\n");
    }
    // As udev has it.
    script += "chmod 666 /dev/net/tun\n";
    script += &format!(
        "export VIRTIO_INTER_SKIPS=/run/skips\n\
         : > $VIRTIO_INTER_SKIPS\n\
         \"$@\"\n\
         status=$?\n\
         sed 's/^/{SKIPPED}/' $VIRTIO_INTER_SKIPS\n\
         exit $status\n"
    );
    Ok(script)
}

/// How the tests of a program ended, by what it and the script have written, and whether it ended
/// as one that passed.
fn results_of(output: &str, passed: bool) -> Vec<TestResult> {
    let mut results: Vec<TestResult> = output.lines().filter_map(result_in).collect();
    // A test that fails shows the lines of the one that it has started.
    let mut seen = HashSet::new();
    results.retain(|(name, ..)| seen.insert(name.clone()));
    let counts = output.lines().find_map(|line| {
        line.strip_prefix("running ")?
            .split(' ')
            .next()?
            .parse()
            .ok()
    });
    let mut fail = |name: &str| match results.iter_mut().find(|(test, ..)| test == name) {
        Some((_, passed, _)) => *passed = false,
        None => results.push((name.to_owned(), false, Duration::ZERO)),
    };
    for line in output.lines() {
        if let Some(skipped) = line.strip_prefix(SKIPPED) {
            let name = skipped.split('\t').next().unwrap_or_default();
            fail(name);
        }
    }
    // One that was ended by a signal says nothing of its last test.
    if counts != Some(seen.len()) || counts == Some(0) {
        fail("ran each of its tests to the end");
    }
    if !passed && results.iter().all(|(_, passed, _)| *passed) {
        results.push(("ended without an error".to_owned(), false, Duration::ZERO));
    }
    results
}

type Programs = BTreeMap<(String, String), PathBuf>;

fn program<'a>(programs: &'a Programs, package: &str, name: &str) -> Result<&'a Path> {
    let key = (package.to_owned(), name.to_owned());
    let program = programs.get(&key).map(PathBuf::as_path);
    program.with_context(|| format!("cargo built no {name} of {package}"))
}

/// Builds the test programs as the step of the unit tests does, and returns them, and the programs
/// that they start, by package and name.
fn build() -> Result<Programs> {
    let mut arguments = vec![
        "test",
        "--no-run",
        "--locked",
        "--workspace",
        "--exclude",
        "virtio-inter-tests",
        "--message-format=json-render-diagnostics",
        "--quiet",
    ];
    for name in ["supervisor", "sandbox", "port"] {
        arguments.extend(["--test", name]);
    }
    let output = cargo(&arguments, &[]).stderr(Stdio::inherit()).output();
    let output = output.context("Cannot run cargo test")?;
    ensure!(
        output.status.success(),
        "cargo test --no-run ended with {}",
        output.status
    );
    Ok(programs_of(&String::from_utf8_lossy(&output.stdout)))
}

/// The programs in cargo's messages.
fn programs_of(messages: &str) -> Programs {
    let messages = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let package = Path::new(message["manifest_path"].as_str()?).parent()?;
        let package = package.file_name()?.to_str()?.to_owned();
        let name = message["target"]["name"].as_str()?.to_owned();
        let program = message["executable"].as_str()?;
        Some(((package, name), PathBuf::from(program)))
    });
    messages.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn programs_are_read_from_cargos_messages() {
        let artifact = |package, name, executable| {
            json!({
                "reason": "compiler-artifact",
                "manifest_path": format!("/w/{package}/Cargo.toml"),
                "target": {"name": name},
                "executable": executable,
            })
        };
        let messages = [
            artifact("virtio-inter", "port", Some("/w/target/debug/deps/port-1")),
            artifact("virtio-inter-link", "virtio_inter_link", None),
            json!({"reason": "build-finished", "success": true}),
        ];
        let programs = programs_of(&messages.map(|message| message.to_string()).join("\n"));
        assert_eq!(programs.len(), 1);
        let port = program(&programs, "virtio-inter", "port").unwrap();
        assert_eq!(port, Path::new("/w/target/debug/deps/port-1"));
        assert!(program(&programs, "virtio-inter", "sandbox").is_err());
    }

    /// The tests that failed.
    fn failed(output: &str, passed: bool) -> Vec<String> {
        let mut results = results_of(output, passed);
        results.retain(|(_, passed, _)| !passed);
        results.into_iter().map(|(name, ..)| name).collect()
    }

    #[test]
    fn test_on_the_newest_kernel_fails_if_it_is_skipped() {
        let output = "running 2 tests\ntest a::b ... ok\ntest c ... ok\n\nSKIPPED c\tno wall\n";
        assert_eq!(failed(output, true), ["c"]);
        // By a thread without the test's name.
        let output = output.replace("SKIPPED c", "SKIPPED test");
        assert_eq!(failed(&output, true), ["test"]);
    }

    #[test]
    fn test_program_on_the_newest_kernel_fails_if_it_ends_too_early() {
        let output = "running 2 tests\ntest a ... ok\ntest b ... ok\n";
        assert_eq!(failed(output, true), [""; 0]);
        assert_eq!(failed(output, false), ["ended without an error"]);
        let early = "running 2 tests\ntest a ... ok\ntest b ... ";
        for output in [early, "running 0 tests\n", "not found\n"] {
            assert_eq!(failed(output, true).len(), 1, "{output}");
        }
    }

    #[test]
    fn script_gives_programs_the_paths_that_they_have_here() {
        let directory = tempfile::tempdir().unwrap();
        let script_at = |path: &str| script_of([PathBuf::from(path)].iter());
        assert!(script_at("/it's").is_err());
        let path = directory.path().join("a b/program");
        let script = script_of([path.clone()].iter()).unwrap();
        let links = script.lines().take(2).collect::<Vec<_>>().join("\n");
        let status = std::process::Command::new("sh")
            .args(["-c", &links])
            .status();
        assert!(status.unwrap().success());
        let target = fs::read_link(&path).unwrap();
        assert_eq!(target, Path::new(&format!("{FILES}{}", path.display())));
    }
}
