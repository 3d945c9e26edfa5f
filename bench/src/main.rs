//! `virtio-inter-bench`: what `cargo xtask bench` has done by processes of their own.
#![forbid(unsafe_code)]

use anyhow::Result;
use clap::Parser;
use virtio_inter_bench::{inside, parties};

/// Its command line, which `cargo xtask bench` writes.
#[derive(Parser)]
enum Line {
    /// Moves bytes between two processes
    Bytes(parties::Line),
    /// Measures between guests of Cloud Hypervisor, in the nested machine
    Guests(inside::Line),
    /// Keeps a CPU busy until it is killed
    Spin,
}

fn main() -> Result<()> {
    let out = std::io::stdout().lock();
    match Line::parse() {
        Line::Bytes(line) => parties::run(&line, out),
        Line::Guests(line) => inside::run(&line, out),
        Line::Spin => loop {
            std::hint::spin_loop();
        },
    }
}
