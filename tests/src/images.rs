//! Paths of the guest images and of the programs under test.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::Result;

/// A kernel for frontends that emulate a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Debian 12's cloud kernel, 6.1.
    Debian12,
    /// Debian 13's cloud kernel, 6.12.
    Debian13,
}

impl Kernel {
    /// The name of its image.
    pub(crate) fn image_name(self) -> &'static str {
        match self {
            Kernel::Debian12 => "debian-12",
            Kernel::Debian13 => "debian-13",
        }
    }
}

/// Names the directory of the images, where it is not that of the workspace.
pub(crate) const DIRECTORY: &str = "VIRTIO_INTER_IMAGES";

/// The files of one image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// For User Mode Linux: the library that makes it run on processors with AMX.
    pub(crate) shim: PathBuf,
}

impl Image {
    pub(crate) fn of_kernel(kernel: Kernel) -> Result<Self> {
        Self::named(kernel.image_name())
    }

    /// The nested machine's, see [`crate::machine`].
    pub(crate) fn of_machine() -> Result<Self> {
        Self::named("machine")
    }

    /// The newest kernel of Debian's backports.
    pub(crate) fn of_newest_kernel() -> Result<Self> {
        Self::named("newest")
    }

    pub(crate) fn of_uml() -> Result<Self> {
        Self::named("uml")
    }

    fn named(name: &str) -> Result<Self> {
        let directory = directory().join(name);
        let image = Self {
            kernel: directory.join("kernel"),
            initramfs: directory.join("initramfs"),
            shim: directory.join("libvirtio_inter_uml_xstate.so"),
        };
        ensure!(
            image.initramfs.exists(),
            "No guest image {name}: run `cargo xtask image`"
        );
        Ok(image)
    }
}

/// The directory of the images.
pub(crate) fn directory() -> PathBuf {
    let images = env::var_os(DIRECTORY).map(PathBuf::from);
    images.unwrap_or_else(|| target().join("images"))
}

/// Where the programs of a Debian package may be: installed, and as `cargo xtask test` has unpacked
/// it in a directory whose name ends like this.
pub(crate) fn roots_of_package(suffix: &str) -> Vec<PathBuf> {
    let unpacked = fs::read_dir(directory().join("packages"));
    let unpacked = unpacked.into_iter().flatten().flatten();
    let unpacked = unpacked.filter(|entry| entry.file_name().to_string_lossy().ends_with(suffix));
    let unpacked = unpacked.map(|entry| entry.path());
    [PathBuf::from("/")].into_iter().chain(unpacked).collect()
}

/// Prometheus' `promtool`, which checks metrics; `None`: this machine has none.
pub fn promtool() -> Option<PathBuf> {
    let roots = roots_of_package("-prometheus").into_iter();
    roots
        .map(|root| root.join("usr/bin/promtool"))
        .find(|program| program.is_file())
}

/// The workspace's target directory.
pub(crate) fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target")
}

/// The `virtio-inter` program: the one that `VIRTIO_INTER_BIN` names, else the later of the
/// workspace's builds.
///
/// # Errors
///
/// No program there.
pub fn port_program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("VIRTIO_INTER_BIN") {
        return Ok(path.into());
    }
    ["release", "debug"]
        .iter()
        .map(|profile| target().join(profile).join("virtio-inter"))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .context("No virtio-inter program: run `cargo build --release`")
}
