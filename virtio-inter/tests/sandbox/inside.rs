//! Enters a port's sandbox in a process of its own.

use std::path::Path;

use virtio_inter::sandbox::calls::PORT;
use virtio_inter::sandbox::{Access, Mode, Report, Wall};
use virtio_inter_test_support::inside;

/// Enters the sandbox with nothing allowed but the given directory. Forbidden system calls are only
/// logged: other walls have to stand behind them.
pub(crate) fn enter(directory: &Path) -> Report {
    enter_mode(Mode::Log, directory)
}

/// The same in another mode.
pub(crate) fn enter_mode(mode: Mode, directory: &Path) -> Report {
    let access = Access {
        directories: vec![directory.to_owned()],
        reads_proc: true,
        ..Access::default()
    };
    virtio_inter_sandbox::enter(mode, &access, &PORT).unwrap()
}

/// Runs `attempt` inside the sandbox, behind this wall. Skips the test if the kernel lacks it.
pub(crate) fn behind(wall: Wall, attempt: impl FnOnce(&Path)) {
    inside::behind(|directory| enter(directory).why_missing(wall), attempt);
}
