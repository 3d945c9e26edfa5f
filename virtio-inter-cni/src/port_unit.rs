//! A port that is a transient unit of systemd, which restarts it and keeps its connection to the
//! VMM meanwhile.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, Output};

use virtio_inter_common::PortId;

use crate::attachment::Attachment;
use crate::error::{Error, PORT};
use crate::port_process::READY_TIMEOUT;

/// Settings of the unit. The port is root's, as the VMM's socket is: it gives up by itself what it
/// does not need of that (`--sandbox`). The package's unit for ports has the same walls.
const SETTINGS: &[&str] = &[
    "StartLimitIntervalSec=0",
    "Restart=always",
    "RestartSec=100ms",
    "WatchdogSec=60s",
    "FileDescriptorStoreMax=4",
    "UMask=0077",
    "CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER",
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateMounts=yes",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelLogs=yes",
    "ProtectControlGroups=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "RestrictSUIDSGID=yes",
    "RestrictRealtime=yes",
    "RestrictNamespaces=yes",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "KeyringMode=private",
    "IPAddressDeny=any",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources @setuid @keyring",
    "SystemCallFilter=@chown capset",
    "SystemCallErrorNumber=EPERM",
];

/// Settings of a port that has no uplink.
const WITHOUT_UPLINK: &[&str] = &[
    "PrivateDevices=yes",
    "PrivateNetwork=yes",
    "RestrictAddressFamilies=AF_UNIX",
];

/// Lines of the journal in an error.
const LINES: &str = "8";

/// Starts a port, and waits until it is ready.
pub(crate) fn start(
    attachment: &Attachment,
    program: &Path,
    arguments: &[OsString],
) -> Result<(), Error> {
    let mut command = Command::new("systemd-run");
    command.args(options(attachment, arguments)).arg("--");
    for argument in [program.as_os_str()]
        .into_iter()
        .chain(arguments.iter().map(AsRef::as_ref))
    {
        command.arg(without_variables(argument));
    }
    let output = run(&mut command)?;
    if output.status.success() {
        return Ok(());
    }
    let name = name(&attachment.port);
    let message = format!("systemd cannot start the port: {}", output.status);
    let error = Error::new(PORT, message)
        .detail(String::from_utf8_lossy(&output.stderr).trim())
        .detail(format!("Its log: journalctl -u {name}"));
    // The reason, if the journal has it by now.
    let log = Command::new("journalctl")
        .args([
            "--quiet",
            "--no-pager",
            "--output=cat",
            "--lines",
            LINES,
            "--unit",
            &name,
        ])
        .output();
    Err(match log {
        Ok(log) => error.detail(String::from_utf8_lossy(&log.stdout).trim()),
        Err(_) => error,
    })
}

/// Stops a port's unit, if it is there.
pub(crate) fn stop(port: &PortId) -> Result<(), Error> {
    let name = name(port);
    let output = run(Command::new("systemctl").args(["stop", &name]))?;
    // Collected when it has stopped. One that failed to start is not there either.
    let state = run(Command::new("systemctl").args(["is-active", &name]))?;
    let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
    match output.status.success() || ["inactive", "failed", "unknown"].contains(&state.as_str()) {
        true => Ok(()),
        false => {
            let message = format!("systemd cannot stop {name}, which is {state}");
            let stderr = String::from_utf8_lossy(&output.stderr);
            Err(Error::new(PORT, message).detail(stderr.trim()))
        }
    }
}

fn name(port: &PortId) -> String {
    format!("virtio-inter-cni-{port}.service")
}

/// Options of systemd-run.
fn options(attachment: &Attachment, arguments: &[OsString]) -> Vec<OsString> {
    let record = &attachment.record;
    let description = format!(
        "virtio-inter port of {} in container {}",
        record.interface, record.container
    );
    let mut options: Vec<OsString> = vec![
        "--quiet".into(),
        "--collect".into(),
        format!("--unit={}", name(&attachment.port)).into(),
        format!("--description={description}").into(),
    ];
    let mut set = |setting: &OsStr| {
        options.push("--property".into());
        options.push(setting.into());
    };
    set("Type=notify".as_ref());
    set(format!("TimeoutStartSec={}s", READY_TIMEOUT.as_secs()).as_ref());
    let is_uplink = |argument: &OsString| argument.as_encoded_bytes().starts_with(b"--uplink");
    let more = match arguments.iter().any(is_uplink) {
        true => &[],
        false => WITHOUT_UPLINK,
    };
    for setting in SETTINGS.iter().chain(more) {
        set(setting.as_ref());
    }
    for directory in [&record.segment, &attachment.directory] {
        let mut setting = OsString::from("ReadWritePaths=");
        setting.push(directory);
        set(&setting);
    }
    options
}

/// systemd replaces `$NAME` in commands, and `$$` by one of them.
fn without_variables(argument: &OsStr) -> OsString {
    match argument.to_str() {
        Some(text) => text.replace('$', "$$").into(),
        None => argument.to_owned(),
    }
}

fn run(command: &mut Command) -> Result<Output, Error> {
    let output = command.output();
    output.map_err(|error| {
        let program = command.get_program().display().to_string();
        Error::new(PORT, format!("Cannot run {program}: {error}"))
    })
}
