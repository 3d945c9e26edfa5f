//! Help, version and wrong command lines: also where there is no Cloud Hypervisor.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use crate::harness::{Launcher, Place};

/// A launcher that finds no Cloud Hypervisor.
fn alone(place: &Place, arguments: &[&str]) -> Launcher {
    place
        .launcher(arguments)
        .env("CLOUD_HYPERVISOR", "")
        .env("PATH", "/nowhere")
}

#[test]
fn help_needs_no_cloud_hypervisor() {
    let place = Place::new();
    for arguments in [
        &["--help"][..],
        &["-h"],
        &["help"],
        &["--kernel", "k", "--help"],
    ] {
        let (status, text) = alone(&place, arguments).end();
        assert_eq!(status, 0, "{text}");
        for part in [
            "Usage: cloud-hypervisor-ext",
            "--inter-vm",
            "--api-socket",
            "--version",
            "segment=<name_or_directory>",
            "queue_size=<size_of_each_queue>",
            "pci_device_id=<pci_slot>",
            "CLOUD_HYPERVISOR ",
            "Exit status",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let last = text.lines().last().unwrap();
        assert!(
            last.starts_with(
                "The options of cloud-hypervisor are not shown: No cloud-hypervisor found in PATH"
            ),
            "{text}"
        );
    }
}

#[test]
fn help_outlives_a_cloud_hypervisor_that_fails() {
    let place = Place::new();
    let broken = place.path("broken");
    fs::write(&broken, "#!/bin/sh\nexit 3\n").unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
    for (program, reason) in [
        (broken, "broken failed: exit status: 3"),
        (place.path("nothing"), "nothing, which is not a program"),
    ] {
        for argument in ["--help", "--version"] {
            let launcher = place
                .launcher(&[argument])
                .env("CLOUD_HYPERVISOR", &program);
            let (status, text) = launcher.end();
            assert_eq!(status, 0, "{text}");
            assert!(text.lines().last().unwrap().ends_with(reason), "{text}");
        }
    }
}

#[test]
fn help_has_both_programs_options() {
    let place = Place::new();
    let (status, text) = place.launcher(&["--help"]).end();
    assert_eq!(status, 0);
    for part in ["--initramfs", "--inter-vm", "segment=<", "CLOUD_HYPERVISOR"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("not shown"), "{text}");
}

#[test]
fn version_needs_no_cloud_hypervisor() {
    let place = Place::new();
    for argument in ["--version", "-V"] {
        let (status, text) = alone(&place, &[argument]).end();
        assert_eq!(status, 0, "{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        let ours = concat!("cloud-hypervisor-ext ", env!("CARGO_PKG_VERSION"));
        assert_eq!(lines[0], ours);
        assert!(lines[1].contains("No cloud-hypervisor found"), "{text}");
    }
}

#[test]
fn command_line_without_arguments_is_a_usage_error_with_help() {
    let place = Place::new();
    for launcher in [place.launcher(&[]), alone(&place, &[])] {
        let (status, text) = launcher.end();
        assert_eq!(status, 2, "{text}");
        assert!(text.contains("--inter-vm"), "{text}");
    }
}

#[test]
fn flag_with_a_typing_error_is_a_usage_error_with_a_suggestion() {
    let place = Place::new();
    let device = place.device("");
    for flag in ["--inter-vn", "--intervm", "--inter-vms"] {
        let (status, text) = place.launcher(&["--kernel", "k", flag, &device]).end();
        assert_eq!(status, 2, "{text}");
        assert!(
            text.contains(flag) && text.contains("'--inter-vm'"),
            "{text}"
        );
        assert!(!place.path("arguments").exists(), "{text}");
    }
}

#[test]
fn socket_that_looks_abstract_is_a_usage_error() {
    let place = Place::new();
    let (plain, abstracted) = (place.device(""), place.device(",socket=@vm1"));
    for arguments in [
        &["--kernel", "k", "--inter-vm", &abstracted][..],
        &[
            "--kernel",
            "k",
            "--inter-vm",
            &plain,
            "--api-socket",
            "@vm1",
        ],
    ] {
        let (status, text) = place.launcher(arguments).end();
        assert_eq!(status, 2, "{text}");
        assert!(
            text.contains("@vm1 looks like an abstract socket"),
            "{text}"
        );
        assert!(!place.path("arguments").exists(), "{text}");
        assert_eq!(place.files(), [""; 0]);
    }
}

#[test]
fn sizes_with_a_suffix_are_taken() {
    let place = Place::new();
    let running = place.run(&[
        "--kernel",
        "k",
        "--inter-vm",
        &place.device(",mtu=9K,queue_size=1K"),
    ]);
    let arguments = running.arguments().join(" ");
    assert!(
        arguments.contains(",mtu=9216,") && arguments.contains(",queue_size=1024,"),
        "{arguments}"
    );
    running.end();
}

/// Readers may have another working directory.
#[test]
fn paths_that_are_told_are_absolute() {
    let place = Place::new();
    let device = "segment=./segment,socket=net.sock";
    let running = place
        .launcher(&[
            "-v",
            "--kernel",
            "k",
            "--api-socket",
            "api",
            "--inter-vm",
            device,
        ])
        .directory(&place.path(""))
        .start();
    let port = running.ports().remove(0);
    for (told, path) in [
        (&port.segment, "segment"),
        (&port.socket, "net.sock"),
        (&port.status_socket, "api.inter-vm/inter-vm0.status"),
    ] {
        assert_eq!(told, &place.text(path));
    }
    // Cloud Hypervisor has the path as it was given, as snapshots and migrations need it.
    assert_eq!(port.net.vhost_socket, "net.sock");
    drop(UnixStream::connect(&port.socket).unwrap());
    let log = running.log();
    assert!(
        log.contains(&format!("serves {}", place.text("net.sock"))),
        "{log}"
    );
    running.end();
}
