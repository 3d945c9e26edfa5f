//! Boots real guests: the harness by which tests and the demo drive them.
//!
//! A [`Testbed`] is the directory and the clean-up of one test. It holds [`Segment`]s, [`Port`]s,
//! [`Bridge`]s and [`Vm`]s, whatever runs the guest. Commands run in guests through an agent
//! ([`Vm::run`], [`Vm::spawn`]); [`tools`] has the usual ones with their results parsed. Every wait
//! has a limit, and every process ends with its owner, also on panic and Ctrl-C. `README.md` beside
//! the manifest shows how to write a test.

mod agent;
mod bridge;
mod cgroupfs;
mod cleanup;
mod cloud_hypervisor;
mod control_group;
pub mod cpio;
mod deadline;
mod dump;
mod group;
mod images;
mod inside;
mod kvm;
mod launcher;
pub mod libvirt;
mod mac;
mod machine;
mod migration;
pub mod mock_vm;
mod monitor;
mod nic;
mod offloads;
mod open_vswitch;
mod ovn;
mod parts;
mod port;
mod process;
mod qemu;
mod segment;
mod shared_uplink;
pub mod soak;
mod supplies;
mod testbed;
pub mod testpmd;
pub mod tools;
mod uml;
mod vm;
mod vm_config;
mod vmm;
mod wait;
pub mod xdp;

pub use agent::{Job, Output};
pub use bridge::{Bridge, Tap};
pub use cleanup::stop_here_if_ending;
pub use control_group::{ControlGroup, ControlGroups, Hierarchy};
pub use group::Group;
pub use images::{Kernel, port_program, promtool};
pub use inside::is_inside;
pub use mac::Mac;
pub use machine::{Machine, cloud_hypervisor_test};
pub use nic::{Backend, Nic};
pub use offloads::Offloads;
pub use parts::Parts;
pub use port::{Counters, Port, PortConfig};
pub use process::Process;
pub use segment::Segment;
pub use shared_uplink::SharedUplink;
pub use supplies::Supplies;
pub use testbed::{Testbed, guest_test, is_root};
pub use virtio_inter_test_support::{note, skip};
pub use vm::{Vm, runs_stock_kernels as kvm_runs_stock_kernels};
pub use vm_config::{Frontend, VmConfig};
pub use vmm::program as cloud_hypervisor_program;
pub use wait::until;

/// Why something on a testbed failed, with its context.
pub type Result<T> = anyhow::Result<T>;
