//! The program: Cloud Hypervisor's command line with `--inter-vm`.

use std::ffi::OsString;
use std::io::Write;
use std::process::{Command, ExitCode};

use cloud_hypervisor_ext::command_line::CommandLine;
use cloud_hypervisor_ext::help::with_inter_vm;
use cloud_hypervisor_ext::programs::{ask, find_vmm};
use cloud_hypervisor_ext::report::{Failure, status};
use cloud_hypervisor_ext::start::{FLAG, run};
use env_logger::Env;

const PROGRAM: &str = env!("CARGO_PKG_NAME");

fn main() -> ExitCode {
    let mut line = CommandLine::new(std::env::args_os().skip(1));
    let flags = line.take(FLAG);
    let level = match line.verbosity() {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    env_logger::Builder::from_env(Env::default().default_filter_or(level)).init();
    let alone = line.arguments().is_empty() && flags.is_empty();
    let result = if alone || line.has("--help") || line.has("-h") {
        help(&line.arguments())
    } else if line.has("--version") || line.has("-V") {
        version(&line.arguments())
    } else {
        run(line, &flags)
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(failure) => failure.report(PROGRAM),
    }
}

/// Cloud Hypervisor's help, on the stream where that puts it, with our flag.
fn help(arguments: &[OsString]) -> Result<u8, Failure> {
    let output = ask(&find_vmm()?, arguments)?;
    let changed = |text: &[u8]| {
        let text = String::from_utf8_lossy(text);
        if text.contains("Options:") {
            with_inter_vm(&text).into_bytes()
        } else {
            text.into_owned().into_bytes()
        }
    };
    std::io::stdout().write_all(&changed(&output.stdout))?;
    std::io::stderr().write_all(&changed(&output.stderr))?;
    Ok(status(output.status))
}

/// Cloud Hypervisor's version, and ours.
fn version(arguments: &[OsString]) -> Result<u8, Failure> {
    let ended = Command::new(find_vmm()?).args(arguments).status()?;
    writeln!(std::io::stdout(), "{PROGRAM} {}", env!("CARGO_PKG_VERSION"))?;
    Ok(status(ended))
}
