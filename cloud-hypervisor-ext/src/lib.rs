//! Cloud Hypervisor with one more flag: `--inter-vm`, a network device whose frames go to other VMs through shared
//! memory.
//!
//! The program starts a `virtio-inter port` for each such device, then a stock `cloud-hypervisor`, told of the ports
//! as vhost-user network devices, and stays as their supervisor:
//!
//! 1. `command_line`, `inter_vm`, `device`, `options`, `memory`, `identity`, `snapshot`: what was asked for, and what Cloud
//!    Hypervisor is to be told;
//! 2. `programs`, `help`: the stock program, as it is;
//! 3. `child`, `closer`, `fd_store`, `port`, `supervisor`: the processes, from their start to their end;
//! 4. `protocol`, `control`, `vm_directory`: how `ch-remote-ext` finds the supervisor and asks it for more ports.
//!
//! Why a launcher and not a fork of Cloud Hypervisor: decision 0015.

pub mod child;
pub mod closer;
pub mod command_line;
pub mod control;
pub mod device;
pub mod fd_store;
pub mod help;
pub mod identity;
pub mod inter_vm;
pub mod memory;
pub mod options;
pub mod port;
pub mod programs;
pub mod protocol;
pub mod report;
pub mod signals;
pub mod snapshot;
pub mod start;
pub mod supervisor;
pub mod upkeep;
pub mod vm_directory;
