//! `virtio-inter capture` on running ports.

use std::fs::{self, File, Permissions};
use std::io::{Read, pipe};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::interface_statistics::{
    InterfaceStatisticsBlock, InterfaceStatisticsOption,
};
use pcap_file::pcapng::blocks::opt_common::CommonOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with,
};
use rustix::process::Signal;
use virtio_inter_test_support::process::Spawned;
use virtio_inter_test_support::skip;

use crate::guest::Guest;
use crate::process::{Place, Port, until};
use crate::status::status;

const PROGRAM: &str = env!("CARGO_BIN_EXE_virtio-inter");
const A: &str = "52:54:00:00:00:61";
const B: &str = "52:54:00:00:00:62";
const STRANGER: &str = "52:54:00:00:00:99";
const BROADCAST: &str = "ff:ff:ff:ff:ff:ff";

/// A capture into the file `captured` of its place.
struct Capture {
    process: Spawned,
    file: PathBuf,
}

/// The command line of a capture of these ports of the segment.
fn command(place: &Place, ports: &[&str], options: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("capture");
    command.args(ports.iter().map(|port| place.segment().join(port)));
    command.args(options).stdin(Stdio::null());
    command
}

impl Capture {
    /// A capture that runs.
    fn start(place: &Place, ports: &[&str], options: &[&str]) -> Self {
        let file = place.path("captured");
        let mut command = command(place, ports, options);
        command.arg("-w").arg(&file);
        let process = spawn(place, command);
        for port in ports {
            process.wait_for(&format!("/{port}"));
        }
        Self { process, file }
    }

    /// Ends it. It must exit with status 0.
    fn end(mut self) -> Captured {
        self.process.signal(Signal::INT);
        let status = self.process.wait();
        assert_eq!(status.code(), Some(0), "{}", self.process.log());
        read(&self.file)
    }
}

/// Runs a command with its standard error in the log file `capture.log`.
fn spawn(place: &Place, mut command: Command) -> Spawned {
    let log = place.path("capture.log");
    command.stderr(File::create(&log).unwrap());
    Spawned::new(&mut command, "virtio-inter capture", &log)
}

/// Runs a capture that ends by itself. Returns its exit status and what it says.
fn run(command: &mut Command) -> (i32, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    (status.code().expect("an exit status"), said)
}

/// What is in a file.
#[derive(Default)]
struct Captured {
    ports: Vec<InterfaceDescriptionBlock<'static>>,
    frames: Vec<EnhancedPacketBlock<'static>>,
    statistics: Vec<InterfaceStatisticsBlock<'static>>,
}

impl Captured {
    /// The comments of all frames, in order.
    fn comments(&self) -> Vec<String> {
        let of_frame = |frame: &EnhancedPacketBlock<'static>| {
            let comments = frame.options.iter().filter_map(|option| match option {
                EnhancedPacketOption::Common(CommonOption::Comment(text)) => Some(text.to_string()),
                _ => None,
            });
            comments.collect::<Vec<_>>().join("|")
        };
        self.frames.iter().map(of_frame).collect()
    }

    /// Position of the port of each frame, and whether it came from the guest.
    fn ways(&self) -> Vec<(u32, bool)> {
        let outbound = EnhancedPacketOption::Flags(2);
        let frames = self.frames.iter();
        frames
            .map(|frame| (frame.interface_id, frame.options.contains(&outbound)))
            .collect()
    }

    /// Frames that were seen and missed at a port.
    fn counts(&self, port: u32) -> (u64, u64) {
        let of_port = |block: &&InterfaceStatisticsBlock<'_>| block.interface_id == port;
        let block = self.statistics.iter().find(of_port).expect("statistics");
        let (mut seen, mut missed) = (0, 0);
        for option in &block.options {
            match option {
                InterfaceStatisticsOption::IsbIfRecv(count) => seen = *count,
                InterfaceStatisticsOption::IsbIfDrop(count) => missed = *count,
                _ => {}
            }
        }
        (seen, missed)
    }
}

fn read(file: &Path) -> Captured {
    let mut reader = PcapNgReader::new(File::open(file).unwrap()).unwrap();
    let mut captured = Captured::default();
    while let Some(block) = reader.next_block() {
        match block.unwrap().into_owned() {
            Block::InterfaceDescription(block) => captured.ports.push(block),
            Block::EnhancedPacket(block) => captured.frames.push(block),
            Block::InterfaceStatistics(block) => captured.statistics.push(block),
            other => panic!("{other:?}"),
        }
    }
    captured
}

/// Ports a and b of a place, linked, each with a guest.
fn two_guests(place: &Place) -> [(Port, Guest); 2] {
    let ports = [place.start("a"), place.start("b")];
    for port in &ports {
        port.wait_for("is up");
    }
    ports.map(|port| {
        let guest = Guest::new(&port, 2000);
        (port, guest)
    })
}

fn receive(guest: &mut Guest) -> Vec<u8> {
    let mut frame = None;
    until("a frame", || {
        frame = guest.receive();
        frame.is_some()
    });
    frame.unwrap()
}

#[test]
fn capture_of_two_ports_has_each_frame_at_both_in_order() {
    let place = Place::new();
    let [(a, mut guest_a), (b, mut guest_b)] = two_guests(&place);
    let capture = Capture::start(&place, &["a", "b"], &[]);
    guest_a.send(A, B, 100);
    let frame = receive(&mut guest_b);
    guest_b.send(B, A, 1000);
    receive(&mut guest_a);
    guest_a.send(STRANGER, B, 60);
    let captured = capture.end();

    use InterfaceDescriptionOption as O;
    let name = |port| O::IfName(place.segment().join(port).display().to_string().into());
    assert!(captured.ports[0].options.contains(&name("a")));
    assert!(captured.ports[1].options.contains(&name("b")));
    let mac = O::IfMacAddr(vec![0x52, 0x54, 0, 0, 0, 0x62].into());
    assert!(captured.ports[1].options.contains(&mac));
    let description = O::IfDescription("virtio-inter port, MTU 1500, features VERSION_1".into());
    assert!(
        captured.ports[0].options.contains(&description),
        "{:?}",
        captured.ports[0]
    );
    let expected = [(0, true), (1, false), (1, true), (0, false), (0, true)];
    assert_eq!(captured.ways(), expected);
    let lost = "dropped: tx_spoofed (Linux: MAC_INVALID_SOURCE)";
    assert_eq!(captured.comments(), ["", "", "", "", lost]);
    let lengths = captured.frames.iter().map(|frame| frame.original_len);
    assert_eq!(lengths.collect::<Vec<_>>(), [100, 100, 1000, 1000, 60]);
    assert_eq!(captured.frames[1].data, frame);
    assert_eq!(captured.frames[2].data.len(), 256, "snap length");
    assert_eq!((captured.counts(0), captured.counts(1)), ((3, 0), (2, 0)));
    a.wait_for("End of the capture by process");
    let mode = fs::metadata(place.path("captured")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    a.end();
    b.end();
}

#[test]
fn capture_has_the_frames_that_its_options_choose() {
    let place = Place::new();
    let [(_a, mut guest_a), (_b, mut guest_b)] = two_guests(&place);
    let lengths = |options: &[&str], guest_a: &mut Guest, guest_b: &mut Guest| {
        let capture = Capture::start(&place, &["a"], options);
        guest_a.send(A, B, 100);
        receive(guest_b);
        guest_b.send(B, A, 200);
        receive(guest_a);
        guest_a.send(STRANGER, B, 60);
        let captured = capture.end();
        let frames = captured.frames.iter();
        let lengths = frames.map(|frame| (frame.original_len, frame.data.len()));
        lengths.collect::<Vec<_>>()
    };
    let mut choose = |options: &[&str]| lengths(options, &mut guest_a, &mut guest_b);
    assert_eq!(
        choose(&["--snaplen", "70"]),
        [(100, 70), (200, 70), (60, 60)]
    );
    assert_eq!(choose(&["--direction", "tx"]), [(100, 100), (60, 60)]);
    assert_eq!(choose(&["--direction", "rx"]), [(200, 200)]);
    assert_eq!(choose(&["--drops"]), [(60, 60)]);
    // Accepts frames that are longer than 150 bytes.
    let filter = "4,128 0 0 0,37 0 1 150,6 0 0 1,6 0 0 0";
    assert_eq!(choose(&["--filter", filter]), [(200, 200)]);
    assert_eq!(
        choose(&["--filter", filter, "--snaplen", "20"]),
        [(200, 20)]
    );
}

#[test]
fn capture_takes_expressions_that_tcpdump_translates() {
    if Command::new("tcpdump").arg("--version").output().is_err() {
        return skip("tcpdump is not installed");
    }
    let place = Place::new();
    let [(_a, mut guest_a), (_b, mut guest_b)] = two_guests(&place);
    let filter = format!("ether dst {B} and len > 90");
    let capture = Capture::start(&place, &["a"], &["--filter", &filter]);
    for len in [60, 100] {
        guest_a.send(A, B, len);
        receive(&mut guest_b);
    }
    let captured = capture.end();
    assert_eq!(captured.frames.len(), 1);
    assert_eq!(captured.frames[0].original_len, 100);
    let (status, said) = run(&mut command(&place, &["a"], &["--filter", "no such thing"]));
    assert_eq!(status, 2, "{said}");
    assert!(said.contains("Cannot translate --filter"), "{said}");
}

#[test]
fn capture_ends_after_so_many_frames() {
    let place = Place::new();
    let [(_a, mut guest_a), (_b, mut guest_b)] = two_guests(&place);
    let mut capture = Capture::start(&place, &["a"], &["--count", "3"]);
    for _ in 0..5 {
        guest_a.send(A, BROADCAST, 60);
        receive(&mut guest_b);
    }
    assert_eq!(capture.process.wait().code(), Some(0));
    assert_eq!(read(&capture.file).frames.len(), 3);
}

/// Wireshark's own reader.
#[test]
fn capture_is_read_by_tshark() {
    if Command::new("tshark").arg("--version").output().is_err() {
        return skip("tshark is not installed");
    }
    let place = Place::new();
    let [(_a, mut guest_a), (_b, mut guest_b)] = two_guests(&place);
    // Live, through a pipe.
    let mut command = command(&place, &["a"], &["--write", "-"]);
    let mut tshark = Command::new("tshark");
    tshark.args(["-r", "-", "-T", "fields", "-E", "separator=;"]);
    for field in [
        "frame.interface_name",
        "eth.dst",
        "frame.len",
        "frame.packet_flags_direction",
        "frame.interface_queue",
        "frame.verdict.ebpf_tc",
        "frame.comment",
    ] {
        tshark.args(["-e", field]);
    }
    let (reader, writer) = pipe().unwrap();
    command.stdout(writer);
    let capture = spawn(&place, command);
    let tshark = tshark
        .stdin(reader)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    capture.wait_for("Capturing frames");
    guest_a.send(A, B, 100);
    receive(&mut guest_b);
    guest_b.send(B, A, 200);
    receive(&mut guest_a);
    guest_a.send(STRANGER, B, 60);
    capture.signal(Signal::INT);
    let output = tshark.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // Some versions print flags in another form.
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines.replace("0x0000000", "");
    let name = place.segment().join("a").display().to_string();
    let expected = [
        format!("{name};{B};100;2;0;0;"),
        format!("{name};{A};200;1;0;0;"),
        format!("{name};{B};60;2;0;2;dropped: tx_spoofed (Linux: MAC_INVALID_SOURCE)"),
    ];
    assert_eq!(lines.lines().collect::<Vec<_>>(), expected, "{said}");
}

#[test]
fn capture_of_a_port_that_ends_has_what_came_before() {
    for signal in [Signal::TERM, Signal::KILL] {
        let place = Place::new();
        let [(a, mut guest_a), (_b, mut guest_b)] = two_guests(&place);
        let mut capture = Capture::start(&place, &["a"], &[]);
        guest_a.send(A, B, 100);
        receive(&mut guest_b);
        a.signal(signal);
        assert_eq!(capture.process.wait().code(), Some(1));
        let log = capture.process.log();
        assert!(
            log.contains("what it captured until then is written"),
            "{log}"
        );
        assert_eq!(read(&capture.file).frames.len(), 1);
    }
}

#[test]
fn capture_without_a_reader_ends() {
    let place = Place::new();
    let a = place.start("a");
    let mut command = command(&place, &["a"], &[]);
    let (mut reader, writer) = pipe().unwrap();
    command.stdout(writer);
    let mut capture = spawn(&place, command);
    // The command has the other writing end.
    reader.read_exact(&mut [0; 100]).unwrap();
    drop(reader);
    let status = capture.wait();
    let log = capture.log();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(
        log.contains("Nobody reads standard output any more"),
        "{log}"
    );
    a.wait_for("End of the capture");
    a.end();
}

#[test]
fn capture_onto_a_full_device_keeps_whole_frames() {
    let place = Place::new();
    let [(a, mut guest_a), (_b, mut guest_b)] = two_guests(&place);
    let (status, said) = run(&mut command(&place, &["a"], &["-w", "/dev/full"]));
    assert_eq!(status, 1, "{said}");
    assert!(
        said.contains("Cannot write to /dev/full; it has the first 0 frames: No space left"),
        "{said}"
    );
    a.wait_for("End of the capture");

    // 8 KiB, in which the blocks of some 70 frames fit.
    let mut limited = Command::new("bash");
    limited.args(["-c", "ulimit -f 8; exec \"$0\" \"$@\"", PROGRAM]);
    let file = place.path("captured");
    limited.arg("capture").arg(place.segment().join("a"));
    limited.arg("-w").arg(&file);
    let mut capture = spawn(&place, limited);
    capture.wait_for("Capturing frames");
    for _ in 0..200 {
        guest_a.send(A, B, 60);
        receive(&mut guest_b);
    }
    assert_eq!(capture.wait().code(), Some(1));
    let frames = read(&file).frames.len();
    assert!((50..100).contains(&frames), "{frames}");
    let log = capture.log();
    let told = format!("it has the first {frames} frames: File too large");
    assert!(log.contains(&told), "{log}");
}

#[test]
fn capture_of_what_is_no_port_is_told() {
    let place = Place::new();
    let mut a = place.command("gateway").start();
    for (port, code, told) in [
        ("gatewya", 1, "did you mean gateway?"),
        ("", 2, "is a segment; name a port of it"),
    ] {
        let (status, said) = run(&mut command(&place, &[port], &["-w", "/dev/null"]));
        assert_eq!(status, code, "{said}");
        assert!(said.contains(told), "{said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    }
    a.signal(Signal::KILL);
    a.wait();
    let (status, said) = run(&mut command(&place, &["gateway"], &["-w", "/dev/null"]));
    assert_eq!(status, 1, "{said}");
    let told = "nobody listens: the port was killed";
    assert!(said.contains(told), "{said}");
}

#[test]
fn capture_beside_another_is_refused() {
    let place = Place::new();
    let [(_a, mut guest_a), (_b, mut guest_b)] = two_guests(&place);
    let capture = Capture::start(&place, &["a"], &[]);
    let (code, said) = run(&mut command(&place, &["a"], &["-w", "/dev/null"]));
    assert_eq!(code, 1, "{said}");
    let told = format!("process {} captures its frames", capture.process.pid());
    assert!(said.contains(&told), "{said}");
    let captured = || status(&place.segment().join("a.status"))["capture"].clone();
    assert_eq!(captured()["pid"], capture.process.pid());
    guest_a.send(A, B, 100);
    receive(&mut guest_b);
    assert_eq!(capture.end().frames.len(), 1);
    // When it has ended, there can be another one.
    let again = Capture::start(&place, &["a"], &[]);
    assert_eq!(again.end().frames.len(), 0);
    until("the status says so", || captured().is_null());
}

/// Members of the segment's group may read the status, but see no frames.
#[test]
fn capture_is_for_root_and_the_ports_user_alone() {
    const MEMBER: u32 = 65_533;
    let place = Place::new();
    let Some(port) = place.command("a").by_ordinary_user() else {
        return skip("an ordinary user cannot run the program");
    };
    if !rustix::process::geteuid().is_root() {
        return skip("another user needs root");
    }
    for (path, mode) in [("", 0o755), ("segment", 0o2770)] {
        let path = place.path(path);
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    let a = port.start();
    let socket = place.segment().join("a.capture");
    let mode = || fs::metadata(&socket).unwrap().mode() & 0o777;
    until("the socket", || socket.exists());
    assert_eq!(mode(), 0o600);
    let capture = || {
        let mut command = command(&place, &["a"], &["-w", "/dev/null"]);
        let group = fs::metadata(place.segment()).unwrap().gid();
        run(command.uid(MEMBER).gid(group))
    };
    let (status, said) = capture();
    assert_eq!(status, 1, "{said}");
    assert!(
        said.contains("only root and the port's own user may"),
        "{said}"
    );
    // Whatever somebody does to the socket's mode.
    fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
    let (status, said) = capture();
    assert_eq!(status, 1, "{said}");
    let told = "only root and user 65534, whose port this is, may capture its frames";
    assert!(said.contains(told), "{said}");
    // Root may.
    let capture = Capture::start(&place, &["a"], &[]);
    capture.end();
    a.end();
}

/// Whatever a client says, the port serves its guest and the next client.
#[test]
fn capture_socket_survives_its_clients() {
    let place = Place::new();
    let [(a, mut guest_a), (_b, mut guest_b)] = two_guests(&place);
    let address = SocketAddrUnix::new(place.segment().join("a.capture")).unwrap();
    let client = || {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        connect(&socket, &address).unwrap();
        socket
    };
    // A ring, with its descriptors, is made for the first frame.
    guest_a.send(A, B, 100);
    receive(&mut guest_b);
    let descriptors = a.descriptors();
    let mut clients = Vec::new();
    let long = vec![b'['; 60_000];
    let requests: [&[u8]; 6] = [
        b"",
        b"{",
        b"{\"version\":7,\"snaplen\":1,\"transmit\":true,\"receive\":true,\"losses_only\":false}",
        b"{\"version\":1,\"snaplen\":1,\"transmit\":false,\"receive\":false,\"losses_only\":false}",
        &long,
        // One that is served, and hangs up at once.
        b"{\"version\":1,\"snaplen\":4000000000,\"transmit\":true,\"receive\":true,\
          \"losses_only\":false}",
    ];
    for _ in 0..5 {
        for request in requests {
            let socket = client();
            let _ = send(&socket, request, SendFlags::NOSIGNAL);
        }
        // Says nothing, and stays.
        clients.push(client());
    }
    for _ in 0..20 {
        clients.push(client());
    }
    guest_a.send(A, B, 100);
    receive(&mut guest_b);
    until("four clients are left", || {
        a.descriptors() <= descriptors + 4
    });
    drop(clients);
    let capture = Capture::start(&place, &["a"], &[]);
    guest_a.send(A, B, 100);
    receive(&mut guest_b);
    assert_eq!(capture.end().frames.len(), 1);
    a.end();
}

/// Ports are interfaces of Wireshark's programs. Started by root, those have extcap directories of
/// the system only.
#[test]
fn extcap_offers_ports_to_wireshark() {
    const NOBODY: u32 = 65_534;
    if Command::new("tshark").arg("--version").output().is_err() {
        return skip("tshark is not installed");
    }
    let place = Place::new();
    let commands = ["a", "b"].map(|id| place.command(id).by_ordinary_user());
    let [Some(a), Some(b)] = commands else {
        return skip("an ordinary user cannot run the program");
    };
    let [a, b] = [a, b].map(|command| command.start());
    for port in [&a, &b] {
        port.wait_for("is up");
    }
    let [mut guest_a, mut guest_b] = [&a, &b].map(|port| Guest::new(port, 2000));
    let directory = place.path("extcap");
    fs::create_dir(&directory).unwrap();
    let script = directory.join("virtio-inter");
    let segment = place.segment();
    // What the package has, for this program and this segment.
    let packaged = include_str!("../../../dist/wireshark/virtio-inter");
    let name = "exec virtio-inter extcap";
    assert_eq!(packaged.matches(name).count(), 1, "{packaged}");
    let line = format!("exec {PROGRAM} extcap {}", segment.display());
    fs::write(&script, packaged.replace(name, &line)).unwrap();
    for path in [&directory, &script] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let tshark = || {
        let mut tshark = Command::new("tshark");
        tshark
            .env("WIRESHARK_EXTCAP_DIR", &directory)
            .env("HOME", place.path(""))
            .env("TMPDIR", place.path(""))
            .stdin(Stdio::null());
        if rustix::process::geteuid().is_root() {
            tshark.uid(NOBODY).gid(NOBODY);
        }
        tshark
    };
    let output = tshark().arg("-D").output().unwrap();
    let list = String::from_utf8_lossy(&output.stdout);
    let name = segment.join("a").display().to_string();
    let expected = format!("{name} (virtio-inter port)");
    assert!(list.contains(&expected), "{list}");
    // It asks by --extcap-dlts.
    let output = tshark().args(["-L", "-i", &name]).output().unwrap();
    let types = String::from_utf8_lossy(&output.stdout);
    assert!(types.contains("EN10MB (Ethernet)"), "{types}");
    // It asks by --extcap-config. What it does not understand it leaves out.
    let output = tshark().args(["-G", "currentprefs"]).output().unwrap();
    let preferences = String::from_utf8_lossy(&output.stdout);
    for option in ["_a.snaplen: 256", "_a.direction: ", "_a.drops: false"] {
        assert!(preferences.contains(option), "{option}: {preferences}");
    }
    let (mut reader, writer) = pipe().unwrap();
    let log = place.path("tshark.log");
    let mut live = tshark();
    live.args(["-i", &name, "-c", "2", "-T", "fields", "-e", "frame.len"])
        .stdout(writer)
        .stderr(File::create(&log).unwrap());
    let mut process = Spawned::new(&mut live, "tshark", &log);
    drop(live);
    a.wait_for("Capture of frames by process");
    for len in [100, 200] {
        guest_a.send(A, B, len);
        receive(&mut guest_b);
    }
    let mut lengths = String::new();
    reader.read_to_string(&mut lengths).unwrap();
    assert_eq!(lengths, "100\n200\n", "{}", process.log());
    assert_eq!(process.wait().code(), Some(0));
}

/// Wireshark shows the options as --extcap-config describes them, and passes them on.
#[test]
fn extcap_describes_options_as_the_program_takes_them() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.args(["extcap", "--extcap-interface", "web/a"]);
        let output = command.args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), text)
    };
    let ethernet = "dlt {number=1}{name=EN10MB}{display=Ethernet}\n";
    assert_eq!(run(&["--extcap-dlts"]), (Some(0), ethernet.to_owned()));
    let (code, config) = run(&["--extcap-config"]);
    assert_eq!(code, Some(0));
    let field = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!("{{{name}="))?;
        Some(rest.split('}').next().unwrap().to_owned())
    };
    let mut options = Vec::new();
    for line in config.lines() {
        let Some(call) = field(line, "call") else {
            continue;
        };
        let number = field(line, "number").unwrap();
        let values: Vec<String> = config
            .lines()
            .filter(|line| line.starts_with("value") && field(line, "arg").unwrap() == number)
            .map(|line| field(line, "value").unwrap())
            .collect();
        match field(line, "type").unwrap().as_str() {
            "boolflag" => assert_eq!(run(&[&call]).0, Some(0), "{call}"),
            "selector" => {
                assert!(!values.is_empty(), "{call}");
                for value in values {
                    assert_eq!(run(&[&call, &value]).0, Some(0), "{call} {value}");
                }
            }
            "integer" => {
                let range = field(line, "range").unwrap();
                let (low, high) = range.split_once(',').unwrap();
                let default = field(line, "default").unwrap();
                for value in [low, high, &default] {
                    assert_eq!(run(&[&call, value]).0, Some(0), "{call} {value}");
                }
                let more = (high.parse::<u32>().unwrap() + 1).to_string();
                assert_eq!(run(&[&call, &more]).0, Some(2), "{call} {more}");
            }
            kind => panic!("{kind}"),
        }
        options.push(call);
    }
    assert_eq!(options, ["--snaplen", "--direction", "--drops"]);
}
