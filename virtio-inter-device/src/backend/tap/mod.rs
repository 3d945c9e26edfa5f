//! A tap device as the device of an uplink. Frames move straight between the kernel and the guest's
//! memory, by one system call each.

mod device;
mod queue;
mod sys;

pub use device::{TapDevice, TapError, TapState};
