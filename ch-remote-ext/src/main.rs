//! `ch-remote` of Cloud Hypervisor, extended by inter-VM devices.
//!
//! This program handles the commands for such devices, with Cloud Hypervisor's REST API (`api`) and
//! the control socket of `cloud-hypervisor-ext` (`control_client`). It runs a stock `ch-remote` for
//! everything else.
#![forbid(unsafe_code)]

mod api;
mod arguments;
mod control_client;
mod create;
mod device_state;
mod devices;
mod help;
mod port_status;
mod show;

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, anyhow};
use cloud_hypervisor_ext::programs::{ProgramError, describe, find};
use cloud_hypervisor_ext::report::{Failure, USAGE, print};

use crate::arguments::{Action, Arguments};

const PROGRAM: &str = env!("CARGO_PKG_NAME");

/// The variable that names the stock program.
const VARIABLE: &str = "CH_REMOTE";

fn main() -> ExitCode {
    let arguments = Arguments::new(std::env::args_os().skip(1));
    match run(&arguments) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => failure.report(PROGRAM),
    }
}

fn run(arguments: &Arguments) -> Result<u8, Failure> {
    match arguments.action()? {
        Action::Help if arguments.all.is_empty() => {
            // Like clap, for a program that requires arguments.
            let _ = std::io::stderr().write_all(help(&["--help".into()]).as_bytes());
            Ok(USAGE)
        }
        Action::Help => show(&help(&["--help".into()])),
        Action::Version => show(&version()),
        Action::AddHelp => show(&help::add_inter_vm()),
        Action::ExtendedHelp(command) => {
            let stock = describe(stock(), &["help".into(), command.name().into()]);
            show(&help::extended(
                command,
                stock.as_deref().map_err(String::as_str),
            ))
        }
        Action::Add(device) => devices::add(&arguments.api_socket()?, &device),
        Action::Remove(id) => match devices::find_port(arguments.api_socket.as_deref(), &id)? {
            Some(supervisor) => devices::remove(&arguments.api_socket()?, supervisor, &id),
            None => pass_on(arguments),
        },
        Action::Create(path) => match create::find_ports(arguments.api_socket.as_deref())? {
            Some(ports) => create::create(&arguments.api_socket()?, &path, &ports),
            None => pass_on(arguments),
        },
        Action::Snapshot => {
            devices::check_stopped(arguments.api_socket.as_deref())?;
            pass_on(arguments)
        }
        Action::InterVm(words) => show::run(arguments, &words),
        Action::PassOn => pass_on(arguments),
    }
}

fn stock() -> Result<PathBuf, ProgramError> {
    find(VARIABLE, "ch-remote")?.ok_or(ProgramError::NoRemote { variable: VARIABLE })
}

/// Executes the stock program in place of this one.
fn pass_on(arguments: &Arguments) -> Result<u8, Failure> {
    let program = stock().with_context(|| match arguments.command() {
        Some(name) => format!("Cannot run {}, a command of ch-remote", name.display()),
        None => "Cannot run ch-remote".to_owned(),
    })?;
    let error = Command::new(&program).args(&arguments.all).exec();
    Err(anyhow!(error)
        .context(format!("Cannot run {}", program.display()))
        .into())
}

fn show(text: &str) -> Result<u8, Failure> {
    print(text)?;
    Ok(0)
}

/// The stock program's help with the added commands; this program's own if there is none.
fn help(arguments: &[OsString]) -> String {
    let stock = describe(stock(), arguments);
    help::text(stock.as_deref().map_err(String::as_str))
}

/// The stock program's version, which other programs expect first, then this program's.
fn version() -> String {
    let ours = format!("{PROGRAM} {}\n", env!("CARGO_PKG_VERSION"));
    match describe(stock(), &["--version".into()]) {
        Ok(stock) => format!("{}\n{ours}", stock.trim_end()),
        Err(reason) => format!("{ours}The version of ch-remote is not shown: {reason}\n"),
    }
}
