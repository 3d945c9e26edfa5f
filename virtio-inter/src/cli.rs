//! The command line: subcommands, options and their values, and error messages.

use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand, value_parser};
use rustix::process::geteuid;
use virtio_inter_args::{
    Group, SocketPathError, User, absolute, check_socket_path, format_size, parse_size,
    segment_directory,
};
use virtio_inter_common::{Guard, IpSets, MAX_QUEUE_PAIRS, MacAddr, MacSets, PortId};
use virtio_inter_device::{BusyPollConfig, PortConfig};
use virtio_inter_host::args::{
    CaptureArgs, CheckArgs, EventsArgs, ExporterArgs, ExtcapArgs, ListArgs, PingArgs,
    SegmentCommand, ShowArgs, TopArgs,
};
use virtio_inter_segment::{LocalPort, MIN_MTU, Uplinks};

use crate::limit_args::LimitArgs;
use crate::rate_limit_args::RateLimitArgs;
use crate::sandbox::SandboxArgs;
use crate::socket_access::{SocketAccess, SocketMode, owner};
use crate::uplink::UplinkArg;

/// Most entries of a split virtqueue (VIRTIO 1.3, 2.7).
const MAX_QUEUE_SIZE: u16 = 32768;

/// Network between the VMs of one host, through shared memory.
#[derive(Debug, Parser)]
#[command(
    version,
    propagate_version = true,
    after_help = "If a VM has no network, begin with: virtio-inter check"
)]
pub struct Cli {
    /// Log more than milestones, warnings and errors: -v adds debug messages, -vv all. RUST_LOG
    /// takes precedence
    #[arg(short, long, action = ArgAction::Count, global = true, display_order = 100)]
    pub verbose: u8,
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Attach one VM to a segment, as a vhost-user network backend
    #[command(after_help = PORT_HELP)]
    Port(PortArgs),
    /// Connect a segment to another network, for its ports that have no uplink of their own
    #[command(after_help = UPLINK_HELP)]
    Uplink(UplinkArgs),
    /// List the ports of this host, one per line
    #[command(after_help = HOST_HELP)]
    List(ListArgs),
    /// Show the state of ports: warnings, VMM, features, peers, counters
    #[command(after_help = HOST_HELP)]
    Show(ShowArgs),
    /// Look for what needs an operator: warnings, refusals, dead ports, directories, limits
    #[command(after_help = CHECK_HELP)]
    Check(CheckArgs),
    /// Show the rates of ports again and again
    Top(TopArgs),
    /// Look whether a port answers, whether its guest takes frames, and whether those of the guest
    /// get anywhere
    #[command(after_help = PING_HELP)]
    Ping(PingArgs),
    /// Make, remove or list segments
    #[command(subcommand)]
    Segment(SegmentCommand),
    /// Print what happens to ports, as it happens: JSON, one object on each line
    #[command(after_help = HOST_HELP)]
    Events(EventsArgs),
    /// Serve or write metrics of all ports for Prometheus, as long as it runs
    Exporter(ExporterArgs),
    /// Capture frames of ports into a pcapng file, for Wireshark and tshark
    #[command(after_help = CAPTURE_HELP)]
    Capture(CaptureArgs),
    /// Offer ports to Wireshark as interfaces: for a script in its extcap directory
    #[command(after_help = EXTCAP_HELP)]
    Extcap(ExtcapArgs),
}

impl Command {
    /// Whether it runs for a service manager, or for somebody who keeps its log.
    pub fn is_daemon(&self) -> bool {
        matches!(self, Self::Port(_) | Self::Uplink(_) | Self::Exporter(_))
    }
}

/// One line for each paragraph: clap wraps them.
const HOST_HELP: &str = "\
A port answers root, its own user, the owner of its segment's directory, and the members of that \
directory's group if the group may write there.

States: running; no driver (the guest has not started its driver, or the VM is paused); not \
started (the driver has, and the port cannot serve its queues: check says why); no VMM; active \
and standby (of an uplink); gone (killed, its files are left); silent (stopped); denied; \
unreadable (a segment's directory); invalid (what answers is no port); no status (of an older \
version, or starting).";

/// One line for each paragraph: clap wraps them.
const CHECK_HELP: &str = "\
Exit status: 0 if nothing was found, also where there is no port; 1 if something was; 2 if the \
command line is wrong; 3 if the check failed. As a monitoring plug-in: OK, WARNING, CRITICAL and \
UNKNOWN.";

/// One line for each paragraph: clap wraps them.
const PING_HELP: &str = "\
The question goes to the port's process and not to the guest: nothing is sent on the segment. \
Whether the guest takes frames shows by those that others send to it between two questions.

Exit status: 0 if the last answer was good; 1 if there was none, if the guest takes no frames, if \
all that it sends is lost, or if the port has a current warning; 2 if the command line is wrong.";

/// One line for each paragraph: clap wraps them.
const CAPTURE_HELP: &str = "\
Live: virtio-inter capture web/vm1 | wireshark -k -i -

A port lets root and its own user capture, one at a time. It never waits for the capture: frames \
that it has no room for are counted, and the count is in the file. Each frame has its direction, \
queue and verdict; in comments, the reason of a loss (a counter of the status document) and the \
state of its offloads.

Exit status: 0 after SIGTERM, SIGINT or SIGHUP, after --count frames, or when nobody reads \
standard output any more; 1 if a port cannot be captured or ended, or the file cannot be written; \
2 if the command line is wrong.";

/// One line for each paragraph: clap wraps them.
const EXTCAP_HELP: &str = "\
Wireshark starts all programs in its extcap directories, which `tshark -G folders` lists. A script \
there makes ports interfaces: exec virtio-inter extcap \"$@\"\n\
The Debian package has it where Debian's Wireshark looks.";

/// One line for each paragraph: clap wraps them.
const PORT_HELP: &str = "\
The port serves one frontend after another on its socket: a VMM such as Cloud Hypervisor, QEMU or \
User Mode Linux, or DPDK's virtio_user. SIGTERM, SIGINT or SIGHUP ends it; the same signal again, \
1 s later or more, kills it at once.

The VM's memory must be shared with the port: --memory shared=on (Cloud Hypervisor), or -object \
memory-backend-memfd,share=on (QEMU).

BYTES and ENTRIES may have a suffix: K for 2^10, M for 2^20, G for 2^30, T for 2^40. A relative \
PATH or DIR is relative to the working directory. Beside each socket the port locks the file \
PATH.lock. A later port takes the socket over if the lock is free, and waits up to 5 s for a port \
that was killed or is exiting. The port restores both files if something else removes them; do not \
keep them where files are removed by age, as in /tmp.

If the environment variable NOTIFY_SOCKET is set (systemd: Type=notify), the port reports READY=1 \
when it serves.

Exit status: 0 after SIGTERM, SIGINT or SIGHUP, 1 if the port cannot run, 2 if the command line is \
wrong.";

/// Options of `virtio-inter port`.
#[derive(Debug, Clone, Args)]
pub struct PortArgs {
    /// Unix socket on which the port waits for the VMM (vhost-user), or the VMM for the port
    /// (--client). At most 107 bytes; abstract sockets are not supported
    #[arg(long, visible_alias = "socket-path", value_name = "PATH",
          value_parser = socket_path_parser(), required_unless_present = "fd")]
    pub socket: Option<PathBuf>,
    /// Descriptor with which the port is started, instead of --socket: a Unix socket that listens,
    /// as that of a systemd socket unit, which is the first one, 3; or the connection to the VMM,
    /// with whose end the port ends
    #[arg(long, value_name = "N", value_parser = parse_fd, conflicts_with_all =
          ["socket", "client", "allow_public_directory", "socket_group", "socket_mode"])]
    pub fd: Option<RawFd>,
    /// Print what QEMU's conventions of vhost-user back-ends ask for, and do nothing else
    #[arg(long, exclusive = true)]
    pub print_capabilities: bool,
    /// Connect to the VMM, which listens on --socket (QEMU: server=on; libvirt: mode='server';
    /// Cloud Hypervisor: vhost_mode=server), again and again until it does, and when it has ended
    #[arg(long, conflicts_with_all = ["socket_group", "socket_mode"])]
    pub client: bool,
    /// Accept a --socket in a directory to which every user can write, such as /tmp. Any local user
    /// can take the socket's place there before the port starts, and gets the VM's memory; with
    /// --client its place on the segment
    #[arg(long)]
    pub allow_public_directory: bool,
    /// Group of the socket, by name or number, whose members may run the VMM: the port and the VMM
    /// then have different users. The port's user must be a member, or root
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<Group>,
    /// Mode of the socket, octal, nothing for other users; by default what the umask leaves, and
    /// 0660 with --socket-group
    #[arg(long, value_name = "MODE")]
    pub socket_mode: Option<SocketMode>,
    /// Segment to join: a name, for a directory of /run/virtio-inter, or a path with a '/' in it.
    /// The directory must exist; every user with write permission on it can join
    #[arg(long, value_name = "NAME|DIR", value_parser = segment_parser())]
    pub segment: PathBuf,
    /// Name of the port, unique on the segment: 1 to 64 letters, digits, '.', '_' or '-'
    #[arg(long, value_name = "NAME")]
    pub id: PortId,
    /// MAC address of the VM's interface, unique on the segment and unicast, as in
    /// 52:54:00:00:00:01
    #[arg(long)]
    pub mac: MacAddr,
    /// Addresses that the VM may use beside --mac, for a bridge, macvlan, containers or VRRP: up to
    /// 64, separated by commas. 00:00:5e:00:01:* allows all addresses with these first bytes, of
    /// which 3 to 5 must be given. Where several ports list an address, it belongs to the port that
    /// sent from it last
    #[arg(long, value_name = "LIST", value_parser = value_parser!(MacSets))]
    pub allow_mac: Option<MacSets>,
    /// IP addresses that the VM may have, as in 10.0.0.7,fd00::/64: up to 16 addresses and
    /// prefixes, separated by commas. Frames that claim others are dropped, by their source, in ARP
    /// or in Neighbour Discovery, and so are other protocols than IPv4, IPv6 and ARP. Beside IPv6
    /// addresses the link-local one is allowed that is made of the MAC address
    #[arg(long, value_name = "LIST", value_parser = value_parser!(IpSets))]
    pub ip: Option<IpSets>,
    /// Drop what only DHCP servers and routers send: replies of DHCP and DHCPv6 servers, and router
    /// advertisements and redirects
    #[arg(long)]
    pub no_dhcp_server: bool,
    /// The VM may use any address that no other port of the segment has or lists, or has by the
    /// segment's pins, up to 64 at a time, and gets the frames for them: for guests that bridge or
    /// run other VMs. Only root and the owner of the segment's directory may run such a port
    #[arg(long)]
    pub trunk: bool,
    /// Maximum size of an IP packet, without the Ethernet header of 14 bytes: 68 to 65535. All
    /// ports of a segment should have the same
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = parse_mtu)]
    pub mtu: u16,
    /// Number of queue pairs offered to the VM, 1 to 64. A thread serves each pair. User Mode Linux
    /// supports only 1
    #[arg(long, value_name = "PAIRS", default_value_t = 1,
          value_parser = value_parser!(u16).range(1..=i64::from(MAX_QUEUE_PAIRS)))]
    pub queues: u16,
    /// Maximum size of a queue that the VMM may choose, in descriptors: a power of two from 2 to
    /// 32K
    #[arg(long, value_name = "ENTRIES", default_value = "1K", value_parser = parse_queue_size)]
    pub queue_size: u16,
    /// Maximum size of a ring, the shared memory that carries frames from one queue pair to one
    /// peer, in either direction: a power of two from 256K to 64M. A ring starts with 64K and grows
    /// when it fills
    #[arg(long, value_name = "BYTES", default_value = "512K", value_parser = parse_ring_size)]
    pub ring_size: u32,
    /// Time in seconds without frames to a peer after which the port gives back the ring to it
    #[arg(long, value_name = "SECONDS", default_value_t = 60, hide = true,
          value_parser = value_parser!(u32).range(1..))]
    pub link_idle: u32,
    /// Limits of what peers and links may take.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Limits of what the VM sends and gets.
    #[command(flatten)]
    pub rate_limits: RateLimitArgs,
    /// Maximum time in microseconds that a queue thread busy-polls before it sleeps, 0 to 200. It
    /// busy-polls only if frames have arrived within that time and, by /proc/schedstat, no other
    /// thread waits for its CPU. 0 turns it off; it is also off if that file does not exist
    #[arg(long, value_name = "MICROSECONDS",
          default_value_t = BusyPollConfig::default().limit.as_micros() as u16,
          value_parser = value_parser!(u16).range(0..=200))]
    pub busy_poll: u16,
    /// Tap device by which the VM reaches everything that is no port of the segment: an existing
    /// device by its name, or descriptors that are attached to one, one for each queue pair. The
    /// device keeps its place on its bridge or switch. Its MTU must not be smaller than the port's
    #[arg(long, value_name = "tap=NAME|tap-fd=N[:N...]")]
    pub uplink: Option<UplinkArg>,
    /// Whether the uplink's switch takes partial checksums and unsegmented frames from the device,
    /// as the kernel's bridges do. off, as Open vSwitch's userspace datapath needs it: the port
    /// completes checksums and segments frames for the device; links keep the offloads
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = parse_switch,
          action = ArgAction::Set)]
    pub uplink_offload: bool,
    /// Name of the network behind the uplink, in the syntax of --id. Ports whose uplinks are on one
    /// network receive each other's broadcasts by it, and all others by shared memory
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NETWORK)]
    pub network: PortId,
    /// Unix socket that serves the state of the port as JSON: frontend, peers, counters. Only this
    /// user and root can connect
    #[arg(long, value_name = "PATH", value_parser = socket_path_parser())]
    pub status_socket: Option<PathBuf>,
    /// User to become as soon as the sockets are bound and the tap device is open, by name or
    /// number, with its groups, or with GROUP in place of its own. Only root can. The port joins
    /// its segment as that user, which owns the sockets then; to remove and restore them it needs
    /// to be able to write to their directories, and it can open a tap device again that is its own
    /// or nobody's
    #[arg(long, value_name = "NAME[:GROUP]")]
    pub user: Option<User>,
    /// What the process gives up when it starts.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

impl PortArgs {
    /// The path on which the port itself listens.
    pub fn own_socket(&self) -> Option<&Path> {
        self.socket.as_deref().filter(|_| !self.client)
    }

    /// The users that may connect to the socket.
    pub fn socket_access(&self) -> SocketAccess {
        SocketAccess {
            group: self.socket_group,
            mode: self.socket_mode,
            owner: owner(self.user.as_ref()),
        }
    }

    /// The port's properties for its segment.
    pub fn local_port(&self) -> LocalPort {
        LocalPort {
            id: self.id.clone(),
            mac: self.mac,
            mtu: self.mtu,
            queues: self.queues,
            ring_capacity: self.ring_size,
            uplinks: Uplinks {
                network: self.uplink.is_some().then(|| self.network.clone()),
                shared: None,
            },
            allowed: self.allow_mac.clone().unwrap_or_default(),
            guard: Guard {
                ips: self.ip.clone().unwrap_or_default(),
                no_dhcp_server: self.no_dhcp_server,
            },
            trunk: self.trunk,
        }
    }

    /// Time after which rings are given back on which nothing was sent.
    pub fn link_idle(&self) -> Duration {
        Duration::from_secs(self.link_idle.into())
    }

    /// The configuration of the device's workers.
    pub fn config(&self) -> PortConfig {
        PortConfig {
            busy_poll: BusyPollConfig {
                limit: Duration::from_micros(self.busy_poll.into()),
                ..BusyPollConfig::default()
            },
            rate_limits: self.rate_limits.limits(),
        }
    }
}

/// Network of an uplink that names none.
const DEFAULT_NETWORK: &str = "default";

/// One line for each paragraph: clap wraps them.
const UPLINK_HELP: &str = "\
Ports without an uplink of their own send through it broadcasts, and all frames to addresses that \
no port of the segment has. A frame that arrives by it goes to the port with its address. If a \
segment has several uplinks, the one with the highest priority is active, and another takes over \
when it ends. Only root and the owner of the segment's directory may run one.

Exit status: 0 after SIGTERM, SIGINT or SIGHUP, 1 if the uplink cannot run, 2 if the command line \
is wrong.";

/// Options of `virtio-inter uplink`.
#[derive(Debug, Clone, Args)]
pub struct UplinkArgs {
    /// Segment to serve, as for a port
    #[arg(long, value_name = "NAME|DIR", value_parser = segment_parser())]
    pub segment: PathBuf,
    /// Name of the uplink, unique among the segment's ports and uplinks
    #[arg(long, value_name = "NAME")]
    pub id: PortId,
    /// Existing tap device on the other network
    #[arg(long, value_name = "NAME", value_parser = parse_tap,
          required_unless_present = "tap_fd", conflicts_with = "tap_fd")]
    pub tap: Option<UplinkArg>,
    /// Descriptors that are attached to the tap device, one for each queue, instead of its name
    #[arg(long, value_name = "N[:N...]", value_parser = parse_tap_fd)]
    pub tap_fd: Option<UplinkArg>,
    /// Whether the device's switch takes partial checksums and unsegmented frames, as for a port
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = parse_switch,
          action = ArgAction::Set)]
    pub uplink_offload: bool,
    /// Number of queues of the device, 1 to 64. A thread serves each
    #[arg(long, value_name = "QUEUES", default_value_t = 1,
          value_parser = value_parser!(u16).range(1..=i64::from(MAX_QUEUE_PAIRS)))]
    pub queues: u16,
    /// The uplink with the highest priority on the segment is active; among equals, the first by
    /// name
    #[arg(long, default_value_t = 100)]
    pub priority: u16,
    /// Name of the network, as for a port
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NETWORK)]
    pub network: PortId,
    /// Maximum size of an IP packet, as for a port: 68 to 65535
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = parse_mtu)]
    pub mtu: u16,
    /// Size of the rings, as for a port
    #[arg(long, value_name = "BYTES", default_value = "512K", value_parser = parse_ring_size)]
    pub ring_size: u32,
    /// Limits of what peers and links may take.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Unix socket that serves the state of the uplink as JSON
    #[arg(long, value_name = "PATH", value_parser = socket_path_parser())]
    pub status_socket: Option<PathBuf>,
    /// User to become as soon as the tap device is open, as for a port. It must own the segment's
    /// directory
    #[arg(long, value_name = "NAME[:GROUP]")]
    pub user: Option<User>,
    /// What the process gives up when it starts.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

impl UplinkArgs {
    /// The device.
    pub fn device(&self) -> UplinkArg {
        let device = self.tap.clone().or_else(|| self.tap_fd.clone());
        device.unwrap_or_else(|| UplinkArg::TapFd(Vec::new()))
    }

    /// What the uplink says of itself.
    pub fn uplinks(&self) -> Uplinks {
        Uplinks {
            network: Some(self.network.clone()),
            shared: Some(self.priority),
        }
    }

    /// The uplink as its segment is to know it. It has an address like any port, to which nobody
    /// sends.
    pub fn local_port(&self) -> LocalPort {
        let [a, b, c, d, e, ..] = RandomState::new().hash_one(&self.id).to_ne_bytes();
        // Locally administered.
        let mac = MacAddr::new([0x02, a, b, c, d, e]);
        LocalPort {
            mtu: self.mtu,
            queues: self.queues,
            ring_capacity: self.ring_size,
            uplinks: self.uplinks(),
            ..LocalPort::new(self.id.clone(), mac)
        }
    }

    /// Whether and how long its threads busy-poll.
    pub fn busy_poll(&self) -> BusyPollConfig {
        BusyPollConfig::default()
    }
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off is needed".to_owned()),
    }
}

fn parse_tap(text: &str) -> Result<UplinkArg, String> {
    format!("tap={text}").parse()
}

fn parse_tap_fd(text: &str) -> Result<UplinkArg, String> {
    format!("tap-fd={text}").parse()
}

/// Parses a command line, the program's name first.
///
/// # Errors
/// clap's errors; also for `--help` and `--version`, whose texts the caller prints.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches_from(with_subcommand(arguments))?;
    let cli = Cli::from_arg_matches(&matches)?;
    if let Command::Port(PortArgs { user, .. }) | Command::Uplink(UplinkArgs { user, .. }) =
        &cli.command
        && let Some(user) = user
        && !geteuid().is_root()
    {
        let text = format!(
            "invalid value '{user}' for '--user <NAME[:GROUP]>': only root can become another user"
        );
        return Err(Cli::command().error(ErrorKind::ValueValidation, text));
    }
    if let Command::Port(port) = &cli.command
        && let Err((option, reason)) = port.rate_limits.check()
    {
        let text = format!("invalid values for '{option}': {reason}");
        return Err(Cli::command().error(ErrorKind::ValueValidation, text));
    }
    if let Command::Port(port) = &cli.command
        && !port.uplink_offload
        && port.uplink.is_none()
    {
        let text = "invalid value 'off' for '--uplink-offload <on|off>': the port has no uplink \
                    (--uplink)";
        return Err(Cli::command().error(ErrorKind::ValueValidation, text));
    }
    let is_given = |option: &str| {
        let command = matches.subcommand();
        command.is_some_and(|(_, of)| of.value_source(option) == Some(ValueSource::CommandLine))
    };
    if let Command::Port(port) = &cli.command
        && port.uplink.is_none()
        && is_given("network")
    {
        let text = format!(
            "invalid value '{}' for '--network <NAME>': the port has no uplink (--uplink)",
            port.network
        );
        return Err(Cli::command().error(ErrorKind::ValueValidation, text));
    }
    if let Command::Port(port) = &cli.command
        && let Some(allowed) = &port.allow_mac
        && allowed.exact().any(|address| address == port.mac)
    {
        let text = format!(
            "invalid value '{allowed}' for '--allow-mac <LIST>': {} is the port's own address \
             (--mac)",
            port.mac
        );
        return Err(Cli::command().error(ErrorKind::ValueValidation, text));
    }
    Ok(cli)
}

/// The name of a link to the program that is `virtio-inter port`: management software that follows
/// QEMU's conventions of vhost-user back-ends knows no subcommands.
const PORT_PROGRAM: &str = "virtio-inter-port";

/// The command line of `virtio-inter port`, if the program was called by that link.
fn with_subcommand(
    arguments: impl IntoIterator<Item = OsString>,
) -> impl Iterator<Item = OsString> {
    let mut arguments = arguments.into_iter();
    let program = arguments.next();
    let name = program
        .as_ref()
        .and_then(|path| Path::new(path).file_name());
    let subcommand = (name == Some(OsStr::new(PORT_PROGRAM))).then(|| "port".into());
    program.into_iter().chain(subcommand).chain(arguments)
}

/// The text of an error; one line for a wrong value.
pub fn explain(error: &clap::Error) -> String {
    let text = error.render().to_string();
    match error.kind() {
        // The following lines refer to --help, which does not help with a wrong value.
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            text.lines().next().unwrap_or_default().to_owned()
        }
        _ => text.trim_end().to_owned(),
    }
}

/// Checks a socket's path, and makes it absolute for logs and the status document if that is not
/// too long.
fn socket_path_parser() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|text| {
        let path = PathBuf::from(text);
        check_socket_path(&path)?;
        let whole = absolute(&path);
        Ok::<_, SocketPathError>(if check_socket_path(&whole).is_ok() {
            whole
        } else {
            path
        })
    })
}

fn segment_parser() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|text| segment_directory(&text))
}

fn parse_fd(text: &str) -> Result<RawFd, String> {
    let number = text.parse().ok().filter(|number| *number > 2);
    number.ok_or_else(|| "a descriptor from 3 on is needed".to_owned())
}

fn parse_mtu(text: &str) -> Result<u16, String> {
    let size = parse_size(text).map_err(|error| error.to_string())?;
    u16::try_from(size)
        .ok()
        .filter(|mtu| *mtu >= MIN_MTU)
        .ok_or_else(|| format!("{text} is not in {MIN_MTU}..={}", u16::MAX))
}

fn parse_queue_size(text: &str) -> Result<u16, String> {
    parse_power_of_two(text, 2, MAX_QUEUE_SIZE.into())?
        .try_into()
        .map_err(|_| String::new())
}

fn parse_ring_size(text: &str) -> Result<u32, String> {
    parse_power_of_two(
        text,
        virtio_inter_link::MIN_CAPACITY,
        virtio_inter_link::MAX_CAPACITY,
    )
}

fn parse_power_of_two(text: &str, min: u32, max: u32) -> Result<u32, String> {
    let size = parse_size(text).map_err(|error| error.to_string())?;
    u32::try_from(size)
        .ok()
        .filter(|size| size.is_power_of_two() && (min..=max).contains(size))
        .ok_or_else(|| {
            let (min, max) = (format_size(min.into()), format_size(max.into()));
            format!("a power of two from {min} to {max} is needed")
        })
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
