//! `cargo xtask soak`: kills, stops and starves ports, VMMs and guests under hashed traffic, by a
//! schedule that a seed decides (`tests/src/soak/`).

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::low_level::emulate_default_handler;
use virtio_inter_tests::soak::{self, Length};
use virtio_inter_tests::{Testbed, is_root, port_program};

use crate::root::root;

/// Set for the process that has a small file system of its own.
const SMALL_DISK: &str = "VIRTIO_INTER_SOAK_DISK";
/// How often a signal is looked for.
const POLL: Duration = Duration::from_millis(100);
/// Bytes and files of that file system.
const DISK: &str = "size=32m,nr_inodes=512";

/// Options of the run.
#[derive(Args)]
pub(crate) struct Options {
    /// Time in minutes after which no further step begins.
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Kill ports so many times and do nothing else, whatever time that takes; fail if a stream
    /// between VMs begins again.
    #[arg(long, value_name = "N", conflicts_with = "minutes",
          value_parser = clap::value_parser!(u32).range(1..))]
    kills: Option<u32>,
    /// Start the ports with PROGRAM, an older virtio-inter, and replace each by the one that is
    /// built here; fail if a stream between VMs begins again.
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["minutes", "kills"])]
    upgrade_from: Option<PathBuf>,
    /// Decides what happens: the same seed has the same schedule. By default another one each
    /// time, which is printed.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Print each step.
    #[arg(long)]
    verbose: bool,
}

impl Options {
    /// The step of `cargo xtask test`.
    pub(crate) fn of_test() -> Self {
        Self {
            minutes: 2,
            kills: None,
            upgrade_from: None,
            seed: Some(1),
            verbose: false,
        }
    }
}

/// Builds what is needed, and runs.
///
/// # Errors
///
/// What was found.
pub(crate) fn run(options: &Options) -> Result<()> {
    let seed = options.seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |now| now.as_millis() as u64 % 1_000_000)
    });
    println!("Seed {seed}");
    if env::var_os(SMALL_DISK).is_none() {
        build()?;
        if can_mount() {
            return on_a_small_disk(options, seed);
        }
    }
    let bed = Testbed::new("the soak")?;
    let summary = soak::run(
        &bed,
        &soak::Options {
            seed,
            length: match (options.kills, &options.upgrade_from) {
                (Some(kills), _) => Length::Kills(kills),
                (None, Some(_)) => Length::Upgrade(port_program()?),
                (None, None) => Length::Time(Duration::from_secs(60 * options.minutes)),
            },
            vm_program: root().join("target/debug/virtio-inter-mock-vm"),
            port_program: options.upgrade_from.clone(),
            small_disk: env::var_os(SMALL_DISK).is_some(),
            logs: root().join("target").join("soak"),
            verbose: options.verbose,
        },
    )?;
    println!("{summary}");
    Ok(())
}

/// Builds the port and the mock VM.
fn build() -> Result<()> {
    let port: &[&str] = &["--release", "--package", "virtio-inter"];
    let vm: &[&str] = &[
        "--package",
        "virtio-inter-tests",
        "--bin",
        "virtio-inter-mock-vm",
    ];
    let given = env::var_os("VIRTIO_INTER_BIN").is_some();
    for arguments in [port, vm].into_iter().skip(usize::from(given)) {
        let mut command = Command::new("cargo");
        command.current_dir(root());
        let status = command
            .args(["build", "--quiet", "--locked"])
            .args(arguments);
        let status = status.status().context("Cannot run cargo")?;
        ensure!(status.success(), "cargo build ended with {status}");
    }
    Ok(())
}

/// Whether this user can have a mount namespace with mounts of its own.
fn can_mount() -> bool {
    let mut command = Command::new("unshare");
    command.args(["--mount", "mount", "-t", "tmpfs", "soak", "/proc"]);
    is_root() && command.output().is_ok_and(|output| output.status.success())
}

/// Runs in a mount namespace with a small file system for sockets, segment and logs, which ends
/// with the namespace.
fn on_a_small_disk(options: &Options, seed: u64) -> Result<()> {
    let place = env::temp_dir().join(format!("soak-{}", std::process::id()));
    fs::create_dir(&place).with_context(|| format!("Making {}", place.display()))?;
    let result = enter(&place, options, seed);
    fs::remove_dir(&place).with_context(|| format!("Removing {}", place.display()))?;
    if let Some(signal) = result? {
        // This program ends by it as well.
        emulate_default_handler(signal)?;
    }
    Ok(())
}

/// Runs there. Returns the signal that ended it, if one did.
fn enter(place: &Path, options: &Options, seed: u64) -> Result<Option<i32>> {
    let script = format!("mount -t tmpfs -o {DISK} soak \"$0\" && exec \"$@\"");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .arg(place)
        .arg(env::current_exe().context("Finding this program")?)
        .args(["soak", "--seed", &seed.to_string()])
        .env(SMALL_DISK, "1")
        .env("TMPDIR", place);
    match (options.kills, &options.upgrade_from) {
        (Some(kills), _) => command.args(["--kills", &kills.to_string()]),
        (None, Some(program)) => command.arg("--upgrade-from").arg(program),
        (None, None) => command.args(["--minutes", &options.minutes.to_string()]),
    };
    if options.verbose {
        command.arg("--verbose");
    }
    let (status, signal) = run_until_signal(&mut command).context("Cannot run unshare")?;
    if signal.is_none() && !status.success() {
        bail!("The soak with seed {seed} ended with {status}");
    }
    Ok(signal)
}

/// Runs a program, and ends it when this one is to end: a signal may be for this one alone. Returns
/// how it ended, and the signal.
fn run_until_signal(command: &mut Command) -> Result<(ExitStatus, Option<i32>)> {
    let (asked, has_ended) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register_conditional_default(signal, Arc::clone(&has_ended))?;
        flag::register_usize(signal, Arc::clone(&asked), signal as usize)?;
    }
    let mut child = command.spawn()?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if asked.load(Ordering::Relaxed) != 0 {
            // Its ports and VMs end with it.
            child.kill()?;
        }
        sleep(POLL);
    };
    // Signals end this program again, as there is nothing to end before.
    has_ended.store(true, Ordering::Relaxed);
    let signal = asked.load(Ordering::Relaxed) as i32;
    Ok((status, (signal != 0).then_some(signal)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use rustix::process::{Signal, getpid};

    use super::*;

    /// Alone in its process (nextest), or signals of other tests would mix.
    #[test]
    fn signal_for_this_program_alone_ends_the_one_that_it_runs() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "kill -INT $0; exec sleep 600"]);
        shell.arg(getpid().to_string());
        let (status, signal) = run_until_signal(&mut shell).unwrap();
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()));
        assert_eq!(signal, Some(SIGINT));
    }
}
