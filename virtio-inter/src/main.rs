//! The program: parses its command line, sets up logging, runs what was asked for.

use std::io::Write;
use std::process::ExitCode;

use env_logger::Env;
use log::error;
use virtio_inter::cli::{self, Cli, Command};
use virtio_inter::{notify, process};

/// Exit status of a wrong command line, as every program of the field has it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    abort_on_panic();
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        // --help and --version are asked for, on standard output.
        Err(asked) if !asked.use_stderr() => asked.exit(),
        Err(wrong) => {
            // Nobody to tell if standard error is closed.
            let _ = writeln!(std::io::stderr(), "{}", cli::explain(&wrong));
            return ExitCode::from(USAGE);
        }
    };
    start_logging(&cli);
    let result = match &cli.command {
        Command::Port(port) => process::run_port(port),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            notify::failed(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// A port one of whose threads panicked would stay, hold its sockets and move nothing: better gone and started again.
/// Here rather than in the build's profile, as the programs that clean up after tests must unwind.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// Levels as Cloud Hypervisor has them: error, this process is of no use any more; warn, something is wrong
/// but it goes on; info, milestones; debug and trace, for developers.
fn start_logging(cli: &Cli) {
    let default = match cli.verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    env_logger::Builder::from_env(Env::default().default_filter_or(default)).init();
}
