//! The programs of Cloud Hypervisor: where they are, and requests to a running VMM.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::{Process, Result, process, wait};

/// How long a request to the VMM may take. A snapshot writes the guest's memory.
const REQUEST_LIMIT: Duration = Duration::from_secs(120);
/// How long a VMM may take until it answers requests.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// The `cloud-hypervisor` that `$CLOUD_HYPERVISOR` names, else the one in `$PATH`.
pub fn program() -> Option<PathBuf> {
    let named = env::var_os("CLOUD_HYPERVISOR").filter(|path| !path.is_empty());
    if let Some(path) = named {
        return Some(path.into());
    }
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join("cloud-hypervisor"))
        .find(|path| path.is_file())
}

/// The `ch-remote` beside the `cloud-hypervisor`.
pub(crate) fn remote_program() -> Result<PathBuf> {
    let program = program().context("No cloud-hypervisor: set CLOUD_HYPERVISOR")?;
    let path = program.with_file_name("ch-remote");
    ensure!(path.is_file(), "No {}", path.display());
    Ok(path)
}

/// A VMM without a guest, which takes requests at `api`.
pub(crate) fn command(api: &Path) -> Result<Command> {
    let mut command = Command::new(program().context("No cloud-hypervisor")?);
    // It does not take over what a killed one left there.
    if api.exists() {
        fs::remove_file(api).context("Removing a former VMM's socket")?;
    }
    command.arg("--api-socket").arg(api);
    Ok(command)
}

/// Asks the VMM at `api` for something and returns what it answered.
pub(crate) fn request(api: &Path, arguments: &[&str]) -> Result<String> {
    request_by(&remote_program()?, api, arguments)
}

/// The same by a program that is used like `ch-remote`.
pub(crate) fn request_by(program: &Path, api: &Path, arguments: &[&str]) -> Result<String> {
    let name = format!("ch-remote {}", arguments.join(" "));
    let log = api.with_extension("requests.log");
    let before = fs::metadata(&log).map_or(0, |log| log.len() as usize);
    let mut command = Command::new(program);
    command
        .env("CH_REMOTE", remote_program()?)
        .arg("--api-socket")
        .arg(api)
        .args(arguments)
        .stdin(process::no_input().context("Opening an empty input")?);
    let mut process = Process::start(&name, command, &log, &[])?;
    let status = process.wait(REQUEST_LIMIT)?;
    let answer = process.log().get(before..).unwrap_or_default().to_owned();
    ensure!(status.success(), "{name} failed: {answer}");
    Ok(answer)
}

/// Waits until the VMM at `api` answers.
pub(crate) fn wait_until_answers(api: &Path) -> Result<()> {
    wait::until("answer of a VMM", ANSWER_LIMIT, || {
        Ok((api.exists() && request(api, &["ping"]).is_ok()).then_some(()))
    })
}
