//! The real program against a real launcher with real ports. In Cloud Hypervisor's place a process
//! that waits, and a REST server that answers as Cloud Hypervisor does; where the variable
//! `CLOUD_HYPERVISOR` names the real one, that too (`real.rs`).
#![forbid(unsafe_code)]

mod bad_input;
mod devices;
mod harness;
mod pass_on;
mod real;
mod rest;
mod snapshot;
mod usage;
