//! The guests of the demo, their placements, and the number of steps.

use super::figures::{Frontend, Metric, Path};
use super::options::Options;
use virtio_inter_bench::placement::Placement;

/// Measurements in one placement.
pub(super) const GROUP_STEPS: usize = Metric::ALL.len() * Path::ALL.len();

/// Two guests and the placements in which they are measured.
pub(super) struct Plan {
    pub(super) frontend: Frontend,
    pub(super) placements: Vec<Placement>,
}

impl Plan {
    /// Booting, and all measurements, or all that the launcher shows.
    pub(super) fn steps(&self) -> usize {
        1 + self.placements.len() * GROUP_STEPS
    }
}

/// Which guests to boot and where to run them, on a machine with so many CPUs.
pub(super) fn plans(
    options: &Options,
    has_kvm: bool,
    has_launcher: bool,
    cpus: usize,
) -> Vec<Plan> {
    let mut frontends = once_each(&options.frontend);
    if frontends.is_empty() {
        frontends.push(Frontend::Qemu);
        if !has_kvm {
            frontends.push(Frontend::Uml);
        } else if has_launcher {
            frontends.push(Frontend::CloudHypervisor);
        }
    }
    let plan = |frontend| {
        let mut placements = once_each(&options.placement);
        if placements.is_empty() || frontend == Frontend::CloudHypervisor {
            placements = usual_placements(frontend, cpus);
        }
        Plan {
            frontend,
            placements,
        }
    };
    frontends.into_iter().map(plan).collect()
}

/// The placements if no option names them: one CPU, where copies cost most, and several, where
/// wake-ups do.
fn usual_placements(frontend: Frontend, cpus: usize) -> Vec<Placement> {
    match (frontend, cpus) {
        // Not measured.
        (Frontend::CloudHypervisor, _) => Vec::new(),
        // QEMU has threads of its own: on one CPU they would wait for each other.
        (Frontend::Qemu, _) => vec![Placement::Free],
        (Frontend::Uml, 0..2) => vec![Placement::OneCpu],
        (Frontend::Uml, 2..4) => vec![Placement::OneCpu, Placement::PerGuest],
        (Frontend::Uml, _) => vec![Placement::OneCpu, Placement::PerProcess],
    }
}

/// A placement given twice is shown once: otherwise the JSON would have two values for one key.
fn once_each<T: Copy + PartialEq>(all: &[T]) -> Vec<T> {
    let mut once = Vec::new();
    for one in all {
        if !once.contains(one) {
            once.push(*one);
        }
    }
    once
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::tests::parse;

    #[test]
    fn demo_shows_both_frontends_where_kvm_is_of_no_use() {
        let frontends = |arguments: &[&str], has_kvm| -> Vec<Frontend> {
            plans(&parse(arguments).unwrap(), has_kvm, false, 2)
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
    fn demo_shows_the_launcher_where_kvm_and_a_stock_program_are() {
        let frontends = |arguments: &[&str], has_kvm, has_launcher| -> Vec<Frontend> {
            plans(&parse(arguments).unwrap(), has_kvm, has_launcher, 2)
                .iter()
                .map(|plan| plan.frontend)
                .collect()
        };
        let both = [Frontend::Qemu, Frontend::CloudHypervisor];
        assert_eq!(frontends(&[], true, true), both);
        assert_eq!(frontends(&[], true, false), [Frontend::Qemu]);
        // The nested machine takes minutes.
        assert_eq!(frontends(&[], false, true), [Frontend::Qemu, Frontend::Uml]);
        // Where it is missing, that is said.
        assert_eq!(
            frontends(&["--frontend", "cloud-hypervisor"], false, false),
            [Frontend::CloudHypervisor]
        );
    }

    #[test]
    fn placements_fit_the_machine_or_are_as_asked_for() {
        let uml = |arguments: &[&str], cpus| -> Vec<Placement> {
            let mut all = vec!["--frontend", "uml"];
            all.extend(arguments);
            plans(&parse(&all).unwrap(), false, false, cpus)
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
