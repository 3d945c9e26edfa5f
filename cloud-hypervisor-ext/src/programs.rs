//! Finds the programs that this one starts, and checks Cloud Hypervisor.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use virtio_inter_common::ErrorChain;

/// The variable that names the VMM's program.
pub const VARIABLE: &str = "CLOUD_HYPERVISOR";

/// Why a program cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// There is no VMM.
    #[error(
        "No cloud-hypervisor found in PATH; install it, or name its program by the variable \
         {VARIABLE}"
    )]
    NoVmm,
    /// There is no ch-remote.
    #[error(
        "No ch-remote found in PATH; install it, or name its program by the variable {variable}"
    )]
    NoRemote {
        /// The variable.
        variable: &'static str,
    },
    /// The variable names no program.
    #[error("{variable} names {}, which is not a program", path.display())]
    NotAProgram {
        /// The variable.
        variable: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// There is no program of the port.
    #[error("No virtio-inter found beside {} or in PATH", .0.display())]
    NoPort(PathBuf),
    /// The program cannot be run.
    #[error("Cannot run {}", path.display())]
    Run {
        /// The program.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The VMM has no vhost-user network devices.
    #[error(
        "{} ({version}) has no vhost-user network devices: its --net does not know vhost_user=; \
         Cloud Hypervisor v53 does",
        path.display()
    )]
    NoVhostUserNet {
        /// The VMM.
        path: PathBuf,
        /// Its version.
        version: String,
    },
}

/// Cloud Hypervisor's program: `$CLOUD_HYPERVISOR`, else from `PATH`.
///
/// # Errors
///
/// When there is none.
pub fn find_vmm() -> Result<PathBuf, ProgramError> {
    find(VARIABLE, "cloud-hypervisor")?.ok_or(ProgramError::NoVmm)
}

/// A program named by a variable, else from `PATH`.
///
/// # Errors
///
/// When the variable names something else.
pub fn find(variable: &'static str, name: &str) -> Result<Option<PathBuf>, ProgramError> {
    match env::var_os(variable).filter(|value| !value.is_empty()) {
        Some(value) => {
            let path = PathBuf::from(&value);
            which::which(&value)
                .map(Some)
                .map_err(|_| ProgramError::NotAProgram { variable, path })
        }
        None => Ok(which::which(name).ok()),
    }
}

/// The port's program: beside this one, else from `PATH`.
///
/// # Errors
///
/// When there is none.
pub fn find_port() -> Result<PathBuf, ProgramError> {
    let here = env::current_exe()
        .ok()
        .and_then(|path| path.parent().map(Path::to_owned))
        .unwrap_or_default();
    which::which(here.join("virtio-inter"))
        .or_else(|_| which::which("virtio-inter"))
        .map_err(|_| ProgramError::NoPort(here))
}

/// Runs a program to its end. Returns its output.
///
/// # Errors
///
/// When it cannot be run.
pub fn ask(program: &Path, arguments: &[OsString]) -> Result<Output, ProgramError> {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ProgramError::Run {
            path: program.to_owned(),
            source,
        })
}

/// The output of a program for `--help`, `--version` or the like.
///
/// # Errors
/// The reason on one line: there is no such program, it cannot be run, or it fails.
pub fn describe(
    program: Result<PathBuf, impl Error + 'static>,
    arguments: &[OsString],
) -> Result<String, String> {
    let one_line = |error: &(dyn Error + 'static)| ErrorChain(error).to_string();
    let program = program.map_err(|error| one_line(&error))?;
    let output = ask(&program, arguments).map_err(|error| one_line(&error))?;
    if !output.status.success() {
        return Err(format!("{} failed: {}", program.display(), output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Checks whether the VMM has vhost-user network devices.
///
/// # Errors
/// When it has none, or cannot be run.
pub fn check_vmm(vmm: &Path) -> Result<(), ProgramError> {
    let help = ask(vmm, &["--help".into()])?;
    if String::from_utf8_lossy(&help.stdout).contains("vhost_user=<") {
        return Ok(());
    }
    let version = ask(vmm, &["--version".into()])?;
    let version = String::from_utf8_lossy(&version.stdout);
    Err(ProgramError::NoVhostUserNet {
        path: vmm.to_owned(),
        version: version.lines().next().unwrap_or("no version").to_owned(),
    })
}
