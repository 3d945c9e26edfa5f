//! `cargo xtask bench`: does the set-up, then measures.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use virtio_inter_bench::options::Options;
use virtio_inter_bench::programs::Programs;
use virtio_inter_tests::{is_root, kvm_runs_stock_kernels};

use crate::root::root;
use crate::{image, setup};

/// Runs the bench.
///
/// # Errors
///
/// Names the programs missing on this machine, or the number of measurements that failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let output = options
        .output
        .clone()
        .unwrap_or_else(|| root().join("bench"));
    let start = Instant::now();
    let programs = if options.report {
        Programs {
            port: None,
            bench: PathBuf::new(),
            open_vswitch: None,
        }
    } else {
        ensure!(
            is_root(),
            "The bench makes tap devices and a bridge, and that needs root"
        );
        setup::ensure()?;
        setup::ensure_peers();
        image::ensure()?;
        build()?
    };
    let has_kvm = !options.report && kvm_runs_stock_kernels();
    virtio_inter_bench::run(options, programs, has_kvm, &output)?;
    eprintln!(
        "Done in {:.0} s: {}",
        start.elapsed().as_secs_f64(),
        output.join("REPORT.md").display()
    );
    Ok(())
}

/// Builds the programs, optimised whatever this one is.
fn build() -> Result<Programs> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked", "--target-dir", "target"])
        .args([
            "--package",
            "virtio-inter",
            "--package",
            "virtio-inter-bench",
        ])
        .current_dir(root())
        .status()
        .context("Running cargo")?;
    ensure!(status.success(), "Building what is measured failed");
    let built = root().join("target/release");
    let is_named = std::env::var_os("VIRTIO_INTER_BIN").is_some();
    Ok(Programs {
        port: (!is_named).then(|| built.join("virtio-inter")),
        bench: built.join("virtio-inter-bench"),
        open_vswitch: setup::open_vswitch(),
    })
}
