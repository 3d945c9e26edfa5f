//! The arguments that Cloud Hypervisor gets, and its output.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;

use crate::harness::Place;

#[test]
fn devices_become_nets_and_memory_is_shared() {
    let place = Place::new();
    let (first, second) = (
        place.device(",mac=02:00:00:00:00:01"),
        place.device(",id=fast,mac=02:00:00:00:00:02,num_queues=4,queue_size=512,mtu=9000"),
    );
    let running = place.run(&[
        "--inter-vm",
        &first,
        &second,
        "--kernel",
        "k",
        "--net",
        "tap=t0",
        "--cpus",
        "boot=2",
        "--memory",
        "size=1G",
        "-v",
    ]);
    let directory = place.text("api.inter-vm");
    assert_eq!(
        running.arguments(),
        [
            "--api-socket",
            &place.text("api"),
            "--kernel",
            "k",
            "--net",
            "tap=t0",
            &format!(
                "vhost_user=on,id=inter-vm0,mac=02:00:00:00:00:01,num_queues=2,\
                 socket={directory}/inter-vm0.sock"
            ),
            &format!(
                "vhost_user=on,id=fast,mac=02:00:00:00:00:02,mtu=9000,num_queues=4,queue_size=512,\
                 socket={directory}/fast.sock"
            ),
            "--cpus",
            "boot=2",
            "--memory",
            "size=1G,shared=on",
            "-v",
        ]
    );
    // Both accept connections by the time that the VMM runs.
    for name in ["inter-vm0", "fast"] {
        drop(UnixStream::connect(place.path(&format!("api.inter-vm/{name}.sock"))).unwrap());
    }
    running.end();
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn command_line_without_devices_is_unchanged() {
    let place = Place::new();
    let odd = OsString::from_vec(b"--cmdline=\xff".to_vec());
    let (status, log) = place
        .launcher(&[
            "--kernel",
            "k",
            "--memory",
            "size=1G",
            "--frobnicate",
            "--",
            "--inter-vm",
        ])
        .argument(odd.clone())
        .env("STAND_IN_DOES", "exit")
        .env("STAND_IN_STATUS", "7")
        .end();
    assert_eq!(status, 7, "{log}");
    let mut expected = b"--kernel\nk\n--memory\nsize=1G\n--frobnicate\n--\n--inter-vm\n".to_vec();
    expected.extend(odd.into_vec());
    expected.push(b'\n');
    assert_eq!(fs::read(place.path("arguments")).unwrap(), expected);
}

/// It is nothing to the stock program that no control socket can be beside it.
#[test]
fn api_socket_without_devices_is_cloud_hypervisors_affair() {
    // Long enough for the control socket's path to be too long.
    for api in ["@vm1", "path=@vm1", &format!("/tmp/{}", "x".repeat(95))] {
        let place = Place::new();
        let (status, log) = place
            .launcher(&["--kernel", "k", "--api-socket", api])
            .env("STAND_IN_DOES", "exit")
            .env("STAND_IN_STATUS", "7")
            .end();
        assert_eq!(status, 7, "{log}");
        assert!(log.contains("No inter-VM device can be added"), "{log}");
        let arguments = fs::read_to_string(place.path("arguments")).unwrap();
        assert_eq!(arguments, format!("--kernel\nk\n--api-socket\n{api}\n"));
        assert_eq!(place.files(), [""; 0]);
    }
}

#[test]
fn vm_without_an_api_socket_leaves_nothing_behind_either() {
    let place = Place::new();
    let running = place
        .launcher(&["--kernel=k", "--inter-vm", &place.device("")])
        .start();
    assert_eq!(running.arguments()[1..3], ["--memory", "shared=on"]);
    running.end();
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn addresses_stay_over_restarts() {
    let place = Place::new();
    let mac = || {
        let running = place.run(&["--kernel", "k", "--inter-vm", &place.device("")]);
        let mac = running.ports()[0].mac.clone();
        running.end();
        fs::remove_file(place.path("arguments")).unwrap();
        mac
    };
    let first = mac();
    assert_eq!(mac(), first);
}

#[test]
fn vm_that_is_created_later_finds_its_ports() {
    let place = Place::new();
    let running = place.run(&["--inter-vm", &place.device("")]);
    // Cloud Hypervisor takes no devices without a kernel.
    assert_eq!(running.arguments(), ["--api-socket", &place.text("api")]);
    let ports = running.ports();
    drop(UnixStream::connect(&ports[0].net.vhost_socket).unwrap());
    running.end();
}

#[test]
fn restored_vm_finds_its_ports_where_its_snapshot_has_them() {
    let place = Place::new();
    let socket = place.text("former.inter-vm/inter-vm0.sock");
    let config = format!(
        "{{\"net\": [{{\"id\": \"inter-vm0\", \"vhost_user\": true, \
         \"vhost_socket\": \"{socket}\", \"mac\": \"02:00:00:00:00:09\", \
         \"num_queues\": 4, \"queue_size\": 256, \"mtu\": null}}]}}"
    );
    let snapshot = place.path("snapshot");
    fs::create_dir(&snapshot).unwrap();
    fs::write(snapshot.join("config.json"), config).unwrap();
    let url = format!("source_url=file://{}", snapshot.display());
    let running = place.run(&["--restore", &url, "--inter-vm", &place.device("")]);
    assert_eq!(running.arguments()[2..], ["--restore", &url]);
    drop(UnixStream::connect(&socket).unwrap());
    let ports = running.ports();
    assert_eq!(ports[0].mac, "02:00:00:00:00:09");
    assert_eq!(ports[0].net.num_queues, 4);
    running.end();
    assert_eq!(place.files(), ["snapshot"]);
}

#[test]
fn help_is_cloud_hypervisors_with_the_flag_in_its_place() {
    let place = Place::new();
    let (status, text) = place.launcher(&["--inter-vm", "x", "--help"]).end();
    assert_eq!(status, 0);
    let flags: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("      --"))
        .collect();
    assert_eq!(
        flags,
        [
            "      --initramfs <initramfs>",
            "      --inter-vm <inter-vm>...",
            "      --net <net>..."
        ]
    );
    assert!(text.contains("segment=<name_or_directory>"), "{text}");
}

#[test]
fn version_is_both() {
    let place = Place::new();
    let (status, text) = place.launcher(&["--version"]).end();
    assert_eq!(status, 0);
    let ours = format!("cloud-hypervisor-ext {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        ["cloud-hypervisor v0-stand-in", &ours]
    );
}
