//! What operators' own programs read of ports.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::process::Command;

use anyhow::Context;
use virtio_inter_tests::{Port, PortConfig, Segment, guest_test, port_program, promtool, skip};

#[test]
fn metrics_pass_the_check_of_prometheus() {
    guest_test(|bed| {
        let Some(promtool) = promtool() else {
            skip("there is no promtool: Debian's package prometheus has it");
            return Ok(());
        };
        let segment = Segment::new(bed, "web")?;
        let ports = [("a", 1), ("b", 2)]
            .map(|(id, number)| Port::start(bed, PortConfig::new(&segment, id, number)));
        let ports = ports.into_iter().collect::<Result<Vec<_>, _>>()?;
        let directory = bed.path("metrics");
        fs::create_dir(&directory)?;
        let output = Command::new(port_program()?)
            .args(["exporter", "--once", "--peers", "--textfile"])
            .args([directory.as_path(), segment.path()])
            .output()?;
        assert!(output.status.success(), "{output:?}");
        let file = directory.join("virtio-inter.prom");
        let metrics = File::open(&file).context("The exporter wrote no file")?;
        let checked = Command::new(promtool)
            .args(["check", "metrics"])
            .stdin(metrics)
            .output()?;
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success() && said.trim().is_empty(), "{said}");
        drop(ports);
        Ok(())
    });
}
