//! Guests of libvirt, with the XML of docs/libvirt.md.

mod daemon;
mod domain;
mod page;
mod relay;

pub use daemon::Libvirt;
pub use page::{interface_of_client, interface_of_server};
