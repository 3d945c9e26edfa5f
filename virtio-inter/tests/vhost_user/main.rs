//! The vhost-user door against a mock device: the orders in which frontends talk, and everything
//! that is wrong.

mod crate_frontend;
mod malformed;
mod memory;
mod migration;
mod mock;
mod nonsense;
mod orders;
mod queues;
mod resumed;
mod rig;
