//! Tests of a port through its rings and links, as a guest and as peers see it. One file for each
//! theme; one program for all, as most tests wait more than they work.

#[path = "../driver/mod.rs"]
mod driver;

mod allowed;
mod back_pressure;
mod backends;
mod busy_poll;
mod capture;
mod delivery;
mod dirty_log;
mod disabled;
mod drops;
mod features;
mod forwarding;
mod fuzz_seeds;
mod guard;
mod headers;
mod hostile_driver;
mod hostile_peer;
mod indirect;
mod mergeable;
mod model;
mod multi_queue;
mod notifications;
mod offload;
mod rate_limits;
mod resume;
mod rings;
mod small_buffers;
