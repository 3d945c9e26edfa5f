//! The program `virtio-inter`: parses the command line, starts logging, runs the subcommand.

use std::process::ExitCode;

use log::{Level, error};
use virtio_inter::cli::{self, Cli, Command};
use virtio_inter::inherited::InheritedError;
use virtio_inter::uplink::UplinkError;
use virtio_inter::{capabilities, notify, process, shared_uplink, watchdog};
use virtio_inter_host::exporter::Manager;
use virtio_inter_host::{is_usage_error, output};

/// Exit status after a wrong command line, by convention.
const USAGE: u8 = 2;

/// Exit status of a check that failed: 1 is that of one that found something. Monitoring plug-ins
/// have 3 for "unknown".
const NOT_CHECKED: u8 = 3;

fn main() -> ExitCode {
    virtio_inter_log::ignore_signals();
    // If one thread panicked and the process went on, it would hold its sockets and move no frames.
    // It aborts, so that its supervisor starts it again. The build's profile cannot request that,
    // as the programs that clean up after tests must unwind.
    virtio_inter_log::report_panics(|| std::process::abort());
    let status = run();
    virtio_inter_log::flush();
    status
}

fn run() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    if capabilities::is_asked_for(&arguments) {
        let printed = print(capabilities::CAPABILITIES);
        return printed.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let cli = match cli::parse(arguments) {
        Ok(cli) => cli,
        // The user asked for --help or --version, which go to standard output.
        Err(asked) if !asked.use_stderr() => asked.exit(),
        Err(wrong) => {
            virtio_inter_log::say(Level::Error, &cli::explain(&wrong));
            return ExitCode::from(USAGE);
        }
    };
    match cli.command.is_daemon() {
        true => virtio_inter_log::start(log_level(&cli)),
        false => virtio_inter_log::start_plain(log_level(&cli), "virtio-inter"),
    }
    match execute(&cli.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let why = format!("{error:#}");
            if !notify::failed(&why) {
                error!("{why}");
            }
            let is_usage =
                error.is::<UplinkError>() || error.is::<InheritedError>() || is_usage_error(&error);
            if is_usage {
                return ExitCode::from(USAGE);
            }
            match cli.command {
                Command::Check(_) => ExitCode::from(NOT_CHECKED),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// Runs a command. Returns false if its answer is a bad one, as that of a check that finds
/// something.
fn execute(command: &Command) -> anyhow::Result<bool> {
    match command {
        Command::Port(port) => process::run_port(port)?,
        Command::Uplink(uplink) => shared_uplink::run(uplink)?,
        Command::List(list) => print(&virtio_inter_host::list(list)?)?,
        Command::Show(show) => print(&virtio_inter_host::show(show)?)?,
        Command::Top(top) => virtio_inter_host::top::run(top)?,
        Command::Ping(ping) => return virtio_inter_host::ping::run(ping),
        Command::Segment(segment) => print(&virtio_inter_host::segment::run(segment)?)?,
        Command::Events(events) => virtio_inter_host::events::run(events)?,
        Command::Capture(capture) => virtio_inter_host::capture::run(capture)?,
        Command::Extcap(extcap) => print(&virtio_inter_host::extcap(extcap)?)?,
        Command::Exporter(exporter) => {
            // From within its sandbox, an abstract socket cannot be reached.
            notify::connect();
            let manager = Manager {
                ready: notify::ready,
                alive: notify::alive,
                interval: watchdog::interval(),
            };
            virtio_inter_host::exporter::run(exporter, manager)?;
        }
        Command::Check(check) => {
            let (text, is_clean) = virtio_inter_host::check(check)?;
            print(&text)?;
            return Ok(is_clean);
        }
    }
    Ok(true)
}

/// Prints what somebody may read, or not.
fn print(text: &str) -> anyhow::Result<()> {
    output::print(text).map(drop)
}

/// Log levels have the meanings of Cloud Hypervisor's. error: the process cannot continue; warn: a
/// problem, but it continues; info: milestones; debug and trace: for developers.
fn log_level(cli: &Cli) -> &'static str {
    match cli.verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    }
}
