//! `ch-remote` of Cloud Hypervisor, with inter-VM devices.
//!
//! What concerns them is done here: by Cloud Hypervisor's REST API (`api`) and the supervisor that
//! `cloud-hypervisor-ext` is (`supervisor`). Everything else is handed to a stock `ch-remote`, untouched.
#![forbid(unsafe_code)]

mod api;
mod arguments;
mod create;
mod devices;
mod help;
mod show;
mod state;
mod status;
mod supervisor;

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, anyhow};
use cloud_hypervisor_ext::programs::{ask, find};
use cloud_hypervisor_ext::report::{Failure, status};

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
        Action::Help => help(&arguments.all),
        Action::Version => version(),
        Action::AddHelp => {
            writeln!(std::io::stdout(), "{}", help::add_inter_vm())?;
            Ok(0)
        }
        Action::Add(device) => devices::add(&arguments.api_socket()?, &device),
        Action::Remove(id) => match devices::find_port(arguments.api_socket.as_deref(), &id)? {
            Some(supervisor) => devices::remove(&arguments.api_socket()?, supervisor, &id),
            None => pass_on(&arguments.all),
        },
        Action::Create(path) => match create::find_ports(arguments.api_socket.as_deref())? {
            Some(ports) => create::create(&arguments.api_socket()?, &path, &ports),
            None => pass_on(&arguments.all),
        },
        Action::Snapshot => {
            devices::check_stopped(arguments.api_socket.as_deref())?;
            pass_on(&arguments.all)
        }
        Action::InterVm(words) => show::run(arguments, &words),
        Action::PassOn => pass_on(&arguments.all),
    }
}

fn stock() -> anyhow::Result<PathBuf> {
    find(VARIABLE, "ch-remote")?.with_context(|| {
        format!(
            "No ch-remote found in PATH; install it, or name its program by the variable {VARIABLE}"
        )
    })
}

/// Becomes the stock program.
fn pass_on(arguments: &[OsString]) -> Result<u8, Failure> {
    let program = stock()?;
    let error = Command::new(&program).args(arguments).exec();
    Err(anyhow!(error)
        .context(format!("Cannot run {}", program.display()))
        .into())
}

/// The stock program's help, on the stream where that puts it, with our commands.
fn help(arguments: &[OsString]) -> Result<u8, Failure> {
    let output = ask(&stock()?, arguments)?;
    let changed = |text: &[u8]| help::with_inter_vm(&String::from_utf8_lossy(text));
    std::io::stdout().write_all(changed(&output.stdout).as_bytes())?;
    std::io::stderr().write_all(changed(&output.stderr).as_bytes())?;
    Ok(status(output.status))
}

fn version() -> Result<u8, Failure> {
    let ended = Command::new(stock()?).arg("--version").status()?;
    writeln!(std::io::stdout(), "{PROGRAM} {}", env!("CARGO_PKG_VERSION"))?;
    Ok(status(ended))
}
