//! What a sender left to its device, done in software for a receiver that did not negotiate to take it: checksums
//! completed, TCP and UDP cut into segments.
//!
//! No queues, no links, no shared memory: everything here works on private bytes. `worker/adapt.rs` brings them.
//! Where there is a choice the result is the Linux kernel's, to which `tests/kernel/` holds it
//! (`docs/decisions/0030-offloads-at-the-receiver.md`).

mod checksum;
mod layout;
mod segment;

pub(crate) use checksum::complete;
pub(crate) use layout::{Ip, Layout, MAX_HEADERS};
pub(crate) use segment::Segments;
