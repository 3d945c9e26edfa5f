//! The plug-in with real ports, called as a container runtime calls it: the call in environment
//! variables, the network configuration on standard input. A script stands in for IPAM, others for
//! systemd.
#![forbid(unsafe_code)]

mod add;
mod bad_input;
mod del;
mod failures;
mod harness;
mod others;
mod systemd;
