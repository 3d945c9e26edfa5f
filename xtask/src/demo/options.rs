//! The options of `cargo xtask demo`.

use std::path::{Path as FilePath, PathBuf};

use clap::Args;
use virtio_inter_bench::placement::Placement;

use super::figures::Frontend;

/// Options of the demo.
#[derive(Args)]
pub(crate) struct Options {
    /// Program that runs the guests; several with commas. cloud-hypervisor needs a stock one, which
    /// $CLOUD_HYPERVISOR names, and runs in an emulated machine where KVM does not run stock
    /// kernels [default: qemu and, where it is, cloud-hypervisor; without such a KVM qemu,uml]
    #[arg(long, value_name = "NAME", value_enum, value_delimiter = ',')]
    pub(super) frontend: Vec<Frontend>,
    /// CPUs of guests and ports; several with commas [default: free for qemu; for uml one-cpu, and
    /// a CPU for each guest or, from four CPUs on, for each process]
    #[arg(
        long,
        visible_alias = "pin",
        value_name = "NAME",
        value_enum,
        value_delimiter = ','
    )]
    pub(super) placement: Vec<Placement>,
    /// Seconds of each measurement.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..=600)
    )]
    pub(super) seconds: u32,
    /// Write the figures of the table to FILE as JSON.
    #[arg(long, value_name = "FILE", value_parser = writable_file)]
    pub(super) json: Option<PathBuf>,
}

/// Accepts a path where a file can be created or overwritten.
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
