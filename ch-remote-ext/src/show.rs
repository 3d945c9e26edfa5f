//! `inter-vm list` and `inter-vm show`: print the devices and their states.

use std::ffi::OsString;
use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::anyhow;
use clap::{Parser, Subcommand};
use cloud_hypervisor_ext::report::{Failure, print};
use serde_json::Value;

use crate::arguments::Arguments;
use crate::control_client::ControlClient;
use crate::device_state::{Device, devices};

/// Show inter-VM network devices.
#[derive(Debug, Parser)]
#[command(
    name = "inter-vm",
    bin_name = "ch-remote-ext --api-socket <api-socket> inter-vm"
)]
struct Show {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List all devices, one per line
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the state of one device, or of all: peers, features, warnings, counters
    Show {
        /// Name of the device; all devices if it is not given
        id: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command `inter-vm`, the first of `words`.
pub(crate) fn run(arguments: &Arguments, words: &[OsString]) -> Result<u8, Failure> {
    let show = match Show::try_parse_from(words) {
        Ok(show) => show,
        // The user asked for --help, which goes to standard output.
        Err(asked) if !asked.use_stderr() => asked.exit(),
        Err(wrong) => {
            return Err(Failure::usage(anyhow!(
                wrong.to_string().trim_end().to_owned()
            )));
        }
    };
    let api_socket = arguments.api_socket()?;
    let mut devices = devices(&api_socket, &mut ControlClient::connect(&api_socket)?)?;
    let mut out = Vec::new();
    match show.command {
        Command::List { json: false } => list(&mut out, &devices)?,
        Command::List { json: true } => print_json(&mut out, &devices)?,
        Command::Show { id, json } => {
            if let Some(id) = id {
                devices.retain(|device| device.port.id == id);
                if devices.is_empty() {
                    return Err(anyhow!("There is no inter-VM device {id}").into());
                }
            }
            if json {
                print_json(&mut out, &devices)?;
            } else {
                for device in &devices {
                    show_device(&mut out, device)?;
                }
            }
        }
    }
    print(&String::from_utf8_lossy(&out))?;
    Ok(0)
}

fn print_json(out: &mut impl Write, devices: &[Device]) -> anyhow::Result<()> {
    writeln!(out, "{}", serde_json::to_string_pretty(devices)?)?;
    Ok(())
}

fn list(out: &mut impl Write, devices: &[Device]) -> std::io::Result<()> {
    let header = ["ID", "STATE", "MAC", "SEGMENT", "PEERS", "RESTARTS"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(header)
        .chain(devices.iter().map(|device| {
            let peers = device.status["peers"].as_array();
            [
                device.port.id.clone(),
                device.device_state.name().to_owned(),
                device.port.mac.clone(),
                device.port.segment.clone(),
                peers.map_or("-".to_owned(), |peers| peers.len().to_string()),
                device.port.restarts.to_string(),
            ]
        }))
        .collect();
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    for row in &rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

fn show_device(out: &mut impl Write, device: &Device) -> std::io::Result<()> {
    let Device { port, status, .. } = device;
    writeln!(out, "{}: {}", port.id, device.device_state.name())?;
    let mut line = |name: &str, value: &str| writeln!(out, "  {name:9} {value}");
    if let Some(warning) = device.warning {
        line("warning", warning)?;
    }
    line("mac", &port.mac)?;
    line("segment", &format!("{} as {}", port.segment, port.port_id))?;
    let socket = match port.socket.as_str() {
        // From a supervisor of an older version.
        "" => &port.net.vhost_socket,
        socket => socket,
    };
    line("socket", socket)?;
    let process = port.pid.map_or("none".to_owned(), |pid| pid.to_string());
    line(
        "process",
        &format!("{process}, started again {} times", port.restarts),
    )?;
    if status.is_null() {
        return Ok(());
    }
    line("mtu", &status["mtu"].to_string())?;
    line("queues", &format!("{} pairs", status["queue_pairs"]))?;
    if let Some(features) = status["frontend"]["features"].as_array() {
        let names: Vec<&str> = features.iter().filter_map(Value::as_str).collect();
        line("features", &names.join(" "))?;
    }
    for peer in status["peers"].as_array().into_iter().flatten() {
        let text = |key: &str| peer[key].as_str().unwrap_or("?").to_owned();
        line(
            "peer",
            &format!("{} {} mtu {}", text("mac"), text("id"), peer["mtu"]),
        )?;
    }
    for warning in status["warnings"].as_array().into_iter().flatten() {
        let text = warning["text"].as_str().unwrap_or("?");
        let last = Duration::from_secs(warning["last"].as_u64().unwrap_or(0));
        let ago = (SystemTime::UNIX_EPOCH + last).elapsed();
        let ago = ago.map_or(0, |ago| ago.as_secs());
        line(
            "warning",
            &format!("{text} ({} so far, last {ago} s ago)", warning["count"]),
        )?;
    }
    for refused in status["refused"].as_array().into_iter().flatten() {
        let text = |key: &str| refused[key].as_str().unwrap_or("?").to_owned();
        let by = if refused["by_peer"] == true {
            "refuses this port"
        } else {
            "is refused"
        };
        let (peer, reason) = (text("peer"), text("reason"));
        line("no link", &format!("{peer} {by}: {reason}"))?;
    }
    for (pair, counters) in status["counters"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let moved: Vec<String> = counters
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, value)| value.as_u64() != Some(0))
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        if !moved.is_empty() {
            line(&format!("pair {pair}"), &moved.join(", "))?;
        }
    }
    Ok(())
}
