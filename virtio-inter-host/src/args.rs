//! Options of the commands that look at all ports of a host.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};

use virtio_inter_args::{Group, Owner};
use virtio_inter_device::MIN_SNAPLEN;
use virtio_inter_sandbox::SandboxArgs;

use crate::listen_addr::ListenAddr;
use crate::segment_mode::SegmentMode;

/// Bytes of the longest frame: Ethernet header, two VLAN tags, and a packet of the largest MTU.
pub(crate) const MAX_FRAME: u32 = 65_557;
/// Bytes of a frame that can be asked for.
const SNAPLENS: RangeInclusive<i64> = MIN_SNAPLEN as i64..=MAX_FRAME as i64;
/// Bytes of each frame that are captured: the headers, as far as there are usual ones.
pub(crate) const DEFAULT_SNAPLEN: u32 = 256;

/// The segments and ports that a command is about.
#[derive(Debug, Clone, Args)]
pub struct Places {
    /// Segment, by name or directory as for a port; or one port of it: SEGMENT/PORT. All segments
    /// of /run/virtio-inter if none is given
    #[arg(value_name = "SEGMENT[/PORT]")]
    pub places: Vec<OsString>,
}

/// Options of `virtio-inter list`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// The segments and ports.
    #[command(flatten)]
    pub places: Places,
    /// Print JSON: the ports' status documents
    #[arg(long)]
    pub json: bool,
}

/// Options of `virtio-inter show`.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// The segments and ports.
    #[command(flatten)]
    pub places: Places,
    /// Print JSON: the ports' status documents
    #[arg(long)]
    pub json: bool,
}

/// Options of `virtio-inter check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// The segments and ports.
    #[command(flatten)]
    pub places: Places,
    /// Print JSON: a list of findings
    #[arg(long)]
    pub json: bool,
}

/// Options of `virtio-inter top`.
#[derive(Debug, Clone, Args)]
pub struct TopArgs {
    /// The segments and ports.
    #[command(flatten)]
    pub places: Places,
    /// Time in seconds between two readings
    #[arg(long, short = 'd', value_name = "SECONDS", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub interval: u32,
    /// End after that many intervals
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Print JSON, one document on a line for each interval, and need no terminal
    #[arg(long)]
    pub json: bool,
}

/// Options of `virtio-inter ping`.
#[derive(Debug, Clone, Args)]
pub struct PingArgs {
    /// The port
    #[arg(value_name = "SEGMENT/PORT")]
    pub port: OsString,
    /// Number of questions
    #[arg(long, short = 'c', value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,
    /// Time in seconds between two questions
    #[arg(long, short = 'i', value_name = "SECONDS", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub interval: u32,
    /// Print JSON, one document on a line for each question
    #[arg(long)]
    pub json: bool,
}

/// Commands of `virtio-inter segment`.
#[derive(Debug, Clone, Subcommand)]
pub enum SegmentCommand {
    /// Make the directory of a segment, for root's ports alone or for those of a group's members
    Create(CreateArgs),
    /// Remove a segment on which no port lives, with the files of ports that were killed
    Delete(DeleteArgs),
    /// List the segments of /run/virtio-inter, one per line
    List(SegmentListArgs),
}

/// A value, and how it was written.
#[derive(Debug, Clone)]
pub struct Given<T> {
    /// The value.
    pub value: T,
    /// As it was written.
    pub text: String,
}

impl<T: FromStr> FromStr for Given<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        Ok(Self {
            value: text.parse()?,
            text: text.to_owned(),
        })
    }
}

/// Options of `virtio-inter segment create`.
#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    /// Segment, by name or directory as for a port. /run is empty after a boot: for a segment that
    /// stays, write the printed line to a file in /etc/tmpfiles.d
    #[arg(value_name = "NAME|DIR")]
    pub segment: OsString,
    /// User, by name or number, who is to own the segment instead of the caller, which only root
    /// can do. An uplink that ports share, and a trunk, run as root or as that user
    #[arg(long, value_name = "USER")]
    pub owner: Option<Given<Owner>>,
    /// Group, by name or number, whose members' ports may join: mode 3770 instead of 0700
    #[arg(long, value_name = "GROUP")]
    pub group: Option<Given<Group>>,
    /// Another mode, octal. Other users than the owner may write only with the sticky bit, as in
    /// 3770, and never all users
    #[arg(long, value_name = "MODE")]
    pub mode: Option<SegmentMode>,
}

/// Options of `virtio-inter segment delete`.
#[derive(Debug, Clone, Args)]
pub struct DeleteArgs {
    /// Segment, by name or directory as for a port
    #[arg(value_name = "NAME|DIR")]
    pub segment: OsString,
}

/// Options of `virtio-inter segment list`.
#[derive(Debug, Clone, Args)]
pub struct SegmentListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `virtio-inter events`.
#[derive(Debug, Clone, Args)]
pub struct EventsArgs {
    /// The segments and ports.
    #[command(flatten)]
    pub places: Places,
    /// Time in milliseconds between two questions to all ports: what is over by the next one is not
    /// seen
    #[arg(long, value_name = "MS", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(10..=3_600_000))]
    pub interval: u32,
}

/// Options of `virtio-inter exporter`.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("where").required(true).args(["listen", "textfile"]))]
pub struct ExporterArgs {
    /// The segments and ports.
    #[command(flatten)]
    pub places: Places,
    /// Address on which to serve http://ADDR:PORT/metrics, or a Unix socket. There is no access
    /// control on an IP address: choose one that only your Prometheus reaches
    #[arg(long, value_name = "ADDR:PORT|unix:PATH")]
    pub listen: Option<ListenAddr>,
    /// Directory of the node exporter's textfile collector: the file virtio-inter.prom in it is
    /// replaced again and again
    #[arg(long, value_name = "DIR")]
    pub textfile: Option<PathBuf>,
    /// Time in seconds between two versions of the file
    #[arg(long, value_name = "SECONDS", default_value_t = 15, conflicts_with = "listen",
          value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub interval: u32,
    /// Write the file once, and end
    #[arg(long, conflicts_with_all = ["listen", "interval"])]
    pub once: bool,
    /// Also serve what each port exchanged with each of its peers: nine lines for a port and peer.
    /// 256 ports of one segment have 65,280 such pairs, more than most Prometheus servers should
    /// get from one host
    #[arg(long)]
    pub peers: bool,
    /// What the process gives up before it answers.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// Options of `virtio-inter capture`.
#[derive(Debug, Clone, Args)]
pub struct CaptureArgs {
    /// Port whose frames are captured. Those of several ports come into one file, in the order of
    /// time
    #[arg(value_name = "SEGMENT/PORT", required = true)]
    pub ports: Vec<OsString>,
    /// File to write, in the format pcapng; - for standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub write: PathBuf,
    /// Bytes of each frame that are captured, from its Ethernet header on. More slow the port down
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_SNAPLEN,
          value_parser = clap::value_parser!(u32).range(SNAPLENS))]
    pub snaplen: u32,
    /// Capture only frames that this expression is true of, as in pcap-filter(7): tcpdump
    /// translates it. Or a program as `tcpdump -ddd` prints it, with commas in place of line ends
    #[arg(long, value_name = "EXPRESSION")]
    pub filter: Option<String>,
    /// Capture only frames from the guest (tx) or for it (rx)
    #[arg(long, value_enum, default_value_t = CaptureDirection::Both)]
    pub direction: CaptureDirection,
    /// Capture only frames that were lost, with the reason
    #[arg(long)]
    pub drops: bool,
    /// End after so many frames
    #[arg(short, long, value_name = "FRAMES",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// Which frames are captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CaptureDirection {
    /// All.
    Both,
    /// From the guest.
    Tx,
    /// For the guest.
    Rx,
}

impl CaptureDirection {
    /// Whether frames from the guest are captured.
    pub fn has_transmit(self) -> bool {
        self != CaptureDirection::Rx
    }

    /// Whether frames for the guest are captured.
    pub fn has_receive(self) -> bool {
        self != CaptureDirection::Tx
    }
}

/// Options of `virtio-inter extcap`, as Wireshark gives them.
#[derive(Debug, Clone, Args)]
pub struct ExtcapArgs {
    /// The segments and ports to offer.
    #[command(flatten)]
    pub places: Places,
    /// Print the ports
    #[arg(long)]
    pub extcap_interfaces: bool,
    /// Version of Wireshark; of no consequence
    #[arg(long, value_name = "VERSION")]
    pub extcap_version: Option<String>,
    /// The port: SEGMENT/PORT
    #[arg(long, value_name = "SEGMENT/PORT")]
    pub extcap_interface: Option<OsString>,
    /// Print the type of its frames
    #[arg(long)]
    pub extcap_dlts: bool,
    /// Print the options of a capture
    #[arg(long)]
    pub extcap_config: bool,
    /// Capture
    #[arg(long, requires_all = ["fifo", "extcap_interface"])]
    pub capture: bool,
    /// Where the frames go
    #[arg(long, value_name = "PATH")]
    pub fifo: Option<PathBuf>,
    /// As --filter of `virtio-inter capture`; without --capture, it is only checked
    #[arg(long, value_name = "EXPRESSION")]
    pub extcap_capture_filter: Option<String>,
    /// As for `virtio-inter capture`
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_SNAPLEN,
          value_parser = clap::value_parser!(u32).range(SNAPLENS))]
    pub snaplen: u32,
    /// As for `virtio-inter capture`
    #[arg(long, value_enum, default_value_t = CaptureDirection::Both)]
    pub direction: CaptureDirection,
    /// As for `virtio-inter capture`
    #[arg(long)]
    pub drops: bool,
}
