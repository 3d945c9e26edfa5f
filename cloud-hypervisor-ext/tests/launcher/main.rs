//! The real launcher with real ports. In Cloud Hypervisor's place a stand-in that notes its
//! arguments and waits; where the variable `CLOUD_HYPERVISOR` names the real one, that too
//! (`real.rs`).
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
