//! `cargo xtask demo`: the same work over a guest's own loopback, virtio-inter, and tap + bridge, side by side.
//!
//! The table is on standard output, all else on standard error. A measurement that fails leaves a gap in the table
//! and an exit code other than 0; the others go on.

mod figures;
mod pair;
mod placement;
mod progress;
mod table;

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use virtio_inter_tests::{Testbed, is_root, kvm_runs_stock_kernels};

use self::figures::{Figure, Frontend, Metric, Path};
use self::pair::Pair;
use self::placement::Placement;
use self::progress::Progress;
use crate::{image, root, setup};

/// What to show.
#[derive(Args)]
pub(crate) struct Options {
    /// What runs the guests; several with commas [default: qemu where KVM runs stock kernels, else qemu,uml]
    #[arg(long, value_name = "NAME", value_enum, value_delimiter = ',')]
    frontend: Vec<Frontend>,
    /// Where guests and ports run; several with commas [default: free for qemu, one-cpu and a CPU for each guest or,
    /// from four CPUs on, for each process for uml]
    #[arg(
        long,
        visible_alias = "pin",
        value_name = "NAME",
        value_enum,
        value_delimiter = ','
    )]
    placement: Vec<Placement>,
    /// Seconds of each measurement.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Write the figures to FILE as JSON.
    #[arg(long, value_name = "FILE", value_parser = writable_file)]
    json: Option<PathBuf>,
}

/// Two guests and the placements in which they are measured.
struct Plan {
    frontend: Frontend,
    placements: Vec<Placement>,
}

/// All that was found out.
#[derive(Default)]
struct Findings {
    groups: Vec<table::Group>,
    /// What the reader of the table must know.
    notes: Vec<String>,
    /// What is not in the table, and why.
    gaps: Vec<String>,
}

/// The whole run.
struct Demo {
    /// The port's program, if it is not for the environment to name.
    program: Option<PathBuf>,
    seconds: u32,
    cpus: Vec<usize>,
    progress: Progress,
    findings: Findings,
}

/// Takes a path where a file can be made or written anew.
fn writable_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let directory = match path.parent() {
        Some(parent) if parent != FilePath::new("") => parent,
        _ => FilePath::new("."),
    };
    if path.is_dir() || path.file_name().is_none() {
        return Err("Not a file".to_owned());
    }
    if !directory.is_dir() {
        return Err(format!("No directory {}", directory.display()));
    }
    Ok(path)
}

/// Runs the demo.
///
/// # Errors
///
/// What is missing on this machine, or how many figures are missing in the table.
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
    let load = load_average();
    setup::ensure()?;
    image::ensure()?;
    let program = build_port()?;
    // Boots a guest, so it needs QEMU and an image.
    let has_kvm = kvm_runs_stock_kernels();
    let plans = plans(options, has_kvm, cpus.len());
    let groups: usize = plans.iter().map(|plan| plan.placements.len()).sum();
    let steps = plans.len() + groups * Metric::ALL.len() * Path::ALL.len();
    let mut demo = Demo {
        program,
        seconds: options.seconds,
        cpus,
        progress: Progress::new(steps),
        findings: Findings::default(),
    };
    demo.findings.notes.extend(load);
    for plan in &plans {
        demo.show(plan, has_kvm);
    }
    let findings = demo.findings;
    drop(demo.progress);
    eprintln!("Done in {:.0} s", start.elapsed().as_secs_f64());
    report(&findings, options.json.as_deref())
}

/// Which guests to boot and where to run them.
fn plans(options: &Options, has_kvm: bool, cpus: usize) -> Vec<Plan> {
    let mut frontends = options.frontend.clone();
    if frontends.is_empty() {
        frontends = if has_kvm {
            vec![Frontend::Qemu]
        } else {
            vec![Frontend::Qemu, Frontend::Uml]
        };
    }
    // Each once: a second time would be the same keys in the JSON.
    let mut seen = Vec::new();
    frontends.retain(|frontend| {
        let is_new = !seen.contains(frontend);
        seen.push(*frontend);
        is_new
    });
    let placements = |frontend| {
        if !options.placement.is_empty() {
            let mut placements = Vec::new();
            for placement in &options.placement {
                if !placements.contains(placement) {
                    placements.push(*placement);
                }
            }
            return placements;
        }
        match (frontend, cpus) {
            // QEMU's emulation has threads of its own, which one CPU would make wait for each other.
            (Frontend::Qemu, _) => vec![Placement::Free],
            (Frontend::Uml, 0..2) => vec![Placement::OneCpu],
            (Frontend::Uml, 2..4) => vec![Placement::OneCpu, Placement::PerGuest],
            (Frontend::Uml, _) => vec![Placement::OneCpu, Placement::PerProcess],
        }
    };
    frontends
        .into_iter()
        .map(|frontend| Plan {
            frontend,
            placements: placements(frontend),
        })
        .collect()
}

/// A note, if the machine has other work than the demo.
fn load_average() -> Option<String> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    let load: f64 = text.split_whitespace().next()?.parse().ok()?;
    (load > 0.5).then(|| {
        format!("This machine was busy when the demo began (load average {load}): the figures are noisy.")
    })
}

/// Builds the port. None if the environment names another one.
fn build_port() -> Result<Option<PathBuf>> {
    if env::var_os("VIRTIO_INTER_BIN").is_some() {
        return Ok(None);
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "virtio-inter",
        ])
        .args(["--target-dir", "target"])
        .current_dir(root())
        .status()
        .context("Running cargo")?;
    ensure!(status.success(), "Building virtio-inter failed");
    Ok(Some(root().join("target/release/virtio-inter")))
}

impl Demo {
    /// Boots two guests and measures between them in each placement.
    fn show(&mut self, plan: &Plan, has_kvm: bool) {
        let name = match plan.frontend {
            Frontend::Qemu if has_kvm => "QEMU with KVM",
            Frontend::Qemu => "QEMU, emulated processor (TCG)",
            Frontend::Uml => "User Mode Linux",
        };
        self.progress.begin(format!("{name}: booting two guests"));
        let bed = match Testbed::new("the demo") {
            Ok(bed) => bed,
            Err(error) => return self.gap(format!("{name}: {error:#}")),
        };
        let outcome = Pair::boot(&bed, plan.frontend, self.program.as_deref());
        let mut pair = match outcome {
            Ok(pair) => pair,
            Err(error) => {
                bed.keep();
                return self.gap(format!("{name}: {error:#}"));
            }
        };
        let name = format!("{name}, Linux {}", pair.kernel_release());
        self.progress
            .done(&format!("{name}: both guests are ready"));
        let gaps = self.findings.gaps.len();
        for placement in &plan.placements {
            self.measure_group(&name, plan.frontend, *placement, &mut pair);
        }
        self.note(&name, plan.frontend, has_kvm, &pair);
        if self.findings.gaps.len() > gaps {
            bed.keep();
        }
    }

    /// Takes all measurements in one placement.
    fn measure_group(
        &mut self,
        name: &str,
        frontend: Frontend,
        placement: Placement,
        pair: &mut Pair,
    ) {
        let mut title = format!("{name}, {}", placement.name());
        let Some(cpus) = placement.cpus(&self.cpus) else {
            return self.gap(format!("{title}: too few CPUs"));
        };
        if placement == Placement::OneCpu {
            title += &format!(" (CPU {})", cpus.ports[0][0]);
        }
        if let Err(error) = pair.place(&cpus) {
            return self.gap(format!("{title}: {error:#}"));
        }
        let mut figures = Vec::new();
        let mut broken = Vec::new();
        for metric in Metric::ALL {
            // The paths one after the other, so that what else the machine does meets all of them.
            for path in Path::ALL {
                let what = format!("{} over {}", metric.name(), path.name());
                // What failed once would fail for as long as each tool waits.
                if broken.contains(&path) {
                    self.gap(format!("{title}, {what}: not tried after that"));
                    continue;
                }
                self.progress.begin(format!("{}: {what}", placement.name()));
                match pair.measure(path, metric, self.seconds) {
                    Ok(measured) => {
                        let figure = Figure {
                            frontend,
                            placement,
                            path,
                            metric,
                            unit: metric.unit(),
                            value: measured.value,
                            retransmits: measured.retransmits,
                            detail: measured.detail,
                        };
                        let value = table::number(figure.value);
                        self.progress
                            .done(&format!("{what}: {value} {}", figure.unit));
                        figures.push(figure);
                    }
                    Err(error) => {
                        self.gap(format!("{title}, {what}: {error:#}"));
                        broken.push(path);
                    }
                }
            }
        }
        self.findings.groups.push(table::Group { title, figures });
    }

    /// Notes what makes the paths of these guests differ, and what their figures can tell.
    fn note(&mut self, name: &str, frontend: Frontend, has_kvm: bool, pair: &Pair) {
        let mut offloads = Vec::new();
        for path in Path::ALL {
            match pair.offloads(path) {
                Ok(words) => offloads.push(format!("{}: {words}", path.name())),
                Err(error) => self.gap(format!("{name}, offloads of {}: {error:#}", path.name())),
            }
        }
        let mut note = format!("{name}. {}.", offloads.join("; "));
        note += match frontend {
            Frontend::Qemu if has_kvm => {
                " The tap is served by QEMU itself, without vhost-net, as Cloud Hypervisor serves it."
            }
            Frontend::Qemu => {
                " /dev/kvm does not run stock kernels here: the processor's emulation takes most of the time, \
                  so these figures show that it works, not how fast each path is. The tap is served by QEMU itself, \
                  without vhost-net, as Cloud Hypervisor serves it."
            }
            Frontend::Uml => {
                " A real kernel as a program of the host, at native speed: here the paths can be compared. Its tap \
                  driver loses segments that it leaves to the tap to cut, so TSO is off there and the guest sends \
                  packets of the MTU's size: part of what virtio-inter is ahead by."
            }
        };
        self.findings.notes.push(note);
    }

    fn gap(&mut self, why: String) {
        self.progress.say(&format!("FAILED {why}"));
        self.findings.gaps.push(why);
    }
}

/// Prints the table and writes the JSON.
fn report(findings: &Findings, json: Option<&FilePath>) -> Result<()> {
    let mut text = format!("\n{}\n", table::render(&findings.groups));
    text += "÷ is the ratio of two values: for times less is better, for the others more.\n";
    for (note, number) in findings.notes.iter().zip(1..) {
        text += &format!("({number}) {note}\n");
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
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
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
    fn both_frontends_are_shown_where_kvm_is_of_no_use() {
        let frontends = |arguments: &[&str], has_kvm| -> Vec<Frontend> {
            plans(&parse(arguments).unwrap(), has_kvm, 2)
                .iter()
                .map(|plan| plan.frontend)
                .collect()
        };
        assert_eq!(frontends(&[], true), [Frontend::Qemu]);
        assert_eq!(frontends(&[], false), [Frontend::Qemu, Frontend::Uml]);
        assert_eq!(frontends(&["--frontend", "uml"], true), [Frontend::Uml]);
        assert_eq!(
            frontends(&["--frontend", "uml,qemu,uml"], true),
            [Frontend::Uml, Frontend::Qemu]
        );
    }

    #[test]
    fn placements_fit_the_machine_or_are_as_asked_for() {
        let uml = |arguments: &[&str], cpus| -> Vec<Placement> {
            let mut all = vec!["--frontend", "uml"];
            all.extend(arguments);
            plans(&parse(&all).unwrap(), false, cpus)
                .remove(0)
                .placements
        };
        assert_eq!(uml(&[], 1), [Placement::OneCpu]);
        assert_eq!(uml(&[], 2), [Placement::OneCpu, Placement::PerGuest]);
        assert_eq!(uml(&[], 16), [Placement::OneCpu, Placement::PerProcess]);
        for cpus in 1..6 {
            let fits = |placement: &Placement| placement.needs() <= cpus;
            assert!(uml(&[], cpus).iter().all(fits), "{cpus} CPUs");
        }
        assert_eq!(
            uml(&["--pin", "free,per-guest,free"], 2),
            [Placement::Free, Placement::PerGuest]
        );
    }
}
