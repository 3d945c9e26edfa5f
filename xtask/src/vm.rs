//! `cargo xtask vm`: boots one guest by hand and runs the lines typed as commands in it.

use std::io::BufRead;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use virtio_inter_tests::{Backend, Frontend, Kernel, Nic, Testbed, Vm, VmConfig};

use crate::{image, setup};

/// How long one line may run.
const COMMAND_LIMIT: Duration = Duration::from_secs(3600);

/// The program that runs the guest.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// User Mode Linux 6.1.
    Uml,
    /// QEMU with Debian 12's cloud kernel.
    #[value(name = "qemu-6.1")]
    QemuDebian12,
    /// QEMU with Debian 13's cloud kernel.
    #[value(name = "qemu-6.12")]
    QemuDebian13,
}

/// The guest to boot.
#[derive(Args)]
pub(crate) struct Options {
    /// The program that runs the guest.
    #[arg(long, default_value = "uml")]
    frontend: Kind,
    /// Socket of a running port; without one the guest has no network.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The guest is 10.0.0.N and fd00::N; its address must be the port's: 02:76:69:00:00:NN, in
    /// hexadecimal.
    #[arg(long, value_name = "N", default_value_t = 1)]
    host: u8,
    /// Largest packet; the port's.
    #[arg(long, default_value_t = 1500)]
    mtu: u16,
    /// Queue pairs; at most the port's.
    #[arg(long, default_value_t = 1)]
    queues: u16,
}

/// Boots the guest, then reads lines of shell from standard input until its end.
pub(crate) fn run(options: Options) -> Result<()> {
    setup::ensure()?;
    image::ensure()?;
    let frontend = match options.frontend {
        Kind::Uml => Frontend::Uml,
        Kind::QemuDebian12 => Frontend::Qemu(Kernel::Debian12),
        Kind::QemuDebian13 => Frontend::Qemu(Kernel::Debian13),
    };
    let mut config = VmConfig::new("hand", frontend);
    if let Some(socket) = options.socket {
        ensure!(
            socket.exists(),
            "No socket {}: start the port first",
            socket.display()
        );
        config = config.nic(Nic {
            queues: options.queues,
            ..Nic::new(Backend::VhostUser(socket), options.mtu, options.host)
        });
    }
    let bed = Testbed::new("vm")?;
    println!("Logs: {}", bed.directory().display());
    let vm = Vm::boot(&bed, config)?;
    println!(
        "Linux {} is ready: a line is a command, the end of input ends it",
        vm.kernel_release()
    );
    for line in std::io::stdin().lock().lines() {
        match vm.run_within(COMMAND_LIMIT, &["sh", "-c", &line?]) {
            Ok(output) => print!("{}{}", output.stdout, output.stderr),
            Err(error) => println!("{error:#}"),
        }
    }
    vm.power_off()
}
