//! Runs the commands of `docs/first-vms.md` in a clean Debian system, as its reader would: each
//! block of shell commands in a terminal, and those for a guest typed into its console.

use std::io::{PipeWriter, Write, pipe};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use virtio_inter_tests::{Process, until};

use super::system::System;
use crate::root::root;

const PAGE: &str = include_str!("../../../docs/first-vms.md");

/// The prompt of the guest's shell.
const PROMPT: &str = "(initramfs) ";
/// An emulated processor boots within half a minute; packages come over a network.
const LIMIT: Duration = Duration::from_secs(300);

/// A block of commands of the page.
#[derive(Debug, PartialEq, Eq)]
enum Block<'a> {
    /// For a terminal of the host.
    Host(&'a str),
    /// For the console of the guest that the block before has started.
    Guest(Vec<&'a str>),
}

/// The blocks of a page, in their order.
fn blocks(page: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    // Every second fence ends a block.
    for fenced in page.split("\n```").skip(1).step_by(2) {
        let (language, text) = fenced.split_once('\n').unwrap_or((fenced, ""));
        blocks.push(match language {
            "console" => Block::Guest(
                text.lines()
                    .filter_map(|line| line.strip_prefix(PROMPT))
                    .collect(),
            ),
            _ => Block::Host(text),
        });
    }
    blocks
}

/// A terminal in which a block of the page runs.
struct Terminal {
    process: Process,
    input: PipeWriter,
    /// Bytes of its output that were there when something was last typed.
    seen: usize,
}

impl Terminal {
    /// Runs a block; a command of it in the background goes on.
    fn open(system: &System, number: usize, block: &str) -> Result<Self> {
        // The directory is that of the package. Told to end, the shell waits for its commands.
        let mut command = system.shell(&format!("cd /tmp\ntrap wait TERM\n{block}\nwait"));
        let (reader, input) = pipe().context("Making a pipe")?;
        command.stdin(reader);
        let log = root().join(format!("target/package/first-vms-{number}.log"));
        let name = format!("block {number} of docs/first-vms.md");
        Ok(Self {
            process: Process::start(&name, command, &log, &[])?,
            input,
            seen: 0,
        })
    }

    /// Waits for the end of its commands.
    fn finish(&mut self) -> Result<()> {
        let status = self.process.wait(LIMIT)?;
        let log = self.process.log();
        ensure!(status.success(), "It ended with {status}:\n{log}");
        Ok(())
    }

    /// Types a line when the guest asks for one.
    fn type_line(&mut self, line: &str) -> Result<()> {
        self.process.wait_for_log(PROMPT, self.seen, LIMIT)?;
        self.seen = self.process.log().len();
        writeln!(self.input, "{line}").context("Typing")
    }
}

/// Runs the page's commands, and checks what the last ones print.
///
/// # Errors
///
/// The first command that does not do what the page says.
pub(super) fn run(system: &System) -> Result<()> {
    let blocks = blocks(PAGE);
    let mut terminals: Vec<Terminal> = Vec::new();
    for (number, block) in blocks.iter().enumerate() {
        match block {
            Block::Host(text) => {
                let mut terminal = Terminal::open(system, number, text)?;
                let starts_guest = matches!(blocks.get(number + 1), Some(Block::Guest(_)));
                if !starts_guest && !text.ends_with('&') {
                    terminal.finish().with_context(|| format!("`{text}`"))?;
                }
                terminals.push(terminal);
            }
            Block::Guest(lines) => {
                let terminal = terminals.last_mut().context("No guest to type into")?;
                for line in lines {
                    terminal
                        .type_line(line)
                        .with_context(|| format!("`{line}`"))?;
                }
                // It is done with the last line when it asks for another one.
                terminal
                    .process
                    .wait_for_log(PROMPT, terminal.seen, LIMIT)?;
            }
        }
    }
    let logs: Vec<String> = terminals.iter().map(|one| one.process.log()).collect();
    let answered = logs.iter().any(|log| log.contains(" 0% packet loss"));
    let list = logs.last().map_or("", String::as_str);
    ensure!(
        answered && list.matches("running").count() == 2,
        "The guests of docs/first-vms.md do not talk:\n{}",
        logs.join("\n")
    );
    end(system, &mut terminals)?;
    println!(
        "{}: two guests talk by the commands of docs/first-vms.md",
        system.release
    );
    Ok(())
}

/// Ends what runs in the terminals, as the reader would before the package is removed.
fn end(system: &System, terminals: &mut [Terminal]) -> Result<()> {
    for terminal in terminals {
        if terminal.process.is_running() {
            // To all processes of the terminal.
            system.run(&format!("kill -s TERM -- -{}", terminal.process.pid()))?;
            terminal.process.wait(LIMIT)?;
        }
    }
    until("ports that have ended", LIMIT, || {
        let left = system.run("ls /run/virtio-inter/default")?;
        Ok(left.trim().is_empty().then_some(()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_five_commands_beside_the_package_and_the_result() {
        let blocks = blocks(PAGE);
        let host: Vec<&str> = blocks
            .iter()
            .filter_map(|block| match block {
                Block::Host(text) => Some(*text),
                Block::Guest(_) => None,
            })
            .collect();
        assert_eq!(host.first(), Some(&"apt install ./virtio-inter_*.deb"));
        assert_eq!(host.last(), Some(&"virtio-inter list"));
        assert_eq!(host.len(), 7, "{host:?}");
    }

    #[test]
    fn page_blocks_are_commands_of_the_host_and_of_guests() {
        let page = "Text\n\n```sh\na \\\n  b\n```\n\nText\n\n```console\n(initramfs) c\nd\n```\n";
        assert_eq!(
            blocks(page),
            [Block::Host("a \\\n  b"), Block::Guest(vec!["c"])]
        );
    }
}
