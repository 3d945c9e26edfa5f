//! The real program: its command line, its files, its signals, and what connects to it.

mod capture;
mod client;
mod dumps;
mod fds;
mod files;
mod frontends;
mod guest;
mod host;
mod lifecycle;
mod limits;
mod link_memory;
mod links;
mod logging;
mod many;
mod members;
mod memory;
mod modes;
mod process;
mod sandbox;
mod second;
mod status;
mod trunk;
mod uplink;
mod uplink_misuse;
mod usage;
mod warnings;
