//! `virtio-inter-bench`: moves bytes between two processes, for `cargo xtask bench`.
#![forbid(unsafe_code)]

use anyhow::Result;
use clap::Parser;
use virtio_inter_bench::parties;

fn main() -> Result<()> {
    parties::run(&parties::Line::parse(), std::io::stdout().lock())
}
