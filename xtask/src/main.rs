//! Developer commands: `cargo xtask setup | image | demo | bench | style | test | mutants | soak
//! | fuzz | package | book | vm`.
#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "talks to the person who runs it"
)]

mod apt;
mod bench;
mod book;
mod demo;
mod disk;
mod fuzz;
mod image;
mod modules;
mod mutants;
mod package;
mod root;
mod setup;
mod soak;
mod style;
mod test;
mod tools;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Developer commands of virtio-inter.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what guest tests need on this machine (as root, where something is missing).
    Setup,
    /// Build the guest images that are missing or out of date.
    Image,
    /// Show two guests over loopback, virtio-inter and tap + bridge, side by side.
    Demo(demo::Options),
    /// Measure beside other ways between guests and processes, and write bench/REPORT.md.
    Bench(virtio_inter_bench::options::Options),
    /// Run all checks and tests, those with real guests included.
    Test(test::Options),
    /// Check line widths, circles between source files, decision records, and links in documents.
    Style,
    /// Change the data path's code in small ways, and report the changes that no test notices.
    Mutants(mutants::Options),
    /// Kill, stop and starve ports, VMMs and guests under hashed traffic.
    Soak(soak::Options),
    /// Build the fuzz targets and run each for a while.
    Fuzz(fuzz::Options),
    /// Build a Debian package in target/package.
    Package(package::Options),
    /// Make a book of the documents in target/book, with a search.
    Book,
    /// Boot one guest by hand and run commands in it.
    Vm(vm::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // One line, whatever the environment says of backtraces.
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Setup => setup::ensure_for_tests(),
        Command::Image => image::ensure().map(drop),
        Command::Demo(options) => demo::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Style => test::style(),
        Command::Test(options) => test::run(options),
        Command::Mutants(options) => mutants::run(&options),
        Command::Soak(options) => soak::run(&options),
        Command::Fuzz(options) => fuzz::command(&options),
        Command::Package(options) => package::run(&options),
        Command::Book => {
            println!("{}", book::make()?.display());
            Ok(())
        }
        Command::Vm(options) => vm::run(options),
    }
}
