//! Options of the commands that look at all ports of a host.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use virtio_inter_args::Group;

use crate::listen_addr::ListenAddr;
use crate::segment_mode::SegmentMode;

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

/// Options of `virtio-inter segment create`.
#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    /// Segment, by name or directory as for a port. /run is empty after a boot: for a segment that
    /// stays, write the printed line to a file in /etc/tmpfiles.d
    #[arg(value_name = "NAME|DIR")]
    pub segment: OsString,
    /// Group, by name or number, whose members' ports may join: mode 3770 instead of 0700
    #[arg(long, value_name = "GROUP")]
    pub group: Option<Group>,
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
}
