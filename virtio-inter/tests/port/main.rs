//! The real program: its command line, its files, its signals, and what connects to it.

mod frontends;
mod lifecycle;
mod logging;
mod process;
mod status;
mod usage;
