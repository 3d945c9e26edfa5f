//! Wrong input of users: one clear error, the right exit status, no VM, nothing left behind.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;

use cloud_hypervisor_ext::control_protocol::PortState;

use crate::harness::{Launcher, Place, kill, until};

/// The error of a launcher that cannot start a VM.
#[track_caller]
fn complaint(place: &Place, launcher: Launcher, expected_status: i32) -> String {
    let before = place.files();
    let (status, text) = launcher.end();
    assert_eq!(status, expected_status, "{text}");
    assert!(
        !place.path("arguments").exists(),
        "the VMM was started: {text}"
    );
    assert_eq!(place.files(), before, "{text}");
    text
}

#[test]
fn wrong_devices_are_usage_errors() {
    let place = Place::new();
    for (device, expected) in [
        (
            "segmen=web",
            "  0: Error parsing --inter-vm\n  1: Unknown option: segmen; did you mean segment?\n",
        ),
        (
            "mac=02:00:00:00:00:01",
            "  Error parsing --inter-vm: segment missing\n",
        ),
        (
            "segment=web,mtu=big",
            "  1: Unable to convert big for mtu\n",
        ),
        ("segment=\"web", "  1: Invalid syntax: segment=\"web\n"),
        ("segment=web,mac=01:00:00:00:00:01", "a multicast address"),
        ("segment=web,num_queues=3", "even number from 2 to 128"),
    ] {
        let launcher = place.launcher(&["--kernel", "k", "--inter-vm", device]);
        let text = complaint(&place, launcher, 2);
        assert!(
            text.starts_with("Error: cloud-hypervisor-ext exited with the following "),
            "{text}"
        );
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn devices_of_one_id_are_a_usage_error() {
    let place = Place::new();
    let device = place.device(",id=x");
    let launcher = place.launcher(&[
        "--inter-vm",
        &device,
        "--kernel",
        "k",
        "--inter-vm",
        &device,
    ]);
    let text = complaint(&place, launcher, 2);
    assert!(text.contains("Identifier x is not unique"), "{text}");
}

#[test]
fn flag_without_a_value() {
    let place = Place::new();
    let text = complaint(&place, place.launcher(&["--inter-vm", "--kernel", "k"]), 2);
    assert!(
        text.contains("a value is required for '--inter-vm"),
        "{text}"
    );
}

#[test]
fn value_that_is_no_text() {
    let place = Place::new();
    let argument = OsString::from_vec(b"--inter-vm=segment=\xff".to_vec());
    let text = complaint(
        &place,
        place.launcher(&["--kernel", "k"]).argument(argument),
        2,
    );
    assert!(text.contains("is not UTF-8"), "{text}");
}

#[test]
fn memory_with_shared_off_is_a_usage_error() {
    let place = Place::new();
    let device = place.device("");
    let memory = ["--memory", "size=1G,shared=off"];
    let launcher =
        place.launcher(&[&["--kernel", "k", "--inter-vm", &device], &memory[..]].concat());
    let text = complaint(&place, launcher, 2);
    assert!(text.contains("--memory says shared=off"), "{text}");
}

#[test]
fn cloud_hypervisor_that_is_missing_is_an_error() {
    let place = Place::new();
    let device = place.device("");
    let arguments = ["--kernel", "k", "--inter-vm", &device];
    let launcher = place
        .launcher(&arguments)
        .env("CLOUD_HYPERVISOR", "")
        .env("PATH", "/nowhere");
    let text = complaint(&place, launcher, 1);
    assert!(text.contains("No cloud-hypervisor found in PATH"), "{text}");
    assert!(text.contains("CLOUD_HYPERVISOR"), "{text}");
    let launcher = place
        .launcher(&arguments)
        .env("CLOUD_HYPERVISOR", place.path("nothing"));
    let text = complaint(&place, launcher, 1);
    assert!(text.contains("nothing, which is not a program"), "{text}");
}

#[test]
fn cloud_hypervisor_without_vhost_user_net_is_an_error() {
    let place = Place::new();
    let device = place.device("");
    let launcher = place
        .launcher(&["--kernel", "k", "--inter-vm", &device])
        .env("STAND_IN_NET", "tap=<if>,mac=<mac>");
    let text = complaint(&place, launcher, 1);
    assert!(
        text.contains("(cloud-hypervisor v0-stand-in) has no vhost-user network devices"),
        "{text}"
    );
}

#[test]
fn segment_that_cannot_be_joined() {
    let place = Place::new();
    let device = format!("segment={}", place.text("nowhere"));
    let api = place.text("api");
    let arguments = [
        "--kernel",
        "k",
        "--api-socket",
        &api,
        "--inter-vm",
        &place.device(""),
        &device,
    ];
    let text = complaint(&place, place.launcher(&arguments), 1);
    // The reason as the port has it, after what was tried.
    let expected = format!(
        "  0: Cannot start the port of inter-vm1 on segment {0}\n  \
         1: Segment directory {0} does not exist",
        place.text("nowhere")
    );
    assert!(text.contains(&expected), "{text}");
}

#[test]
fn log_of_a_port_that_cannot_start_has_the_reason_once() {
    let place = Place::new();
    let device = format!("segment={}", place.text("nowhere"));
    let launcher = place.launcher(&["-vv", "--kernel", "k", "--inter-vm", &device]);
    let text = complaint(&place, launcher, 1);
    assert_eq!(text.matches("does not exist").count(), 1, "{text}");
    // Later on, too.
    let running = place.run(&["-vv", "--kernel", "k", "--inter-vm", &place.device("")]);
    fs::rename(place.path("segment"), place.path("away")).unwrap();
    let port = running.ports()[0].pid.unwrap();
    kill(port);
    until("it was tried", || {
        let log = running.log();
        log.contains("does not exist); starting it again")
    });
    let log = running.log();
    // The port that was killed may have noticed first that its segment is away, and warned.
    let reasons = log
        .lines()
        .filter(|line| line.contains("does not exist") && !line.contains("made again"))
        .count();
    let deaths = log.matches("does not exist); starting it again").count();
    assert_eq!(reasons, deaths, "{log}");
    fs::rename(place.path("away"), place.path("segment")).unwrap();
    until("it serves again", || {
        running.ports()[0].state == PortState::Serving
    });
    running.end();
}

#[test]
fn port_that_fails_at_its_start() {
    let place = Place::new();
    fs::write(place.path("file"), "precious").unwrap();
    let device = place.device(&format!(",socket={}", place.text("file")));
    let launcher = place.launcher(&["--kernel", "k", "--inter-vm", &device]);
    let text = complaint(&place, launcher, 1);
    assert!(text.contains("file exists and is not a socket"), "{text}");
    assert_eq!(fs::read_to_string(place.path("file")).unwrap(), "precious");
}

#[test]
fn api_socket_of_a_running_vm() {
    let place = Place::new();
    let running = place.run(&["--kernel", "k", "--inter-vm", &place.device("")]);
    fs::remove_file(place.path("arguments")).unwrap();
    let before = place.files();
    let api = place.text("api");
    let mut second = place.launcher(&["--kernel", "k", "--api-socket", &api]);
    second = second.env("XDG_RUNTIME_DIR", "/tmp");
    let text = complaint(&place, second, 1);
    assert!(
        text.contains("another VM runs with this API socket"),
        "{text}"
    );
    assert_eq!(place.files(), before);
    assert_eq!(running.ports().len(), 1);
}

#[test]
fn socket_path_that_is_too_long() {
    let place = Place::new();
    let api = place.text(&"a".repeat(100));
    let device = place.device("");
    let launcher = place.launcher(&["--kernel", "k", "--api-socket", &api, "--inter-vm", &device]);
    let text = complaint(&place, launcher, 2);
    assert!(text.contains(&"a".repeat(100)), "{text}");
}

/// A port has more sockets than the one that `socket=` names.
#[test]
fn advice_on_a_path_that_is_too_long_works_when_taken() {
    let place = Place::new();
    // Room for `a.status`, and not for `inter-vm0.status`.
    let length = 107 - "/.inter-vm/a.status".len() - place.text("").len() + 1;
    let api = place.text(&"x".repeat(length));
    let start = |more: &str| {
        let device = place.device(more);
        place.launcher(&["--kernel", "k", "--api-socket", &api, "--inter-vm", &device])
    };
    for more in ["", &format!(",socket={}", place.text("s"))] {
        let text = complaint(&place, start(more), 2);
        assert!(
            text.contains("give a shorter --api-socket or id="),
            "{text}"
        );
    }
    start(",id=a").start().end();
}

#[test]
fn snapshot_that_has_no_such_device() {
    let place = Place::new();
    let snapshot = place.path("snapshot");
    fs::create_dir(&snapshot).unwrap();
    fs::write(snapshot.join("config.json"), "{\"net\": null}").unwrap();
    let url = format!("source_url=file://{}", snapshot.display());
    let launcher = place.launcher(&["--restore", &url, "--inter-vm", &place.device("")]);
    let text = complaint(&place, launcher, 1);
    assert!(
        text.contains("has no vhost-user network device inter-vm0; it has none"),
        "{text}"
    );
    let launcher = place.launcher(&[
        "--restore",
        "source_url=file:///nowhere",
        "--inter-vm",
        &place.device(""),
    ]);
    let text = complaint(&place, launcher, 1);
    assert!(text.contains("Cannot read /nowhere/config.json"), "{text}");
}

#[test]
fn program_that_cannot_be_run() {
    let place = Place::new();
    let broken = place.path("stand-in");
    fs::write(&broken, "#!/nowhere\n").unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
    let launcher = place.launcher(&["--kernel", "k", "--inter-vm", &place.device("")]);
    let text = complaint(&place, launcher, 1);
    assert!(
        text.contains("Cannot run") && text.contains("stand-in"),
        "{text}"
    );
}

#[test]
fn socket_that_another_vms_port_has() {
    let (first, second) = (Place::new(), Place::new());
    // For example when a VM moves to another launcher of the same host.
    let socket = format!(",socket={}", first.text("sock"));
    let running = first.run(&["--kernel", "k", "--inter-vm", &first.device(&socket)]);
    let port = running.ports()[0].pid.unwrap();
    let launcher = second.launcher(&["--inter-vm", &second.device(&socket), "--kernel", "k"]);
    let text = complaint(&second, launcher, 1);
    assert!(
        text.contains(&format!("sock is in use by process {port}")),
        "{text}"
    );
    running.end();
}
