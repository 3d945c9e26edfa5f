//! The program: parses its command line, sets up logging, runs what was asked for.

use std::process::ExitCode;

use log::{Level, error};
use virtio_inter::cli::{self, Cli, Command};
use virtio_inter::{notify, process};

/// Exit status of a wrong command line, as every program of the field has it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    virtio_inter_log::ignore_signals();
    // A port one of whose threads panicked would stay, hold its sockets and move nothing: better
    // gone and started again. Here rather than in the build's profile, as the programs that clean
    // up after tests must unwind.
    virtio_inter_log::report_panics(|| std::process::abort());
    let status = run();
    virtio_inter_log::flush();
    status
}

fn run() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        // --help and --version are asked for, on standard output.
        Err(asked) if !asked.use_stderr() => asked.exit(),
        Err(wrong) => {
            virtio_inter_log::say(Level::Error, &cli::explain(&wrong));
            return ExitCode::from(USAGE);
        }
    };
    virtio_inter_log::start(log_level(&cli));
    let result = match &cli.command {
        Command::Port(port) => process::run_port(port),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let why = format!("{error:#}");
            if !notify::failed(&why) {
                error!("{why}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Levels as Cloud Hypervisor has them: error, this process is of no use any more; warn, something is wrong
/// but it goes on; info, milestones; debug and trace, for developers.
fn log_level(cli: &Cli) -> &'static str {
    match cli.verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    }
}
