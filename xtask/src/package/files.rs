//! The programs that are packaged, and the packages.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// The programs of the package, which are the crates' names.
pub(super) const PROGRAMS: [&str; 4] = [
    "virtio-inter",
    "cloud-hypervisor-ext",
    "ch-remote-ext",
    CNI_PLUG_IN,
];

/// The one that nobody starts by hand.
const CNI_PLUG_IN: &str = "virtio-inter-cni";

/// What Wireshark starts, below `usr/lib` in the Debian package.
pub(super) const EXTCAP_BELOW_LIB: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-linux-gnu/wireshark/extcap/virtio-inter"
} else {
    "x86_64-linux-gnu/wireshark/extcap/virtio-inter"
};

/// What Wireshark starts in the rpm: where Fedora's looks.
pub(super) const EXTCAP_OF_RPM: &str = "usr/libexec/wireshark/extcap/virtio-inter";

/// Where the package has a program.
pub(super) fn installed(program: &str) -> PathBuf {
    let directory = match program {
        CNI_PLUG_IN => "usr/lib/cni",
        _ => "usr/bin",
    };
    Path::new(directory).join(program)
}

/// The packages that were built.
pub(super) struct Packages {
    pub(super) deb: PathBuf,
    /// Of a release.
    pub(super) rpm: Option<PathBuf>,
}

/// The package of that format in a directory.
pub(super) fn find(directory: &Path, extension: &str) -> Option<PathBuf> {
    let mut packages = fs::read_dir(directory)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file() && path.extension() == Some(OsStr::new(extension)));
    packages.next()
}
