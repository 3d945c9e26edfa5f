//! Cloud Hypervisor with one more flag: `--inter-vm`, a network device that exchanges frames with
//! other VMs through shared memory.
//!
//! The program starts a `virtio-inter port` for each such device, then a stock `cloud-hypervisor`
//! with the ports as vhost-user network devices, and stays as their supervisor:
//!
//! 1. `command_line`, `inter_vm`, `options`, `device`, `device_factory`, `identity`,
//!    `shared_memory`, `snapshot`: from the user's arguments to the devices and Cloud Hypervisor's
//!    arguments;
//! 2. `programs`, `help`: the stock program;
//! 3. `start`, `child`, `fd_store`, `deferred_close`, `port`, `signals`, `supervisor`: the
//!    processes, from their start to their end;
//! 4. `control_protocol`, `control`, `vm_directory`, `restore_backoff`: how `ch-remote-ext` finds
//!    the supervisor and asks it for more ports.
//!
//! Decision 0015 says why this is a launcher and not a fork of Cloud Hypervisor.

pub mod child;
pub mod command_line;
pub mod control;
pub mod control_protocol;
pub mod deferred_close;
pub mod device;
pub mod device_factory;
pub mod fd_store;
pub mod help;
pub mod identity;
pub mod inter_vm;
pub mod options;
pub mod port;
pub mod port_limits;
pub mod programs;
pub mod rate_limits;
pub mod report;
pub mod restore_backoff;
pub mod sandbox_mode;
pub mod shared_memory;
pub mod signals;
pub mod snapshot;
pub mod start;
pub mod supervisor;
pub mod vm_directory;
