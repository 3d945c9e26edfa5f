//! `cargo xtask demo`: the same work over a guest's own loopback, virtio-inter, and tap + bridge,
//! side by side; and what `cloud-hypervisor-ext` does, where a stock Cloud Hypervisor is.
//!
//! The table is on standard output, all else on standard error. A measurement that fails leaves a
//! gap in the table and an exit code other than 0; the others continue.

mod figures;
mod launched;
mod options;
mod pair;
mod plan;
mod show;
mod table;
mod uplink;

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use virtio_inter_tests::{cloud_hypervisor_program, is_inside, is_root, kvm_runs_stock_kernels};

use self::figures::{Figure, Frontend};
pub(crate) use self::options::Options;
use self::plan::{Plan, plans};
use self::show::{Demo, Findings};
use crate::root::root;
use crate::{image, setup};
use virtio_inter_bench::placement;
use virtio_inter_bench::progress::Progress;

/// Runs the demo.
///
/// # Errors
///
/// Names the programs missing on this machine, or the number of figures missing in the table.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        is_root(),
        "The demo makes tap devices and a bridge, and that needs root"
    );
    let cpus = placement::allowed_cpus()?;
    for placement in &options.placement {
        ensure!(
            cpus.len() >= placement.needs(),
            "\"{}\" needs {} CPUs, this machine has {}",
            placement.name(),
            placement.needs(),
            cpus.len()
        );
    }
    let start = Instant::now();
    let load = load_average().filter(|_| !is_inside());
    // The nested machine has all that it needs.
    if !is_inside() {
        setup::ensure()?;
        image::ensure()?;
    }
    let has_launcher = cloud_hypervisor_program().is_some();
    let program = build_programs(has_launcher)?;
    // Boots a guest, so it needs QEMU and an image.
    let has_kvm = kvm_runs_stock_kernels();
    let plans = plans(options, has_kvm, has_launcher, cpus.len());
    // The fastest guests come last. The launcher's VMs show something else.
    let uplink = plans
        .iter()
        .map(|plan| plan.frontend)
        .rfind(|frontend| *frontend != Frontend::CloudHypervisor);
    let uplink_steps = usize::from(uplink.is_some());
    let mut demo = Demo {
        program,
        seconds: options.seconds,
        cpus,
        progress: Progress::new(plans.iter().map(Plan::steps).sum::<usize>() + uplink_steps),
        findings: Findings::default(),
    };
    demo.findings.notes.extend(load);
    for plan in &plans {
        demo.show(plan, has_kvm);
    }
    if let Some(frontend) = uplink {
        demo.show_uplink(frontend);
    }
    let findings = demo.findings;
    drop(demo.progress);
    eprintln!("Done in {:.0} s", start.elapsed().as_secs_f64());
    report(&findings, options.json.as_deref())
}

/// A note, if the machine has other work than the demo.
fn load_average() -> Option<String> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    let load: f64 = text.split_whitespace().next()?.parse().ok()?;
    (load > 0.5).then(|| {
        format!(
            "This machine was busy when the demo began (load average {load}): \
             the figures are noisy."
        )
    })
}

/// Builds the port, and the launcher if there is what it starts. None if the environment names
/// another port.
fn build_programs(has_launcher: bool) -> Result<Option<PathBuf>> {
    if env::var_os("VIRTIO_INTER_BIN").is_some() {
        return Ok(None);
    }
    let mut packages = vec!["--package", "virtio-inter"];
    if has_launcher {
        packages.extend(["--package", "cloud-hypervisor-ext"]);
        packages.extend(["--package", "ch-remote-ext"]);
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked"])
        .args(packages)
        .args(["--target-dir", "target"])
        .current_dir(root())
        .status()
        .context("Running cargo")?;
    ensure!(status.success(), "Building virtio-inter failed");
    Ok(Some(root().join("target/release/virtio-inter")))
}

/// The words of `text` in lines of the table's width.
fn wrapped(text: &str) -> String {
    const WIDTH: usize = 106;
    let (mut lines, mut column) = (String::new(), 0);
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if column > 0 && column + 1 + width > WIDTH {
            // Below the note's words, not below its number.
            lines += "\n    ";
            column = 4;
        } else if column > 0 {
            lines.push(' ');
            column += 1;
        }
        lines += word;
        column += width;
    }
    lines + "\n"
}

/// Prints the table and writes the JSON.
fn report(findings: &Findings, json: Option<&FilePath>) -> Result<()> {
    let mut text = findings.stories.join("\n");
    if !findings.groups.is_empty() {
        text += &format!("\n{}\n", table::render(&findings.groups));
        text += "÷ is the ratio of two values: for times less is better, for the others more.\n";
    }
    for (note, number) in findings.notes.iter().zip(1..) {
        text += &wrapped(&format!("({number}) {note}"));
    }
    for gap in &findings.gaps {
        text += &format!("Missing: {gap}\n");
    }
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("Writing the table")?;
    if let Some(path) = json {
        let figures: Vec<Figure> = findings
            .groups
            .iter()
            .flat_map(|group| group.figures.iter().cloned())
            .collect();
        File::create(path)
            .and_then(|file| figures::write_json(&figures, file))
            .with_context(|| format!("Writing {}", path.display()))?;
    }
    match findings.gaps.len() {
        0 => Ok(()),
        1 => bail!("The demo is incomplete: one thing failed"),
        count => bail!("The demo is incomplete: {count} things failed"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    pub(super) fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
        let line = ["demo"].iter().chain(arguments);
        Line::try_parse_from(line).map(|line| line.options)
    }

    #[test]
    fn bad_arguments_are_usage_errors() {
        for arguments in [
            ["--frontend", "vmware"],
            ["--placement", "everywhere"],
            ["--seconds", "0"],
            ["--seconds", "soon"],
            ["--json", "/no/such/directory/out.json"],
            ["--json", "/"],
            ["--verbose", "yes"],
        ] {
            let error = parse(&arguments).err().unwrap();
            assert_eq!(error.exit_code(), 2, "{arguments:?}");
        }
    }

    #[test]
    fn notes_are_wrapped_between_words() {
        let text = "word ".repeat(50);
        let lines = wrapped(&format!("(1) {text}"));
        assert!(lines.lines().all(|line| line.len() <= 106), "{lines}");
        assert!(
            lines
                .lines()
                .skip(1)
                .all(|line| line.starts_with("    word"))
        );
        assert_eq!(lines.split_whitespace().count(), 51);
        assert_eq!(wrapped("(2) short"), "(2) short\n");
    }
}
