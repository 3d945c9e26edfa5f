//! Guests that reach the network of their host: ports with uplinks on a Linux bridge or on Open
//! vSwitch, hosts joined by VXLAN, uplinks that ports share, and addresses that move between
//! guests, all in network namespaces.
#![forbid(unsafe_code)]

mod addresses;
mod engines;
mod host;
mod shared;
