//! The status socket of a running port, and its notifications to a service manager.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::guest::Guest;
use crate::process::{Place, TIMEOUT, until};
use crate::service_manager::ServiceManager;

/// The whole document, which ends with the connection.
pub(crate) fn status(socket: &Path) -> Value {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn status_has_peers_frontend_and_counters() {
    let place = Place::new();
    let socket = place.path("a.status");
    let port = place.command("a").with("--status-socket", &socket).start();
    let alone = status(&socket);
    assert_eq!(alone["version"], 1);
    assert_eq!(alone["id"], "a");
    assert_eq!(alone["pid"], port.pid());
    assert_eq!(alone["mac"], "52:54:00:00:00:61");
    assert_eq!(alone["segment"], place.segment().to_str().unwrap());
    assert_eq!(alone["frontend"], Value::Null);
    assert_eq!(alone["peers"], json!([]));
    assert_eq!(alone["counters"][0]["tx_frames"], 0);

    let peer = place.command("b").with("--mtu", "9000").start();
    let frontend = UnixStream::connect(&port.socket).unwrap();
    let mut expected = json!([
        {"id": "b", "mac": "52:54:00:00:00:62", "mtu": 9000, "queue_pairs": 1, "away": true,
         "tx": {"frames": 0, "bytes": 0, "drops": 0, "stalls": 0, "ring": null},
         "rx": {"frames": 0, "bytes": 0}}
    ]);
    let peers = |mut now: Value| {
        for peer in now["peers"].as_array_mut().unwrap() {
            let since = peer.as_object_mut().unwrap().remove("since");
            assert!(since.unwrap().as_u64().unwrap() > 1_700_000_000);
        }
        now["peers"].clone()
    };
    until("the status has the peer and the frontend", || {
        let now = status(&socket);
        peers(now.clone()) == expected && now["frontend"]["pid"] == std::process::id()
    });
    assert_eq!(status(&socket)["frontend"]["queues_running"], 0);
    let guest = Guest::new(&peer, 1514);
    expected[0].as_object_mut().unwrap().remove("away");
    until("the peer has a guest", || {
        peers(status(&socket)) == expected
    });

    drop((frontend, guest));
    peer.end();
    until("the status has neither of them", || {
        let now = status(&socket);
        now["peers"] == json!([]) && now["frontend"] == Value::Null
    });
    port.end();
    assert_eq!(place.files(), [""; 0]);
}

/// The schema in `docs/`, which here also forbids fields that it does not have.
fn schema() -> Value {
    fn close(part: &mut Value) {
        if let Value::Object(fields) = part {
            if fields.contains_key("properties") {
                fields.insert("additionalProperties".to_owned(), false.into());
            }
            fields.values_mut().for_each(close);
        } else if let Value::Array(parts) = part {
            parts.iter_mut().for_each(close);
        }
    }
    let text = include_str!("../../../docs/port-status.schema.json");
    let mut schema = serde_json::from_str(text).unwrap();
    close(&mut schema);
    schema
}

/// Asserts that a document is as the schema says, in all its fields.
pub(crate) fn assert_documented(document: &Value) {
    let schema = schema();
    let part = match document["active"].is_boolean() {
        true => "shared_uplink",
        false => "port",
    };
    // The errors of one part say more than that none fits.
    let schema = json!({"$ref": format!("#/$defs/{part}"), "$defs": schema["$defs"]});
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors = validator.iter_errors(document);
    let errors: Vec<String> = errors
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{errors:#?}\n{document:#}");
}

#[test]
fn status_is_as_its_schema_says() {
    let place = Place::new();
    let port = place
        .command("a")
        .with("--allow-mac", "00:00:5e:00:01:*,52:54:00:00:00:99")
        .with("--ip", "10.0.0.7,fd00::/64")
        .flag("--no-dhcp-server")
        .start();
    // Another MTU is a warning, and the same address is refused.
    let peer = place.command("b").with("--mtu", "9000").start();
    let twin = place
        .command("c")
        .with("--mac", "52:54:00:00:00:61")
        .start();
    let frontend = UnixStream::connect(&port.socket).unwrap();
    let socket = place.segment().join("a.status");
    until("the status has something in each list", || {
        let now = status(&socket);
        let lists = ["peers", "warnings", "refused", "allow_mac", "counters"];
        let is_full = |list: &str| now[list].as_array().is_some_and(|list| !list.is_empty());
        lists.into_iter().all(is_full) && !now["frontend"].is_null()
    });
    assert_documented(&status(&socket));
    assert_documented(&status(&place.segment().join("b.status")));
    drop(frontend);
    for port in [port, peer, twin] {
        port.end();
    }
}

/// Readers of the document and the log may have another working directory.
#[test]
fn status_and_log_have_absolute_paths() {
    let place = Place::new();
    let port = place
        .command("a")
        .with("--socket", "a.vhost")
        .with("--status-socket", "a.status")
        .with("--segment", "./segment")
        .in_directory(&place.path(""))
        .start();
    let now = status(&place.path("a.status"));
    assert_eq!(now["socket"], place.path("a.vhost").to_str().unwrap());
    assert_eq!(now["segment"], place.segment().to_str().unwrap());
    let serving = format!(
        "Serving {} on segment {} as",
        place.path("a.vhost").display(),
        place.segment().display()
    );
    assert!(port.log().contains(&serving), "{}", port.log());
    port.end();
}

#[test]
fn status_socket_is_for_this_user_only() {
    let place = Place::new();
    let socket = place.path("a.status");
    let port = place.command("a").with("--status-socket", &socket).start();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    port.end();
}

#[test]
fn status_clients_that_send_or_do_not_read_hold_nobody_up() {
    let place = Place::new();
    let socket = place.path("a.status");
    let port = place
        .command("a")
        .with("--status-socket", &socket)
        .with("--queues", "64")
        .start();
    let mute: Vec<UnixStream> = (0..40)
        .map(|_| {
            let mut stream = UnixStream::connect(&socket).unwrap();
            // It may be closed already.
            let _ = stream.write_all(b"{\"give\": \"me\"}\n");
            stream
        })
        .collect();
    assert_eq!(status(&socket)["counters"].as_array().unwrap().len(), 64);
    drop(mute);
    port.end();
}

#[test]
fn status_socket_in_use_is_left_alone() {
    let place = Place::new();
    let socket = place.path("a.status");
    let port = place.command("a").with("--status-socket", &socket).start();
    let (status_code, text) = place.command("b").with("--status-socket", &socket).fail();
    assert_eq!(status_code, 1, "{text}");
    assert!(text.contains("is in use by process"), "{text}");
    assert_eq!(status(&socket)["id"], "a");
    port.end();
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn notify_tells_a_service_manager_that_the_port_serves_or_why_not() {
    let place = Place::new();
    let manager = ServiceManager::new(&place);
    let hear = || manager.hear();
    let port = place.command("a").notifying(&place.path("notify")).start();
    assert_eq!(hear(), "READY=1\n");
    // The socket exists then.
    drop(UnixStream::connect(&port.socket).unwrap());
    let (_, log) = place
        .command("b")
        .with("--id", "a")
        .notifying(&place.path("notify"))
        .fail();
    // The first one says who wanted its id.
    let others = "STATUS=Another port was started with this port's own id a";
    let told = std::iter::repeat_with(hear).find(|told| !told.starts_with(others));
    let told = told.unwrap();
    assert!(told.starts_with("STATUS=Port id a is taken"), "{told}");
    assert!(log.contains(told.trim().trim_start_matches("STATUS=")));
    port.end();
}

/// As systemd does with `WatchdogSec=`.
#[test]
fn watchdog_hears_of_the_port_as_long_as_it_works() {
    let place = Place::new();
    let manager = ServiceManager::new(&place);
    let hear = || manager.try_hear();
    let command = || place.command("a").notifying(&place.path("notify"));
    let port = command().env("WATCHDOG_USEC", "400000").start();
    let mut heard = Vec::new();
    while heard.iter().filter(|text| *text == "WATCHDOG=1\n").count() < 4 {
        heard.push(hear().unwrap());
    }
    assert!(heard.iter().any(|text| text == "READY=1\n"), "{heard:?}");
    port.signal(Signal::STOP);
    manager.socket.set_nonblocking(true).unwrap();
    // What it had sent before.
    while hear().is_ok() {}
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(hear().unwrap_err().kind(), ErrorKind::WouldBlock);
    port.signal(Signal::CONT);
    until("it is heard again", || hear().is_ok());
    port.end();
    // One that is for another process, such as the launcher of the port.
    while hear().is_ok() {}
    let port = command()
        .env("WATCHDOG_USEC", "400000")
        .env("WATCHDOG_PID", "1")
        .start();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(hear().unwrap(), "READY=1\n");
    assert_eq!(hear().unwrap_err().kind(), ErrorKind::WouldBlock);
    port.end();
}

/// The mode of a port's status socket in a segment of this mode.
fn mode_in_segment_of(mode: u32) -> u32 {
    let place = Place::new();
    std::fs::set_permissions(place.segment(), PermissionsExt::from_mode(mode)).unwrap();
    let port = place.start("a");
    let socket = place.segment().join("a.status");
    assert_eq!(status(&socket)["id"], "a");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    port.end();
    assert_eq!(place.files(), [""; 0]);
    mode & 0o777
}

#[test]
fn status_in_the_segment_is_for_its_group_and_never_for_everybody() {
    assert_eq!(mode_in_segment_of(0o700), 0o600);
    assert_eq!(mode_in_segment_of(0o3770), 0o660);
    assert_eq!(mode_in_segment_of(0o1777), 0o660);
}

#[test]
fn status_in_the_segment_is_made_again() {
    let place = Place::new();
    let port = place.start("a");
    let socket = place.segment().join("a.status");
    std::fs::remove_file(&socket).unwrap();
    until("the socket is there again", || socket.exists());
    assert_eq!(status(&socket)["pid"], port.pid());
    port.end();
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn status_name_that_another_process_has_keeps_no_port_from_its_work() {
    let place = Place::new();
    let name = place.segment().join("a.status");
    let other = UnixListener::bind(&name).unwrap();
    let own = place.path("own.status");
    let port = place.command("a").with("--status-socket", &own).start();
    let warnings = |code: &str| {
        let now = status(&own);
        let warnings = now["warnings"].as_array().unwrap();
        warnings
            .iter()
            .filter(|warning| warning["code"] == code)
            .count()
    };
    until("the warning", || warnings("file-lost") == 1);
    drop(other);
    until("its own socket", || {
        UnixStream::connect(&name).is_ok() && warnings("file-lost") == 0
    });
    assert_eq!(status(&name)["pid"], port.pid());
    port.end();
}

/// What is left of a port that was killed.
#[test]
fn status_of_a_dead_port_is_taken_over() {
    let place = Place::new();
    let port = place.start("a");
    port.signal(rustix::process::Signal::KILL);
    until("its end", || {
        UnixStream::connect(place.segment().join("a.status")).is_err()
    });
    assert!(place.segment().join("a.status").exists());
    let next = place.start("a");
    assert_eq!(status(&place.segment().join("a.status"))["pid"], next.pid());
    next.end();
}
