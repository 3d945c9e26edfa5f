//! The soak itself: runs clean with the real port, and reports ports that are not as they should
//! be.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use virtio_inter_tests::soak::{self, Length, Options};
use virtio_inter_tests::{Result, Testbed, guest_test, note, port_program};

fn options(bed: &Testbed, length: Length) -> Options {
    Options {
        seed: 1,
        length,
        vm_program: env!("CARGO_BIN_EXE_virtio-inter-mock-vm").into(),
        port_program: None,
        small_disk: false,
        logs: bed.path("kept"),
        verbose: true,
    }
}

/// A program that is the port when it is started first under a name, and runs a line of shell
/// before it later.
fn later(bed: &Testbed, line: &str) -> Result<PathBuf> {
    let (program, marks) = (bed.path("port"), bed.path("marks"));
    fs::create_dir(&marks)?;
    let text = format!(
        "#!/bin/bash\n\
         all=\"$*\"; id=${{all##*--id }}; mark='{}'/${{id%% *}}\n\
         if [ -e \"$mark\" ]; then {line}\nfi\n\
         : > \"$mark\"\n\
         exec '{}' \"$@\"\n",
        marks.display(),
        port_program()?.display()
    );
    fs::write(&program, text)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(program)
}

/// What a soak reports of a port that runs a line of shell before it starts again.
fn found(bed: &Testbed, length: Length, line: &str) -> Result<String> {
    // Files of this test are no leftovers of the soak.
    let place = Testbed::new("wrapper")?;
    let program = later(&place, line)?;
    let options = Options {
        port_program: Some(program),
        ..options(bed, length)
    };
    let error = soak::run(bed, &options).expect_err("a finding");
    Ok(format!("{error:#}"))
}

#[test]
fn soak_of_some_seconds_finds_nothing() {
    guest_test(|bed| {
        let length = Length::Time(Duration::from_secs(10));
        note(
            &soak::run(bed, &options(bed, length))?
                .to_string()
                .replace('\n', "; "),
        );
        Ok(())
    });
}

#[test]
fn soak_kills_ports_and_no_stream_begins_again() {
    guest_test(|bed| {
        let summary = soak::run(bed, &options(bed, Length::Kills(20)))?;
        assert_eq!(summary.count("kills of ports"), 20);
        note(&format!("longest gap {:?}", summary.worst_gap()));
        Ok(())
    });
}

/// What the package's upgrade and a restart of each port do, with another file of the same program.
/// `cargo xtask soak --upgrade-from` does it with an older one.
#[test]
fn upgrade_replaces_ports_under_load_and_no_stream_begins_again() {
    guest_test(|bed| {
        let place = Testbed::new("programs")?;
        let [old, new] = ["old", "new"].map(|name| place.path(name));
        for program in [&old, &new] {
            fs::copy(port_program()?, program)?;
        }
        let options = Options {
            port_program: Some(old),
            ..options(bed, Length::Upgrade(new))
        };
        let summary = soak::run(bed, &options)?;
        assert_eq!(summary.count("upgrades of ports"), 4);
        note(&format!("longest gap {:?}", summary.worst_gap()));
        Ok(())
    });
}

#[test]
fn soak_reports_a_port_that_does_not_come_back() {
    guest_test(|bed| {
        let error = found(bed, Length::Kills(1), "exec sleep 100")?;
        assert!(error.contains("Step 0 of seed 1: KillPort vm"), "{error}");
        assert!(error.contains("No progress within"), "{error}");
        Ok(())
    });
}

#[test]
fn soak_reports_a_port_that_ends_by_itself() {
    guest_test(|bed| {
        let line = "(sleep 0.3; kill -9 $$) &";
        let error = found(bed, Length::Kills(1000), line)?;
        assert!(error.contains("ended by itself"), "{error}");
        Ok(())
    });
}

#[test]
fn soak_reports_descriptors_that_leak() {
    guest_test(|bed| {
        let line = "for fd in {30..45}; do eval \"exec $fd</dev/null\"; done";
        let error = found(bed, Length::Kills(1), line)?;
        assert!(error.contains("descriptors, "), "{error}");
        assert!(error.contains("no port held more at first"), "{error}");
        Ok(())
    });
}
