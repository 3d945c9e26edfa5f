//! Options of the commands that look at all ports of a host.

use std::ffi::OsString;

use clap::Args;

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
