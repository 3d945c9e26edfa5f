//! Writes man pages and shell completions of `virtio-inter` into a directory:
//! `virtio-inter-package DIR`.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Command, CommandFactory, Parser};
use clap_complete::{Shell, generate_to};
use virtio_inter::cli::Cli;

/// Name of the program.
const PROGRAM: &str = "virtio-inter";

/// Write man pages and shell completions of virtio-inter.
#[derive(Parser)]
struct Arguments {
    /// Directory for man/ and completions/; made if it does not exist
    directory: PathBuf,
}

fn main() -> Result<()> {
    let Arguments { directory } = Arguments::parse();
    let mut command = Cli::command();
    command.build();
    let (man, completions) = (directory.join("man"), directory.join("completions"));
    for directory in [&man, &completions] {
        fs::create_dir_all(directory)
            .with_context(|| format!("Cannot make {}", directory.display()))?;
    }
    write_pages(&command, PROGRAM, &man)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        generate_to(shell, &mut command, PROGRAM, &completions)
            .with_context(|| format!("Cannot write completions of {shell}"))?;
    }
    Ok(())
}

/// Writes the pages of a command and of those below it.
fn write_pages(command: &Command, name: &str, directory: &Path) -> Result<()> {
    write_page(command, name.to_owned(), directory)?;
    for subcommand in command.get_subcommands() {
        if subcommand.get_name() != "help" {
            let name = format!("{name}-{}", subcommand.get_name());
            write_pages(subcommand, &name, directory)?;
        }
    }
    Ok(())
}

/// Writes the page of one command: `virtio-inter-port.1` for `virtio-inter port`.
fn write_page(command: &Command, name: String, directory: &Path) -> Result<()> {
    let path = directory.join(format!("{name}.1"));
    // clap keeps names for ever.
    let name: &'static str = name.leak();
    let page = clap_mangen::Man::new(command.clone().name(name))
        .manual("virtio-inter")
        .source(format!("virtio-inter {}", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    page.render(&mut text)
        .and_then(|()| fs::write(&path, text))
        .with_context(|| format!("Cannot write {}", path.display()))
}
