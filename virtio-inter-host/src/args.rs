//! Options of the commands that look at all ports of a host.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::listen_addr::ListenAddr;

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
