//! The launcher with real ports and a stand-in for Cloud Hypervisor, which writes its arguments to
//! a file and waits. `real.rs` uses the real one that the variable `CLOUD_HYPERVISOR` names.
#![forbid(unsafe_code)]

mod bad_input;
mod control;
mod files;
mod frontend;
mod harness;
mod life;
mod logging;
mod pass_on;
mod real;
mod stored_connection;
mod uplink;
mod usage;
mod walls;
