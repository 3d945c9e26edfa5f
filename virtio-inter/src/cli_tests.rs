//! Tests of the command line.

use virtio_inter_device::TokenBucketConfig;
use virtio_inter_segment::Limits;

use super::*;

const GOOD: [&str; 10] = [
    "virtio-inter",
    "port",
    "--socket",
    "/run/a.sock",
    "--segment",
    "/run/s",
    "--id",
    "a",
    "--mac",
    "52:54:00:00:00:01",
];

fn parse_with(extra: &[&str]) -> Result<PortArgs, String> {
    let arguments = GOOD.iter().chain(extra).map(OsString::from);
    match parse(arguments) {
        Ok(Cli {
            command: Command::Port(port),
            ..
        }) => Ok(port),
        Ok(_) => Err("not the command of a port".to_owned()),
        Err(error) => Err(explain(&error)),
    }
}

#[test]
fn cli_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn cli_has_the_documented_defaults() {
    let port = parse_with(&[]).unwrap();
    assert_eq!((port.mtu, port.queues, port.queue_size), (1500, 1, 1024));
    assert_eq!(port.ring_size, virtio_inter_link::DEFAULT_CAPACITY);
    // The segment's own.
    let (limits, defaults) = (port.limits.limits(), Limits::default());
    assert_eq!(format!("{limits:?}"), format!("{defaults:?}"));
}

#[test]
fn limit_options_are_the_segments_limits() {
    let limits = |extra: &[&str]| parse_with(extra).unwrap().limits.limits();
    let few = limits(&[
        "--max-peers=3",
        "--max-link-memory=2M",
        "--max-user-share=50",
    ]);
    assert_eq!(
        (few.max_peers, few.max_ring_bytes, few.user_share),
        (3, 2 << 20, 50)
    );
    assert_eq!(few.max_rings, 8192);
    // Each peer may have some.
    assert_eq!(limits(&["--max-peers=2000"]).max_rings, 16_000);
    assert_eq!(limits(&["--max-peers=65535"]).max_rings, 20_000);
}

#[test]
fn rate_limit_options_are_for_both_directions_or_for_each() {
    let limits = |extra: &[&str]| {
        let port = parse_with(extra)?;
        let limits = port.config().rate_limits;
        let sizes = [limits.transmit, limits.receive].map(|limit| {
            let size = |bucket: Option<TokenBucketConfig>| bucket.map_or(0, |b| b.size);
            (size(limit.bandwidth), size(limit.packets))
        });
        Ok::<_, String>(sizes)
    };
    assert_eq!(limits(&[]), Ok([(0, 0); 2]));
    let both = "--bandwidth=size=1M,refill_time=1000";
    assert_eq!(limits(&[both]), Ok([(1 << 20, 0); 2]));
    let transmit = "--packets=direction=tx,size=5,refill_time=10";
    let receive = "--packets=direction=rx,size=6,refill_time=10";
    assert_eq!(limits(&[transmit]), Ok([(0, 5), (0, 0)]));
    assert_eq!(
        limits(&[both, transmit, receive]),
        Ok([(1 << 20, 5), (1 << 20, 6)])
    );
    let error = limits(&[receive, transmit, receive]).unwrap_err();
    assert!(error.contains("--packets"), "{error}");
    assert!(error.contains("what the VM gets has two limits"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn size_options_take_suffixes() {
    let port = parse_with(&["--ring-size", "1M", "--queue-size", "4K", "--mtu", "9K"]).unwrap();
    assert_eq!(
        (port.ring_size, port.queue_size, port.mtu),
        (1 << 20, 4096, 9216)
    );
    let error = parse_with(&["--ring-size", "128K"]).unwrap_err();
    assert!(
        error.contains("a power of two from 256K to 64M is needed"),
        "{error}"
    );
}

#[test]
fn segment_option_is_a_name_or_a_path() {
    let segment = |value: &str| {
        let mut arguments = GOOD.map(OsString::from).to_vec();
        arguments[5] = value.into();
        let Command::Port(port) = parse(arguments).unwrap().command else {
            unreachable!("it is the command of a port")
        };
        port.segment
    };
    assert_eq!(segment("web"), PathBuf::from("/run/virtio-inter/web"));
    assert_eq!(
        segment("./web"),
        std::env::current_dir().unwrap().join("web")
    );
}

#[test]
fn socket_options_become_absolute_where_they_fit() {
    let here = std::env::current_dir().unwrap();
    let port = parse_with(&["--status-socket", "s"]).unwrap();
    assert_eq!(port.status_socket, Some(here.join("s")));
    let long = "x".repeat(107);
    let port = parse_with(&["--status-socket", &long]).unwrap();
    assert_eq!(port.status_socket, Some(long.into()));
}

/// They are about a socket that the port makes.
#[test]
fn client_option_excludes_those_of_a_socket_of_the_ports_own() {
    assert!(parse_with(&["--client"]).unwrap().client);
    for option in ["--socket-group=0", "--socket-mode=0660"] {
        let error = parse_with(&["--client", option]).unwrap_err();
        assert!(error.contains("cannot be used with"), "{error}");
    }
}

#[test]
fn fd_option_takes_the_place_of_the_socket_option() {
    let parse_line = |line: &str| {
        let cli = parse(line.split(' ').map(OsString::from));
        cli.map(|cli| match cli.command {
            Command::Port(port) => port,
            _ => unreachable!("it is the command of a port"),
        })
        .map_err(|error| explain(&error))
    };
    let rest = "--segment /run/s --id a --mac 52:54:00:00:00:01";
    let port = parse_line(&format!("virtio-inter port --fd 3 {rest}")).unwrap();
    assert_eq!((port.fd, port.socket), (Some(3), None));
    let error = parse_line(&format!("virtio-inter port {rest}")).unwrap_err();
    assert!(error.contains("--socket <PATH>"), "{error}");
    for option in [
        "--client",
        "--socket-group=0",
        "--socket-mode=0660",
        "--socket=/run/a",
    ] {
        let error = parse_line(&format!("virtio-inter port --fd 3 {option} {rest}"));
        let error = error.unwrap_err();
        assert!(error.contains("cannot be used with"), "{error}");
    }
    let error = parse_line(&format!("virtio-inter port --fd 2 {rest}")).unwrap_err();
    assert!(error.contains("from 3 on"), "{error}");
    // As QEMU's conventions have it.
    let link = "/usr/bin/virtio-inter-port --socket-path=/run/a";
    let port = parse_line(&format!("{link} {rest}")).unwrap();
    assert_eq!(port.socket, Some("/run/a".into()));
}

#[test]
fn cli_bounds_are_inclusive() {
    for (option, value) in [
        ("--mtu", "68"),
        ("--mtu", "65535"),
        ("--queues", "1"),
        ("--queues", "64"),
        ("--queue-size", "2"),
        ("--queue-size", "32768"),
    ] {
        parse_with(&[option, value]).unwrap();
    }
}

#[test]
fn values_that_are_wrong_are_reported_in_one_line() {
    for (option, value, reason) in [
        ("--mtu", "67", "67 is not in 68..=65535"),
        ("--mtu", "65536", "65536 is not in 68..=65535"),
        ("--mtu", "big", "not a whole number"),
        ("--queues", "0", "0 is not in 1..=64"),
        ("--queues", "65", "65 is not in 1..=64"),
        (
            "--queue-size",
            "0",
            "a power of two from 2 to 32K is needed",
        ),
        (
            "--queue-size",
            "1000",
            "a power of two from 2 to 32K is needed",
        ),
        (
            "--queue-size",
            "65536",
            "a power of two from 2 to 32K is needed",
        ),
        ("--ring-size", "1000", "a power of two from"),
        ("--max-peers", "0", "0 is not in 1..=65535"),
        ("--max-link-memory", "32K", "64K or more are needed"),
        ("--max-user-share", "0", "0 is not in 1..=100"),
        ("--max-user-share", "101", "101 is not in 1..=100"),
        ("--bandwidth", "10M", "'10M' is not KEY=VALUE"),
        ("--ip", "10.0.0.7/24", "10.0.0.0/24 has none"),
        ("--packets", "size=9", "refill_time is missing"),
        ("--uplink-offload", "no", "on or off is needed"),
        ("--uplink-offload", "off", "no uplink (--uplink)"),
    ] {
        let error = parse_with(&[option, value]).unwrap_err();
        assert!(error.contains(reason) && error.contains(option), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn names_and_addresses_that_are_wrong_are_reported_in_one_line() {
    let long = "x".repeat(108);
    for (option, value, reason) in [
        ("--mac", "01:00:00:00:00:01", "multicast"),
        ("--mac", "00:00:00:00:00:00", "zero"),
        ("--mac", "52:54", "six pairs"),
        ("--id", "a/b", "'/'"),
        ("--id", "", "empty"),
        ("--socket", &long, "108 bytes"),
        ("--socket", "", "empty"),
        ("--socket", "@a", "abstract socket"),
        ("--segment", "", "empty"),
        ("--segment", "..", "neither a name"),
    ] {
        let mut arguments = GOOD.map(OsString::from).to_vec();
        let at = GOOD
            .iter()
            .position(|argument| *argument == option)
            .unwrap();
        arguments[at + 1] = value.into();
        let error = explain(&parse(arguments).unwrap_err());
        assert!(error.contains(reason), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
