//! Guests that reach the network of their host: ports with uplinks on a Linux bridge or on Open
//! vSwitch, hosts joined by VXLAN, uplinks that ports share, addresses that move between guests,
//! guests that move to another host, and ports of an ordinary user, all in network namespaces.
#![forbid(unsafe_code)]

mod addresses;
mod engines;
mod guest_bridge;
mod host;
mod migration;
mod networkd;
mod offloads;
mod protocols;
mod rootless;
mod shared;
