//! The program: Cloud Hypervisor's command line with `--inter-vm`.

use std::process::ExitCode;

use cloud_hypervisor_ext::command_line::CommandLine;
use cloud_hypervisor_ext::help;
use cloud_hypervisor_ext::programs::{describe, find_vmm};
use cloud_hypervisor_ext::report::{Failure, USAGE, print};
use cloud_hypervisor_ext::start::{FLAG, run};
use log::Level;

const PROGRAM: &str = env!("CARGO_PKG_NAME");

fn main() -> ExitCode {
    virtio_inter_log::ignore_signals();
    virtio_inter_log::report_panics(|| ());
    let mut line = CommandLine::new(std::env::args_os().skip(1));
    let flags = line.take(FLAG);
    virtio_inter_log::start(line.log_level());
    let arguments = line.arguments();
    let result = if arguments.is_empty() && flags.is_empty() {
        // Like clap, for a program that requires arguments.
        virtio_inter_log::say(Level::Error, &help("--help"));
        Ok(USAGE)
    } else if line.has("--help") || arguments == ["help"] {
        print(&help("--help")).map(|()| 0).map_err(Failure::from)
    } else if line.has("-h") {
        print(&help("-h")).map(|()| 0).map_err(Failure::from)
    } else if line.has("--version") || line.has("-V") {
        print(&version()).map(|()| 0).map_err(Failure::from)
    } else {
        run(line, &flags)
    };
    let status = match result {
        Ok(status) => ExitCode::from(status),
        Err(failure) => failure.report(PROGRAM),
    };
    virtio_inter_log::flush();
    status
}

/// Cloud Hypervisor's help with `--inter-vm`; this program's own if there is no Cloud Hypervisor.
fn help(flag: &str) -> String {
    let stock = describe(find_vmm(), &[flag.into()]);
    help::text(stock.as_deref().map_err(String::as_str))
}

/// Cloud Hypervisor's version, which other programs expect first, then this program's.
fn version() -> String {
    let ours = format!("{PROGRAM} {}\n", env!("CARGO_PKG_VERSION"));
    match describe(find_vmm(), &["--version".into()]) {
        Ok(stock) => format!("{}\n{ours}", stock.trim_end()),
        Err(reason) => format!("{ours}The version of cloud-hypervisor is not shown: {reason}\n"),
    }
}
