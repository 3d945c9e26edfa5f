//! Walls around a process that goes on starting programs, which cannot be confined to files and
//! calls of its own: they inherit what it gives up. See decision 0111.

use libc::c_long;
use rustix::thread::CapabilitySet;

use crate::mode::Mode;
use crate::privileges;
use crate::report::{Report, Wall};
use crate::seccomp;

/// What ports of root need, or give up themselves: files of others, their tap device, their own
/// bounding set; and to signal processes.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::SETPCAP);

/// Builds the walls around this process, its threads, and the processes that it starts from now on:
/// no new privileges, and no system calls that neither it nor a port has a use for, which fail with
/// EPERM. The calling thread, and what it starts, has no capabilities that neither needs.
pub fn restrict_supervisor() -> Report {
    let mut report = Report {
        mode: Mode::On,
        ..Report::default()
    };
    let why = |error: std::io::Error| error.to_string();
    report.add(Wall::NoNewPrivileges, privileges::forbid_new().map_err(why));
    report.add(Wall::Capabilities, privileges::keep(KEPT).map_err(why));
    let calls = seccomp::refuse(REFUSED).map_err(|error| error.to_string());
    report.add(Wall::SystemCalls, calls);
    report
}

/// Calls of debuggers, containers, other kernels' features and administrators.
pub const REFUSED: &[c_long] = &[
    // Memory and descriptors of other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    // Parts of the kernel that programs can have run code for them.
    libc::SYS_bpf,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    // Keys.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Namespaces and mounts.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    // The host.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_vhangup,
];
