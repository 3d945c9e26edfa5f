//! Boots the guests of a plan, takes the measurements one after the other, and records figures,
//! failures and notes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use virtio_inter_tests::{Kernel, Testbed, stop_here_if_ending};

use super::figures::{Figure, Frontend, Metric, Path};
use super::launched;
use super::pair::{self, Measured};
use super::plan::{GROUP_STEPS, Plan};
use super::{table, uplink};
use virtio_inter_bench::guests::Pair;
use virtio_inter_bench::placement::{Placement, Seat};
use virtio_inter_bench::progress::Progress;

/// Time that a tool takes beside its measurement, if nothing hangs.
const SOON: Duration = Duration::from_secs(10);
/// What shows the launcher.
const LAUNCHED: &str = "Cloud Hypervisor";
const QEMU_TAP: &str =
    "The tap is served by QEMU itself, without vhost-net, as Cloud Hypervisor would serve it.";

/// The guests that a frontend of the table runs; None if it has no part in it.
fn kind_of(frontend: Frontend) -> Option<virtio_inter_tests::Frontend> {
    match frontend {
        Frontend::Qemu => Some(virtio_inter_tests::Frontend::Qemu(Kernel::Debian13)),
        Frontend::Uml => Some(virtio_inter_tests::Frontend::Uml),
        Frontend::CloudHypervisor => None,
    }
}

/// All that was found out.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) groups: Vec<table::Group>,
    /// Texts that stand before the table.
    pub(super) stories: Vec<String>,
    /// Notes for the reader of the table.
    pub(super) notes: Vec<String>,
    /// Figures that are missing in the table, with the reason.
    pub(super) gaps: Vec<String>,
}

/// The whole run.
pub(super) struct Demo {
    /// The port's program, if it is not for the environment to name.
    pub(super) program: Option<PathBuf>,
    pub(super) seconds: u32,
    pub(super) cpus: Vec<usize>,
    pub(super) progress: Progress,
    pub(super) findings: Findings,
}

impl Demo {
    /// Boots two guests and measures between them in each placement.
    pub(super) fn show(&mut self, plan: &Plan, has_kvm: bool) {
        let Some(kind) = kind_of(plan.frontend) else {
            return self.show_launched(has_kvm);
        };
        let name = match plan.frontend {
            Frontend::Qemu if has_kvm => "QEMU with KVM",
            Frontend::Qemu => "QEMU, emulated processor (TCG)",
            Frontend::Uml => "User Mode Linux",
            Frontend::CloudHypervisor => LAUNCHED,
        };
        self.progress.begin(format!("{name}: booting two guests"));
        let bed = match Testbed::new("the demo") {
            Ok(bed) => bed,
            Err(error) => return self.gap(plan.steps(), &format!("{name}: {error:#}")),
        };
        let outcome = Pair::boot(&bed, kind, self.program.as_deref());
        let mut pair = match outcome {
            Ok(pair) => pair,
            Err(error) => {
                bed.keep();
                return self.gap(plan.steps(), &format!("{name}: {error:#}"));
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

    /// Shows that a guest reaches the host's network by the uplink of its port.
    pub(super) fn show_uplink(&mut self, frontend: Frontend) {
        let Some(kind) = kind_of(frontend) else {
            return;
        };
        let what = "ping of the host by the uplink of a port";
        self.progress.begin(what.to_owned());
        match uplink::reach_host(kind, self.program.as_deref()) {
            Ok(report) => {
                self.progress
                    .done(&format!("{what}: {:.0} us", report.mean_us));
                self.findings.notes.push(format!(
                    "A guest reaches the host's network namespace by its port's uplink, a tap \
                     device on a bridge there: ping mean {:.0} us ({:.0}–{:.0}).",
                    report.mean_us, report.min_us, report.max_us
                ));
            }
            Err(error) => self.gap(1, &format!("{what}: {error:#}")),
        }
    }

    /// Shows two VMs of Cloud Hypervisor's launcher.
    fn show_launched(&mut self, has_kvm: bool) {
        self.progress.begin(format!("{LAUNCHED}: two VMs"));
        let bed = match Testbed::new("the demo's launcher") {
            Ok(bed) => bed,
            Err(error) => return self.gap(1, &format!("{LAUNCHED}: {error:#}")),
        };
        match launched::show(&bed, self.program.as_deref(), has_kvm, self.seconds) {
            Ok(story) => {
                self.progress
                    .done(&format!("{LAUNCHED}: two VMs on two segments"));
                self.findings.stories.push(story);
            }
            Err(error) => {
                bed.keep();
                self.gap(1, &format!("{LAUNCHED}: {error:#}"));
            }
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
            return self.gap(GROUP_STEPS, &format!("{title}: too few CPUs"));
        };
        if placement == Placement::OneCpu {
            title += &format!(" (CPU {})", cpus.ports[0][0]);
        }
        if let Err(error) = pair.place(&Seat { cpus, groups: None }) {
            return self.gap(GROUP_STEPS, &format!("{title}: {error:#}"));
        }
        self.progress.say(&title);
        let mut figures = Vec::new();
        let mut broken = Vec::new();
        for metric in Metric::ALL {
            // The paths one after the other, so that what else the machine does meets all of them.
            for path in Path::ALL {
                let what = format!("{} over {}", metric.name(), path.name());
                // A path that failed once would fail again, after each tool's whole time limit.
                if broken.contains(&path) {
                    self.gap(1, &format!("{title}, {what}: not tried after that"));
                    continue;
                }
                self.progress.begin(what.clone());
                match self.measure(pair, path, metric, &title) {
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
                        self.gap(1, &format!("{title}, {what}: {error:#}"));
                        broken.push(path);
                    }
                }
            }
        }
        self.findings.groups.push(table::Group { title, figures });
    }

    /// Takes one measurement; repeats it once if it failed in time, because a connection may stall
    /// for that long on a busy machine.
    fn measure(
        &mut self,
        pair: &Pair,
        path: Path,
        metric: Metric,
        title: &str,
    ) -> Result<Measured> {
        let start = Instant::now();
        let outcome = pair::measure(pair, path, metric, self.seconds);
        let limit = Duration::from_secs(self.seconds.into()) + SOON;
        match outcome {
            Err(error) if start.elapsed() < limit => {
                stop_here_if_ending();
                let what = format!("{} over {}", metric.name(), path.name());
                let note = format!("{title}, {what}: measured twice, as at first: {error:#}.");
                self.progress.say(&note);
                self.findings.notes.push(note);
                pair::measure(pair, path, metric, self.seconds)
            }
            outcome => outcome,
        }
    }

    /// Adds a note on the differences between the paths of these guests, and on the meaning of
    /// their figures.
    fn note(&mut self, name: &str, frontend: Frontend, has_kvm: bool, pair: &Pair) {
        let mut offloads = Vec::new();
        for path in Path::ALL {
            match pair.offloads(pair::way(path)) {
                Ok(words) => offloads.push(format!("{}: {words}", path.name())),
                Err(error) => {
                    self.gap(
                        0,
                        &format!("{name}, offloads of {}: {error:#}", path.name()),
                    );
                }
            }
        }
        let words = match frontend {
            // It is not measured.
            Frontend::CloudHypervisor => return,
            Frontend::Qemu if has_kvm => QEMU_TAP.to_owned(),
            Frontend::Qemu => format!(
                "/dev/kvm does not run stock kernels here, and the emulation of the processor \
                 takes most of the time: this shows that it works, not how fast each path is. \
                 {QEMU_TAP}"
            ),
            Frontend::Uml => {
                "A real kernel as a program of the host, at native speed: here paths can be \
                 compared. Its tap driver reads and writes the tap from the guest itself, without \
                 another process."
                    .to_owned()
            }
        };
        let note = format!("{name}: {words} Offloads: {}.", offloads.join("; "));
        self.findings.notes.push(note);
    }

    /// Notes what is missing in the table, and how many steps' figures that is.
    fn gap(&mut self, steps: usize, why: &str) {
        stop_here_if_ending();
        // A log at its end may end with line feeds.
        let why = why.trim_end();
        self.progress.skip(steps);
        self.progress.say(&format!("FAILED {why}"));
        self.findings.gaps.push(why.to_owned());
    }
}
