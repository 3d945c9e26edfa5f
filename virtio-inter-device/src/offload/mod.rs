//! Software fallback for offloads that a guest did not negotiate: completes checksums, and cuts TCP
//! and UDP into segments.
//!
//! No queues and no links: everything here works on private bytes. Where there is a choice, the
//! result is that of the Linux kernel, to which `tests/kernel/` compares it (decision 0030).

mod checksum;
mod layout;
mod plan;
mod segment;

pub(crate) use layout::{Layout, MAX_HEADERS};
pub(crate) use plan::{DHCP_SERVER, RxAction, RxLimits, SoftwareOffload};
pub(crate) use segment::GsoSegments;
