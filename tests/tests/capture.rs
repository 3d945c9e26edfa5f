//! Captures of the frames of real guests.
#![forbid(unsafe_code)]

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Signal;
use virtio_inter_tests::{
    Frontend, Group, Process, Testbed, guest_test, note, port_program, tools,
};

type Result<T> = anyhow::Result<T>;

const LIMIT: Duration = Duration::from_secs(20);

/// A capture of a group's port into the file `name` of a testbed.
fn capture(bed: &Testbed, group: &Group, port: usize, name: &str) -> Result<Process> {
    let port = group.segment.path().join(&group.ports[port].config().id);
    let mut command = Command::new(port_program()?);
    command
        .arg("capture")
        .arg(port)
        .arg("-w")
        .arg(bed.path(name));
    let mut process = Process::start(name, command, &bed.path(&format!("{name}.log")), &[])?;
    process.wait_for_log("Capturing frames", 0, LIMIT)?;
    Ok(process)
}

fn end(mut capture: Process) -> Result<()> {
    capture.signal(Signal::INT)?;
    let status = capture.wait(LIMIT)?;
    ensure!(status.success(), "{status}: {}", capture.log());
    Ok(())
}

/// Rows of what tshark prints of the frames that a display filter chooses.
fn tshark(bed: &Testbed, file: &str, filter: &str) -> Result<Vec<String>> {
    let output = Command::new("tshark")
        .arg("-r")
        .arg(bed.path(file))
        .args(["-Y", filter, "-T", "fields", "-e", "frame.comment"])
        .output()
        .context("Running tshark")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tshark: {said}");
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::to_owned).collect())
}

#[test]
fn capture_of_guests_is_read_by_tshark_and_costs_them_little() {
    const ROUNDS: usize = 3;
    if Command::new("tshark").arg("--version").output().is_err() {
        return virtio_inter_tests::skip("tshark is not installed");
    }
    guest_test(|bed| {
        let group = Group::boot(bed, &[Frontend::Uml; 2])?;
        group.all_reach_all(&[0, 1])?;
        let [a, b] = [&group.vms[0], &group.vms[1]];
        let to = b.nic(0).ipv4();
        let pings = capture(bed, &group, 1, "pings")?;
        tools::ping(a, to, tools::Ping::default())?;
        end(pings)?;
        let requests = tshark(bed, "pings", "icmp.type == 8")?;
        let replies = tshark(bed, "pings", "icmp.type == 0")?;
        ensure!(!requests.is_empty() && requests.len() == replies.len());

        // A stream is slower by what the copies cost; it loses nothing.
        let stream = || {
            let how = tools::Iperf3 {
                seconds: 2,
                ..tools::Iperf3::default()
            };
            anyhow::Ok(tools::iperf3(a, b, to, how)?.bits_per_second / 1e9)
        };
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            without.push(stream()?);
            let capture = capture(bed, &group, 0, &format!("stream{round}"))?;
            with.push(stream()?);
            end(capture)?;
        }
        note(&format!(
            "Gbit/s of a stream: {without:.2?} without a capture, {with:.2?} with one"
        ));
        let gso = tshark(bed, "stream0", "tcp.dstport == 5201")?;
        let text = "GSO TCPV4 size";
        ensure!(
            gso.iter().any(|comment| comment.contains(text)),
            "{:?}",
            gso.first()
        );
        for port in &group.ports {
            let drops = port.counters()?;
            assert!(drops.drops().is_empty(), "{:?}", drops.drops());
        }
        Ok(())
    });
}
