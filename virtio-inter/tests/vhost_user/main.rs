//! The vhost-user backend with a mock device: the orders of requests of each frontend, and
//! everything that is wrong.

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
