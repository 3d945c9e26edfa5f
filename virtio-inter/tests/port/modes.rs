//! Directories and files that other users could turn against a port.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::Value;
use virtio_inter_test_support::skip;

use crate::process::{Place, until};
use crate::status::status;
use crate::usage::complaint;

fn set_mode(place: &Place, directory: &str, mode: u32) {
    fs::set_permissions(place.path(directory), Permissions::from_mode(mode)).unwrap();
}

/// A VMM of another user, by a group of both.
#[test]
fn socket_is_for_its_group_alone() {
    let place = Place::new();
    let group = |path: &std::path::Path| {
        let file = fs::metadata(path).unwrap();
        (file.permissions().mode() & 0o777, file.gid())
    };
    let own = fs::metadata(place.path("")).unwrap().gid();
    let port = place.command("a").with("--socket-mode", "0600").start();
    assert_eq!(group(&port.socket), (0o600, own));
    port.end();
    if !rustix::process::geteuid().is_root() {
        return skip("giving a socket to a group of which one is no member needs root");
    }
    let port = place.command("a").with("--socket-group", "12345").start();
    assert_eq!(group(&port.socket), (0o660, 12345));
    // Made again in the sandbox.
    fs::remove_file(&port.socket).unwrap();
    until("the socket", || {
        port.socket.exists() && group(&port.socket) == (0o660, 12345)
    });
    port.end();
    assert_eq!(place.files(), [""; 0]);
}

/// The port says why in its log, and exits.
#[test]
fn socket_for_a_group_of_which_the_port_is_no_member_is_refused() {
    let place = Place::new();
    let command = place.command("a").with("--socket-group", "0");
    let Some(command) = command.by_ordinary_user() else {
        return skip("an ordinary user cannot run the program");
    };
    let (status, log) = command.fail();
    assert_eq!(status, 1, "{log}");
    assert!(log.contains("Cannot listen on socket"), "{log}");
}

#[test]
fn socket_in_a_directory_of_everybody_is_refused() {
    let place = Place::new();
    fs::create_dir(place.path("public")).unwrap();
    // Also with the sticky bit, as /tmp has it: the first to bind has the name.
    for mode in [0o777, 0o1777] {
        set_mode(&place, "public", mode);
        let command = place.command("a");
        let command = command.with("--socket", place.path("public/a.vhost"));
        let text = complaint(&place, &command, 1);
        assert!(text.contains("Every user can write to"), "{text}");
        assert!(text.contains("--allow-public-directory"), "{text}");
        assert_eq!(fs::read_dir(place.path("public")).unwrap().count(), 0);
    }
    let command = place.command("a").flag("--allow-public-directory");
    command
        .with("--socket", place.path("public/a.vhost"))
        .start()
        .end();
    set_mode(&place, "public", 0o770);
    let command = place.command("a");
    command
        .with("--socket", place.path("public/a.vhost"))
        .start()
        .end();
}

#[test]
fn socket_in_the_working_directory_of_everybody_is_refused() {
    let place = Place::new();
    fs::create_dir(place.path("public")).unwrap();
    set_mode(&place, "public", 0o777);
    let command = place.command("a").in_directory(&place.path("public"));
    let text = complaint(&place, &command.with("--socket", "a.vhost"), 1);
    assert!(text.contains("Every user can write to"), "{text}");
}

#[test]
fn lock_file_that_has_another_name_stays_as_it_is() {
    for name in ["a.vhost.lock", "a.status.lock"] {
        let place = Place::new();
        let victim = place.path("victim");
        fs::write(&victim, "precious").unwrap();
        fs::hard_link(&victim, place.path(name)).unwrap();
        let command = place.command("a");
        let command = command.with("--status-socket", place.path("a.status"));
        let (status, text) = command.fail();
        assert_eq!(status, 1, "{text}");
        assert!(text.contains("hard link") && text.contains(name), "{text}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    }
}

#[test]
fn segment_without_sticky_bit_is_warned_of() {
    let warned = |mode| {
        let place = Place::new();
        set_mode(&place, "segment", mode);
        let socket = place.path("a.status");
        let port = place.command("a").with("--status-socket", &socket).start();
        let warnings = || {
            let warnings = status(&socket)["warnings"].as_array().unwrap().clone();
            let codes = warnings.iter().map(|warning| warning["code"].clone());
            codes.collect::<Vec<Value>>()
        };
        until("status", || status(&socket)["id"] == "a");
        let is_warned = warnings() == ["segment-not-sticky"];
        assert_eq!(port.log().contains("chmod +t"), is_warned, "{}", port.log());
        assert!(is_warned || warnings().is_empty());
        port.end();
        is_warned
    };
    assert!(warned(0o770) && warned(0o777) && warned(0o2770));
    assert!(!warned(0o700) && !warned(0o755) && !warned(0o3770) && !warned(0o1777));
}
